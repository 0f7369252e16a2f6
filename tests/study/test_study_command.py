"""The study as a user runs it: image runs, report and release from the command line, on tiny networks."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open

from ham10000.hub_upload.model_card import render_model_card
from ham10000.hub_upload.run_files import read_run
from ham10000.modeling import LABELS, Ham10000Error
from ham10000.training.data.sources import load_data
from ham10000.training.evaluation.metrics import softmax
from ham10000.training.inference.prediction import calibration_of, load_checkpoint, predict
from ham10000.training.predict import main as predict_main
from ham10000.training.study.__main__ import main, parse_study
from ham10000.training.study.command import read_answer
from ham10000.training.study.runs import locate_runs, plan_runs
from ham10000.training.train import main as train_main
from ham10000.training.utils.markdown_text import escape, plain

STUDY = "{recipe: recipe.yaml, protocols: {lesion-grouped: {folds: 3}}, n_resamples: 50, heads: {epochs: 2}}"
RECIPE = "{backbone: test_efficientnet, backbone_kwargs: {}, pretrained: none, image_size: [32], epochs: 1}"
DATA = ["--data", "synthetic:240"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study whose first run is one of `ham10000-train`, and whose others it trained itself, one by --only."""
    root = tmp_path_factory.mktemp("study")
    (root / "study.yaml").write_text(STUDY)
    (root / "recipe.yaml").write_text(RECIPE)
    plain = ["--config", str(root / "recipe.yaml"), *DATA, "--cache_dir", str(root / "cache"), "--trackers", "none"]
    plain += ["--modality", "image", "--folds", "3", "--fold", "0", "--train_on_validation", "--seed", "0"]
    assert train_main([*plain, "--output_dir", str(root / "plain")]) == 0
    assert main(["train", *command(root), "--only", "lesion-grouped/image-seed0-fold2"]) == 0
    assert not (root / "study" / "lesion-grouped" / "image-seed0-fold1").exists()
    assert main(command(root)) == 0
    return root


def command(root: Path, *options: str) -> list[str]:
    places = ["--cache_dir", str(root / "cache"), "--output_dir", str(root / "study"), "--runs", str(root / "plain")]
    return ["--config", str(root / "study.yaml"), *DATA, *places, *options]


def test_it_writes_the_report_takes_the_plain_run_and_trains_none_twice(root: Path, capsys) -> None:
    before = (root / "study" / "predictions.parquet").read_bytes()
    assert main(["train", *command(root)]) == 0
    assert capsys.readouterr().out.count("done before") == 3
    assert (root / "study" / "predictions.parquet").read_bytes() == before
    study = json.loads((root / "study" / "study.json").read_text())
    assert str(root) not in json.dumps(study)  # no paths of this machine
    assert study["recipe"]["config"]["backbone"] == "test_efficientnet"
    assert study["protocols"]["lesion-grouped"]["n_images"] == 240
    assert not (root / "study" / "lesion-grouped" / "image-seed0-fold0").exists()
    counts = pd.read_parquet(root / "study" / "predictions.parquet").groupby("variant")["image_id"].nunique()
    assert counts.to_dict() == dict.fromkeys(("image", "metadata", "fusion", "control"), 240)


def test_out_of_fold_logits_are_the_checkpoints_own(root: Path) -> None:
    model, processor = load_checkpoint(root / "plain")
    rows = pd.read_parquet(root / "plain" / "out_of_fold.parquet").head(8)
    split = pd.read_csv(root / "plain" / "split.csv").set_index("image_id")
    assert set(split.loc[rows["image_id"], "split"]) == {"test"}
    data = load_data("synthetic:240")[0]
    images = [data[data["image_id"][:].index(name)]["image"] for name in rows["image_id"]]
    logits = rows[[f"logit_{name}" for name in LABELS]].to_numpy()
    np.testing.assert_allclose(predict(model, processor, images), softmax(logits), atol=2e-3)
    assert rows["label"].tolist() == split.loc[rows["image_id"], "dx"].tolist()


def test_the_report_needs_only_the_predictions_and_the_metadata(root: Path, tmp_path: Path) -> None:
    table = root / "study" / "predictions.parquet"
    options = ["--config", str(root / "study.yaml"), *DATA, "--output_dir", str(tmp_path / "again")]
    assert main(["report", *options, "--predictions", str(table), "--tables", str(tmp_path / "paper")]) == 0
    found, expected = (json.loads((path / "study.json").read_text()) for path in (tmp_path / "again", root / "study"))
    assert found["protocols"] == expected["protocols"]
    rows = pd.read_csv(tmp_path / "paper" / "comparisons.csv").set_index(["model", "other", "metric"])
    primary = found["protocols"]["lesion-grouped"]["comparisons"][0]["metrics"]["macro_f1"]["estimate"]
    assert rows.loc[("fusion", "control", "macro-F1"), "estimate"] == primary["estimate"]
    names = ("results.tex", "subgroups.csv", "operating_points_fusion.csv", "curves_image.pdf", "comparisons.svg")
    assert all((tmp_path / "paper" / name).is_file() for name in names)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "again" / "predictions.parquet"), pd.read_parquet(table))


