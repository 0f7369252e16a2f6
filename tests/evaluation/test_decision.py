"""Temperatures against a brute-force search, decision rules and prediction sets against definitions and crepes."""

import math

import numpy as np
import pytest
from crepes import ConformalClassifier
from predicted import calibrated
from scipy.optimize import minimize
from scipy.stats import bootstrap
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss

from ham10000.modeling import Ham10000Config, Ham10000Error
from ham10000.training.evaluation.bootstrap import bootstrap_distribution, cluster_weights, percentile_interval
from ham10000.training.evaluation.calibration import TEMPERATURE_RANGE, fit_temperature, fit_vector_scaling
from ham10000.training.evaluation.decision import (
    COVERAGES,
    balanced_probabilities,
    decide,
    fit_thresholds,
    prediction_sets,
    saved_thresholds,
)
from ham10000.training.evaluation.metrics import ece_floor, expected_calibration_error, softmax


@pytest.mark.parametrize("known", [0.5, 1.7])
def test_a_known_temperature_is_recovered_and_is_the_minimum_of_a_brute_force_search(known: float) -> None:
    labels, probabilities = calibrated(4000, seed=1)
    logits, grid = known * np.log(probabilities), known * np.geomspace(0.8, 1.25, 100)
    losses = [log_loss(labels, softmax(logits / temperature), labels=range(7)) for temperature in grid]
    temperature = fit_temperature(labels, softmax(logits))
    assert temperature == pytest.approx(known, rel=0.08)
    assert temperature == pytest.approx(grid[int(np.argmin(losses))], rel=grid[1] / grid[0] - 1)
    assert log_loss(labels, softmax(logits / temperature), labels=range(7)) <= min(losses)


def test_zero_probabilities_break_nothing() -> None:
    labels, probabilities = calibrated(300)
    probabilities = softmax(2 * np.log(probabilities))
    probabilities[:5] = np.eye(7)[labels[:5]]
    probabilities[5] = np.eye(7)[(labels[5] + 1) % 7]  # the true class at 0
    # One hopeless image among 300 raises the temperature; at -log(0) it would be the only one that counts.
    assert 2 < fit_temperature(labels, probabilities) < TEMPERATURE_RANGE[1]


def test_what_has_no_best_temperature_is_an_error_that_says_so() -> None:
    labels, probabilities = calibrated(200)
    logits = np.log(probabilities)
    for given, message in (
        (softmax(logits + 30 * np.eye(7)[labels]), r"accuracy 1\.000.*every one is right"),
        (softmax(-logits), "say nothing"),
        (np.full((200, 7), 1 / 7), "uniform"),
        (softmax(logits[1:]), r"\(199, 7\)"),
    ):
        with pytest.raises(Ham10000Error, match=message):
            fit_temperature(labels, given)


def test_vector_scaling_is_a_logistic_regression_with_one_slope() -> None:
    labels, probabilities = calibrated(4000)
    shift = np.array([0.5, -0.4, 0.2, -0.9, 0.1, 0.9, -0.4])
    logits = 1.6 * (np.log(probabilities) - shift)
    temperature, biases = fit_vector_scaling(logits, labels)
    assert temperature == pytest.approx(1.6, rel=0.05)
    np.testing.assert_allclose(biases, shift - shift.mean(), atol=0.3)
    assert biases.sum() == pytest.approx(0, abs=1e-9)

    def loss(parameters: np.ndarray) -> float:
        return log_loss(labels, softmax(logits * parameters[0] + parameters[1:]))

    # A search with numerical gradients over scikit-learn's loss, started from another place, finds no lower one.
    assert loss(np.append(1 / temperature, biases)) <= minimize(loss, np.append(0.7, shift)).fun + 1e-7
    with pytest.raises(Ham10000Error, match="images of each of 7 classes"):
        fit_vector_scaling(logits, np.where(labels == 2, 3, labels))
    with pytest.raises(Ham10000Error, match="No temperature in"):
        fit_vector_scaling(20 * np.eye(7)[labels], labels)


def test_the_floor_of_the_ece_is_what_calibrated_samples_show() -> None:
    _, probabilities = calibrated(500)
    found = [
        expected_calibration_error(np.array([draws.choice(7, p=row) for row in probabilities]), probabilities)
        for draws in map(np.random.default_rng, range(40))
    ]
    error = np.std(found) / np.sqrt(len(found))
    assert ece_floor(probabilities) == pytest.approx(np.mean(found), abs=4 * error)
    assert ece_floor(np.repeat(probabilities, 20, axis=0)) < 0.5 * ece_floor(probabilities)


