"""A run that is stopped, killed or damaged goes on to the very weights of an undisturbed one."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from fork_server import Child, ForkServer
from safetensors.torch import load_file

from ham10000.training.run_folder import training_states
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


def start(forks: ForkServer, folder: Path, data: Path, *options: str) -> Child:
    return forks.start("train", arguments(folder, data, *options))


def wait_for_states(child: Child, folder: Path, count: int = 1) -> None:
    deadline = time.monotonic() + 120
    while len(training_states(folder)) < count:
        assert child.is_running(), child.text
        assert time.monotonic() < deadline
        time.sleep(0.005)


def kill(child: Child) -> None:
    os.kill(child.pid, signal.SIGKILL)
    child.wait()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, synthetic_folder: Path, forks: ForkServer) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    child = start(forks, folder, synthetic_folder)
    assert child.wait() == 0, child.text
    return folder


def assert_same(folder: Path, other: Path) -> None:
    assert (folder / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    states = [load_file(training_states(path)[0]) for path in (folder, other)]
    assert states[0].keys() == states[1].keys()
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_says_how_to_go_on(signum, code, undisturbed, forks, synthetic_folder, tmp_path) -> None:
    folder = tmp_path / "run"
    child = start(forks, folder, synthetic_folder, "--epochs", "40")
    wait_for_states(child, folder)
    os.kill(child.pid, signum)
    assert child.wait() == code
    error = child.text
    message = error.strip().splitlines()[-1]
    assert message.startswith(f"Stopped by {signum.name} in epoch ")
    assert message.endswith(f"Continue with --resume --output_dir {folder}")
    assert "Traceback" not in error


def test_one_folder_has_one_writer_and_a_dead_one_is_none(
    forks, synthetic_folder, undisturbed, tmp_path, capsys
) -> None:
    folder = tmp_path / "run"
    child = start(forks, folder, synthetic_folder, "--epochs", "40")
    wait_for_states(child, folder, 2)
    before = (folder / "train_config.json").read_bytes()
    for options in (["--overwrite"], ["--resume"]):
        assert main(arguments(folder, synthetic_folder, *options)) == 2
        assert f"Another process is training into '{folder}'" in capsys.readouterr().err
        AcceleratorState._reset_state(True)
    assert (folder / "train_config.json").read_bytes() == before
    assert child.is_running()
    kill(child)
    half = folder / ".training_state-00000099.0123456789ab.tmp.safetensors"
    half.write_bytes(b"killed while it was written")
    assert main(arguments(folder, synthetic_folder, "--overwrite")) == 0
    assert not half.exists()
    assert_same(folder, undisturbed)


def test_a_damaged_state_is_passed_over(undisturbed, forks, synthetic_folder, tmp_path, capsys) -> None:
    folder = tmp_path / "run"
    child = start(forks, folder, synthetic_folder, "--keep_checkpoints", "3")
    wait_for_states(child, folder, 2)
    kill(child)
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


def test_nothing_but_damage_is_said(undisturbed, forks, synthetic_folder, tmp_path, capsys) -> None:
    folder = tmp_path / "run"
    child = start(forks, folder, synthetic_folder)
    wait_for_states(child, folder)
    kill(child)
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


def test_so_many_states_are_kept(undisturbed, forks, synthetic_folder, tmp_path, capsys) -> None:
    assert len(training_states(undisturbed)) == 2
    assert main(arguments(tmp_path / "run", synthetic_folder, "--keep_checkpoints", "1")) == 0
    assert training_states(tmp_path / "run") == [tmp_path / "run" / training_states(undisturbed)[0].name]
    assert main(arguments(tmp_path / "other", synthetic_folder, "--keep_checkpoints", "0")) == 2
    assert "`keep_checkpoints` must be at least 1" in capsys.readouterr().err
