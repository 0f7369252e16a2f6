#!/usr/bin/env bash
# Trains on several GPUs of this machine (or, without a GPU, in several processes on its CPU), and goes on where an
# earlier call was stopped: run the same line again after Ctrl-C, SIGTERM, a crash or a reboot.
#
#   PROCESSES=4 bash examples/multi_process.sh --modality fusion --data HAM10000/ --output_dir runs/fusion
#
# All arguments are those of `ham10000-train`; --output_dir is required. --batch_size counts the samples of a step over
# all processes, so their number is a matter of speed and not of the result (but for batch norm and dropout).
set -euo pipefail

PROCESSES=${PROCESSES:-2}
PYTHON=${PYTHON:-python}

output_dir=
for ((i = 1; i <= $#; i++)); do
    if [[ ${!i} == --output_dir ]]; then j=$((i + 1)); output_dir=${!j:-}; fi
    if [[ ${!i} == --output_dir=* ]]; then output_dir=${!i#*=}; fi
done
if [[ -z $output_dir ]]; then
    echo "error: give --output_dir, the folder of the run" >&2
    exit 2
fi
resume=()
# Also before the first saved state: then --resume starts again.
if [[ -e $output_dir/train_config.json || -e $output_dir/.new_run/train_config.json ]]; then resume=(--resume); fi

# `--multi_gpu` is Accelerate's name for one process a device; without GPUs they talk through gloo on the CPU.
exec "$PYTHON" -m accelerate.commands.launch --multi_gpu --num_processes "$PROCESSES" --num_machines 1 \
    --mixed_precision no --dynamo_backend no --main_process_port 0 \
    -m ham10000.training.train "$@" ${resume[@]+"${resume[@]}"}
