"""A run that is stopped, killed or damaged goes on to the very weights of an undisturbed one."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from ham10000.training.checkpoint import training_states
from ham10000.training.train import main

OPTIONS = ["--modality", "fusion", "--backbone", "test_efficientnet", "--image_size", "32", "--pretrained", "none"]
OPTIONS += ["--epochs", "2", "--batch_size", "16", "--trackers", "none", "--save_every_steps", "3"]


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def arguments(folder: Path, data: Path, *options: str) -> list[str]:
    places = ["--data", str(data), "--output_dir", str(folder), "--cache_dir", str(data.parent / "cache")]
    return [*OPTIONS, *places, *options]


def start(folder: Path, data: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "ham10000.training.train", *arguments(folder, data, *options)]
    # Slow enough to be stopped in the middle.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for_states(process: subprocess.Popen, folder: Path, count: int = 1) -> None:
    deadline = time.monotonic() + 120
    while len(training_states(folder)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, synthetic_folder: Path) -> Path:
    AcceleratorState._reset_state(True)
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert main(arguments(folder, synthetic_folder)) == 0
    return folder


def assert_same(folder: Path, other: Path) -> None:
    assert (folder / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    states = [load_file(training_states(path)[0]) for path in (folder, other)]
    assert states[0].keys() == states[1].keys()
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_says_how_to_go_on(signum, code, undisturbed, synthetic_folder, tmp_path) -> None:
    folder = tmp_path / "run"
    process = start(folder, synthetic_folder, "--epochs", "40")
    wait_for_states(process, folder)
    process.send_signal(signum)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code
    message = error.strip().splitlines()[-1]
    assert message.startswith(f"Stopped by {signum.name} in epoch ")
    assert message.endswith(f"Continue with --resume --output_dir {folder}")
    assert "Traceback" not in error


def test_a_stopped_run_ends_as_an_undisturbed_one(undisturbed, synthetic_folder, tmp_path) -> None:
    folder = tmp_path / "run"
    process = start(folder, synthetic_folder)
    wait_for_states(process, folder)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    stopped = json.loads((folder / "train_config.json").read_text())
    assert process.returncode == 143
    assert not stopped["finished"]
    assert main(["--resume", "--output_dir", str(folder)]) == 0
    assert_same(folder, undisturbed)


def test_one_folder_has_one_writer_and_a_dead_one_is_none(synthetic_folder, undisturbed, tmp_path, capsys) -> None:
    folder = tmp_path / "run"
    process = start(folder, synthetic_folder, "--epochs", "40")
    wait_for_states(process, folder, 2)
    before = (folder / "train_config.json").read_bytes()
    for options in (["--overwrite"], ["--resume"]):
        assert main(arguments(folder, synthetic_folder, *options)) == 2
        assert f"Another process is training into '{folder}'" in capsys.readouterr().err
        AcceleratorState._reset_state(True)
    assert (folder / "train_config.json").read_bytes() == before
    assert process.poll() is None
    process.kill()
    process.communicate()
    half = folder / ".training_state-00000099.0123456789ab.tmp.safetensors"
    half.write_bytes(b"killed while it was written")
    assert main(arguments(folder, synthetic_folder, "--overwrite")) == 0
    assert not half.exists()
    assert_same(folder, undisturbed)


def test_a_damaged_state_is_passed_over(undisturbed, synthetic_folder, tmp_path, capsys) -> None:
    folder = tmp_path / "run"
    process = start(folder, synthetic_folder, "--keep_checkpoints", "3")
    wait_for_states(process, folder, 2)
    process.kill()
    process.communicate()
    newest, before, *_ = training_states(folder)
    content = newest.read_bytes()
    newest.write_bytes(content[: len(content) // 2])
    assert main(["--resume", "--output_dir", str(folder)]) == 0
    output = capsys.readouterr().out
    assert f"warning: '{newest}' is damaged" in output
    assert "passed over" in output
    assert_same(folder, undisturbed)
    assert len(training_states(folder)) <= 3
    assert before != newest


def test_nothing_but_damage_is_said(undisturbed, synthetic_folder, tmp_path, capsys) -> None:
    folder = tmp_path / "run"
    process = start(folder, synthetic_folder)
    wait_for_states(process, folder)
    process.kill()
    process.communicate()
    for path in training_states(folder):
        path.write_bytes(b"damaged")
    files = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert main(["--resume", "--output_dir", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "Every saved state" in error
    assert "--overwrite" in error
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != "run.lock"} == {
        path: time for path, time in files.items() if path.name != "run.lock"
    }


def test_so_many_states_are_kept(undisturbed, synthetic_folder, tmp_path, capsys) -> None:
    assert len(training_states(undisturbed)) == 2
    assert main(arguments(tmp_path / "run", synthetic_folder, "--keep_checkpoints", "1")) == 0
    assert training_states(tmp_path / "run") == [tmp_path / "run" / training_states(undisturbed)[0].name]
    assert main(arguments(tmp_path / "other", synthetic_folder, "--keep_checkpoints", "0")) == 2
    assert "`keep_checkpoints` must be at least 1" in capsys.readouterr().err
