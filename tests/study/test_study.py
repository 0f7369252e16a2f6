"""The analysis of a study, its numbers found again from the written table by other ways."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import log_softmax, softmax
from scipy.stats import bootstrap
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss
from sklearn.utils.class_weight import compute_sample_weight
from study_tables import example_frame, example_image

from ham10000.modeling import LABELS, Ham10000Error
from ham10000.training.evaluation.bootstrap import Bootstrap
from ham10000.training.evaluation.calibration import fit_vector_scaling
from ham10000.training.study.baselines import baseline_rows
from ham10000.training.study.config import ProtocolPlan, StudyConfig, read_study_config
from ham10000.training.study.figures import DRAW
from ham10000.training.study.heads import HeadSettings
from ham10000.training.study.predictions import Predictions, read_logits
from ham10000.training.study.report import (
    TARGETS,
    check_study,
    comparison_sentence,
    results_table,
    short_answer,
    study_markdown,
    targets_table,
)
from ham10000.training.study.steps import lesions_in_training, matching_rows, report

VARIANTS = ("image", "metadata", "fusion", "control")
CONFIG = StudyConfig(
    protocols={"lesion-grouped": ProtocolPlan(3, (0, 1)), "image-stratified": ProtocolPlan(None, (0, 1))},
    n_resamples=150,
    heads=HeadSettings(epochs=3, batch_size=64),
)


def stratified(frame: pd.DataFrame) -> Predictions:
    """A single split by image, whose test part has lesions of training too."""
    image = example_image(frame, seeds=2)
    known = frame.set_index("image_id")["age"].loc[image.image_ids].notna().to_numpy()
    rows = np.flatnonzero(known & (np.random.default_rng(0).random(len(known)) < 0.4))
    fields = {
        name: value[rows] for name, value in vars(image).items() if isinstance(value, np.ndarray) and name != "logits"
    }
    fields["folds"] = np.zeros(len(rows), dtype=np.int64)
    return Predictions(image.classes, **fields, seeds=image.seeds, logits=image.logits[:, rows])


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return example_frame(500)


@pytest.fixture(scope="module")
def folder(frame: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "study"
    tables = {
        ("lesion-grouped", "image"): example_image(frame, seeds=2),
        ("image-stratified", "image"): stratified(frame),
    }
    report(tables, frame, CONFIG, None, path)
    return path


@pytest.fixture(scope="module")
def study(folder: Path) -> Any:
    return json.loads((folder / "study.json").read_text())


@pytest.fixture(scope="module")
def lead(study: Any) -> Any:
    return study["protocols"]["lesion-grouped"]


@pytest.fixture(scope="module")
def table(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "predictions.parquet")


LOGITS = [f"logit_{name}" for name in LABELS]


def of(table: pd.DataFrame, variant: str, seed: int, protocol: str = "lesion-grouped") -> pd.DataFrame:
    chosen = table.query("protocol == @protocol and variant == @variant and seed == @seed")
    return chosen.sort_values("image_id", ignore_index=True)


def answers(rows: pd.DataFrame) -> np.ndarray:
    return np.array(LABELS)[rows[LOGITS].to_numpy().argmax(axis=1)]


def test_the_headline_is_that_of_the_published_table(lead: Any, table: pd.DataFrame) -> None:
    """With scikit-learn and scipy alone, as anyone may."""

    def macro_f1(rows: pd.DataFrame) -> float:
        return float(f1_score(rows["label"], answers(rows), average="macro"))

    assert list(lead["variants"]) == list(VARIANTS)
    scores = {v: np.array([macro_f1(of(table, v, s)) for s in (0, 1)]) for v in VARIANTS}
    for variant, found in scores.items():
        metric = lead["variants"][variant]["metrics"]["macro_f1"]
        np.testing.assert_allclose(metric["per_seed"], found, atol=1e-12)
        assert metric["estimate"] == pytest.approx(found.mean())
        assert metric["sd"] == pytest.approx(found.std(ddof=1))
    primary = lead["comparisons"][0]
    assert (primary["model"], primary["other"]) == ("fusion", "control")
    difference = primary["metrics"]["macro_f1"]["estimate"]
    assert difference["estimate"] == pytest.approx((scores["fusion"] - scores["control"]).mean())

    # scipy resamples lesions for the mean over both seeds; ours draws the seeds too, so it is at least as wide.
    parts = [(of(table, "fusion", s), of(table, "control", s)) for s in (0, 1)]
    of_lesion = list(parts[0][0].groupby("lesion_id").indices.values())
    label = parts[0][0]["label"].map(LABELS.index).to_numpy()
    ids = [[rows[LOGITS].to_numpy().argmax(axis=1) for rows in pair] for pair in parts]

    def mean_difference(lesions: np.ndarray) -> float:
        rows = np.concatenate([of_lesion[k] for k in lesions])
        pairs = [[f1_score(label[rows], part[rows], average="macro") for part in pair] for pair in ids]
        return float(np.mean([ours - theirs for ours, theirs in pairs]))

    options: dict[str, Any] = {"method": "percentile", "vectorized": False, "n_resamples": 100}
    theirs = bootstrap((np.arange(len(of_lesion)),), mean_difference, random_state=0, **options)
    width = difference["high"] - difference["low"]
    low, high = theirs.confidence_interval
    assert 0.8 * (high - low) < width < 1.6 * (high - low)
    assert abs((difference["high"] + difference["low"]) - (low + high)) / 2 < 0.35 * width


def test_every_rule_is_what_it_says(lead: Any, table: pd.DataFrame) -> None:
    prior = np.array(list(lead["class_counts"].values())) / lead["n_images"]
    for variant in ("image", "fusion"):
        rules = lead["variants"][variant]["rules"]
        for seed in (0, 1):
            rows = of(table, variant, seed)
            labels = rows["label"].map(LABELS.index).to_numpy()
            calibrated = np.empty((len(rows), 7))
            for fold in range(3):
                test = rows["fold"].to_numpy() == fold
                logits = rows[LOGITS].to_numpy(dtype=float)
                temperature, biases = fit_vector_scaling(logits[~test], labels[~test])
                calibrated[test] = logits[test] / temperature + biases
            for rule, scores in (("probable", calibrated), ("balanced", log_softmax(calibrated, 1) - np.log(prior))):
                found = rules[rule]["balanced_accuracy"]["per_seed"][seed]
                assert found == pytest.approx(balanced_accuracy_score(labels, scores.argmax(axis=1)))
            nll = lead["variants"][variant]["metrics"]["nll"]["per_seed"][seed]
            assert nll == pytest.approx(log_loss(labels, softmax(calibrated, axis=1)), abs=1e-6)
        assert rules["trained"]["macro_f1"] == lead["variants"][variant]["metrics"]["macro_f1"]


def test_calibration_helps_and_its_interval_contains_it(lead: Any) -> None:
    for values in lead["variants"].values():
        ece = values["metrics"]["ece"]
        assert ece["low"] <= ece["estimate"] <= ece["high"]
        assert 0 < values["ece_floor"] < ece["estimate"] + 0.03
    image = lead["variants"]["image"]
    assert image["metrics"]["ece"]["estimate"] < image["uncalibrated"]["ece"]["estimate"] / 2


def test_sets_cover_what_they_promise_in_the_large_classes(lead: Any) -> None:
    for variant in ("image", "fusion"):
        sizes = []
        for row in lead["variants"][variant]["sets"]:
            assert row["per_class"]["nv"]["estimate"] == pytest.approx(row["coverage"], abs=0.06)
            sizes.append(row["size"]["estimate"])
        assert sizes == sorted(sizes)


def test_metadata_help_where_they_say_something_and_holm_knows_the_family(lead: Any) -> None:
    rows = lead["comparisons"]
    assert [(row["model"], row["other"]) for row in rows] == list(CONFIG.comparisons)
    assert rows[0]["verdict"] == "helps"
    raw = [row["metrics"]["macro_f1"]["p"] for row in rows]
    assert rows[0]["p_holm"] >= raw[0]
    assert max(row["p_holm"] for row in rows) >= max(raw)
    assert rows[0]["smallest_detectable"] > rows[0]["metrics"]["macro_f1"]["smallest_detectable"]


def test_changes_and_moved_images_are_counted(lead: Any, table: pd.DataFrame) -> None:
    def joint(variant: str) -> np.ndarray:
        votes = np.stack([of(table, variant, s)[LOGITS].to_numpy().argmax(axis=1) for s in (0, 1)])
        return np.array(LABELS)[votes.min(axis=0)]  # of two votes that differ the first class

    rows = of(table, "fusion", 0)
    ours, theirs, label = joint("fusion"), joint("control"), rows["label"].to_numpy()
    change = lead["comparisons"][0]["changes"]["mel"]
    member = label == "mel"
    assert change["images"] == member.sum()
    assert change["images_gained"] == (member & (ours == "mel") & (theirs != "mel")).sum()
    lost = member & (ours != "mel") & (theirs == "mel")
    assert change["images_lost"] == lost.sum()
    assert change["lesions_lost"] == rows["lesion_id"][lost].nunique()
    moved = lead["comparisons"][0]["moved"]
    assert {row["image_id"] for row in moved} == set(rows["image_id"][ours != theirs])


def test_shortcuts_find_what_the_metadata_say(lead: Any) -> None:
    assert lead["variants"]["image"]["shortcuts"] is lead["variants"]["control"]["shortcuts"] is None
    for variant in ("fusion", "metadata"):
        found = lead["variants"][variant]["shortcuts"]
        assert "localization" in found["named"]  # which the class decides here
        assert "sex" not in found["named"]  # which says nothing
        assert found["as_is"]["estimate"] == pytest.approx(
            lead["variants"][variant]["metrics"]["macro_f1"]["estimate"], abs=1e-12
        )
        shares = [row["share"] for row in found["missing"]]
        assert shares == [0.0, *(k / 10 for k in range(1, 10)), 1.0]
        lost = found["as_is"]["estimate"] - found["missing"][-1]["macro_f1"]["estimate"]
        assert found["fields"]["all"]["unknown"]["drop"]["estimate"] == pytest.approx(lost)
        assert found["missing"][0]["flips"]["estimate"] == 0
        sweep = found["site_sweep"]
        means = [row["estimate"] for row in sweep["melanoma"]]
        assert sweep["change"]["estimate"] == pytest.approx(max(means) - min(means))
        ages = found["age_sweep"]
        slope = np.polyfit(np.array(ages["values"]) / 10, [row["estimate"] for row in ages["melanoma"]], 1)[0]
        assert ages["change"]["estimate"] == pytest.approx(slope)
        assert all(
            row["estimate"] <= whole["estimate"]
            for row, whole in zip(ages["melanoma"], ages["malignant"], strict=True)
        )


def test_baselines_are_scikit_learns(frame: pd.DataFrame, lead: Any, table: pd.DataFrame) -> None:
    rows = of(table, "image", 0)
    data = frame.set_index("image_id").loc[rows["image_id"]]
    assert [row["name"] for row in lead["baselines"]] == [
        "always nv",
        "logistic regression on metadata",
        "gradient boosting on metadata",
    ]
    always = lead["baselines"][0]["scores"]
    assert always["accuracy"]["estimate"] == pytest.approx((rows["label"] == "nv").mean())
    assert always["balanced_accuracy"]["estimate"] == pytest.approx(1 / 7)
    table_of = data[["sex", "localization"]].assign(
        age=data["age"].floordiv(5).mul(5).astype(object).fillna("unknown")
    )
    inputs = pd.get_dummies(table_of.astype(str)).to_numpy(dtype=float)
    predicted = np.empty(len(rows), dtype=object)
    for fold in range(3):
        test = (rows["fold"] == fold).to_numpy()
        weights = np.sqrt(compute_sample_weight("balanced", rows["label"][~test]))
        model = LogisticRegression(max_iter=2000).fit(inputs[~test], rows["label"][~test], sample_weight=weights)
        predicted[test] = model.predict(inputs[test])
    found = lead["baselines"][1]["scores"]["accuracy"]["estimate"]
    assert found == pytest.approx(accuracy_score(rows["label"], predicted.astype(str)), abs=0.01)
    names = [row["name"] for row in lead["forbidden"]]
    assert names == [
        "age, sex, site",
        "age, sex, site, dx_type",
        "age, sex, site, dataset",
        "age, sex, site, dx_type, dataset",
        "dx_type, dataset",
        "image",
        "image, dx_type, dataset",
    ]
    gains = {row["name"]: row["gain"] for row in lead["forbidden"]}
    assert gains["age, sex, site, dx_type"]["estimate"] > 0.02  # it says who was malignant
    assert gains["age, sex, site"] is gains["dx_type, dataset"] is None
    image = example_image(frame)
    with pytest.raises(Ham10000Error, match=r"lack the column\(s\) \['dx_type'\]"):
        baseline_rows(image, frame.drop(columns="dx_type"), Bootstrap(image.labels, image.groups, 1, 10))


def test_seen_lesions_are_those_with_another_photograph_in_training(frame: pd.DataFrame, study: Any) -> None:
    image = stratified(frame)
    test = set(image.image_ids)
    expected = []
    for name in image.image_ids:
        lesion = frame.loc[frame["image_id"] == name, "lesion_id"].item()
        others = frame[(frame["lesion_id"] == lesion) & ~frame["image_id"].isin(test) & frame["age"].notna()]
        expected.append(len(others) > 0)
    np.testing.assert_array_equal(lesions_in_training(frame, image), expected)
    assert not lesions_in_training(frame, example_image(frame)).any()
    found = study["protocols"]["image-stratified"]["leakage"]
    assert found["share"] == pytest.approx(np.mean(expected))
    rows = np.array(expected)
    predicted = image.logits[0].argmax(axis=1)
    assert found["seen"]["metrics"]["accuracy"]["per_seed"][0] == pytest.approx(
        (predicted == image.labels)[rows].mean()
    )
    assert study["protocols"]["lesion-grouped"]["leakage"] is None


def test_the_report_says_it_and_shows_it(folder: Path, study: Any, lead: Any) -> None:
    text = (folder / "study.md").read_text()
    assert text == study_markdown(study)
    assert {path.name for path in (folder / "figures").iterdir()} == {f"{name}.png" for name in DRAW}
    first = text.split("## In short")[1].split("\n\n")[1]
    mel = lead["comparisons"][0]["changes"]["mel"]
    assert f"{mel['images_gained']:,} gained and {mel['images_lost']:,} lost" in first
    assert "nevus images" in first
    assert comparison_sentence(lead["comparisons"][0], study).split(" [")[0] in first
    assert re.search(r"\b(None|nan|undefined)\b", text) is None
    assert text.count("```") == 2
    assert first.split("\n")[0] in short_answer(study)[0] or short_answer(study)[0] in first


def test_the_readme_has_every_variant_baseline_and_target(study: Any, lead: Any) -> None:
    text = results_table(study)
    assert "0.804 [0.753, 0.847]" in text  # the published baseline
    for row in lead["baselines"]:
        assert row["name"] in text
    fusion = lead["variants"]["fusion"]
    assert f"{fusion['metrics']['macro_f1']['estimate']:.3f}" in text
    text = targets_table(study)
    for target in TARGETS:
        assert target.because in text.replace("&#39;", "'")
    ece = next(target for target in TARGETS if target.above_floor)
    assert ece.found(fusion) == pytest.approx(fusion["metrics"]["ece"]["estimate"] - fusion["ece_floor"])
    assert ece.gap(0.03) == "0.010 too high"
    assert TARGETS[0].gap(0.75) == "0.010 short"


def test_what_is_no_study_is_refused(study: Any) -> None:
    with pytest.raises(Ham10000Error, match="format 1; this version reads format 2"):
        check_study({**study, "format": 1})
    with pytest.raises(Ham10000Error, match="has no protocol"):
        check_study({**study, "protocols": {}})


def test_data_that_are_not_those_of_the_predictions_are_refused(frame: pd.DataFrame) -> None:
    image = example_image(frame)
    with pytest.raises(Ham10000Error, match="predicted images are not in the data, such as 'IMG_00000_0'"):
        matching_rows(frame[frame["image_id"] != "IMG_00000_0"], image)
    wrong = frame.assign(dx=frame["dx"].where(frame["image_id"] != "IMG_00003_0", "nv"))
    with pytest.raises(Ham10000Error, match="Image 'IMG_00003_0' is 'df' in the predictions, but 'nv' in the data"):
        matching_rows(wrong, image)
    with pytest.raises(Ham10000Error, match="no image predictions of lesion-grouped"):
        report({}, frame, CONFIG, None, Path("nowhere"))


def test_the_written_table_reads_back(folder: Path) -> None:
    found = read_logits([folder / "predictions.parquet"])
    assert [variant for protocol, variant in found if protocol == "lesion-grouped"] == list(VARIANTS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rule: best", "`rule` must be one of"),
        ("primary: auroc", "`primary` must be"),
        ("seeds: 5", r"unknown key\(s\) \['seeds'\]"),
        ("comparisons: [[fusion, tta]]", "`comparisons` must be pairs"),
        ("coverages: [1.0]", "`coverages` must be"),
        ("protocols: {lesion-grouped: {folds: 5, seeds: [0, 0]}}", "distinct seeds"),
        ("protocols: {lesion-grouped: {fold: 5}}", "Cannot read the study's file"),
        ("heads: {epoch: 5}", "Cannot read the study's file"),
        ("rule: [", "Cannot read the study's file"),
    ],
)
def test_a_wrong_file_is_said(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(Ham10000Error, match=message):
        read_study_config(tmp_path / "study.yaml")


def test_the_committed_study_is_read() -> None:
    path = Path(__file__).parents[2] / "examples" / "configs" / "study.yaml"
    config = read_study_config(path)
    assert Path(config.recipe).is_file()
    assert config.comparisons == StudyConfig().comparisons
    assert config.heads == HeadSettings()
