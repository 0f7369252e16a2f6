"""A run that is stopped, killed in any stage of the work or damaged ends as an undisturbed one does."""

import json
import os
import random
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState
from fork_server import Child, ForkServer
from run_checks import assert_same_run, leftovers, one_error, results, wait_for_states

from ham10000.training.run_folder import training_states
from ham10000.training.train import main

TINY = ["--modality", "fusion", "--backbone", "test_efficientnet", "--image_size", "32", "--pretrained", "none"]
TINY += ["--epochs", "2", "--batch_size", "16", "--trackers", "none", "--save_every_steps", "3"]
RECIPE = (
    "{backbone: test_efficientnet, image_size: [32], pretrained: none, epochs: 1, batch_size: 16, save_every_steps: 4}"
)
# One run; and three with their report.
STUDIES = {
    "train": "{recipe: recipe.yaml, protocols: {image-stratified: {}}}",
    "report": "{recipe: recipe.yaml, protocols: {lesion-grouped: {folds: 3}}, n_resamples: 20, heads: {epochs: 1}}",
}


class Commands:
    """The three command lines on one data set."""

    def __init__(self, forks: ForkServer, data: Path, root: Path):
        self.forks, self.root = forks, root
        self.places = ["--data", str(data), "--cache_dir", str(root / "cache")]

    def arguments(self, folder: Path, *options: str) -> list[str]:
        return [*TINY, *self.places, "--output_dir", str(folder), *options]

    def train(self, folder: Path, *options: str, **moment: Any) -> Child:
        return self.forks.run("train", self.arguments(folder, *options), **moment)

    def killed_after(self, folder: Path, states: int, *options: str, signum: int = signal.SIGKILL) -> Child:
        """A run that gets a signal when it has saved so many states."""
        child = self.forks.start("train", self.arguments(folder, *options))
        wait_for_states(folder, child.is_running, states)
        os.kill(child.pid, signum)
        return child

    def evaluate(self, checkpoint: Path, folder: Path, *options: str, **moment: Any) -> Child:
        places = [*self.places, "--checkpoint", checkpoint, "--output_dir", folder]
        return self.forks.run("evaluate", [*places, "--n_resamples", "20", *options], **moment)

    def study(self, folder: Path, kind: str, **moment: Any) -> Child:
        (self.root / "recipe.yaml").write_text(RECIPE)
        (self.root / f"{kind}.yaml").write_text(STUDIES[kind])
        options = ["--config", self.root / f"{kind}.yaml", *self.places, "--output_dir", folder]
        return self.forks.run("study", ["train", *options] if kind == "train" else options, **moment)

    def counted(self, call: Any, folder: Path, *options: Any) -> int:
        """The number of operations on a folder's files in an undisturbed command."""
        counter = folder.with_suffix(".operations")
        child = call(*options, watched=str(folder), counter=str(counter))
        assert child.wait() == 0, child.text
        return int(counter.read_text())


