"""Two and four processes give the result of one; a worker or a process that dies, or a signal, costs no run.

The processes are forks that know each other as those of a launcher do: on a CPU, over gloo. What only a launcher does
is at the end, marked slow.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from fork_server import Child, ForkServer
from run_checks import assert_same_run, history, leftovers, wait_for_states
from safetensors.torch import load_file

# Neither batch norm nor dropout: what is left is arithmetic, which must not depend on the processes.
PLAIN = ["--modality", "image", "--backbone", "test_vit", "--classifier_dropout", "0", "--image_size", "32"]
PLAIN += ["--backbone_kwargs", '{"dynamic_img_size": true}']
BATCH_NORM = ["--modality", "fusion", "--backbone", "test_efficientnet", "--image_size", "32"]
COMMON = ["--pretrained", "none", "--mixed_precision", "no", "--trackers", "none", "--batch_size", "20"]
STEPS = [*BATCH_NORM, "--epochs", "2", "--save_every_steps", "3"]


def options(folder: Path, data: Path, *more: str) -> list[str]:
    places = ["--data", str(data), "--output_dir", str(folder), "--cache_dir", str(folder.parent / "cache")]
    return [*COMMON, *places, *more]


def run_ranks(forks: ForkServer, world_size: int, argv: list[str], command: str = "train") -> list[Child]:
    """Processes that know each other and end well."""
    ranks = forks.start_ranks(world_size, argv, command)
    assert [rank.wait() for rank in ranks] == [0] * world_size, ranks[0].text
    return ranks


def test_four_processes_give_the_metrics_of_one(forks, synthetic_folder, tmp_path) -> None:
    # 22 images to validate on, which four processes cannot share evenly, nor batches of four theirs.
    more = [*PLAIN, "--epochs", "1", "--eval_batch_size", "4"]
    folders = [tmp_path / "one", tmp_path / "four"]
    for folder, world_size in zip(folders, (1, 4), strict=True):
        ranks = run_ranks(forks, world_size, options(folder, synthetic_folder, *more))
        assert f"{world_size} process(es)" in " ".join(ranks[0].text.split())
        assert [rank.text for rank in ranks[1:] if "epoch" in rank.text] == []  # one speaks for all
    (expected,), (row,) = (history(folder) for folder in folders)
    for name in ("validation_macro_f1", "validation_accuracy", "validation_balanced_accuracy"):
        assert row[name] == expected[name]
    for name in ("train_loss", "validation_loss"):
        assert row[name] == pytest.approx(expected[name], abs=1e-5)
    weights, others = (load_file(folder / "model.safetensors") for folder in folders)
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, atol=1e-4, rtol=1e-3)


PREDICT = """
import numpy as np, torch
from accelerate import Accelerator
from ham10000.modeling import Ham10000Config, create_processor
from ham10000.training.data.loader import EvalLoader, Samples
from ham10000.training.inference.prediction import predict_logits

class Copy:
    config = Ham10000Config(modality="metadata")

    def __call__(self, metadata):
        self.logits = metadata[:, :1] * torch.arange(1.0, 8.0)  # a row's own number, whatever it is predicted with
        return self

accelerator = Accelerator(cpu=True)
processor = create_processor(Ham10000Config(modality="metadata"))
rank, world_size = accelerator.process_index, accelerator.num_processes
for rows in range(1, 12):
    metadata = torch.arange(float(rows))[:, None].repeat(1, 3)
    samples = Samples([str(row) for row in range(rows)], torch.zeros(rows, dtype=torch.int64), metadata)
    loader = EvalLoader(samples, None, processor, accelerator.device, batch_size=2, rank=rank, world_size=world_size)
    logits = predict_logits(Copy(), loader, accelerator=accelerator)
    assert np.array_equal(logits, np.arange(rows, dtype=np.float32)[:, None] * np.arange(1, 8)), (rows, logits)
print("every row once, in order")
"""


@pytest.mark.parametrize("world_size", [2, 4])
def test_every_row_is_predicted_once_and_in_order(forks: ForkServer, tmp_path: Path, world_size: int) -> None:
    script = tmp_path / "predict.py"
    script.write_text(PREDICT)
    ranks = run_ranks(forks, world_size, [str(script)], "script")
    assert all("every row once, in order" in rank.text for rank in ranks)


def test_with_batch_norm_the_epoch_is_judged_by_the_network_that_is_saved(forks, synthetic_folder, tmp_path) -> None:
    folder, one = tmp_path / "run", tmp_path / "one"
    more = [*BATCH_NORM, "--epochs", "1", "--ema_decay", "0"]
    run_ranks(forks, 2, options(folder, synthetic_folder, *more))
    run_ranks(forks, 1, options(one, synthetic_folder, *more))
    found, other = (load_file(path / "model.safetensors") for path in (folder, one))
    means = [name for name in found if name.endswith("running_mean")]
    # Each process normalises by its own half of a batch, which is documented, and seen in the statistics.
    assert any(not torch.allclose(found[name], other[name], atol=1e-4) for name in means)
    places = ["--data", synthetic_folder, "--cache_dir", tmp_path / "cache", "--checkpoint", folder]
    evaluation = forks.run("evaluate", [*places, "--split", "validation", "--n_resamples", "20"])
    assert evaluation.wait() == 0, evaluation.text
    metrics = json.loads((folder / "evaluation_validation" / "eval_results.json").read_text())["metrics"]
    (row,) = history(folder)
    assert row["validation_macro_f1"] == metrics["macro_f1"]
    assert row["validation_accuracy"] == metrics["accuracy"]
    assert row["validation_loss"] == pytest.approx(metrics["nll"], abs=1e-5)


@pytest.fixture(scope="module")
def undisturbed(forks: ForkServer, synthetic_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes, two epochs, nobody killed."""
    folder = tmp_path_factory.mktemp("processes") / "undisturbed"
    run_ranks(forks, 2, options(folder, synthetic_folder, *STEPS))
    return folder


