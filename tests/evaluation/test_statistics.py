"""Intervals against scipy, scikit-learn and brute force; `test_error_rates.py` simulates how often they err."""

import numpy as np
import pytest
from predicted import predictions, with_metadata
from scipy import special, stats
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, log_loss, recall_score, roc_auc_score

from ham10000.modeling import LABELS
from ham10000.training.evaluation.bootstrap import (
    Bootstrap,
    ClusterWeights,
    bootstrap_distribution,
    cluster_bootstrap,
    cluster_weights,
    percentile_interval,
)
from ham10000.training.evaluation.comparison import (
    assign_groups,
    subgroup_results,
)
from ham10000.training.evaluation.metrics import softmax


def test_a_percentile_interval_ends_at_the_2_5_and_97_5_percentiles() -> None:
    values = np.random.default_rng(0).gamma(2.0, size=1001)  # one side is longer
    found = percentile_interval(2.0, np.append(values, [np.nan] * 3))
    # Of 1,001 values in order, 25 lie below the first and above the second.
    assert (found["low"], found["high"]) == pytest.approx((np.sort(values)[25], np.sort(values)[-26]))
    assert (found["estimate"], found["n_defined"]) == (2.0, 1001)


def test_an_interval_over_single_images_is_scipys() -> None:
    labels, probabilities = predictions(400)
    hits = (probabilities.argmax(axis=1) == labels).astype(float)
    ours = cluster_bootstrap(labels, probabilities, np.arange(400), ["accuracy"], 4000)["accuracy"]
    options = {"n_resamples": 4000, "method": "percentile", "random_state": np.random.default_rng(1)}
    theirs = stats.bootstrap((hits,), np.mean, **options).confidence_interval
    # Two Monte Carlo answers: their ends differ by a fraction of the standard error (0.02).
    assert (ours["low"], ours["high"]) == pytest.approx(tuple(theirs), abs=0.005)


def test_a_subgroups_interval_is_that_of_its_images_in_resampled_lesions() -> None:
    inputs = with_metadata()
    inputs["metadata"]["sex"] = "male"
    fields = subgroup_results(**inputs, n_resamples=300, seed=3)["fields"]
    labels, lesions = inputs["labels"], np.array(inputs["lesion_groups"])
    everybody = cluster_bootstrap(labels, inputs["probabilities"], lesions, ["accuracy"], 300, seed=3)["accuracy"]
    assert fields["sex"][0]["accuracy"] == pytest.approx(everybody)
    right = inputs["probabilities"].argmax(axis=1) == labels
    weights, groups = cluster_weights(lesions, 300, seed=3), assign_groups(inputs["metadata"])["site"]
    for row in fields["site"]:
        resampled = []
        for counts in weights.counts:
            rows = np.repeat(np.arange(len(labels)), counts[weights.index])
            resampled.append(right[rows[(groups == row["group"]).to_numpy()[rows]]].mean())
        expected = np.percentile(resampled, [2.5, 97.5])
        assert (row["accuracy"]["low"], row["accuracy"]["high"]) == pytest.approx(tuple(expected))


def test_weights_are_scikit_learns_sample_weights() -> None:
    labels, probabilities = predictions(300, signal=1.0)
    probabilities = softmax(np.log(probabilities).round(0))  # ties
    weight = np.random.default_rng(1).integers(1, 5, 300)
    options: dict = {"sample_weight": weight}
    names = ["accuracy", "macro_f1", "weighted_f1", "balanced_accuracy", "nll", "auroc:mel", "average_precision_macro"]
    weights = ClusterWeights(weight[None].astype(np.uint16), np.arange(300))
    _, values = bootstrap_distribution(labels, probabilities, weights, [*names, "recall:bcc"])
    answers, mel = probabilities.argmax(axis=1), LABELS.index("mel")
    recalls = recall_score(labels, answers, average=None, **options)
    precisions = [average_precision_score(labels == k, probabilities[:, k], **options) for k in range(7)]
    expected = {
        "accuracy": accuracy_score(labels, answers, **options),
        "macro_f1": f1_score(labels, answers, average="macro", **options),
        "weighted_f1": f1_score(labels, answers, average="weighted", **options),
        "balanced_accuracy": recalls.mean(),
        "nll": log_loss(labels, probabilities, **options),
        "auroc:mel": roc_auc_score(labels == mel, probabilities[:, mel], **options),
        "average_precision_macro": np.mean(precisions),
        "recall:bcc": recalls[LABELS.index("bcc")],
    }
    assert {name: value[0] for name, value in values.items()} == pytest.approx(expected)


def test_softmax_survives_large_logits() -> None:
    logits = np.array([[1000.0, 0, 0], [-1000, -1000, -1001], [1e-3, 0, 2]])
    np.testing.assert_allclose(softmax(logits), special.softmax(logits, axis=1), atol=1e-12)


# Over lesions and seeds


def test_every_resample_of_seeds_and_lesions_equals_brute_force() -> None:
    """Rows repeated as often as their lesion is drawn, scored for every drawn seed, averaged."""
    draws = np.random.default_rng(0)
    labels, lesions = draws.integers(0, 7, 80), draws.integers(0, 40, 80)
    probabilities = softmax(draws.normal(size=(3, 80, 7)) + 1.5 * np.eye(7)[labels])
    bootstrap = Bootstrap(labels, lesions, n_seeds=3, n_resamples=30, seed=2)
    found = bootstrap.scores(probabilities, ["accuracy", "macro_f1", "nll"])
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
    assert (summary["estimate"], summary["sd"]) == pytest.approx((np.mean(per_seed), np.std(per_seed, ddof=1)))


def test_seeds_are_drawn_with_replacement() -> None:
    """Of two seeds, one always right and one always wrong, the resampled mean is 0, 1/2 or 1, as 1 : 2 : 1."""
    labels = np.arange(70) % 7
    bootstrap = Bootstrap(labels, np.arange(70), n_seeds=2, n_resamples=4000)
    values = bootstrap.scores(np.stack([labels, (labels + 1) % 7]), ["accuracy"])["accuracy"].values
    found, counts = np.unique(values, return_counts=True)
    assert found.tolist() == [0, 0.5, 1]
    assert stats.chisquare(counts, [1000, 2000, 1000]).pvalue > 0.001


def test_one_seed_or_equal_ones_are_the_lesion_bootstrap() -> None:
    labels, probabilities = predictions(200)
    lesions = np.arange(200) // 2
    expected = cluster_bootstrap(labels, probabilities, lesions, ["macro_f1", "ece"], 100, seed=4)
    for seeds in (1, 4):
        bootstrap = Bootstrap(labels, lesions, seeds, 100, seed=4)
        for name, sample in bootstrap.scores(np.stack([probabilities] * seeds), ["macro_f1", "ece"]).items():
            summary = sample.summary()
            for key in ("estimate", "low", "high"):
                assert summary[key] == pytest.approx(expected[name][key]), (seeds, name, key)
