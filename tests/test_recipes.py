"""The search for a recipe: what it trains, what it scores, and what its table says."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, f1_score
from transformers import AutoProcessor

from ham10000.modeling import LABELS, Ham10000Error
from ham10000.training.evaluation_report import read_predictions
from ham10000.training.recipes import main, read_plan
from ham10000.training.recipes_report import recipes_markdown
from ham10000.training.split import load_split

PLAN = """
shared: {data: "synthetic:200", modality: image, backbone: test_efficientnet, backbone_kwargs: "{}", pretrained: none,
         image_size: [32], epochs: 1}
trials:
  plain: {what: The shared settings, settings: {}, seeds: 2}
  sqrt: {what: Sampling, against: plain, settings: {sampling: sqrt, class_weights: none}}
  flips: {what: Four views, against: plain, of: plain, views: 4}
  small: {what: Smaller pictures, against: plain, of: plain, image_size: [24]}
  raw: {what: Without the average, against: plain, of: plain, raw: true}
  soup: {what: Mean of two seeds, against: plain, of: plain, average: true}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recipes")
    (root / "plan.yaml").write_text(PLAN)
    assert main(command(root)) == 0
    return root


def command(root: Path) -> list[str]:
    options = {"data": "synthetic:200", "output_dir": root / "trials", "cache_dir": root / "cache", "to": root / "to"}
    return [str(root / "plan.yaml"), *(text for name, value in options.items() for text in (f"--{name}", str(value)))]


@pytest.fixture(scope="module")
def trials(folder: Path) -> dict[str, dict]:
    return {row["name"]: row for row in json.loads((folder / "to" / "recipes.json").read_text())["trials"]}


def test_every_number_is_of_validation_images(folder: Path, trials: dict[str, dict]) -> None:
    split = load_split(folder / "trials" / "plain-seed0")
    for name in ("plain", "sqrt"):
        scores = []
        for seed in range(trials[name]["seeds"]):
            path = folder / "trials" / f"{name}-seed{seed}" / "evaluation_validation" / "predictions.csv"
            table, labels, probabilities = read_predictions(path)
            assert set(table["image_id"]) == set(split.ids("validation"))
            predicted = probabilities.argmax(axis=1)
            scores.append(f1_score(labels, predicted, average="macro", labels=range(len(LABELS)), zero_division=0))
        assert trials[name]["metrics"]["macro_f1"]["per_seed"] == pytest.approx(scores)
    accuracy = accuracy_score(labels, predicted)
    assert trials["sqrt"]["metrics"]["accuracy"]["mean"] == pytest.approx(accuracy)
    assert trials["sqrt"]["differences"]["macro_f1"]["estimate"] == pytest.approx(
        trials["sqrt"]["metrics"]["macro_f1"]["mean"] - trials["plain"]["metrics"]["macro_f1"]["per_seed"][0]
    )
    assert not list((folder / "trials").glob("*/predictions.csv"))  # of the test images


def test_derived_checkpoints_are_what_they_say(folder: Path, trials: dict[str, dict]) -> None:
    seeds = [load_file(folder / "trials" / f"plain-seed{seed}" / "model.safetensors") for seed in (0, 1)]
    soup = load_file(folder / "trials" / "soup-seed0" / "model.safetensors")
    for name, value in soup.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (seeds[0][name] + seeds[1][name]) / 2)
    assert trials["soup"]["seeds"] == 1
    state = load_file(max((folder / "trials" / "plain-seed1").glob("training_state-*.safetensors")))
    raw = load_file(folder / "trials" / "raw-seed1" / "model.safetensors")
    assert all(torch.equal(value, state[f"model/{name}"]) for name, value in raw.items())
    assert not torch.equal(raw["classifier.weight"], seeds[1]["classifier.weight"])
    assert AutoProcessor.from_pretrained(folder / "trials" / "small-seed1").image_processor.size["height"] == 24
    assert trials["small"]["seeds"] == trials["flips"]["seeds"] == 2
    assert trials["small"]["cost"] is trials["flips"]["cost"] is None
    assert trials["small"]["metrics"]["nll"]["mean"] != trials["plain"]["metrics"]["nll"]["mean"]


def test_the_table_holds_every_trial_helpful_or_not(folder: Path, trials: dict[str, dict]) -> None:
    text = (folder / "to" / "recipes.md").read_text()
    for name, trial in trials.items():
        (row,) = re.findall(rf"^\| {name} \| .* \|$", text, re.MULTILINE)[:1]
        assert f"{trial['metrics']['macro_f1']['mean']:.3f}" in row
    assert (folder / "to" / "figures" / "recipes.png").is_file()
    assert str(folder) not in text + (folder / "to" / "recipes.json").read_text()


def test_what_is_done_is_not_done_again(folder: Path, trials: dict[str, dict]) -> None:
    files = [*folder.rglob("*.safetensors"), *folder.rglob("predictions.csv")]
    before = [path.stat().st_mtime_ns for path in files]
    assert main(command(folder)) == 0
    assert [path.stat().st_mtime_ns for path in files] == before
    again = json.loads((folder / "to" / "recipes.json").read_text())["trials"]
    assert {row["name"]: row for row in again} == trials
    assert np.isfinite(again[0]["metrics"]["nll"]["mean"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trials: {}", "no plan with `shared` and `trials`"),
        ("shared: {}\ntrials: {a: {what: x, setings: {}}}", "unknown key"),
        ("shared: {}\ntrials: {a: {what: x}}", "one of settings, of, runs"),
        ("shared: {}\ntrials: {a: {settings: {}}}", "needs `what`"),
        ("shared: {}\ntrials: {a: {what: x, of: b}}", "no trial above it"),
        ("shared: {}\ntrials: {a: {what: x, settings: {}, views: 3}}", "views must be one of"),
        ("shared: {}\ntrials: {a: {what: x, settings: {epochs: 0}}}", "`epochs` must be at least 1"),
    ],
)
def test_a_plan_is_checked_before_anything_is_trained(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(Ham10000Error, match=re.escape(message)):
        read_plan(path)


def test_the_plan_of_the_results_is_the_one_in_the_examples() -> None:
    root = Path(__file__).parents[1] / "examples"
    shared, trials = read_plan(root / "configs" / "recipes.yaml")
    found = json.loads((root / "results" / "recipes.json").read_text(encoding="utf-8"))
    assert found["shared"] == shared
    assert [(row["name"], row["what"], row["settings"]) for row in found["trials"]] == [
        (trial.name, trial.what, trial.settings) for trial in trials
    ]
    assert (root / "results" / "recipes.md").read_text(encoding="utf-8") == recipes_markdown(found)


def test_a_search_on_the_leaking_protocol_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plan.yaml").write_text(PLAN.replace("epochs: 1", "epochs: 1, protocol: image-stratified"))
    assert main(command(tmp_path)) == 2
    assert "lesion-grouped validation images only" in capsys.readouterr().err
