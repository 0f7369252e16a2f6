"""The analysis of a study, its numbers found again from the written table by other ways."""

import functools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from results import TARGETS, targets_table
from scipy.special import log_softmax, softmax
from scipy.stats import bootstrap
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss
from study_tables import example_frame, example_image, stratified

from ham10000.modeling import LABELS, Ham10000Error
from ham10000.training.evaluation.bootstrap import Bootstrap
from ham10000.training.evaluation.calibration import fit_vector_scaling
from ham10000.training.study.command import matching_rows, report
from ham10000.training.study.config import ProtocolPlan, StudyConfig, read_study_config
from ham10000.training.study.figures import DRAW
from ham10000.training.study.heads import HeadSettings
from ham10000.training.study.predictions import read_logits
from ham10000.training.study.report import comparison_sentence, results_table, study_markdown
from ham10000.training.study.shortcuts import baseline_rows

VARIANTS = ("image", "metadata", "fusion", "control")
LOGITS = [f"logit_{name}" for name in LABELS]
CONFIG = StudyConfig(
    protocols={"lesion-grouped": ProtocolPlan(3, (0, 1)), "image-stratified": ProtocolPlan(None, (0, 1))},
    n_resamples=150,
    heads=HeadSettings(epochs=3, batch_size=64),
)
FRAME = example_frame(500)
IMAGE = example_image(FRAME, seeds=2)
STRATIFIED = stratified(FRAME, IMAGE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "study"
    report({"lesion-grouped": IMAGE, "image-stratified": STRATIFIED}, FRAME, CONFIG, None, path)
    return path


@pytest.fixture(scope="module")
def study(folder: Path) -> Any:
    return json.loads((folder / "study.json").read_text())


@pytest.fixture(scope="module")
def lead(study: Any) -> Any:
    return study["protocols"]["lesion-grouped"]


@pytest.fixture(scope="module")
def tables(folder: Path) -> dict[tuple[str, int], pd.DataFrame]:
    """By variant and seed, with the answers, and the class ids of the labels."""
    table = pd.read_parquet(folder / "predictions.parquet").query("protocol == 'lesion-grouped'")
    table = table.assign(answer=table[LOGITS].to_numpy().argmax(axis=1), id=table["label"].map(LABELS.index))
    parts = {(v, s): table[(table["variant"] == v) & (table["seed"] == s)] for v in VARIANTS for s in (0, 1)}
    return {key: part.sort_values("image_id", ignore_index=True) for key, part in parts.items()}


def test_the_headline_is_that_of_the_published_table(lead: Any, tables: dict) -> None:
    macro_f1, label = functools.partial(f1_score, average="macro"), tables["image", 0]["id"].to_numpy()
    assert list(lead["variants"]) == list(VARIANTS)
    found = {v: [tables[v, s]["answer"].to_numpy() for s in (0, 1)] for v in VARIANTS}
    scores = {v: np.array([macro_f1(label, of_seed) for of_seed in part]) for v, part in found.items()}
    for variant, expected in scores.items():
        metric = lead["variants"][variant]["metrics"]["macro_f1"]
        np.testing.assert_allclose(metric["per_seed"], expected, atol=1e-12)
        assert (metric["estimate"], metric["sd"]) == pytest.approx((expected.mean(), expected.std(ddof=1)))
    primary = lead["comparisons"][0]
    assert (primary["model"], primary["other"]) == ("fusion", "control")
    difference = primary["metrics"]["macro_f1"]["estimate"]
    assert difference["estimate"] == pytest.approx((scores["fusion"] - scores["control"]).mean())

    # scipy resamples lesions for the mean over both seeds; ours draws the seeds too, so it is at least as wide.
    of_lesion = list(tables["image", 0].groupby("lesion_id").indices.values())

    def mean_difference(lesions: np.ndarray) -> float:
        rows = np.concatenate([of_lesion[k] for k in lesions])
        ours, theirs = ([macro_f1(label[rows], part[rows]) for part in found[v]] for v in ("fusion", "control"))
        return float(np.mean(ours) - np.mean(theirs))

    options: dict[str, Any] = {"method": "percentile", "vectorized": False, "n_resamples": 100, "random_state": 0}
    theirs = bootstrap((np.arange(len(of_lesion)),), mean_difference, **options)
    width, (low, high) = difference["high"] - difference["low"], theirs.confidence_interval
    assert 0.8 * (high - low) < width < 1.6 * (high - low)
    assert abs((difference["high"] + difference["low"]) - (low + high)) / 2 < 0.35 * width


def test_every_rule_is_what_it_says(lead: Any, tables: dict) -> None:
    prior = np.array(list(lead["class_counts"].values())) / lead["n_images"]
    for variant in ("image", "fusion"):
        rules = lead["variants"][variant]["rules"]
        for seed in (0, 1):
            rows = tables[variant, seed]
            labels, logits = rows["id"].to_numpy(), rows[LOGITS].to_numpy(dtype=float)
            calibrated = np.empty((len(rows), 7))
            for fold in range(3):
                test = rows["fold"].to_numpy() == fold
                temperature, biases = fit_vector_scaling(logits[~test], labels[~test])
                calibrated[test] = logits[test] / temperature + biases
            for rule, scores in (("probable", calibrated), ("balanced", log_softmax(calibrated, 1) - np.log(prior))):
                found = rules[rule]["balanced_accuracy"]["per_seed"][seed]
                assert found == pytest.approx(balanced_accuracy_score(labels, scores.argmax(axis=1)))
            nll = lead["variants"][variant]["metrics"]["nll"]["per_seed"][seed]
            assert nll == pytest.approx(log_loss(labels, softmax(calibrated, axis=1)), abs=1e-6)
        assert rules["trained"]["macro_f1"] == lead["variants"][variant]["metrics"]["macro_f1"]


def test_calibration_helps_and_sets_of_a_larger_coverage_are_larger(lead: Any) -> None:
    for values in lead["variants"].values():
        ece, sizes = values["metrics"]["ece"], [row["size"]["estimate"] for row in values["sets"]]
        assert ece["low"] <= ece["estimate"] <= ece["high"]
        assert 0 < values["ece_floor"] < ece["estimate"] + 0.03
        assert sizes == sorted(sizes)
    image = lead["variants"]["image"]
    assert image["metrics"]["ece"]["estimate"] < image["uncalibrated"]["ece"]["estimate"] / 2


def test_changes_and_moved_images_are_counted(lead: Any, tables: dict) -> None:
    rows, mel = tables["fusion", 0], LABELS.index("mel")
    # Of two votes that differ the first class.
    ours, theirs = (np.minimum(*(tables[v, s]["answer"] for s in (0, 1))) for v in ("fusion", "control"))
    member, change = rows["id"] == mel, lead["comparisons"][0]["changes"]["mel"]
    lost = member & (ours != mel) & (theirs == mel)
    assert change["images"] == member.sum()
    assert change["images_gained"] == (member & (ours == mel) & (theirs != mel)).sum()
    assert (change["images_lost"], change["lesions_lost"]) == (lost.sum(), rows["lesion_id"][lost].nunique())
    moved = {row["image_id"] for row in lead["comparisons"][0]["moved"]}
    assert moved == set(rows["image_id"][ours != theirs])


def test_shortcuts_find_what_the_metadata_say(lead: Any) -> None:
    assert lead["variants"]["image"]["shortcuts"] is lead["variants"]["control"]["shortcuts"] is None
    for variant in ("fusion", "metadata"):
        found, metrics = (lead["variants"][variant][name] for name in ("shortcuts", "metrics"))
        assert "localization" in found["named"]  # which the class decides here
        assert "sex" not in found["named"]  # which says nothing
        assert found["as_is"]["estimate"] == pytest.approx(metrics["macro_f1"]["estimate"], abs=1e-12)
        assert [row["share"] for row in found["missing"]] == [0.0, *(k / 10 for k in range(1, 10)), 1.0]
        lost = found["as_is"]["estimate"] - found["missing"][-1]["macro_f1"]["estimate"]
        assert found["fields"]["all"]["unknown"]["drop"]["estimate"] == pytest.approx(lost)
        assert found["missing"][0]["flips"]["estimate"] == 0
        sites, ages = found["site_sweep"], found["age_sweep"]
        means = [row["estimate"] for row in sites["melanoma"]]
        assert sites["change"]["estimate"] == pytest.approx(max(means) - min(means))
        melanoma = [row["estimate"] for row in ages["melanoma"]]
        assert ages["change"]["estimate"] == pytest.approx(np.polyfit(np.array(ages["values"]) / 10, melanoma, 1)[0])


def test_baselines_and_forbidden_columns_have_their_rows(lead: Any) -> None:
    names = ["always nv", "logistic regression on metadata", "gradient boosting on metadata"]
    assert [row["name"] for row in lead["baselines"]] == names
    always, regression = (row["scores"] for row in lead["baselines"][:2])
    assert always["accuracy"]["estimate"] == pytest.approx((FRAME["dx"] == "nv").mean())
    assert always["balanced_accuracy"]["estimate"] == pytest.approx(1 / 7)
    assert regression == lead["forbidden"][0]["scores"]  # test_study_shortcuts.py finds it with scikit-learn
    gains = {row["name"]: row["gain"] for row in lead["forbidden"]}
    added = [f"age, sex, site{more}" for more in ("", ", dx_type", ", dataset", ", dx_type, dataset")]
    assert list(gains) == [*added, "dx_type, dataset", "image", "image, dx_type, dataset"]
    assert gains["age, sex, site, dx_type"]["estimate"] > 0.02  # it says who was malignant
    assert gains["age, sex, site"] is gains["dx_type, dataset"] is None
    with pytest.raises(Ham10000Error, match=r"lack the column\(s\) \['dx_type'\]"):
        baseline_rows(IMAGE, FRAME.drop(columns="dx_type"), Bootstrap(IMAGE.labels, IMAGE.groups, 1, 10))


def test_seen_lesions_are_those_with_another_photograph_in_training(study: Any) -> None:
    others = FRAME[~FRAME["image_id"].isin(STRATIFIED.image_ids)]
    # Rows without an age are left out of such a split, unless all are.
    for data, trained in ((FRAME.assign(age=np.nan), others), (FRAME, others[others["age"].notna()])):
        expected = np.isin(STRATIFIED.lesion_ids, trained["lesion_id"].to_numpy(dtype=str))
        np.testing.assert_array_equal(matching_rows(data, STRATIFIED)["seen"], expected)
    assert study["protocols"]["image-stratified"]["leakage"]["share"] == pytest.approx(expected.mean())
    assert not matching_rows(FRAME, IMAGE)["seen"].any()
    assert study["protocols"]["lesion-grouped"]["leakage"] is None


def test_the_report_says_it_and_shows_it(folder: Path, study: Any, lead: Any) -> None:
    text = (folder / "study.md").read_text()
    assert text == study_markdown(study)
    assert {path.name for path in (folder / "figures").iterdir()} == {f"{draw.__name__}.png" for draw in DRAW}
    first = text.split("## In short")[1].split("\n\n")[1]
    mel = lead["comparisons"][0]["changes"]["mel"]
    assert f"{mel['images_gained']:,} gained and {mel['images_lost']:,} lost" in first
    assert "nevus images" in first
    assert comparison_sentence(lead["comparisons"][0], study).split(" [")[0] in first
    assert re.search(r"\b(None|nan|undefined)\b", text) is None
    assert text.count("```") == 2
    assert list(read_logits([folder / "predictions.parquet"])) == ["lesion-grouped", "image-stratified"]


def test_the_readme_has_every_variant_baseline_and_target(study: Any, lead: Any) -> None:
    assert study["origin"] is None
    text, fusion = results_table(study), lead["variants"]["fusion"]
    published = "0.804 [0.753, 0.847]"  # of HAM10000's images, with which others do not compare
    assert (published in text, published in results_table({**study, "origin": "HAM10000"})) == (False, True)
    assert all(row["name"] in text for row in lead["baselines"])
    assert f"{fusion['metrics']['macro_f1']['estimate']:.3f}" in text
    text = targets_table(study).replace("&#39;", "'")
    assert all(target.because in text for target in TARGETS)
    ece = next(target for target in TARGETS if target.above_floor)
    assert ece.found(fusion) == pytest.approx(fusion["metrics"]["ece"]["estimate"] - fusion["ece_floor"])
    assert (ece.gap(0.03), TARGETS[0].gap(0.75)) == ("0.010 too high", "0.010 short")


def test_what_is_no_study_and_data_of_other_predictions_are_refused(study: Any) -> None:
    for change, message in (({"format": 1}, "format 1; this version reads"), ({"protocols": {}}, "has no protocol")):
        with pytest.raises(Ham10000Error, match=message):
            study_markdown({**study, **change})
    wrong = FRAME.assign(dx=FRAME["dx"].where(FRAME["image_id"] != "IMG_00003_0", "nv"))
    for data, message in (
        (FRAME[FRAME["image_id"] != "IMG_00000_0"], "predicted images are not in the data, such as 'IMG_00000_0'"),
        (wrong, "Image 'IMG_00003_0' is 'df' in the predictions, but 'nv' in the data"),
    ):
        with pytest.raises(Ham10000Error, match=message):
            matching_rows(data, IMAGE)
    with pytest.raises(Ham10000Error, match="no image predictions of lesion-grouped"):
        report({}, FRAME, CONFIG, None, Path("nowhere"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rule: best", "`rule` must be one of"),
        ("primary: auroc", "`primary` must be"),
        ("seeds: 5", r"unknown key\(s\) \['seeds'\]"),
        ("comparisons: [[fusion, tta]]", "`comparisons` must be pairs"),
        ("coverages: [1.0]", "`coverages` must be"),
        ("protocols: {lesion-grouped: {folds: 5, seeds: [0, 0]}}", "distinct seeds"),
        ("protocols: {image-stratified: {folds: 5}}", "`protocols` must be led by lesion-grouped"),
        ("protocols: {image-stratified: {}, lesion-grouped: {folds: 5}}", "must be led by lesion-grouped"),
        ("protocols: {lesion-grouped: {folds: 5}, patient: {}}", "`protocols` must be some of"),
        ("protocols: {lesion-grouped: {fold: 5}}", "Cannot read the study's file"),
        ("heads: {epoch: 5}", "Cannot read the study's file"),
        ("rule: [", "Cannot read the study's file"),
    ],
)
def test_a_wrong_file_is_said(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(Ham10000Error, match=message):
        read_study_config(tmp_path / "study.yaml")