@pytest.fixture
def begun(forks: ForkServer, synthetic_folder: Path, tmp_path: Path) -> tuple[Path, list[Child]]:
    """A run, and its two processes, which have saved a state."""
    folder = tmp_path / "run"
    ranks = forks.start_ranks(2, options(folder, synthetic_folder, *STEPS))
    wait_for_states(folder, lambda: all(rank.is_running() for rank in ranks))
    return folder, ranks


@pytest.fixture
def resume(forks: ForkServer, undisturbed: Path) -> Callable[[Path], None]:
    """Two processes go on, and end as if nothing had happened."""

    def go_on(folder: Path) -> None:
        run_ranks(forks, 2, ["--resume", "--output_dir", str(folder)])
        assert_same_run(folder, undisturbed)

    return go_on


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_that_is_killed_ends_the_others_and_loses_nothing(victim, forks, begun, resume, tmp_path) -> None:
    folder, ranks = begun
    os.kill(ranks[victim].pid, signal.SIGKILL)
    start = time.monotonic()
    assert ranks[victim].wait() == -9
    survivor = ranks[1 - victim]
    assert survivor.wait() == 2, survivor.text
    assert time.monotonic() - start < 60
    assert "Traceback" not in survivor.text
    (message,) = [line for line in survivor.text.splitlines() if line.startswith("error: ")]
    assert message.startswith("error: Another process of this run ended (")
    assert f"continue with --resume --output_dir {folder}" in message
    if victim == 1:  # one process goes on with what two have begun
        alone = shutil.copytree(folder, tmp_path / "alone")
        child = forks.run("train", ["--resume", "--output_dir", alone])
        assert child.wait() == 0, child.text
        assert len(history(alone)) == 2
    resume(folder)


@pytest.mark.parametrize("to", [pytest.param("one", marks=pytest.mark.slow), "twice"])
def test_a_signal_ends_all_processes_after_the_same_step(to, begun, resume) -> None:
    folder, ranks = begun
    for rank in ranks[1:] if to == "one" else ranks * 2:
        os.kill(rank.pid, signal.SIGTERM)
    assert [rank.wait() for rank in ranks] == [143, 143], ranks[0].text
    text = ranks[0].text + ranks[1].text
    (message,) = [line for line in text.splitlines() if line.startswith("Stopped by SIGTERM")]  # one speaks for all
    assert message.endswith(f"the state is saved. Continue with --resume --output_dir {folder}")
    assert "Traceback" not in text
    assert leftovers(folder) == []
    resume(folder)


@pytest.fixture
def launched(synthetic_folder: Path, tmp_path: Path) -> tuple[Path, subprocess.Popen[str]]:
    """A run, and the `accelerate launch` of its two processes, which have saved a state."""
    launch = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    command = [sys.executable, "-m", "accelerate.commands.launch", *launch.split(), "--main_process_port", "0"]
    command += [str(Path(__file__).parents[2] / "training" / "train.py")]
    command += options(tmp_path / "run", synthetic_folder, *STEPS)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen(command, **pipes)
    wait_for_states(tmp_path / "run", lambda: process.poll() is None)
    return tmp_path / "run", process


@pytest.mark.slow
def test_a_process_killed_under_accelerate_launch(launched, resume) -> None:
    folder, process = launched
    ranks = [child for child in psutil.Process(process.pid).children() if "train.py" in " ".join(child.cmdline())]
    ranks[1].kill()
    start = time.monotonic()
    _, error = process.communicate(timeout=120)
    assert time.monotonic() - start < 90
    assert process.returncode != 0
    assert not any(rank.is_running() for rank in ranks)
    assert "error: Another process of this run ended" in error
    resume(folder)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("to_the_group", [False, True])
def test_a_signal_under_accelerate_launch(signum, to_the_group, launched, resume) -> None:
    # A scheduler signals the launcher, or like a terminal the launcher and its processes, which it signals again.
    folder, process = launched
    (os.killpg if to_the_group else os.kill)(process.pid, signum)
    _, error = process.communicate(timeout=120)
    assert process.returncode != 0  # the launcher's own status, not 143
    messages = [line for line in error.splitlines() if line.startswith(f"Stopped by {signum.name} in epoch")]
    assert len(messages) == 1, error
    assert leftovers(folder) == []
    resume(folder)
