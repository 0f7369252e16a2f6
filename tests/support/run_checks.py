"""What tests of whole runs share."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ham10000.training.run_folder import training_states

# What says when and with what a result was made; everything else is the result.
CIRCUMSTANCES = {"environment", "prediction_seconds", "images_per_second", "seconds", "cost"}


def results(value: Any) -> Any:
    """A results file without its circumstances."""
    if isinstance(value, dict):
        return {key: results(item) for key, item in value.items() if key not in CIRCUMSTANCES}
    return [results(item) for item in value] if isinstance(value, list) else value


def history(folder: Path) -> list[dict[str, float]]:
    return json.loads((folder / "history.json").read_text())


def assert_same_run(folder: Path, other: Path) -> None:
    """The same weights, published and in the newest state, and the same history."""
    assert (folder / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    newest = [training_states(path)[0] for path in (folder, other)]
    assert newest[0].name == newest[1].name
    states = [load_file(path) for path in newest]
    assert states[0].keys() == states[1].keys()
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []
    assert results(history(folder)) == results(history(other))


def wait_for_states(folder: Path, is_running: Callable[[], bool], count: int = 1, seconds: float = 300) -> None:
    """Waits until a command that is running has saved so many states."""
    deadline = time.monotonic() + seconds
    while len(training_states(folder)) < count:
        assert is_running()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def leftovers(folder: Path) -> list[Path]:
    """What is half written."""
    return [path for path in folder.rglob("*") if ".tmp" in path.name or path.suffix == ".partial"]


def one_error(capsys: pytest.CaptureFixture[str]) -> str:
    """The line on stderr that is the only error."""
    text = capsys.readouterr().err
    assert "Traceback" not in text
    (error,) = [line for line in text.splitlines() if line.startswith("error: ")]
    return error