@pytest.fixture(scope="module")
def commands(forks: ForkServer, synthetic_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Commands:
    return Commands(forks, synthetic_folder, tmp_path_factory.mktemp("stages"))


@pytest.fixture(scope="module")
def trained(commands: Commands) -> Path:
    """An undisturbed run."""
    folder = commands.root / "undisturbed"
    commands.counted(commands.train, folder, folder)
    return folder


def test_a_run_stopped_by_ctrl_c_says_how_to_go_on(commands: Commands, tmp_path: Path) -> None:
    child = commands.killed_after(tmp_path / "run", 1, "--epochs", "40", signum=signal.SIGINT)
    assert child.wait() == 130, child.text
    message = child.text.strip().splitlines()[-1]
    assert re.match(f"Stopped by SIGINT in epoch .* Continue with --resume --output_dir {tmp_path}/run$", message)
    assert "Traceback" not in child.text


def test_one_folder_has_one_writer_and_a_dead_one_is_none(commands, trained, tmp_path, capsys) -> None:
    folder = tmp_path / "run"
    child = commands.killed_after(folder, 2, "--epochs", "40", signum=signal.SIGSTOP)
    before = (folder / "train_config.json").read_bytes()
    for option in ("--overwrite", "--resume"):
        assert main(commands.arguments(folder, option)) == 2
        assert f"Another process is training into '{folder}'" in one_error(capsys)
        AcceleratorState._reset_state(True)
    assert (folder / "train_config.json").read_bytes() == before
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -9
    assert main(commands.arguments(folder, "--overwrite")) == 0
    assert_same_run(folder, trained)


@pytest.mark.parametrize("damaged", ["the newest", "all"])
def test_a_damaged_state_is_passed_over(damaged, commands, trained, tmp_path, capsys) -> None:
    folder = tmp_path / "run"
    commands.killed_after(folder, 2, "--keep_checkpoints", "3").wait()
    newest = training_states(folder)[0]
    for path in training_states(folder)[: 1 if damaged == "the newest" else None]:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    files = {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != "run.lock"}
    code = main(["--resume", "--output_dir", str(folder)])
    if damaged == "all":
        assert code == 2
        assert re.search("Every saved state.*--overwrite", one_error(capsys))
        assert {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != "run.lock"} == files
    else:
        assert code == 0
        assert re.search(f"warning: '{newest}' is damaged .*passed over", capsys.readouterr().out)
        assert_same_run(folder, trained)
        assert len(training_states(folder)) <= 3


def test_killed_while_the_cache_is_built(commands: Commands, trained: Path, tmp_path: Path) -> None:
    # The frames of training, the larger of the two, and the validation images.
    expected = {path.name: path.read_bytes() for path in (commands.root / "cache").glob("*.npy")}
    assert len(expected) == 2
    folder, cache, moments, sizes = tmp_path / "run", tmp_path / "cache", random.Random(0), []
    own_cache = ["--cache_dir", str(cache)]
    for options in ([], ["--resume"]):
        assert commands.train(folder, *own_cache, *options, picture=moments.randint(60, 100)).wait() == -9
        (partial,) = cache.glob("*.partial")
        sizes.append(partial.stat().st_size)
        assert not list(cache.glob("*.npy"))
    assert sizes[1] > sizes[0] > 0  # the second build went on where the first was killed
    last = commands.train(folder, *own_cache, "--resume")
    assert last.wait() == 0, last.text
    assert f"note: '{folder}' was ended before it had saved a step; starting it again" in last.text
    assert {path.name: path.read_bytes() for path in cache.glob("*.npy")} == expected
    assert_same_run(folder, trained)
    assert leftovers(tmp_path) == []


def test_killed_in_the_middle_of_a_state(commands: Commands, trained: Path, tmp_path: Path) -> None:
    """Of the second epoch; the run goes on from the one before, and keeps fewer states from then on."""
    folder = tmp_path / "run"
    assert commands.train(folder, state=6).wait() == -9
    assert len(training_states(folder)) == len(training_states(trained)) == 2
    (half,) = leftovers(folder)
    assert 0 < half.stat().st_size < training_states(trained)[0].stat().st_size
    assert commands.train(folder, "--resume", "--keep_checkpoints", "1").wait() == 0
    assert_same_run(folder, trained)
    assert len(training_states(folder)) == 1
    assert leftovers(folder) == []


@pytest.mark.parametrize("kills", [2, pytest.param(40, marks=pytest.mark.slow)])
def test_killed_between_the_files_of_a_run(kills, commands, trained, tmp_path) -> None:
    """Before random operations on its files."""
    total = int(trained.with_suffix(".operations").read_text())
    assert total > 50
    for moment in random.Random(kills).sample(range(1, total + 1), kills):
        folder = tmp_path / str(moment)
        assert commands.train(folder, watched=str(folder), file_operation=moment).wait() == -9
        child = commands.train(folder, *(["--resume"] if (folder / "train_config.json").exists() else []))
        assert child.wait() == 0, child.text
        assert_same_run(folder, trained)
        assert leftovers(folder) == []


def assert_same_evaluation(folder: Path, other: Path) -> None:
    found, expected = (json.loads((path / "eval_results.json").read_text()) for path in (folder, other))
    # Copied checkpoints have other names.
    assert results(found | {"checkpoint": ""}) == results(expected | {"checkpoint": ""})
    names = ["predictions.csv", *(f"figures/{path.name}" for path in sorted((other / "figures").iterdir()))]
    assert [name for name in names if (folder / name).read_bytes() != (other / name).read_bytes()] == []


@pytest.fixture(scope="module")
def evaluated(commands: Commands, trained: Path) -> tuple[Path, int]:
    """A folder with the evaluation of the undisturbed run, and the number of file operations that took."""
    folder = commands.root / "evaluation"
    return folder, commands.counted(commands.evaluate, folder, trained, folder)


@pytest.mark.parametrize("all_moments", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_killed_while_evaluating(all_moments, commands, trained, evaluated, tmp_path) -> None:
    expected, total = evaluated
    for moment in range(1, total + 1) if all_moments else random.Random(3).sample(range(1, total + 1), 1):
        folder = tmp_path / str(moment)
        assert commands.evaluate(trained, folder, watched=str(folder), file_operation=moment).wait() == -9
        # Every file is complete or not there. The results are the last: killed after them, none is missing.
        if (folder / "eval_results.json").exists():
            assert_same_evaluation(folder, expected)
        for name in ("predictions.csv", "figures/per_class.png"):
            assert not (folder / name).exists() or (folder / name).read_bytes() == (expected / name).read_bytes()
        assert commands.evaluate(trained, folder).wait() == 0
        assert_same_evaluation(folder, expected)


@pytest.mark.slow
def test_an_evaluation_killed_over_an_earlier_one_leaves_no_mixture(commands, trained, evaluated, tmp_path) -> None:
    folder, (expected, total) = tmp_path / "evaluation", evaluated
    assert commands.evaluate(trained, folder, "--split", "validation").wait() == 0
    before = (folder / "eval_results.json").read_bytes()
    assert commands.evaluate(trained, folder, watched=str(folder), file_operation=2).wait() == -9
    assert (folder / "eval_results.json").read_bytes() == before  # the earlier one is whole
    assert commands.evaluate(trained, folder, watched=str(folder), file_operation=total - 4).wait() == -9
    assert not (folder / "eval_results.json").exists()  # neither one's results by the other's predictions
    assert commands.evaluate(trained, folder).wait() == 0
    assert_same_evaluation(folder, expected)


def assert_same_study(folder: Path, other: Path) -> None:
    if (other / "study.json").is_file():
        found, expected = (json.loads((path / "study.json").read_text()) for path in (folder, other))
        assert results(found["protocols"]) == results(expected["protocols"])
    for run in sorted(path.parent.relative_to(other) for path in other.rglob("history.json")):
        assert_same_run(folder / run, other / run)
    for path in sorted(other.rglob("*.parquet")):
        assert (folder / path.relative_to(other)).read_bytes() == path.read_bytes()


@pytest.fixture(scope="module", params=["train", pytest.param("report", marks=pytest.mark.slow)])
def studied(commands: Commands, request, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, int]:
    """A kind of study, an undisturbed one, and the number of operations on its files."""
    folder = tmp_path_factory.mktemp(request.param) / "study"  # a new one: pytest-xdist may come back to a kind
    total = commands.counted(commands.study, folder, folder, request.param)
    assert len(list(folder.rglob("out_of_fold.parquet"))) == {"train": 1, "report": 3}[request.param]
    return request.param, folder, total


@pytest.mark.parametrize(
    ("kills", "seed"), [(1, 5), *(pytest.param(12, seed, marks=pytest.mark.slow) for seed in range(3))]
)
def test_a_killed_study(kills: int, seed: int, commands, studied, tmp_path) -> None:
    """One study is killed again and again, each time so many random file operations on."""
    kind, expected, total = studied
    folder, moments, killed = tmp_path / "study", random.Random(seed), 0
    for _ in range(kills):
        moment = moments.randint(1, 2 * total // (kills + 1))
        code = commands.study(folder, kind, watched=str(folder), file_operation=moment).wait()
        killed += code == -9
        assert code in (0, -9)
    assert killed > kills // 2
    last = commands.study(folder, kind)
    assert last.wait() == 0, last.text
    assert_same_study(folder, expected)
