"""SIGKILL at twenty random moments of a run, cache building included: the weights are the same each time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ham10000.training.run_folder import training_states

KILLS = 20
# A process that has imported everything forks each run, so that a run takes a second and not ten.
RUNNER = """
import json, os, random, shutil, signal, sys, time
from pathlib import Path
import ham10000.training.engine, ham10000.training.evaluation.plots
from ham10000.training.run_folder import training_states
from ham10000.training.train import main

data, root, kills = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
OPTIONS = ["--data", data, "--modality", "fusion", "--backbone", "test_efficientnet", "--image_size", "32"]
OPTIONS += ["--pretrained", "none", "--epochs", "2", "--batch_size", "16", "--trackers", "none"]
OPTIONS += ["--save_every_steps", "2"]

def start(folder, *options):
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    places = ["--output_dir", str(folder), "--cache_dir", str(folder) + "-cache"]
    os._exit(main([*OPTIONS, *places, *options]))

def finish(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

begin = time.monotonic()
assert finish(start(root / "undisturbed")) == 0
duration = time.monotonic() - begin
moments = random.Random(0)
for number in range(kills):
    folder, moment = root / str(number), moments.random() * duration
    while True:
        child = start(folder)
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
        code = finish(child)
        if code == -signal.SIGKILL:
            break
        # It had ended: the machine was slower while the duration was measured. Anew, and killed earlier.
        moment /= 2
        for path in (folder, Path(str(folder) + "-cache")):
            shutil.rmtree(path)
    states = len(training_states(folder))
    partial = len(list(Path(str(folder) + "-cache").glob("*.partial")))
    begun = (folder / "train_config.json").exists()
    resumed = finish(start(folder, *(["--resume"] if begun else [])))
    print(json.dumps({"killed": code, "states": states, "partial_caches": partial, "resumed": resumed}))
"""


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory, synthetic_folder: Path) -> tuple[Path, list[dict[str, int]]]:
    root = tmp_path_factory.mktemp("kills")
    command = [sys.executable, "-c", RUNNER, str(synthetic_folder), str(root), str(KILLS)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-3000:]
    return root, [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def test_the_runs_were_killed_at_all_stages(trials: tuple[Path, list[dict[str, int]]]) -> None:
    _, rows = trials
    assert len(rows) == KILLS
    assert [row["killed"] for row in rows] == [-9] * KILLS
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
