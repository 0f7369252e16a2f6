"""Subgroups, paired differences and p-values, against scikit-learn, statsmodels and published values."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, recall_score
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.power import NormalIndPower

from ham10000.modeling.configuration_ham10000 import LABELS, LOCALIZATIONS, MALIGNANT, Ham10000Error
from ham10000.training.evaluation.bootstrap import cluster_bootstrap
from ham10000.training.evaluation.comparison import (
    FIELDS,
    MIN_MALIGNANT_LESIONS,
    assign_groups,
    bootstrap_p_value,
    compare_predictions,
    holm,
    mcnemar_mid_p,
    smallest_detectable,
    subgroup_results,
)
from ham10000.training.evaluation.metrics import softmax
from ham10000.training.evaluation.plots import _subgroup_finding, plot_subgroups
from ham10000.training.evaluation.report import predictions_table

N = 700
MALIGNANT_IDS = [LABELS.index(name) for name in MALIGNANT]


def make(signal: float = 2.0, seed: int = 0) -> dict:
    """Predictions with a row of metadata each; two images per lesion."""
    generator = np.random.default_rng(seed)
    lesions = np.arange(N) // 2
    labels = np.repeat(generator.integers(0, 7, N // 2), 2)
    logits = generator.normal(size=(N, 7))
    logits[np.arange(N), labels] += signal
    ages = np.repeat(generator.choice([np.nan, 0, 25, 29, 30, 44, 45, 59, 60, 85], N // 2), 2)
    metadata = pd.DataFrame(
        {
            "age": ages,
            "sex": np.repeat(generator.choice(["female", "male", "unknown"], N // 2, p=[0.5, 0.45, 0.05]), 2),
            "localization": np.repeat(generator.choice([*LOCALIZATIONS, "unknown"], N // 2), 2),
        }
    )
    return {
        "metadata": metadata,
        "labels": labels,
        "probabilities": softmax(logits),
        "lesion_groups": [f"HAM_{i:07d}" for i in lesions],
    }


def test_groups_cover_every_row_once() -> None:
    ages = [0, 29, 30, 44, 45, 59, 60, 85, np.nan]
    frame = pd.DataFrame({"age": ages, "sex": "male", "localization": "back"})
    assert assign_groups(frame)["age"].tolist() == [
        *["under 30"] * 2,
        *["30-44"] * 2,
        *["45-59"] * 2,
        *["60 and over"] * 2,
        "unknown",
    ]
    sites = pd.DataFrame({"age": 50.0, "sex": "unknown", "localization": [*LOCALIZATIONS, "unknown"]})
    assert set(assign_groups(sites)["site"]) == set(FIELDS["site"])  # every site of HAM10000 is in a group
    with pytest.raises(Ham10000Error, match="'elbow'"):
        assign_groups(sites.replace("back", "elbow"))


def test_the_number_of_photographs_is_a_field_where_it_is_known() -> None:
    frame = pd.DataFrame({"age": 50.0, "sex": "male", "localization": "back", "photographs": [1, 2, 3, 6]})
    assert assign_groups(frame)["photographs"].tolist() == ["1", "2", "3 or more", "3 or more"]
    assert "photographs" not in assign_groups(frame.drop(columns="photographs"))
    inputs = make()
    without = subgroup_results(**inputs, n_resamples=50)
    inputs["metadata"]["photographs"] = np.repeat(np.random.default_rng(1).integers(1, 5, N // 2), 2)
    results = subgroup_results(**inputs, n_resamples=50)
    assert list(without["fields"]) == list(without["largest_gaps"]) == ["age", "sex", "site"]
    assert {field: results["fields"][field] for field in without["fields"]} == without["fields"]
    counts = {row["group"]: row["n_images"] for row in results["fields"]["photographs"]}
    numbers = inputs["metadata"]["photographs"]
    assert counts == {"1": (numbers == 1).sum(), "2": (numbers == 2).sum(), "3 or more": (numbers >= 3).sum()}
    assert results["largest_gaps"]["photographs"]["lowest"] in counts


@pytest.mark.parametrize(
    ("numbers", "message"), [([1, 0], "row 1 is 0"), ([1.0, 2.0], "float64"), ([1, None], "float64")]
)
def test_a_wrong_number_of_photographs_is_an_error(numbers: list, message: str) -> None:
    frame = pd.DataFrame({"age": 50.0, "sex": "male", "localization": "back", "photographs": numbers})
    with pytest.raises(Ham10000Error, match=f"photographs must be .*{message}"):
        assign_groups(frame)


def test_subgroups_equal_scikit_learn_on_their_rows() -> None:
    inputs = make()
    inputs["metadata"]["photographs"] = np.repeat(np.random.default_rng(1).integers(1, 5, N // 2), 2)
    results = subgroup_results(**inputs, n_resamples=200)
    groups = assign_groups(inputs["metadata"])
    predicted = inputs["probabilities"].argmax(axis=1)
    malignant, called = np.isin(inputs["labels"], MALIGNANT_IDS), np.isin(predicted, MALIGNANT_IDS)
    for field, rows in results["fields"].items():
        assert sum(row["n_images"] for row in rows) == N
        for row in rows:
            members = (groups[field] == row["group"]).to_numpy()
            assert row["n_lesions"] == row["n_images"] / 2
            assert row["n_malignant"] == malignant[members].sum()
            for name, expected in (
                ("accuracy", accuracy_score(inputs["labels"][members], predicted[members])),
                ("malignant_sensitivity", recall_score(malignant[members], called[members])),
                ("malignant_specificity", recall_score(~malignant[members], ~called[members])),
            ):
                assert row[name]["estimate"] == pytest.approx(expected)
                assert row[name]["low"] <= expected <= row[name]["high"]
    json.dumps(results, allow_nan=False)


def test_one_group_of_all_has_the_interval_of_the_whole_set() -> None:
    """The whole set's bootstrap is tested on its own; a group of everybody must agree with it."""
    inputs = make()
    inputs["metadata"]["sex"] = "male"
    (row,) = subgroup_results(**inputs, n_resamples=300, seed=3)["fields"]["sex"]
    expected = cluster_bootstrap(
        inputs["labels"], inputs["probabilities"], inputs["lesion_groups"], ["accuracy"], n_resamples=300, seed=3
    )["accuracy"]
    assert row["accuracy"] == pytest.approx(expected.as_dict())


