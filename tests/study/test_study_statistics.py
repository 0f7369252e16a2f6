"""Summaries over seeds against brute force, scikit-learn, distributions known by hand, and simulated coverage."""

import json
import statistics
import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, recall_score

from ham10000.modeling import Ham10000Error
from ham10000.modeling.configuration_ham10000 import LABELS
from ham10000.training.evaluation.bootstrap import cluster_bootstrap, cluster_weights
from ham10000.training.evaluation.metrics import compute_metrics, softmax
from ham10000.training.study.seeds import (
    STUDY_METRICS,
    leakage_scores,
    seed_draws,
    summarise_seeds,
    two_way_distribution,
)


def make(n: int = 210, n_seeds: int = 3, signal: float = 1.5, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Labels, probabilities of several seeds, and lesions of about two photographs."""
    generator = np.random.default_rng(seed)
    lesions = np.sort(generator.integers(0, n // 2, size=n))
    labels = generator.integers(0, 7, size=n // 2)[lesions]
    shared = generator.normal(size=(n, 7))  # easy and hard images are so for every seed
    logits = shared + generator.normal(size=(n_seeds, n, 7))
    logits[:, np.arange(n), labels] += signal
    return labels, softmax(logits), np.array([f"HAM_{lesion:07d}" for lesion in lesions])


def one_hot(predicted: np.ndarray) -> np.ndarray:
    return np.eye(7)[predicted]


def test_means_and_deviations_are_those_of_the_seeds() -> None:
    labels, probabilities, lesions = make()
    results = summarise_seeds(labels, probabilities, lesions, n_resamples=100)
    assert tuple(results) == STUDY_METRICS
    per_seed = [compute_metrics(labels, of_seed) for of_seed in probabilities]
    for name, row in results.items():
        expected = [metrics[name] for metrics in per_seed]
        assert row["per_seed"] == pytest.approx(expected, abs=1e-12)
        assert row["mean"] == pytest.approx(statistics.mean(expected), abs=1e-12)
        assert row["sd"] == pytest.approx(statistics.stdev(expected), abs=1e-12)
        assert row["low"] < row["high"]
    json.dumps(results, allow_nan=False)


def test_one_seed_is_the_lesion_bootstrap() -> None:
    labels, probabilities, lesions = make(n_seeds=1)
    results = summarise_seeds(
        labels, probabilities, lesions, metrics=["macro_f1", "recall:mel"], n_resamples=200, seed=4
    )
    expected = cluster_bootstrap(labels, probabilities[0], lesions, ["macro_f1", "recall:mel"], 200, seed=4)
    for name, row in results.items():
        assert row["sd"] is None
        assert (row["mean"], row["low"], row["high"]) == (
            expected[name].estimate,
            expected[name].low,
            expected[name].high,
        )


def test_every_resample_equals_brute_force() -> None:
    """Rows repeated as often as their lesion is drawn, scored for every drawn seed, averaged."""
    labels, probabilities, lesions = make(n=80)
    weights, draws = cluster_weights(lesions, 40, seed=2), seed_draws(3, 40, seed=2)
    names = ["accuracy", "balanced_accuracy", "nll", "ece"]
    _, values = two_way_distribution(labels, probabilities, weights, names, draws)
    for resample in range(40):
        rows = np.repeat(np.arange(len(labels)), weights.counts[resample][weights.index])
        drawn = [compute_metrics(labels[rows], probabilities[seed][rows]) for seed in draws[:, resample]]
        for name in names:
            expected = np.mean([metrics[name] for metrics in drawn])
            assert values[name][resample] == pytest.approx(expected, abs=1e-12), (name, resample)
    assert len({tuple(sorted(column)) for column in draws.T}) > 5  # with replacement, and not always the same


def test_the_seeds_are_resampled_on_their_own() -> None:
    """Two seeds, one always right, one always wrong: their resampled mean is 0, 1/2 or 1, as 1 : 2 : 1."""
    labels, _, lesions = make()
    probabilities = np.stack([one_hot(labels), one_hot((labels + 1) % 7)])
    weights, draws = cluster_weights(lesions, 4000, seed=0), seed_draws(2, 4000, seed=0)
    _, values = two_way_distribution(labels, probabilities, weights, ["accuracy"], draws)
    found, counts = np.unique(values["accuracy"], return_counts=True)
    assert found.tolist() == [0, 0.5, 1]
    assert stats.chisquare(counts, [1000, 2000, 1000]).pvalue > 0.001


def test_what_is_undefined_is_none() -> None:
    labels, probabilities, lesions = make()
    kept = labels != LABELS.index("mel")
    results = summarise_seeds(labels[kept], probabilities[:, kept], lesions[kept], n_resamples=50)
    undefined = {"mean": None, "sd": None, "per_seed": [None] * 3, "low": None, "high": None}
    assert results["auroc_macro"] == results["melanoma_sensitivity_at_95_specificity"] == undefined
    assert results["accuracy"]["low"] is not None
    json.dumps(results, allow_nan=False)


@pytest.mark.parametrize("shape", [(210, 7), (0, 210, 7), (2, 209, 7), (2, 210, 6)])
def test_predictions_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    labels, _, lesions = make()
    with pytest.raises(Ham10000Error, match=r"\(S, 210, 7\)"):
        summarise_seeds(labels, np.zeros(shape), lesions, n_resamples=5)


def test_leakage_scores_equal_scikit_learn() -> None:
    labels, probabilities, lesions = make(n=400)
    seen = np.isin(lesions, np.unique(lesions)[::3])
    probabilities[:, seen] = 0.5 * probabilities[:, seen] + 0.5 * one_hot(labels[seen])
    results = leakage_scores(labels, probabilities, seen, lesions, n_resamples=200)
    assert results is not None
    assert results["classes"] == list(LABELS)
    means = {}
    for name, rows in (("seen", seen), ("unseen", ~seen)):
        part = results[name]
        assert (part["n_images"], part["n_lesions"]) == (rows.sum(), len(set(lesions[rows])))
        for metric, function in (
            ("accuracy", accuracy_score),
            ("macro_f1", lambda y, p: f1_score(y, p, average="macro")),
            ("balanced_accuracy", lambda y, p: recall_score(y, p, average="macro")),
        ):
            expected = [function(labels[rows], of_seed[rows].argmax(axis=1)) for of_seed in probabilities]
            assert part["metrics"][metric]["per_seed"] == pytest.approx(expected)
            means[name, metric] = np.mean(expected)
    for metric, row in results["difference"].items():
        assert row["mean"] == pytest.approx(means["seen", metric] - means["unseen", metric])
        assert 0 < row["low"] < row["mean"] < row["high"]
    json.dumps(results, allow_nan=False)


@pytest.mark.parametrize("shared_lesions", [False, True])
def test_the_parts_of_a_leak_are_as_dependent_as_their_lesions(shared_lesions: bool) -> None:
    """Two parts with equal answers: of other lesions their difference has both variances, of the same ones none."""
    generator = np.random.default_rng(0)
    labels, seen = np.zeros(600, dtype=int), np.arange(600) < 300
    probabilities = one_hot(np.tile(np.where(generator.random(300) < 0.7, 0, 1), 2))[None]
    lesions = np.tile(np.arange(300), 2) if shared_lesions else np.arange(600)
    results = leakage_scores(labels, probabilities, seen, lesions, n_resamples=2000)
    assert results is not None
    widths = {
        name: row["accuracy"]["high"] - row["accuracy"]["low"]
        for name, row in (
            ("seen", results["seen"]["metrics"]),
            ("unseen", results["unseen"]["metrics"]),
            ("difference", results["difference"]),
        )
    }
    expected = 0 if shared_lesions else np.hypot(widths["seen"], widths["unseen"])
    assert widths["difference"] == pytest.approx(expected, rel=0.08)


def test_a_class_that_one_part_lacks_is_no_leak() -> None:
    labels, _, lesions = make(n=400)
    seen = np.isin(lesions, np.unique(lesions)[::2])
    kept = seen | (labels != LABELS.index("df"))
    labels, lesions, seen = labels[kept], lesions[kept], seen[kept]
    results = leakage_scores(labels, one_hot(labels)[None], seen, lesions, n_resamples=50)
    assert results is not None
    assert results["classes"] == [label for label in LABELS if label != "df"]
    assert results["unseen"]["metrics"]["macro_f1"]["mean"] == 1
    assert results["difference"]["macro_f1"]["mean"] == 0


def test_no_leak_has_no_scores() -> None:
    labels, probabilities, lesions = make()
    seen = np.zeros(len(labels), dtype=bool)
    assert leakage_scores(labels, probabilities, seen, lesions) is None
    assert leakage_scores(labels, probabilities, lesions == lesions[0], lesions) is None  # one lesion has no interval
    assert leakage_scores(labels, probabilities, ~seen, lesions) is None
    two = np.isin(lesions, np.unique(lesions)[:2])  # a part that is missing from some resamples
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = leakage_scores(labels, probabilities, two, lesions, n_resamples=50)
    assert results is not None
    json.dumps(results, allow_nan=False)
    with pytest.raises(Ham10000Error, match="bool"):
        leakage_scores(labels, probabilities, seen.astype(int), lesions)
