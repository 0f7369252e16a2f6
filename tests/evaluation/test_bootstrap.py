"""The bootstrap against brute force on repeated rows, scipy, and simulations whose answer is known."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, f1_score

from ham10000.modeling.configuration_ham10000 import LABELS, Ham10000Error
from ham10000.training.evaluation.bootstrap import (
    AVERAGE_PRECISION,
    PER_CLASS_STATISTICS,
    bootstrap_distribution,
    cluster_bootstrap,
    cluster_weights,
    percentile_interval,
    statistics_of,
)
from ham10000.training.evaluation.metrics import compute_metrics, sensitivity_metric, softmax

STATISTICS = statistics_of(LABELS)


def make_data(n: int, n_clusters: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.choice(7, size=n, p=[0.05, 0.08, 0.15, 0.03, 0.15, 0.51, 0.03])
    labels[:7] = np.arange(7)
    logits = generator.normal(size=(n, 7))
    logits[np.arange(n), labels] += 1.5
    # Repeated rows make ties between images of different classes, which the ranking metrics must survive.
    logits[n // 2 :] = logits[generator.integers(0, n // 2, size=n - n // 2)]
    clusters = np.array([f"HAM_{i:07d}" for i in generator.integers(0, n_clusters, size=n)])
    return labels, softmax(logits), clusters


def reference(labels: np.ndarray, probabilities: np.ndarray, rows: np.ndarray) -> dict[str, float]:
    """The documented rules, from `compute_metrics` on the rows a resample repeats."""
    metrics = compute_metrics(labels[rows], probabilities[rows])
    full = compute_metrics(labels, probabilities)
    for label in LABELS:  # each class takes the row of the positive one
        name = sensitivity_metric(label)
        metrics[name] = compute_metrics(labels[rows], probabilities[rows], positive=label)[name]
    present = [label for label in LABELS if metrics["per_class"][label]["support"] > 0]
    values = {name: math.nan if metrics[name] is None else metrics[name] for name in STATISTICS if name in metrics}
    values[AVERAGE_PRECISION] = np.mean(
        [
            average_precision_score(labels[rows] == LABELS.index(label), probabilities[rows, LABELS.index(label)])
            for label in present
        ]
    )
    for label in LABELS:
        row = metrics["per_class"][label]
        for name in PER_CLASS_STATISTICS:
            values[f"{name}:{label}"] = math.nan if label not in present or row[name] is None else row[name]
        predicted = np.array(metrics["confusion_matrix"])[:, LABELS.index(label)].sum()
        values[f"precision:{label}"] = row["precision"] if predicted else math.nan
    values["macro_f1"] = f1_score(
        labels[rows],
        probabilities[rows].argmax(axis=1),
        labels=np.unique(labels[rows]),
        average="macro",
        zero_division=0,
    )
    aurocs = [metrics["per_class"][label]["auroc"] for label in present]
    defined = full["auroc_macro"] is not None and None not in aurocs
    values["auroc_macro"] = np.mean(aurocs) if defined else math.nan
    return values


@pytest.mark.parametrize("absent", [None, 6], ids=["all classes", "without vasc"])
def test_every_statistic_equals_brute_force(absent: int | None) -> None:
    labels, probabilities, clusters = make_data(80, 40)
    if absent is not None:
        kept = labels != absent
        labels, probabilities, clusters = labels[kept], probabilities[kept], clusters[kept]
    weights = cluster_weights(clusters, n_resamples=10, seed=4)
    estimates, values = bootstrap_distribution(labels, probabilities, weights, STATISTICS)
    rows_of = [np.flatnonzero(weights.index == c) for c in range(weights.n_clusters)]
    classes_missed = 0
    for draw, counts in enumerate(weights.counts):
        rows = np.concatenate([np.tile(rows_of[c], count) for c, count in enumerate(counts)]).astype(int)
        classes_missed += len(set(labels)) - len(set(labels[rows]))
        expected = reference(labels, probabilities, rows)
        for name in STATISTICS:
            assert values[name][draw] == pytest.approx(expected[name], abs=1e-12, nan_ok=True), (name, draw)
    assert classes_missed > 0, "the data no longer exercise resamples that lack a class"
    expected = reference(labels, probabilities, np.arange(len(labels)))
    for name in STATISTICS:
        assert estimates[name] == pytest.approx(expected[name], abs=1e-12, nan_ok=True), name


def test_singletons_agree_with_scipy() -> None:
    labels, probabilities, _ = make_data(400, 400)
    hits = (probabilities.argmax(axis=1) == labels).astype(float)
    ours = cluster_bootstrap(labels, probabilities, np.arange(400), ["accuracy"], n_resamples=4000)["accuracy"]
    theirs = stats.bootstrap(
        (hits,), np.mean, n_resamples=4000, method="percentile", random_state=np.random.default_rng(1)
    ).confidence_interval
    # Two Monte Carlo answers: their end points differ by a fraction of the standard error (0.024).
    assert ours.low == pytest.approx(theirs.low, abs=0.004)
    assert ours.high == pytest.approx(theirs.high, abs=0.004)


def test_interval_has_the_known_clustered_standard_error() -> None:
    generator = np.random.default_rng(0)
    # Images that are all right or all wrong within a lesion: intra-cluster correlation 1.
    hits = np.repeat(generator.random(300) < 0.8, 4)
    labels = np.zeros(1200, dtype=int)
    predicted = np.where(hits, 0, 1)
    clusters = np.repeat(np.arange(300), 4)
    share = hits.mean()
    weights = cluster_weights(clusters, 2000, seed=0)
    _, values = bootstrap_distribution(labels, predicted, weights, ["accuracy"])
    assert values["accuracy"].std() == pytest.approx(math.sqrt(share * (1 - share) / 300), rel=0.05)
    # Images taken as independent would claim half of it: the reason for resampling lesions.
    _, naive = bootstrap_distribution(labels, predicted, cluster_weights(np.arange(1200), 2000), ["accuracy"])
    assert values["accuracy"].std() / naive["accuracy"].std() == pytest.approx(2, rel=0.08)


def test_weights_are_reproducible_and_independent_of_the_row_order() -> None:
    labels, probabilities, clusters = make_data(200, 90)
    weights = cluster_weights(clusters, 100, seed=7)
    assert weights.n_resamples == 100
    assert (weights.counts.sum(axis=1) == weights.n_clusters).all()
    np.testing.assert_array_equal(weights.counts, cluster_weights(clusters, 100, seed=7).counts)
    assert (weights.counts != cluster_weights(clusters, 100, seed=8).counts).any()
    order = np.random.default_rng(0).permutation(200)
    ours = cluster_bootstrap(labels, probabilities, clusters, ["macro_f1", "auroc:mel"], 100)
    shuffled = cluster_bootstrap(labels[order], probabilities[order], clusters[order], ["macro_f1", "auroc:mel"], 100)
    assert ours == shuffled


def test_undefined_figures_have_no_interval() -> None:
    labels, probabilities, clusters = make_data(100, 60)
    kept = (labels != 4) & ((labels != 6) | (np.cumsum(labels == 6) <= 2))
    result = cluster_bootstrap(
        labels[kept], probabilities[kept], clusters[kept], ["recall:mel", "auroc_macro", "recall:vasc"], 200
    )
    assert result["recall:mel"].as_dict() == {"estimate": None, "low": None, "high": None, "n_defined": 0}
    assert result["auroc_macro"].estimate is None
    # A rare class is missing from some resamples, and the interval says on how many it rests.
    assert 100 < result["recall:vasc"].n_defined < 200
    assert percentile_interval(0.5, np.full(10, np.nan)).low is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"statistics": ["acuracy"]}, r"Unknown statistic\(s\) \['acuracy'\]"),
        ({"statistics": ["accuracy", "accuracy"]}, "given twice"),
        ({"predictions": np.zeros(20, int), "statistics": ["ece"]}, "ece need"),
        ({"predictions": np.zeros(19, int)}, "20 labels, 19 predictions"),
        ({"clusters": ["a"] * 20}, "at least two"),
        ({"clusters": ["a", None] * 10}, "missing values"),
        ({"clusters": ["a", "b"]}, "2 clusters"),
        ({"n_resamples": 0}, "n_resamples=0"),
        ({"confidence": 95}, "between 0 and 1"),
    ],
)
def test_bad_input_is_named(changes: dict, message: str) -> None:
    labels, probabilities, _ = make_data(20, 5)
    arguments = {
        "labels": labels,
        "predictions": probabilities,
        "clusters": list(range(20)),
        "statistics": ["accuracy"],
    }
    with pytest.raises(Ham10000Error, match=message):
        cluster_bootstrap(**(arguments | {"n_resamples": 5} | changes))
