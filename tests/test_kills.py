"""SIGKILL at twenty random moments of a run, cache building included: the weights are the same each time."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from fork_server import Child, ForkServer
from safetensors.torch import load_file

from ham10000.training.checkpoint import training_states

KILLS = 20
OPTIONS = ["--modality", "fusion", "--backbone", "test_efficientnet", "--image_size", "32", "--pretrained", "none"]
OPTIONS += ["--epochs", "2", "--batch_size", "16", "--trackers", "none", "--save_every_steps", "2"]


@pytest.fixture(scope="module")
def trials(
    tmp_path_factory: pytest.TempPathFactory, synthetic_folder: Path, forks: ForkServer
) -> tuple[Path, list[dict[str, int]]]:
    root = tmp_path_factory.mktemp("kills")

    def start(name: str, *options: str) -> Child:
        places = ["--data", synthetic_folder, "--output_dir", root / name, "--cache_dir", root / f"{name}-cache"]
        return forks.start("train", [*OPTIONS, *places, *options])

    begin = time.monotonic()
    undisturbed = start("undisturbed")
    assert undisturbed.wait() == 0, undisturbed.text
    duration = time.monotonic() - begin
    moments, rows = random.Random(0), []
    for number in range(KILLS):
        child = start(str(number))
        time.sleep(moments.random() * duration)
        os.kill(child.pid, signal.SIGKILL)
        row = {"killed": child.wait(), "states": len(training_states(root / str(number)))}
        # Before this file there is no run to resume: data and settings were still being read.
        begun = (root / str(number) / "train_config.json").exists()
        resumed = start(str(number), *(["--resume"] if begun else []))
        rows.append(row | {"resumed": resumed.wait()})
    return root, rows


def test_the_runs_were_killed_at_all_stages(trials: tuple[Path, list[dict[str, int]]]) -> None:
    _, rows = trials
    assert len(rows) == KILLS
    # A kill may come after the end on a machine that was slower when the duration was measured.
    assert sum(row["killed"] == -9 for row in rows) >= KILLS // 2
    assert any(row["states"] == 0 for row in rows)
    assert any(row["states"] > 0 for row in rows)


def test_every_run_ends_with_the_same_weights(trials: tuple[Path, list[dict[str, int]]]) -> None:
    root, rows = trials
    assert [row["resumed"] for row in rows] == [0] * KILLS
    expected = load_file(training_states(root / "undisturbed")[0])
    same = 0
    for number in range(KILLS):
        found = load_file(training_states(root / str(number))[0])
        weights = [(root / name / "model.safetensors").read_bytes() for name in ("undisturbed", str(number))]
        history = [json.loads((root / name / "history.json").read_text()) for name in ("undisturbed", str(number))]
        for rows_of in history:
            for row in rows_of:
                del row["seconds"], row["images_per_second"]
        same += (
            found.keys() == expected.keys()
            and all(torch.equal(found[name], expected[name]) for name in expected)
            and weights[0] == weights[1]
            and history[0] == history[1]
        )
    assert same == KILLS


def test_nothing_half_written_is_left(trials: tuple[Path, list[dict[str, int]]]) -> None:
    root, _ = trials
    left = [path for path in root.rglob("*") if ".tmp" in path.name or path.suffix == ".partial"]
    assert left == []
