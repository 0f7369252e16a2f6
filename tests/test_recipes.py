"""The search for a recipe: what it trains, what it scores, and what its table says."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from recipes import main, read_plan
from recipes_report import recipes_markdown
from scipy.special import softmax
from sklearn.metrics import accuracy_score, average_precision_score, balanced_accuracy_score, f1_score, log_loss

from ham10000.modeling import Ham10000Error
from ham10000.training.data.split import load_split

PLAN = """
folds: 5
use: [0, 1]
shared: {data: "synthetic:300", modality: image, backbone: test_efficientnet, backbone_kwargs: "{}", pretrained: none,
         image_size: [32], epochs: 2, head_learning_rate: 0.01}
trials:
  plain: {what: The shared settings, settings: {}}
  sqrt: {what: Sampling, against: plain, settings: {sampling: sqrt, class_weights: none}}
  flips: {what: Four views, against: plain, of: plain, views: 4}
  crops: {what: Training views, against: plain, of: plain, crops: 3}
  small: {what: Smaller images, against: plain, of: plain, image_size: [24]}
  raw: {what: Without the average, against: plain, of: plain, raw: true}
  rule: {what: The balanced rule, against: plain, of: plain, balanced: true}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recipes")
    (root / "plan.yaml").write_text(PLAN)
    assert main([*command(root), "--only", "plain-fold1"]) == 0
    assert [path.name for path in (root / "trials").iterdir()] == ["plain-fold1"]
    assert main(command(root)) == 0
    return root


def command(root: Path) -> list[str]:
    options = {"data": "synthetic:300", "output_dir": root / "trials", "cache_dir": root / "cache", "to": root / "to"}
    return [str(root / "plan.yaml"), *(text for name, value in options.items() for text in (f"--{name}", str(value)))]


@pytest.fixture(scope="module")
def trials(folder: Path) -> dict[str, dict]:
    return {row["name"]: row for row in json.loads((folder / "to" / "recipes.json").read_text())["trials"]}


# The files of the trials that do not use the weights plainly.
USES = {"flips": "views4_crops0_sizeown", "crops": "views1_crops3_sizeown", "small": "views1_crops0_size24"}
USES["raw"] = "views1_crops0_sizeown_raw"


def predictions(folder: Path, run: str, trial: str) -> dict[str, np.ndarray]:
    """Both folds' predictions, one after the other."""
    name = f"validation_{USES.get(trial, 'views1_crops0_sizeown')}.npz"
    files = [np.load(folder / "trials" / f"{run}-fold{fold}" / name) for fold in (0, 1)]
    found = {name: np.concatenate([file[name] for file in files]) for name in ("labels", "logits")}
    for name in ("prior", "natural"):
        found[name] = np.concatenate([np.tile(file[name], (len(file["labels"]), 1)) for file in files])
    return found


def test_every_number_is_of_validation_images_and_scikit_learns(folder: Path, trials: dict[str, dict]) -> None:
    splits = [load_split(folder / "trials" / f"plain-fold{fold}") for fold in (0, 1)]
    assert trials["plain"]["n_images"] == sum(split.sizes["validation"] for split in splits)
    assert not set(splits[0].ids("validation")) & set(splits[1].ids("validation"))
    for name, trial in trials.items():
        found = predictions(folder, trial["of"] or name, name)
        labels, logits = found["labels"], found["logits"]
        answers = (logits - np.log(found["prior"]) if name == "rule" else logits).argmax(axis=1)
        corrected = softmax((logits + np.log(found["natural"] / found["prior"])) / trial["temperature"], axis=1)
        expected = {
            "macro_f1": f1_score(labels, answers, average="macro"),
            "balanced_accuracy": balanced_accuracy_score(labels, answers),
            "accuracy": accuracy_score(labels, answers),
            "nll": log_loss(labels, corrected, labels=range(7)),
            "average_precision_macro": average_precision_score(np.eye(7)[labels], corrected, average="macro"),
        }
        assert {metric: row["estimate"] for metric, row in trial["metrics"].items()} == pytest.approx(expected), name
        # The temperature is the best one.
        others = [softmax(factor * np.log(corrected), axis=1) for factor in (0.98, 1.02)]
        assert expected["nll"] < min(log_loss(labels, other, labels=range(7)) for other in others)
        if name in USES:
            assert not np.allclose(logits, predictions(folder, "plain", "plain")["logits"]), name
            assert trial["cost"] is None
        for metric, row in (trial["differences"] or {}).items():
            of_other = trials["plain"]["metrics"][metric]["estimate"]
            assert row["estimate"] == pytest.approx(expected[metric] - of_other)
            assert row["low"] <= row["high"]
    assert not list((folder / "trials").glob("*/predictions.csv"))  # of the test images


