#!/usr/bin/env bash
# One process of a run under `srun`: tells it who it is, and becomes it.
#
# There is no launcher in between, so a signal that Slurm sends to the job step reaches every process exactly once. (A
# launcher would pass it on a second time, and the second signal ends a process at once, before its state is saved.)
set -euo pipefail

export RANK=$SLURM_PROCID
export LOCAL_RANK=$SLURM_LOCALID
export WORLD_SIZE=$SLURM_NTASKS
export LOCAL_WORLD_SIZE=${SLURM_NTASKS_PER_NODE:-$SLURM_NTASKS}
exec "${PYTHON:-python}" -m ham10000.training.train "$@"
