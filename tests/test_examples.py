"""The example scripts as a user runs them: what they leave on disk, and that it is what they say it is."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import timm
import torch
from run_checks import wait_for_states
from safetensors.torch import load_file

from ham10000.modeling import Ham10000Config, Ham10000Error, create_processor
from ham10000.training.data.sources import load_data
from ham10000.training.data.split import apply_split, make_split
from ham10000.training.data.synthetic import make_synthetic
from ham10000.training.evaluation.metrics import compute_metrics
from ham10000.training.inference.prediction import load_checkpoint, predict

EXAMPLES = Path(__file__).parents[1] / "examples"
# Without batch norm, whose statistics each process keeps for itself.
FLAT = ["--backbone", "test_vit", "--backbone_kwargs", '{"img_size": 32}', "--image_size", "32"]
FLAT += ["--pretrained", "none", "--trackers", "none"]


def load_example(name: str) -> Any:
    spec: Any = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def printed(text: str, name: str) -> list[float]:
    """The numbers on the line that begins with a name."""
    (line,) = [line for line in text.splitlines() if line.strip().startswith(f"{name} ")]
    return [float(value) for value in re.findall(r"\d\.\d{3}", line)]


def recomputed(checkpoint: Path, test: datasets.Dataset) -> dict[str, Any]:
    """The metrics of test images by the package's own prediction."""
    model, processor = load_checkpoint(checkpoint)
    metadata = [{name: row[name] for name in ("age", "sex", "localization")} for row in test]
    return compute_metrics(np.array(test["dx"]), predict(model, processor, list(test["image"]), metadata))


@pytest.mark.slow
def test_another_backbone_is_timms(tmp_path: Path, synthetic_folder: Path, capsys) -> None:
    arguments = ["--backbones", "test_vit", "--data", str(synthetic_folder), "--output_dir", str(tmp_path)]
    example = load_example("another_backbone")
    assert example.main([*arguments, "--epochs", "1"]) == 0
    assert "embedding equal to timm's: yes" in capsys.readouterr().out
    model, _ = load_checkpoint(tmp_path / "test_vit")
    bare = timm.create_model("test_vit", num_classes=0, img_size=64).eval()
    bare.load_state_dict(model.backbone.state_dict())
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.encode_image(pixels), bare(pixels))
    # no cross-talk: a size is told only to those networks that are built for one
    assert example.backbone_kwargs("test_resnet", 64) == {}
    assert example.backbone_kwargs("vit_tiny_patch16_224", 64) == {"img_size": 64}


