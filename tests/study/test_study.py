"""The analysis of a study, its numbers found again from the written table by other ways."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from analysed_study import CONFIG, FOLDER, FRAME, IMAGE, STRATIFIED, analysed, study_json
from results import TARGETS, targets_table
from scipy.special import log_softmax, softmax
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss

from ham10000.modeling import LABELS, Ham10000Error
from ham10000.training.evaluation.calibration import fit_vector_scaling
from ham10000.training.study.command import matching_rows, report
from ham10000.training.study.config import read_study_config
from ham10000.training.study.figures import DRAW
from ham10000.training.study.predictions import read_logits
from ham10000.training.study.report import results_table, study_markdown

VARIANTS = ("image", "metadata", "fusion", "control")
LOGITS = [f"logit_{name}" for name in LABELS]


@pytest.fixture(scope="module")
def lead() -> Any:
    return analysed()["lesion-grouped"].results


@pytest.fixture(scope="module")
def tables(lead: Any) -> dict[tuple[str, int], pd.DataFrame]:
    """By variant and seed, with the answers, and the class ids of the labels."""
    table = pd.read_parquet(FOLDER / "predictions.parquet").query("protocol == 'lesion-grouped'")
    table = table.assign(answer=table[LOGITS].to_numpy().argmax(axis=1), id=table["label"].map(LABELS.index))
    return {key: part.reset_index(drop=True) for key, part in table.groupby(["variant", "seed"])}


def test_the_headline_is_that_of_the_published_table(lead: Any, tables: dict) -> None:
    assert list(lead["variants"]) == list(VARIANTS)
    for variant in VARIANTS:
        rows = [tables[variant, seed] for seed in (0, 1)]
        expected = [f1_score(of_seed["id"], of_seed["answer"], average="macro") for of_seed in rows]
        metric = lead["variants"][variant]["metrics"]["macro_f1"]
        np.testing.assert_allclose(metric["per_seed"], expected, atol=1e-12)
        assert (metric["estimate"], metric["sd"]) == pytest.approx((np.mean(expected), np.std(expected, ddof=1)))


def test_every_rule_is_what_it_says(lead: Any, tables: dict) -> None:
    prior = np.array(list(lead["class_counts"].values())) / lead["n_images"]
    for variant in ("image", "fusion"):
        found = lead["variants"][variant]
        for seed in (0, 1):
            rows = tables[variant, seed]
            labels, logits = rows["id"].to_numpy(), rows[LOGITS].to_numpy(dtype=float)
            calibrated = np.empty((len(rows), 7))
            for fold in range(3):
                test = rows["fold"].to_numpy() == fold
                temperature, biases = fit_vector_scaling(logits[~test], labels[~test])
                calibrated[test] = logits[test] / temperature + biases
            for rule, scores in (("probable", calibrated), ("balanced", log_softmax(calibrated, 1) - np.log(prior))):
                per_seed = found["rules"][rule]["balanced_accuracy"]["per_seed"]
                assert per_seed[seed] == pytest.approx(balanced_accuracy_score(labels, scores.argmax(axis=1)))
            nll = found["metrics"]["nll"]["per_seed"]
            assert nll[seed] == pytest.approx(log_loss(labels, softmax(calibrated, axis=1)), abs=1e-6)
        assert found["rules"]["trained"]["macro_f1"] == found["metrics"]["macro_f1"]
        assert 0 < found["ece_floor"] < found["metrics"]["ece"]["estimate"] < found["uncalibrated"]["ece"]["estimate"]


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
        found = lead["variants"][variant]["shortcuts"]
        assert "localization" in found["named"]  # which the class decides here
        assert "sex" not in found["named"]  # which says nothing
        assert found["as_is"]["estimate"] == lead["variants"][variant]["metrics"]["macro_f1"]["estimate"]
        assert [row["share"] for row in found["missing"]] == [0.0, *(k / 10 for k in range(1, 10)), 1.0]
        assert found["missing"][-1]["flips"] == found["fields"]["all"]["unknown"]["flips"]
        means, melanoma = ([row["estimate"] for row in found[f"{name}_sweep"]["melanoma"]] for name in ("site", "age"))
        assert found["site_sweep"]["change"]["estimate"] == pytest.approx(max(means) - min(means))
        decades = np.array(found["age_sweep"]["values"]) / 10
        assert found["age_sweep"]["change"]["estimate"] == pytest.approx(np.polyfit(decades, melanoma, 1)[0])


def test_seen_lesions_are_those_with_another_photograph_in_training() -> None:
    others = FRAME[~FRAME["image_id"].isin(STRATIFIED.image_ids)]
    # Rows without an age are left out of such a split, unless all are.
    for data, trained in ((FRAME.assign(age=np.nan), others), (FRAME, others[others["age"].notna()])):
        expected = np.isin(STRATIFIED.lesion_ids, trained["lesion_id"].to_numpy(dtype=str))
        np.testing.assert_array_equal(matching_rows(data, STRATIFIED)["seen"], expected)
    leakage = {name: protocol.results["leakage"] for name, protocol in analysed().items()}
    assert leakage["image-stratified"]["share"] == pytest.approx(expected.mean())
    assert leakage["lesion-grouped"] is None
    assert not matching_rows(FRAME, IMAGE)["seen"].any()


def test_the_report_says_it_and_shows_it(lead: Any) -> None:
    study, text = json.loads((FOLDER / "study.json").read_text()), (FOLDER / "study.md").read_text()
    assert study["origin"] is None
    assert text == study_markdown(study)
    assert {path.name for path in (FOLDER / "figures").iterdir()} == {f"{draw.__name__}.png" for draw in DRAW}
    assert re.search(r"\b(None|nan|undefined)\b", text) is None
    assert list(read_logits([FOLDER / "predictions.parquet"])) == ["lesion-grouped", "image-stratified"]


def test_the_readme_compares_with_what_is_published_and_says_what_is_missed(lead: Any) -> None:
    study, fusion, published = study_json(), lead["variants"]["fusion"], "0.804 [0.753, 0.847]"
    # It is of HAM10000's images, with which others do not compare.
    assert [published in results_table(study | {"origin": origin}) for origin in (None, "HAM10000")] == [False, True]
    assert all(target.because in targets_table(study).replace("&#39;", "'") for target in TARGETS)
    ece = next(target for target in TARGETS if target.above_floor)
    assert ece.found(fusion) == pytest.approx(fusion["metrics"]["ece"]["estimate"] - fusion["ece_floor"])
    assert (ece.gap(0.03), TARGETS[0].gap(0.75)) == ("0.010 too high", "0.010 short")


def test_what_is_no_study_and_data_of_other_predictions_are_refused() -> None:
    for change, message in (({"format": 1}, "format 1; this version reads"), ({"protocols": {}}, "has no protocol")):
        with pytest.raises(Ham10000Error, match=message):
            study_markdown(study_json() | change)
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