def test_the_table_shows_every_trial_helpful_or_not(folder: Path, trials: dict[str, dict]) -> None:
    text = (folder / "to" / "recipes.md").read_text()
    for name, trial in trials.items():
        (row,) = re.findall(rf"^\| \*\*{name}\*\*.* \|$", text, re.MULTILINE)
        assert f"{trial['metrics']['macro_f1']['estimate']:.3f}" in row
    assert (folder / "to" / "figures" / "recipes.png").is_file()
    assert str(folder) not in text + (folder / "to" / "recipes.json").read_text()


def test_only_an_edited_trial_is_predicted_again(folder: Path, trials: dict, tmp_path: Path, capsys) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    files = [*copy.rglob("*.safetensors"), *copy.rglob("validation_*.npz")]
    before = {path: path.stat().st_mtime_ns for path in files}
    (copy / "plan.yaml").write_text(PLAN.replace("views: 4", "views: 2"))
    assert main(command(copy)) == 0
    assert {path: path.stat().st_mtime_ns for path in files} == before
    again = {row["name"]: row for row in json.loads((copy / "to" / "recipes.json").read_text())["trials"]}
    assert [name for name in trials if again[name] != trials[name]] == ["flips"]
    assert main([*command(copy), "--only", "flips-fold0"]) == 2
    assert "not a run of this plan; it trains plain-fold0, plain-fold1, sqrt-fold0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trials: {}", "is not a plan with `folds`, `use`, `shared` and `trials`"),
        ("{a: {what: x, setings: {}}}", "unknown key"),
        ("{a: {what: x}}", "either `settings` or `of`"),
        ("{a: {settings: {}}}", "needs `what`"),
        ("{a: {what: x, of: b}}", "is not a trial above it"),
        ("{a: {what: x, settings: {}}, b: {what: x, of: a}, c: {what: x, of: b}}", "was not trained"),
        ("{a: {what: x, settings: {}, views: 3}}", "views must be one of"),
        ("{a: {what: x, settings: {epochs: 0}}}", "`epochs` must be at least 1"),
    ],
)
def test_a_plan_is_checked_before_anything_is_trained(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text if text.startswith("trials") else f"folds: 5\nuse: [0]\nshared: {{}}\ntrials: {text}")
    with pytest.raises(Ham10000Error, match=re.escape(message)):
        read_plan(path)


def test_the_plan_of_the_results_is_the_one_in_the_examples() -> None:
    root = Path(__file__).parents[1] / "examples"
    plan = read_plan(root / "configs" / "recipes.yaml")
    found = json.loads((root / "results" / "recipes.json").read_text(encoding="utf-8"))
    assert found["shared"] == plan.shared
    planned = [(trial.name, trial.what, trial.settings) for trial in plan.trials]
    assert [(row["name"], row["what"], row["settings"]) for row in found["trials"]] == planned
    text = (root / "results" / "recipes.md").read_text(encoding="utf-8")
    assert text == recipes_markdown(found)
    (named,) = re.findall(r"recipes\.py (\S+)", text)
    assert (root.parent / named).is_file()