def test_the_interval_of_the_ece_is_moved_by_its_bias() -> None:
    labels, probabilities = calibrated(300, seed=3)
    estimates, values = bootstrap_distribution(labels, probabilities, cluster_weights(np.arange(300), 1000), ["ece"])
    estimate = estimates["ece"]
    assert values["ece"].mean() > estimate + 0.01
    found = percentile_interval(estimate, values["ece"], metric="ece")
    assert percentile_interval(0.1, values["ece"] + 1, metric="ece")["high"] >= 0.1
    assert 0 <= found["low"] <= estimate <= found["high"]

    def ece(rows: np.ndarray) -> float:
        return expected_calibration_error(labels[rows], probabilities[rows])

    options = {"n_resamples": 200, "vectorized": False, "method": "percentile", "random_state": 0}
    bias = bootstrap((np.arange(300),), ece, **options).bootstrap_distribution.mean() - estimate
    plain = percentile_interval(estimate, values["ece"])  # as of a metric without a bias
    assert found["high"] == pytest.approx(plain["high"] - bias, abs=0.004)


def test_each_rule_is_the_best_for_its_metric() -> None:
    labels, probabilities = calibrated(20_000)
    prior = np.bincount(labels, minlength=7) / len(labels)
    probable, balanced = (decide(probabilities, prior, rule) for rule in ("probable", "balanced"))
    assert accuracy_score(labels, probable) > accuracy_score(labels, balanced) + 0.02
    assert balanced_accuracy_score(labels, balanced) > balanced_accuracy_score(labels, probable) + 0.02
    np.testing.assert_array_equal(balanced, (np.log(probabilities) - np.log(prior)).argmax(axis=1))
    np.testing.assert_allclose(balanced_probabilities(probabilities, prior).sum(axis=1), 1)


def test_what_a_rule_or_a_coverage_needs_is_said() -> None:
    sets, uniform = {"0.9": [0.9] * 7}, np.full((3, 7), 1 / 7)
    np.testing.assert_array_equal(saved_thresholds(sets, 0.9), sets["0.9"])
    for function, arguments, message in (
        (decide, (uniform, None, "balanced"), "class_prior"),
        (decide, (uniform, [1 / 7] * 7, "best"), "Unknown decision rule 'best'"),
        (decide, (uniform, [0.5, 0.5], "balanced"), "7 positive class shares"),
        (saved_thresholds, (sets, 0.8), r"coverage 0\.8; it has 0\.9"),
        (saved_thresholds, (None, 0.8), "none at all"),
    ):
        with pytest.raises(Ham10000Error, match=message):
            function(*arguments)
    wrong = {"class_prior": [0.5, 0.5]}, {"class_prior": [0.5] * 7}, {"conformal_thresholds": {"0.9": [2.0] * 7}}
    for values in wrong:
        with pytest.raises(Exception, match=next(iter(values))):
            Ham10000Config(**values)


def test_the_sets_are_those_of_crepes() -> None:
    (labels, probabilities), (_, new) = calibrated(3000), calibrated(500, seed=1)
    theirs = ConformalClassifier().fit(1 - probabilities[np.arange(3000), labels], bins=labels)
    # Without smoothing a class's p-value is the share of calibration scores at least as large, itself counted in.
    p_values = [theirs.predict_p((1 - new)[:, [k]], bins=np.full(500, k), smoothing=False)[:, 0] for k in range(7)]
    for coverage in COVERAGES:
        ours = prediction_sets(new, fit_thresholds(labels, probabilities, coverage))
        np.testing.assert_array_equal(ours, np.column_stack(p_values) > 1 - coverage + 1e-12)


@pytest.mark.parametrize("n", [1, 9, 10, 19, 99, 100])
def test_the_threshold_is_the_finite_sample_quantile(n: int) -> None:
    probabilities = np.column_stack([np.linspace(0.01, 0.99, n), 1 - np.linspace(0.01, 0.99, n)])
    found = fit_thresholds(np.zeros(n, dtype=int), probabilities, 0.9)
    rank = math.ceil((n + 1) * 9 / 10)
    # The second class has no image, so nothing can be promised but by every class.
    assert found.tolist() == [np.sort(1 - probabilities[:, 0])[rank - 1] if rank <= n else 1.0, 1.0]
