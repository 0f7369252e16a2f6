"""SIGKILL in every stage of the work: what is done again ends as if nothing had happened."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from fork_server import Child, ForkServer
from safetensors.torch import load_file

from ham10000.training.run_folder import settings_path, training_states

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
# What says when and with what a result was made; everything else is the result.
CIRCUMSTANCES = {"environment", "prediction_seconds", "images_per_second", "seconds", "cost"}


def results(value: Any) -> Any:
    """A results file without its circumstances."""
    if isinstance(value, dict):
        return {key: results(item) for key, item in value.items() if key not in CIRCUMSTANCES}
    return [results(item) for item in value] if isinstance(value, list) else value


def leftovers(folder: Path) -> list[Path]:
    """What is hidden or half written."""
    return [path for path in folder.rglob("*") if ".tmp" in path.name or path.suffix == ".partial"]


def assert_same_run(folder: Path, other: Path) -> None:
    assert (folder / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    newest = [training_states(path)[0] for path in (folder, other)]
    states = [load_file(path) for path in newest]
    assert newest[0].name == newest[1].name
    assert [name for name in states[0] if not states[0][name].equal(states[1][name])] == []
    histories = [json.loads((path / "history.json").read_text()) for path in (folder, other)]
    assert results(histories[0]) == results(histories[1])


def assert_same_evaluation(folder: Path, other: Path) -> None:
    found, expected = (json.loads((path / "eval_results.json").read_text()) for path in (folder, other))
    # Copied checkpoints have other names.
    assert results(found | {"checkpoint": ""}) == results(expected | {"checkpoint": ""})
    names = ["predictions.csv", *(f"figures/{path.name}" for path in sorted((other / "figures").iterdir()))]
    assert [name for name in names if (folder / name).read_bytes() != (other / name).read_bytes()] == []


class Commands:
    """The three command lines on one data set, with caches of their own where asked."""

    def __init__(self, forks: ForkServer, data: Path, root: Path):
        self.forks, self.data, self.root = forks, data, root

    def train(self, folder: Path, *options: str, cache: Path | None = None, **moment: Any) -> Child:
        places = ["--data", self.data, "--output_dir", folder, "--cache_dir", cache or self.root / "cache"]
        return self.forks.run("train", [*TINY, *places, *options], **moment)

    def evaluate(self, folder: Path, *options: str, **moment: Any) -> Child:
        places = ["--data", self.data, "--checkpoint", folder, "--cache_dir", self.root / "cache"]
        return self.forks.run("evaluate", [*places, "--n_resamples", "20", *options], **moment)

    def study(self, folder: Path, kind: str, **moment: Any) -> Child:
        (self.root / "recipe.yaml").write_text(RECIPE)
        (self.root / f"{kind}.yaml").write_text(STUDIES[kind])
        places = ["--data", self.data, "--output_dir", folder, "--cache_dir", self.root / "cache"]
        step = ["train"] if kind == "train" else []
        return self.forks.run("study", [*step, "--config", self.root / f"{kind}.yaml", *places], **moment)


@pytest.fixture(scope="module")
def commands(forks: ForkServer, synthetic_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Commands:
    return Commands(forks, synthetic_folder, tmp_path_factory.mktemp("stages"))


@pytest.fixture(scope="module")
def counted(commands: Commands) -> tuple[Path, int]:
    """An undisturbed run, and the number of operations on its files."""
    folder, counter = commands.root / "undisturbed", commands.root / "run-operations"
    child = commands.train(folder, watched=str(folder), counter=str(counter))
    assert child.wait() == 0, child.text
    return folder, int(counter.read_text())


@pytest.fixture(scope="module")
def trained(counted: tuple[Path, int]) -> Path:
    return counted[0]


def test_killed_while_the_cache_is_built(commands: Commands, trained: Path, tmp_path: Path) -> None:
    # The frames of training, the larger of the two, and the validation images.
    expected = {path.name: path.read_bytes() for path in (commands.root / "cache").glob("*.npy")}
    assert len(expected) == 2
    cache, moments = tmp_path / "cache", random.Random(0)
    folder, sizes = tmp_path / "run", [0]
    for number in range(2):
        options = ["--resume"] if number else []
        assert commands.train(folder, *options, cache=cache, picture=moments.randint(60, 100)).wait() == -9
        (partial,) = cache.glob("*.partial")
        sizes.append(partial.stat().st_size)
        assert not list(cache.glob("*.npy"))
    assert sizes[2] > sizes[1] > 0  # the second build went on where the first was killed
    last = commands.train(folder, "--resume", cache=cache)
    assert last.wait() == 0, last.text
    assert f"note: '{folder}' was ended before it had saved a step; starting it again" in last.text
    assert {path.name: path.read_bytes() for path in cache.glob("*.npy")} == expected
    assert_same_run(folder, trained)
    assert leftovers(tmp_path) == []


def test_killed_in_the_middle_of_a_state(commands: Commands, trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert commands.train(folder, state=3).wait() == -9
    assert len(training_states(folder)) == 2
    (half,) = leftovers(folder)
    assert 0 < half.stat().st_size < training_states(trained)[0].stat().st_size
    assert commands.train(folder, "--resume").wait() == 0
    assert_same_run(folder, trained)
    assert leftovers(folder) == []


def kill_runs(commands: Commands, counted: tuple[Path, int], root: Path, *, kills: int, seed: int) -> None:
    """Kills runs before random operations on their files, and resumes them."""
    undisturbed, total = counted
    assert total > 50
    for number, moment in enumerate(random.Random(seed).sample(range(1, total + 1), kills)):
        folder = root / str(number)
        assert commands.train(folder, watched=str(folder), file_operation=moment).wait() == -9
        begun = (folder / "train_config.json").exists()
        child = commands.train(folder, *(["--resume"] if begun else []))
        assert child.wait() == 0, child.text
        assert_same_run(folder, undisturbed)
        assert leftovers(folder) == []


def test_killed_between_the_files_of_a_run(commands, counted, tmp_path) -> None:
    kill_runs(commands, counted, tmp_path, kills=2, seed=1)


@pytest.mark.slow
def test_killed_between_the_files_of_a_run_many_times(commands, counted, tmp_path) -> None:
    kill_runs(commands, counted, tmp_path, kills=40, seed=2)


def kill_overwriting_runs(commands: Commands, trained: Path, root: Path, *, kills: int, seed: int) -> None:
    """Kills runs that overwrite another one before random operations on its files."""
    new, counter = ["--overwrite", "--seed", "1"], root / "operations"
    expected = root / "expected"
    shutil.copytree(trained, expected)
    child = commands.train(expected, *new, watched=str(expected), counter=str(counter))
    assert child.wait() == 0, child.text
    old = {path.name: path.read_bytes() for path in trained.iterdir() if path.is_file()}
    stayed = []
    for number, moment in enumerate(random.Random(seed).sample(range(1, int(counter.read_text()) + 1), kills)):
        folder = root / str(number)
        shutil.copytree(trained, folder)
        assert commands.train(folder, *new, watched=str(folder), file_operation=moment).wait() == -9
        stayed.append(json.loads(settings_path(folder).read_text())["config"]["seed"] == 0)
        if stayed[-1]:
            assert {name: (folder / name).read_bytes() for name in old} == old
        child = commands.train(folder, *(new if stayed[-1] else ["--resume"]))
        assert child.wait() == 0, child.text
        assert_same_run(folder, expected)
        assert [path for path in [*leftovers(folder), *folder.glob(".new_run*")] if path.exists()] == []
    assert kills < 10 or 0 < sum(stayed) < kills


def test_killed_while_it_overwrites(commands, trained, tmp_path) -> None:
    kill_overwriting_runs(commands, trained, tmp_path, kills=2, seed=4)


@pytest.mark.slow
def test_killed_while_it_overwrites_many_times(commands, trained, tmp_path) -> None:
    kill_overwriting_runs(commands, trained, tmp_path, kills=30, seed=5)


@pytest.fixture(scope="module")
def evaluated(commands: Commands, trained: Path) -> tuple[Path, int]:
    """A folder with the evaluation of the undisturbed run, and the number of file operations that took."""
    folder, counter = commands.root / "evaluation", commands.root / "operations"
    child = commands.evaluate(trained, "--output_dir", str(folder), watched=str(folder), counter=str(counter))
    assert child.wait() == 0, child.text
    return folder, int(counter.read_text())


def kill_evaluations(commands: Commands, trained: Path, evaluated: tuple[Path, int], root: Path, moments: list[int]):
    expected, _ = evaluated
    for moment in moments:
        folder = root / str(moment)
        options = ["--output_dir", str(folder)]
        assert commands.evaluate(trained, *options, watched=str(folder), file_operation=moment).wait() == -9
        # Complete or not there: what is not the last file may be there, but the one that says so is not.
        assert not (folder / "eval_results.json").exists()
        for name in ("predictions.csv", "figures/per_class.png"):
            assert not (folder / name).exists() or (folder / name).read_bytes() == (expected / name).read_bytes()
        assert commands.evaluate(trained, *options).wait() == 0
        assert_same_evaluation(folder, expected)


def test_killed_while_evaluating(commands, trained, evaluated, tmp_path) -> None:
    _, total = evaluated
    assert total > 15
    moments = random.Random(3).sample(range(1, total + 1), 1)
    kill_evaluations(commands, trained, evaluated, tmp_path, moments)


@pytest.mark.slow
def test_killed_before_every_file_operation_of_an_evaluation(commands, trained, evaluated, tmp_path) -> None:
    kill_evaluations(commands, trained, evaluated, tmp_path, list(range(1, evaluated[1] + 1)))


@pytest.mark.slow
def test_an_evaluation_killed_over_an_earlier_one_leaves_no_mixture(commands, trained, evaluated, tmp_path) -> None:
    folder = tmp_path / "evaluation"
    options = ["--output_dir", str(folder)]
    assert commands.evaluate(trained, *options, "--split", "validation").wait() == 0
    before = (folder / "eval_results.json").read_bytes()
    _, total = evaluated
    early = commands.evaluate(trained, *options, watched=str(folder), file_operation=2)
    assert early.wait() == -9
    assert (folder / "eval_results.json").read_bytes() == before  # the earlier one is whole
    late = commands.evaluate(trained, *options, watched=str(folder), file_operation=total - 4)
    assert late.wait() == -9
    assert not (folder / "eval_results.json").exists()  # neither one's results by the other's predictions
    assert commands.evaluate(trained, *options).wait() == 0
    assert_same_evaluation(folder, evaluated[0])


def assert_same_study(folder: Path, other: Path) -> None:
    for name in ("study.json",) if (other / "study.json").is_file() else ():
        found, expected = (json.loads((path / name).read_text()) for path in (folder, other))
        for study in (found, expected):
            del study["recipe"]["config"]["output_dir"]
        assert results(found["protocols"]) == results(expected["protocols"])
    for run in sorted(path.parent.relative_to(other) for path in other.rglob("history.json")):
        assert_same_run(folder / run, other / run)
    for path in sorted(other.rglob("*.parquet")):
        assert (folder / path.relative_to(other)).read_bytes() == path.read_bytes()


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("train", id="one run"),
        pytest.param("report", id="three runs and the report", marks=pytest.mark.slow),
    ],
)
def studied(commands: Commands, request: pytest.FixtureRequest) -> tuple[str, Path, int]:
    """A kind of study, an undisturbed one, and the number of operations on its files."""
    folder = commands.root / f"study-{request.param}"
    counter = folder.with_suffix(".operations")
    child = commands.study(folder, request.param, watched=str(folder), counter=str(counter))
    assert child.wait() == 0, child.text
    assert len(list(folder.rglob("out_of_fold.parquet"))) == {"train": 1, "report": 3}[request.param]
    return request.param, folder, int(counter.read_text())


def kill_study(commands: Commands, studied: Any, folder: Path, *, kills: int, seed: int) -> None:
    """Kills one study again and again, each time so many random file operations on."""
    kind, expected, total = studied
    moments, killed = random.Random(seed), 0
    for _ in range(kills):
        moment = moments.randint(1, 2 * total // (kills + 1))
        code = commands.study(folder, kind, watched=str(folder), file_operation=moment).wait()
        killed += code == -9
        assert code in (0, -9)
    assert killed > kills // 2
    last = commands.study(folder, kind)
    assert last.wait() == 0, last.text
    assert_same_study(folder, expected)


def test_a_killed_study(commands, studied, tmp_path) -> None:
    kill_study(commands, studied, tmp_path / "study", kills=1, seed=5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_study_killed_twelve_times(commands, studied, tmp_path, seed) -> None:
    kill_study(commands, studied, tmp_path / "study", kills=12, seed=seed)
