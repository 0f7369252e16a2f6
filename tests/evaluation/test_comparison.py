"""Subgroups, paired differences and p-values, against scikit-learn, statsmodels and published values."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from predicted import table_of, with_metadata
from scipy import stats
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, recall_score
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.power import NormalIndPower

from ham10000.modeling.configuration_ham10000 import LABELS, LOCALIZATIONS, MALIGNANT, Ham10000Error
from ham10000.training.evaluation.bootstrap import cluster_weights
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
from ham10000.training.evaluation.plots import _subgroup_finding, plot_subgroups

N = 700
MALIGNANT_IDS = [LABELS.index(name) for name in MALIGNANT]
NEVUS = np.eye(7)[LABELS.index("nv")] * 0.93 + 0.01


def test_groups_cover_every_row_once() -> None:
    frame = pd.DataFrame({"age": [0, 29, 30, 44, 45, 59, 60, 85, np.nan], "sex": "male", "localization": "back"})
    frame["photographs"] = [1, 2, 3, 6, 1, 1, 1, 1, 1]
    groups, bands = assign_groups(frame), ("under 30", "30-44", "45-59", "60 and over")
    assert groups["age"].tolist() == [*(band for band in bands for _ in range(2)), "unknown"]
    assert groups["photographs"].tolist()[:4] == ["1", "2", "3 or more", "3 or more"]
    assert "photographs" not in assign_groups(frame.drop(columns="photographs"))
    sites = pd.DataFrame({"age": 50.0, "sex": "unknown", "localization": [*LOCALIZATIONS, "unknown"]})
    assert set(assign_groups(sites)["site"]) == set(FIELDS["site"])  # every site of HAM10000 is in a group
    with pytest.raises(Ham10000Error, match="'elbow'"):
        assign_groups(sites.replace("back", "elbow"))


def test_subgroups_equal_scikit_learn_and_brute_force_on_their_rows() -> None:
    inputs = with_metadata()
    results = subgroup_results(**inputs, n_resamples=100, seed=3)
    labels, groups, predicted = inputs["labels"], assign_groups(inputs["metadata"]), inputs["probabilities"].argmax(1)
    malignant, called = np.isin(labels, MALIGNANT_IDS), np.isin(predicted, MALIGNANT_IDS)
    weights = cluster_weights(inputs["lesion_groups"], 100, seed=3)
    draws = [np.repeat(np.arange(N), counts[weights.index]) for counts in weights.counts]
    assert list(results["fields"]) == list(results["largest_gaps"]) == ["age", "sex", "site", "photographs"]
    for field, rows in results["fields"].items():
        assert sum(row["n_images"] for row in rows) == N
        for row in rows:
            members = (groups[field] == row["group"]).to_numpy()
            assert row["n_lesions"] == row["n_images"] / 2
            assert row["n_malignant"] == malignant[members].sum()
            resampled = [(predicted == labels)[drawn[members[drawn]]].mean() for drawn in draws]
            ends = (row["accuracy"]["low"], row["accuracy"]["high"])
            assert ends == pytest.approx(tuple(np.percentile(resampled, [2.5, 97.5])))
            for name, expected in (
                ("accuracy", accuracy_score(labels[members], predicted[members])),
                ("malignant_sensitivity", recall_score(malignant[members], called[members])),
                ("malignant_specificity", recall_score(~malignant[members], ~called[members])),
            ):
                assert row[name]["estimate"] == pytest.approx(expected)
    json.dumps(results, allow_nan=False)


def test_a_planted_gap_is_named_and_none_is_not_claimed_nor_one_of_a_small_group() -> None:
    inputs = with_metadata(signal=3.0)
    inputs["metadata"]["sex"] = np.where(np.arange(N) < 10, "male", "female")  # five lesions
    results = subgroup_results(**inputs, n_resamples=300)
    # No effect was planted: at most a small one is certain.
    assert results["largest_gaps"]["age"]["difference"]["low"] < 0.15
    female, male = results["fields"]["sex"]
    assert male["n_malignant_lesions"] < MIN_MALIGNANT_LESIONS
    assert (male["too_few"], female["too_few"]) == (True, False)
    assert results["largest_gaps"]["sex"] is None
    inputs["probabilities"][(inputs["metadata"]["age"] < 60) | inputs["metadata"]["age"].isna()] = NEVUS
    gap = subgroup_results(**inputs, n_resamples=300)["largest_gaps"]["age"]
    assert gap["highest"] == "60 and over"
    assert gap["difference"]["low"] > 0.5


def test_the_figure_names_a_gap_and_is_drawn_for_full_and_for_empty_groups(tmp_path: Path) -> None:
    inputs, few = with_metadata(signal=3.0), np.arange(N) < N // 2
    inputs["metadata"]["photographs"] = np.where(few, 1, 4)
    inputs["probabilities"][few] = NEVUS
    full = subgroup_results(**inputs, n_resamples=50)
    title = r"Malignant found: 0% with 1 photograph\(s\), \d\d% with 3 or more photograph\(s\)"
    assert re.fullmatch(title, _subgroup_finding(full))
    inputs["metadata"][["age", "sex", "localization"]] = [np.nan, "unknown", "unknown"]
    for results in (full, subgroup_results(**inputs, n_resamples=50)):
        with Image.open(plot_subgroups(results, tmp_path / "subgroups.png")) as image:
            assert np.asarray(image.convert("L")).std() > 5


def write(path: Path, inputs: dict) -> Path:
    table_of(*(inputs[name] for name in ("labels", "probabilities", "metadata"))).to_csv(path, index=False)
    return path


def test_paired_differences_equal_the_metrics_difference(tmp_path: Path) -> None:
    ours, other = with_metadata(signal=2.5), with_metadata(signal=1.0)
    paths = write(tmp_path / "a.csv", ours), write(tmp_path / "b.csv", other)
    comparison = compare_predictions(*paths, n_resamples=300)
    assert (comparison["n_images"], comparison["n_lesions"]) == (N, N // 2)
    for name, function in (
        ("accuracy", accuracy_score),
        ("balanced_accuracy", balanced_accuracy_score),
        ("macro_f1", lambda a, b: f1_score(a, b, average="macro")),
    ):
        row = comparison["differences"][name]
        scores = [function(ours["labels"], one["probabilities"].argmax(axis=1)) for one in (ours, other)]
        assert row["estimate"] == pytest.approx(scores[0] - scores[1])
        assert 0 < row["low"] < row["estimate"] < row["high"]
    # With draws of its own for each, a model would differ from itself.
    same = compare_predictions(paths[0], paths[0], n_resamples=100)["differences"]
    assert all(row["estimate"] == row["low"] == row["high"] == 0 for row in same.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.iloc[1:], r"different images.*ISIC_0000000"),
        (lambda table: table.assign(dx="nv"), "disagree on the dx of image 'ISIC_0000"),
        (lambda table: table.rename(columns={"p_mel": "p_melanoma"}).assign(dx="nv"), "models of one set compare"),
    ],
)
def test_files_of_other_images_or_labels_are_refused(change, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", with_metadata())
    change(pd.read_csv(path)).to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(Ham10000Error, match=message):
        compare_predictions(path, tmp_path / "other.csv")


@pytest.mark.parametrize(("first", "second"), [(0, 1), (1, 7), (16, 6), (3, 3), (1200, 1200), (3000, 900)])
def test_mcnemar_follows_statsmodels_and_published_tables(first: int, second: int) -> None:
    found, exact = mcnemar_mid_p(first, second), mcnemar([[0, first], [second, 0]], exact=True).pvalue
    # Half of the observed outcome on each side; equal counts are one outcome.
    observed = stats.binom.pmf(first, first + second, 0.5) / (1 + (first == second))
    assert found == pytest.approx(exact - observed, rel=1e-9)
    # Fagerland, Lydersen & Laake 2013: bronchial hyper-responsiveness, response to consolidation.
    published = {(1, 7): 0.0391, (16, 6): 0.0347}
    assert found == pytest.approx(published.get((first, second), found), abs=5e-5)
    assert mcnemar_mid_p(0, 0) == 1


def test_p_values_by_hand() -> None:
    # Holm's steps: 4 * 0.01; 3 * 0.011 is less, so it stays; 2 * 0.3; 1 * 0.9.
    assert holm([0.9, 0.011, 0.01, 0.3]) == pytest.approx([0.9, 0.04, 0.04, 0.6])
    assert holm([]) == []
    for values, expected in (
        ([0.3] * 99, 2 / 100),  # never 0: one more resample is counted
        ([-1.0] * 4 + [1.0] * 95, 2 * 5 / 100),
        ([1.0] * 4 + [-1.0] * 95, 2 * 5 / 100),
        ([0.0] * 3 + [1.0] * 96, 2 * 4 / 100),  # ties count on both sides
        ([0.0] * 500, 1),
        ([np.nan] * 50 + [1.0] * 99, 2 / 100),
    ):
        assert bootstrap_p_value(np.array(values)) == pytest.approx(expected)


@pytest.mark.parametrize(("n", "confidence", "power"), [(100, 0.95, 0.8), (400, 0.99, 0.9), (25, 0.9, 0.5)])
def test_smallest_detectable_is_that_of_statsmodels(n: int, confidence: float, power: float) -> None:
    options = {"nobs1": n, "alpha": 1 - confidence, "power": power, "ratio": 0, "alternative": "two-sided"}
    ours = smallest_detectable(n**-0.5, confidence=confidence, power=power)
    # Theirs counts the wrong tail, too: a power of 50 % at level 10 % has 0.05 % of it there.
    assert ours == pytest.approx(NormalIndPower(ddof=0).solve_power(**options), rel=2e-3)
    assert smallest_detectable(1.0) == pytest.approx(2.8016, abs=1e-4)
