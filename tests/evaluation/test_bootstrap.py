"""The bootstrap against brute force on repeated rows, with scikit-learn's metrics."""

import math

import numpy as np
import pytest
from predicted import predictions
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, log_loss

from ham10000.modeling.configuration_ham10000 import LABELS, Ham10000Error
from ham10000.training.evaluation.bootstrap import (
    AVERAGE_PRECISION,
    PER_CLASS_STATISTICS,
    Bootstrap,
    Interval,
    bootstrap_distribution,
    cluster_weights,
    percentile_interval,
    statistics_of,
)
from ham10000.training.evaluation.metrics import compute_metrics, softmax

STATISTICS = statistics_of(LABELS)


def make_data(n: int, n_clusters: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels, probabilities = predictions(n, signal=1.5)
    draws = np.random.default_rng(0)
    # Repeated rows make ties between images of different classes, which the ranking metrics must survive.
    probabilities[n // 2 :] = probabilities[draws.integers(0, n // 2, size=n - n // 2)]
    return labels, probabilities, np.array([f"HAM_{i:07d}" for i in draws.integers(0, n_clusters, size=n)])


def intervals(labels, predictions, clusters, statistics, n_resamples: int) -> dict[str, Interval]:
    return Bootstrap(labels, clusters, 1, n_resamples).intervals(predictions, statistics)


def reference(labels: np.ndarray, probabilities: np.ndarray, rows: np.ndarray) -> dict[str, float]:
    """The documented rules, from `compute_metrics` on the rows a resample repeats."""
    drawn, scores, full = labels[rows], probabilities[rows], compute_metrics(labels, probabilities)
    answers, present, values = scores.argmax(axis=1), np.unique(drawn), {}
    for k, label in enumerate(LABELS):
        metrics = compute_metrics(drawn, scores, positive=label)  # each class takes the row of the positive one
        values |= {name: metrics[name] for name in STATISTICS if name in metrics}
        row = metrics["per_class"][label]
        values |= {f"{name}:{label}": row[name] if k in present else None for name in PER_CLASS_STATISTICS}
        values[f"precision:{label}"] = row["precision"] if k in answers else None
    values[AVERAGE_PRECISION] = np.mean([average_precision_score(drawn == k, scores[:, k]) for k in present])
    values["macro_f1"] = f1_score(drawn, answers, labels=present, average="macro", zero_division=0)
    aurocs = [values[f"auroc:{LABELS[k]}"] for k in present]
    values["auroc_macro"] = None if None in (*aurocs, full["auroc_macro"]) else np.mean(aurocs)
    return {name: math.nan if value is None else value for name, value in values.items()}


@pytest.mark.parametrize("absent", [None, 6], ids=["all classes", "without vasc"])
def test_every_statistic_equals_brute_force(absent: int | None) -> None:
    kept = (data := make_data(80, 40))[0] != absent
    labels, probabilities, clusters = (part[kept] for part in data)
    weights = cluster_weights(clusters, n_resamples=10, seed=4)
    estimates, values = bootstrap_distribution(labels, probabilities, weights, STATISTICS)
    draws = [np.repeat(np.arange(len(labels)), counts[weights.index]) for counts in weights.counts]
    assert any(set(labels) != set(labels[rows]) for rows in draws), "no resample lacks a class"
    for draw, rows in enumerate([*draws, np.arange(len(labels))]):
        found = estimates if draw == len(draws) else {name: values[name][draw] for name in STATISTICS}
        assert found == pytest.approx(reference(labels, probabilities, rows), abs=1e-12, nan_ok=True), draw


def test_weights_are_reproducible_and_independent_of_the_row_order() -> None:
    data = make_data(200, 90)
    weights = cluster_weights(data[2], 100, seed=7)
    assert (weights.counts.sum(axis=1) == weights.n_clusters).all()
    np.testing.assert_array_equal(weights.counts, cluster_weights(data[2], 100, seed=7).counts)
    assert (weights.counts != cluster_weights(data[2], 100, seed=8).counts).any()
    order = np.random.default_rng(0).permutation(200)
    ours, shuffled = (intervals(*parts, STATISTICS, 100) for parts in (data, [part[order] for part in data]))
    for name in STATISTICS:
        assert ours[name] == pytest.approx(shuffled[name], abs=1e-12)


def test_an_interval_ends_at_two_percentiles_and_is_none_where_the_figure_is_undefined() -> None:
    values = np.random.default_rng(0).gamma(2.0, size=1001)  # one side is longer
    found = percentile_interval(2.0, np.append(values, [np.nan] * 3))
    # Of 1,001 values in order, 25 lie below the first and above the second.
    ends = np.sort(values)[[25, -26]]
    assert found == pytest.approx({"estimate": 2.0, "low": ends[0], "high": ends[1], "n_defined": 1001})
    assert percentile_interval(0.5, np.full(10, np.nan))["low"] is None
    labels, probabilities, clusters = make_data(100, 60)
    kept = (labels != 4) & ((labels != 6) | (np.cumsum(labels == 6) <= 2))
    names = ["recall:mel", "auroc_macro", "recall:vasc"]
    result = intervals(labels[kept], probabilities[kept], clusters[kept], names, 200)
    nothing = {"estimate": None, "low": None, "high": None, "n_defined": 0}
    assert result["recall:mel"] == result["auroc_macro"] == nothing
    # A rare class is missing from some resamples, and the interval says on how many it rests.
    assert 100 < result["recall:vasc"]["n_defined"] < 200


@pytest.mark.parametrize("seeds", [1, 3])
def test_every_resample_of_seeds_and_lesions_equals_brute_force(seeds: int) -> None:
    """Rows repeated as often as their lesion is drawn, scored for every drawn seed, averaged."""
    draws = np.random.default_rng(0)
    labels, lesions = draws.integers(0, 7, 80), draws.integers(0, 40, 80)
    probabilities = softmax(draws.normal(size=(seeds, 80, 7)) + 1.5 * np.eye(7)[labels])
    bootstrap = Bootstrap(labels, lesions, n_seeds=seeds, n_resamples=30, seed=2)
    found = bootstrap.scores(probabilities, ["accuracy", "macro_f1", "nll", "ece"])
    ece = found.pop("ece")
    assert ece.interval() == percentile_interval(ece.estimate, ece.values, metric="ece")
    for resample, counts in enumerate(bootstrap.weights.counts):
        rows = np.repeat(np.arange(80), counts[bootstrap.weights.index])
        scores = []
        for of_seed in probabilities[bootstrap.draws[:, resample]]:
            truth, answers = labels[rows], of_seed[rows].argmax(axis=1)
            f1 = f1_score(truth, answers, labels=np.unique(truth), average="macro", zero_division=0)
            nll = log_loss(truth, of_seed[rows], labels=range(7))
            scores.append([accuracy_score(truth, answers), f1, nll])
        assert [sample.values[resample] for sample in found.values()] == pytest.approx(np.mean(scores, axis=0))
    summary = found["accuracy"].summary()
    per_seed = [accuracy_score(labels, of_seed.argmax(axis=1)) for of_seed in probabilities]
    assert summary["per_seed"] == pytest.approx(per_seed)
    spread = np.std(per_seed, ddof=1) if seeds > 1 else None
    assert (summary["estimate"], summary["sd"]) == pytest.approx((np.mean(per_seed), spread))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"statistics": ["acuracy"]}, r"Unknown statistic\(s\) \['acuracy'\]"),
        ({"predictions": np.zeros(20, int), "statistics": ["ece"]}, r"\['ece'\] of class ids"),
        ({"predictions": np.zeros(19, int)}, "20 labels, 19 predictions"),
        ({"clusters": ["a"] * 20}, "at least two"),
        ({"clusters": ["a", None] * 10}, "missing values"),
        ({"clusters": ["a", "b"]}, "2 clusters"),
        ({"n_resamples": 0}, "n_resamples=0"),
    ],
)
def test_bad_input_is_named(changes: dict, message: str) -> None:
    labels, probabilities = predictions(20)
    arguments = {"labels": labels, "predictions": probabilities, "clusters": range(20), "statistics": ["accuracy"]}
    with pytest.raises(Ham10000Error, match=message):
        intervals(**(arguments | {"n_resamples": 5} | changes))