def test_a_planted_gap_is_named_and_none_is_not_claimed() -> None:
    inputs = make(signal=3.0)
    old = (inputs["metadata"]["age"] >= 60).to_numpy()
    gap = subgroup_results(**inputs, n_resamples=300)["largest_gaps"]["age"]
    assert gap["difference"]["low"] < 0.15  # no effect was planted: at most a small one is certain
    blind = inputs["probabilities"].copy()
    blind[~old] = np.eye(7)[LABELS.index("nv")] * 0.94 + 0.01 * (1 - np.eye(7)[LABELS.index("nv")])
    gap = subgroup_results(**{**inputs, "probabilities": blind}, n_resamples=300)["largest_gaps"]["age"]
    assert gap["highest"] == "60 and over"
    assert gap["difference"]["low"] > 0.5


def test_the_figure_names_a_gap_by_photographs() -> None:
    inputs = make(signal=3.0)
    few = np.arange(N) < N // 2
    inputs["metadata"]["photographs"] = np.where(few, 1, 4)
    inputs["probabilities"][few] = np.eye(7)[LABELS.index("nv")]
    title = _subgroup_finding(subgroup_results(**inputs, n_resamples=50))
    assert re.fullmatch(r"Malignant found: 0% with 1 photograph\(s\), \d\d% with 3 or more photograph\(s\)", title)