def test_the_release_is_three_checkpoints_that_carry_everything(root: Path, capsys, tmp_path: Path) -> None:
    assert main(["release", *command(root)]) == 0
    answer = read_answer(root / "study")
    assert plain(answer[0]) in plain((root / "study" / "study.md").read_text().replace("**", ""))
    release = root / "study" / "release"
    config = json.loads((release / "image-run" / "train_config.json").read_text())["config"]
    assert config["train_on_all"] is config["train_on_validation"] is True
    labels = pd.read_parquet(root / "study" / "predictions.parquet").query("variant == 'image'")["label"]
    shares = labels.value_counts(normalize=True)[list(LABELS)]
    for modality in ("image", "metadata", "fusion"):
        folder = release / f"ham10000-{modality}"
        model, _ = load_checkpoint(folder)
        assert model.config.modality == modality
        assert model.config.temperature != 1
        assert re.search(r"\(T = [\d.]+\); ECE 0\.\d{3} by cross-validation$", str(calibration_of(model)))
        np.testing.assert_allclose(model.config.class_prior, shares)
        assert set(model.config.conformal_thresholds) == {"0.8", "0.9", "0.95"}
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            assert file.get_tensor("classifier.weight").dtype == torch.float16
        files = read_run(folder)
        assert files.evaluation["estimated_by"] == "cross-validation"
        card = render_model_card(files, repo_id="user/model", revision="v1")
        assert "Estimated by cross-validation; this model was trained on all images" in card
        assert "ham10000-study release" in card
        assert all(escape(paragraph) in card for paragraph in answer)
    metadata = release / "ham10000-metadata"
    person = ["--age", "60", "--sex", "male", "--localization", "back", "--checkpoint", str(metadata)]
    assert predict_main([*person, "--coverage", "0.9", "--json", "--output", str(tmp_path / "p.json")]) == 0
    (found,) = json.loads((tmp_path / "p.json").read_text())
    thresholds = load_checkpoint(metadata)[0].config.conformal_thresholds["0.9"]
    probabilities = np.array([found["probabilities"][name] for name in LABELS])
    inside = np.array(LABELS)[1 - probabilities <= thresholds]
    assert (found["prediction_set"], found["coverage"]) == (inside.tolist(), 0.9)
    assert predict_main([*person, "--coverage", "0.8"]) == 0
    assert "80% set: " in capsys.readouterr().out


def test_a_study_that_cannot_be_reported_is_refused_and_says_what_is_missing(root: Path, tmp_path, capsys) -> None:
    (root / "stratified.yaml").write_text("recipe: recipe.yaml\nprotocols: {image-stratified: {}}\n")
    study = ["--config", str(root / "study.yaml")]
    for options, message in (
        (["--config", str(root / "stratified.yaml")], "Give it `folds`, or run the step `train` alone"),
        ([*study, "--only", "fold9"], "--only fold9: no such run in this study; it has lesion-grouped/image"),
        (["report", *study], "No seed of lesion-grouped is complete"),
    ):
        assert not (tmp_path / "study").exists()  # refused before it trains
        assert main([*options, *DATA, "--output_dir", str(tmp_path / "study")]) == 2
        printed = capsys.readouterr()
        assert message in printed.err
    assert "not finished: lesion-grouped/image-seed0-fold0, lesion-grouped/image-seed0-fold1" in printed.out


def test_runs_of_another_recipe_or_study_are_refused(root: Path, tmp_path: Path, capsys) -> None:
    assert main([*command(root), "--epochs", "3"]) == 2
    assert "has a run with epochs 1, but the study asks for 3" in capsys.readouterr().err
    study = parse_study(command(root))[1]
    summary = json.loads((root / "plain" / "train_config.json").read_text())
    for change, others, message in (
        ({}, [root / "plain"], "are the same run"),
        ({"seed": 5}, [], "this study does not have"),
        ({"train_on_validation": False}, [], "was not trained with train_on_validation True"),
        ({"train_on_all": True}, [], "was not trained with train_on_all False"),
    ):
        (tmp_path / "train_config.json").write_text(json.dumps(summary | {"config": summary["config"] | change}))
        with pytest.raises(Ham10000Error, match=message):
            locate_runs(study, tmp_path, [*others, tmp_path])
    assert len(plan_runs(study)) == 3


def test_no_run_of_a_study_sees_its_test_images_whatever_the_recipe_says(root: Path, tmp_path: Path) -> None:
    _, study, base = parse_study(command(root))
    own = {"train_on_validation": True, "train_on_all": True, "split_file": "split.csv", "save_dtype": "float16"}
    base = dataclasses.replace(base, **own)
    for run in plan_runs(study):
        config = run.config(base, tmp_path)
        assert (config.train_on_all, config.split_file, config.save_dtype) == (False, None, "float32")
        assert "test" not in config.train_parts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "1"], "--seed is set by the study"),
        (["--folds=5"], "--folds is set by the study"),
        (["--train-on-all"], "--train_on_all is set by the study"),
        (["--metadata_fields", "age"], "does not take --metadata_fields.*its heads read age, sex and site"),
        (["train", "--predictions", "p.parquet"], "--predictions is for"),
        (["report", "--only", "a"], "--only names runs to train"),
        (["test"], "Unknown step 'test'"),
    ],
)
def test_options_that_do_not_fit_are_refused(root: Path, options: list[str], message: str) -> None:
    with pytest.raises(Ham10000Error, match=message):
        parse_study([*options, "--config", str(root / "study.yaml"), *DATA])