def test_a_misspelled_backbone_is_one_message(capsys) -> None:
    assert load_example("another_backbone").main(["--backbones", "convnext_tinny"]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_the_trainer_saves_a_checkpoint_of_this_package(tmp_path: Path, synthetic_folder: Path, capsys) -> None:
    arguments = ["--data", str(synthetic_folder), "--output_dir", str(tmp_path), "--image_size", "32"]
    assert load_example("transformers_trainer").main([*arguments, "--epochs", "1"]) == 0
    text = capsys.readouterr().out
    assert "its probabilities differ by at most 0\n" in text
    dataset, _ = load_data(str(synthetic_folder))
    results = recomputed(tmp_path, apply_split(dataset, make_split(dataset, "lesion-grouped"))["test"])
    for name in ("accuracy", "macro_f1", "nll"):
        assert printed(text, name) == pytest.approx([results[name]], abs=6e-4)


def test_a_stream_is_read_batch_by_batch_and_parts_lesions(tmp_path: Path, synthetic_folder: Path) -> None:
    example = load_example("stream_from_hub")
    rows, _ = load_data(str(synthetic_folder))
    read: list[str] = []

    def generate() -> Iterator[dict]:
        for row in rows.cast_column("image", datasets.Image(decode=False)):
            read.append(row["image_id"])
            data = row["image"]["bytes"] or Path(row["image"]["path"]).read_bytes()
            yield {**row, "image": {"bytes": data, "path": None}}

    stream = datasets.IterableDataset.from_generator(generate, features=rows.features.copy())
    stream = stream.cast_column("image", datasets.Image(decode=False))
    processor = create_processor(Ham10000Config(modality="fusion", backbone="test_resnet"), image_size=32)
    batches = example.batches(stream, processor, 8)
    read.clear()
    first = next(batches)
    assert first["pixel_values"].shape == (8, 3, 32, 32)
    assert first["labels"].tolist() == rows["dx"][:8]
    assert len(read) <= 9  # of 220
    shares = [example.is_test(lesion) for lesion in set(rows["lesion_id"])]
    assert 0.1 < np.mean(shares) < 0.3


@pytest.mark.slow
def test_streaming_from_parquet_leaves_a_checkpoint(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "stream"
    arguments = ["--synthetic", "100", "--steps", "3", "--image_size", "32", "--output_dir", str(folder)]
    assert load_example("stream_from_hub").main(arguments) == 0
    text = capsys.readouterr().out
    assert len(list((folder / "data" / "data").glob("train-0000?-of-00004.parquet"))) == 4
    dataset, _ = load_data(str(folder / "data"))
    test = dataset.filter(lambda row: load_example("stream_from_hub").is_test(row["lesion_id"]))
    assert f"{len(test)} test photographs" in text
    assert printed(text, "nll") == pytest.approx([recomputed(folder, test)["nll"]], abs=6e-4)


def test_a_stream_that_cannot_be_used_is_one_message(tmp_path: Path, capsys, monkeypatch) -> None:
    example = load_example("stream_from_hub")
    assert example.main(["--repo_id", "user/data"]) == 2
    assert "--revision" in capsys.readouterr().err
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    arguments = ["--repo_id", str(tmp_path / "empty"), "--revision", "0123abc", "--output_dir", str(tmp_path)]
    assert example.main(arguments) == 2
    assert re.match(r"(?s)error: The dataset .* cannot be opened at revision '0123abc'", capsys.readouterr().err)
    row = {"dx": "naevus", "image": make_synthetic(7)[0]["image"], "age": 60, "sex": "male", "localization": "back"}
    stream = datasets.Dataset.from_list([row]).to_iterable_dataset()
    processor = create_processor(Ham10000Config(modality="fusion", backbone="test_resnet"), image_size=32)
    with pytest.raises(Ham10000Error, match=r"has the dx \['naevus'\], expected akiec"):
        next(example.batches(stream, processor, 1))


def launch(script: str, folder: Path, data: Path, epochs: int = 20, **variables: str) -> subprocess.Popen:
    command = ["bash", str(EXAMPLES / script), "--modality", "image", *FLAT, "--epochs", str(epochs)]
    command += ["--data", str(data), "--output_dir", str(folder), "--batch_size", "20"]
    command += ["--cache_dir", str(data.parent / "cache")]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    options["env"] = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, **variables}
    return subprocess.Popen(command, **options, cwd=EXAMPLES.parent)


def output(process: subprocess.Popen, code: int = 0) -> str:
    """What it says until it ends, in one line."""
    text, _ = process.communicate(timeout=400)
    assert process.returncode == code, text
    return " ".join(text.split())


@pytest.mark.slow
def test_several_processes_by_the_launch_script(tmp_path: Path, synthetic_folder: Path) -> None:
    assert "2 process(es)" in output(launch("multi_process.sh", tmp_path / "run", synthetic_folder, 1))
    # the same line again goes on, and finds nothing left to do
    assert "Resuming after 1 epochs" in output(launch("multi_process.sh", tmp_path / "run", synthetic_folder, 1))
    load_checkpoint(tmp_path / "run")


# What the batch script needs of Slurm, on one machine: `srun` starts the tasks and hands signals on to each.
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
pids=()
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & pids+=($!)
done
trap 'kill -TERM "${pids[@]}"' TERM
code=0
for pid in "${pids[@]}"; do
    while true; do
        status=0; wait "$pid" || status=$?
        kill -0 "$pid" 2> /dev/null || break
    done
    [[ $status == 0 ]] || code=$status
done
exit $code
"""
SCONTROL = """#!/usr/bin/env bash
if [[ $1 == show ]]; then echo localhost; else echo "$@" >> "$SCONTROL_LOG"; fi
"""


@pytest.mark.slow
def test_a_preempted_slurm_job_is_requeued_and_ends_as_if_nothing_had_been(tmp_path, synthetic_folder) -> None:
    tools, log, script, folder = tmp_path / "bin", tmp_path / "scontrol.log", "slurm/train.sbatch", tmp_path / "run"
    tools.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    job = {"NTASKS": 2, "NTASKS_PER_NODE": 2, "JOB_ID": os.getpid(), "JOB_NODELIST": "localhost"}
    variables = {f"SLURM_{name}": str(value) for name, value in (job | {"SUBMIT_DIR": EXAMPLES.parent}).items()}
    variables |= {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "SCONTROL_LOG": str(log)}
    undisturbed = launch(script, tmp_path / "undisturbed", synthetic_folder, **variables)
    assert "2 process(es)" in output(undisturbed)
    assert not log.exists()

    first = launch(script, folder, synthetic_folder, **variables)
    wait_for_states(folder, lambda: first.poll() is None)
    children = subprocess.run(["pgrep", "-f", str(tools / "srun")], capture_output=True, text=True).stdout.split()
    assert children
    os.kill(int(children[0]), signal.SIGTERM)
    assert "Stopped by SIGTERM" in output(first, 143)
    assert log.read_text() == f"requeue {os.getpid()}\n"

    assert "Resuming after" in output(launch(script, folder, synthetic_folder, **variables))
    weights = [load_file(path / "model.safetensors") for path in (tmp_path / "undisturbed", folder)]
    assert [name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])] == []


def test_the_readme_of_the_examples_names_every_one() -> None:
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in [*EXAMPLES.iterdir(), *(EXAMPLES / "slurm").iterdir()]:
        if path.suffix in (".py", ".sh", ".ipynb", ".sbatch") and path.name != "rank.sh":
            assert path.name in text, f"examples/README.md does not name {path.name}"