def test_small_groups_say_so_and_are_in_no_gap() -> None:
    inputs = make()
    inputs["metadata"]["sex"] = "female"
    inputs["metadata"].loc[:9, "sex"] = "male"  # five lesions
    results = subgroup_results(**inputs, n_resamples=50)
    female, male = results["fields"]["sex"]
    assert male["n_malignant_lesions"] < MIN_MALIGNANT_LESIONS
    assert (male["too_few"], female["too_few"]) == (True, False)
    assert results["largest_gaps"]["sex"] is None


def test_the_figure_is_drawn_for_full_and_for_empty_groups(tmp_path: Path) -> None:
    inputs = make()
    inputs["metadata"]["photographs"] = np.where(np.arange(N) < N // 2, 1, 2)
    full = plot_subgroups(subgroup_results(**inputs, n_resamples=50), tmp_path / "full.png")
    inputs["metadata"][["age", "sex", "localization"]] = [np.nan, "unknown", "unknown"]
    empty = plot_subgroups(subgroup_results(**inputs, n_resamples=50), tmp_path / "empty.png")
    for path in (full, empty):
        with Image.open(path) as image:
            assert np.asarray(image.convert("L")).std() > 5


def write(path: Path, inputs: dict) -> Path:
    ids = [f"ISIC_{i:07d}" for i in range(N)]
    table = predictions_table(
        image_ids=ids,
        lesion_ids=inputs["lesion_groups"],
        **{name: inputs[name] for name in ("lesion_groups", "labels", "probabilities", "metadata")},
    )
    table.to_csv(path, index=False)
    return path


def test_paired_differences_equal_the_metrics_difference(tmp_path: Path) -> None:
    ours, other = make(signal=2.5, seed=0), make(signal=1.0, seed=0)
    comparison = compare_predictions(
        write(tmp_path / "a.csv", ours), write(tmp_path / "b.csv", other), n_resamples=300
    )
    assert (comparison["n_images"], comparison["n_lesions"]) == (N, N // 2)
    labels = ours["labels"]
    predicted, other_predicted = ours["probabilities"].argmax(1), other["probabilities"].argmax(1)
    for name, function in (
        ("accuracy", accuracy_score),
        ("balanced_accuracy", balanced_accuracy_score),
        ("macro_f1", lambda a, b: f1_score(a, b, average="macro")),
    ):
        row = comparison["differences"][name]
        assert row["estimate"] == pytest.approx(function(labels, predicted) - function(labels, other_predicted))
        assert 0 < row["low"] < row["estimate"] < row["high"]


def test_pairing_narrows_the_interval_and_the_same_model_differs_by_nothing(tmp_path: Path) -> None:
    inputs = make()
    path = write(tmp_path / "a.csv", inputs)
    same = compare_predictions(path, path, n_resamples=100)["differences"]
    assert all(row["estimate"] == row["low"] == row["high"] == 0 for row in same.values())
    nearly = inputs["probabilities"].copy()
    nearly[:20] = np.roll(nearly[:20], 1, axis=1)
    other = write(tmp_path / "b.csv", inputs | {"probabilities": nearly})
    paired = compare_predictions(path, other, n_resamples=300)["differences"]["accuracy"]
    arguments = (inputs["labels"], inputs["probabilities"], inputs["lesion_groups"])
    single = cluster_bootstrap(*arguments, ["accuracy"], n_resamples=300)["accuracy"]
    assert paired["high"] - paired["low"] < 0.6 * (single.high - single.low)


def test_files_of_other_images_or_labels_are_refused(tmp_path: Path) -> None:
    inputs = make()
    path = write(tmp_path / "a.csv", inputs)
    table = pd.read_csv(path)
    table.iloc[1:].to_csv(tmp_path / "fewer.csv", index=False)
    with pytest.raises(Ham10000Error, match=r"different images.*ISIC_0000000"):
        compare_predictions(path, tmp_path / "fewer.csv")
    table.loc[5, "dx"] = "nv" if table.loc[5, "dx"] != "nv" else "mel"
    table.to_csv(tmp_path / "relabelled.csv", index=False)
    with pytest.raises(Ham10000Error, match="disagree on the dx of image 'ISIC_0000005'"):
        compare_predictions(path, tmp_path / "relabelled.csv")


@pytest.mark.parametrize(("counts", "published"), [((1, 7), 0.0391), ((6, 16), 0.0347)], ids=["Bentur", "Cavo"])
def test_mcnemar_gives_the_published_values(counts: tuple[int, int], published: float) -> None:
    """Tables of Fagerland, Lydersen & Laake 2013: bronchial hyper-responsiveness, response to consolidation."""
    assert mcnemar_mid_p(*counts) == pytest.approx(published, abs=5e-5)
    assert mcnemar_mid_p(*counts[::-1]) == mcnemar_mid_p(*counts)


def test_mcnemar_follows_the_definition_and_statsmodels() -> None:
    for first, second in [(0, 1), (0, 9), (3, 3), (4, 5), (17, 30), (1, 1), (400, 480), (1200, 1200), (3000, 900)]:
        total = first + second
        outcomes = np.arange(total + 1)
        gaps, probabilities = np.abs(2 * outcomes - total), stats.binom.pmf(outcomes, total, 0.5)
        observed = abs(first - second)
        by_definition = probabilities[gaps > observed].sum() + 0.5 * probabilities[gaps == observed].sum()
        assert mcnemar_mid_p(first, second) == pytest.approx(by_definition, rel=1e-9), (first, second)
        if first != second:
            exact = mcnemar([[0, first], [second, 0]], exact=True).pvalue
            assert mcnemar_mid_p(first, second) == pytest.approx(exact - stats.binom.pmf(first, total, 0.5), rel=1e-9)
    assert mcnemar_mid_p(0, 0) == 1
    with pytest.raises(Ham10000Error, match="3 and -1"):
        mcnemar_mid_p(3, -1)


def test_holm_by_hand() -> None:
    """Holm's steps: 4 * 0.01; 3 * 0.011 is less, so it stays; 2 * 0.3; 1 * 0.9."""
    assert holm([0.9, 0.011, 0.01, 0.3]) == pytest.approx([0.9, 0.04, 0.04, 0.6])
    assert holm([]) == []
    for wrong in ([0.5, 1.2], [0.5, float("nan")]):
        with pytest.raises(Ham10000Error, match="number 1 is"):
            holm(wrong)


def test_bootstrap_p_value_by_hand() -> None:
    assert bootstrap_p_value(np.full(99, 0.3)) == pytest.approx(2 / 100)  # never 0: one more resample is counted
    assert bootstrap_p_value(np.array([-1.0] * 4 + [1.0] * 95)) == pytest.approx(2 * 5 / 100)
    assert bootstrap_p_value(np.array([1.0] * 4 + [-1.0] * 95)) == pytest.approx(2 * 5 / 100)
    # Ties count on both sides: 3 resamples at 0 are 3 that do not favour the model.
    assert bootstrap_p_value(np.array([0.0] * 3 + [1.0] * 96)) == pytest.approx(2 * 4 / 100)
    assert bootstrap_p_value(np.zeros(500)) == 1
    assert bootstrap_p_value(np.array([np.nan] * 50 + [1.0] * 99)) == pytest.approx(2 / 100)
    with pytest.raises(Ham10000Error, match="undefined in every resample"):
        bootstrap_p_value(np.array([np.nan]))


@pytest.mark.parametrize(("n", "confidence", "power"), [(100, 0.95, 0.8), (400, 0.99, 0.9), (25, 0.9, 0.5)])
def test_smallest_detectable_is_that_of_statsmodels(n: int, confidence: float, power: float) -> None:
    expected = NormalIndPower(ddof=0).solve_power(
        nobs1=n, alpha=1 - confidence, power=power, ratio=0, alternative="two-sided"
    )
    ours = smallest_detectable(n**-0.5, confidence=confidence, power=power)
    # Theirs counts the wrong tail, too: a power of 50 % at level 10 % has 0.05 % of it there.
    assert ours == pytest.approx(expected, rel=2e-3)
    assert smallest_detectable(1.0) == pytest.approx(2.8016, abs=1e-4)
