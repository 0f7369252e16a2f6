"""Temperatures against a brute-force search, decision rules and prediction sets against definitions and crepes."""

import math

import numpy as np
import pytest
from crepes import ConformalClassifier
from scipy.optimize import minimize
from scipy.stats import bootstrap
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss

from ham10000.modeling import Ham10000Config, Ham10000Error
from ham10000.training.evaluation.bootstrap import (
    bootstrap_distribution,
    cluster_weights,
    metric_interval,
    percentile_interval,
)
from ham10000.training.evaluation.calibration import TEMPERATURE_RANGE, fit_temperature, fit_vector_scaling
from ham10000.training.evaluation.decision import (
    COVERAGES,
    RULES,
    balanced_probabilities,
    decide,
    fit_thresholds,
    prediction_sets,
    saved_thresholds,
)
from ham10000.training.evaluation.metrics import compute_metrics, ece_floor, expected_calibration_error, softmax


def simulate(n: int = 20_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from the softmax of the logits: at temperature 1 these are perfectly calibrated."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=2, size=(n, 7))
    return (softmax(logits).cumsum(axis=1) > generator.random((n, 1))).argmax(axis=1), logits


@pytest.mark.parametrize("known", [0.3, 1.0, 2.5, 8.0])
def test_a_known_temperature_is_recovered(known: float) -> None:
    labels, logits = simulate()
    assert fit_temperature(labels, softmax(logits * known)) == pytest.approx(known, rel=0.03)


def test_the_fit_is_the_minimum_of_a_brute_force_search() -> None:
    labels, logits = simulate(n=400, seed=1)
    probabilities = softmax(logits * 1.7)
    grid = np.geomspace(*TEMPERATURE_RANGE, 500)
    losses = [log_loss(labels, softmax(logits * 1.7 / temperature), labels=range(7)) for temperature in grid]
    temperature = fit_temperature(labels, probabilities)
    assert temperature == pytest.approx(grid[int(np.argmin(losses))], rel=grid[1] / grid[0] - 1)
    assert compute_metrics(labels, softmax(logits * 1.7 / temperature))["nll"] <= min(losses)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_zero_probabilities_break_nothing(dtype: type) -> None:
    labels, logits = simulate(n=300)
    probabilities = softmax(2 * logits).astype(dtype)
    probabilities[:5] = np.eye(7, dtype=dtype)[labels[:5]]
    probabilities[5] = np.eye(7, dtype=dtype)[(labels[5] + 1) % 7]  # the true class at 0
    temperature = fit_temperature(labels, probabilities)
    # One hopeless image among 300 raises the temperature; at -log(0) it would be the only one that counts.
    assert 2 < temperature < TEMPERATURE_RANGE[1]


def test_no_best_temperature_is_an_error_that_says_so() -> None:
    labels, logits = simulate(n=200)
    right = softmax(logits + 30 * np.eye(7)[labels])
    with pytest.raises(Ham10000Error, match=r"accuracy 1\.000.*every one is right"):
        fit_temperature(labels, right)
    with pytest.raises(Ham10000Error, match="say nothing"):
        fit_temperature(labels, softmax(-logits))
    with pytest.raises(Ham10000Error, match="uniform"):
        fit_temperature(labels, np.full((200, 7), 1 / 7))


def test_bad_inputs_are_errors() -> None:
    labels, logits = simulate(n=20)
    with pytest.raises(Ham10000Error, match="does not sum to 1"):
        fit_temperature(labels, softmax(logits) * 0.5)
    with pytest.raises(Ham10000Error, match="row 3 is 7"):
        fit_temperature(np.where(np.arange(20) == 3, 7, labels), softmax(logits))
    with pytest.raises(Ham10000Error, match=r"\(19, 7\)"):
        fit_temperature(labels[1:], softmax(logits))


def test_vector_scaling_is_a_logistic_regression_with_one_slope() -> None:
    logits = np.random.default_rng(0).normal(size=(4000, 7)) * 2
    shift = np.array([0.5, -0.4, 0.2, -0.9, 0.1, 0.9, -0.4])
    probabilities = softmax(logits / 1.6 + shift)
    labels = (np.random.default_rng(1).random((4000, 1)) > probabilities.cumsum(axis=1)).sum(axis=1).clip(max=6)
    temperature, biases = fit_vector_scaling(logits, labels)
    assert temperature == pytest.approx(1.6, rel=0.05)
    np.testing.assert_allclose(biases, shift - shift.mean(), atol=0.15)
    assert biases.sum() == pytest.approx(0, abs=1e-9)

    def loss(parameters: np.ndarray) -> float:
        return log_loss(labels, softmax(logits * parameters[0] + parameters[1:]))

    # A search with numerical gradients over scikit-learn's loss, started from another place, finds no lower one.
    found = loss(np.append(1 / temperature, biases))
    assert found <= minimize(loss, np.append(0.7, shift)).fun + 1e-7
    with pytest.raises(Ham10000Error, match="images of each of 7 classes"):
        fit_vector_scaling(logits, np.where(labels == 2, 3, labels))
    with pytest.raises(Ham10000Error, match="No temperature in"):
        fit_vector_scaling(20 * np.eye(7)[labels], labels)


def test_the_floor_of_the_ece_is_what_calibrated_samples_show() -> None:
    probabilities = softmax(np.random.default_rng(0).normal(size=(500, 7)) * 2)
    found = [
        expected_calibration_error(np.array([draws.choice(7, p=row) for row in probabilities]), probabilities)
        for draws in map(np.random.default_rng, range(40))
    ]
    error = np.std(found) / np.sqrt(len(found))
    assert ece_floor(probabilities) == pytest.approx(np.mean(found), abs=4 * error)
    assert ece_floor(np.repeat(probabilities, 20, axis=0)) < 0.5 * ece_floor(probabilities)


def test_the_interval_of_the_ece_is_moved_by_its_bias() -> None:
    logits = np.random.default_rng(3).normal(size=(300, 7)) * 2
    probabilities = softmax(logits)
    labels = (np.random.default_rng(4).random((300, 1)) > probabilities.cumsum(axis=1)).sum(axis=1).clip(max=6)
    weights = cluster_weights(np.arange(300), 1000)
    estimate, values = bootstrap_distribution(labels, probabilities, weights, ["ece"])
    plain = percentile_interval(estimate["ece"], values["ece"])
    assert values["ece"].mean() > estimate["ece"] + 0.01
    found = metric_interval("ece", estimate["ece"], values["ece"])
    assert metric_interval("ece", 0.1, values["ece"] + 1).high >= 0.1
    assert 0 <= found.low <= estimate["ece"] <= found.high
    bias = (
        bootstrap(
            (np.arange(300),),
            lambda i: expected_calibration_error(labels[i], probabilities[i]),
            n_resamples=200,
            vectorized=False,
            method="percentile",
            random_state=0,
        ).bootstrap_distribution.mean()
        - estimate["ece"]
    )
    assert found.high == pytest.approx(plain.high - bias, abs=0.004)


def sample(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels drawn from the probabilities themselves, so that these are calibrated, and the class shares."""
    draws = np.random.default_rng(seed)
    prior = np.array([0.04, 0.06, 0.12, 0.02, 0.12, 0.6, 0.04])
    probabilities = softmax(draws.normal(size=(n, 7)) * 1.5 + np.log(prior))
    labels = (draws.random((n, 1)) > probabilities.cumsum(axis=1)).sum(axis=1).clip(max=6)
    return labels, probabilities, np.bincount(labels, minlength=7) / n


def test_each_rule_is_the_best_for_its_metric() -> None:
    labels, probabilities, prior = sample(20_000)
    answers = {rule: decide(probabilities, prior, rule) for rule in RULES}
    assert accuracy_score(labels, answers["probable"]) > accuracy_score(labels, answers["balanced"]) + 0.02
    balanced = {rule: balanced_accuracy_score(labels, answer) for rule, answer in answers.items()}
    assert balanced["balanced"] > balanced["probable"] + 0.02
    np.testing.assert_array_equal(answers["balanced"], (np.log(probabilities) - np.log(prior)).argmax(axis=1))
    np.testing.assert_array_equal(balanced_probabilities(probabilities, prior).argmax(axis=1), answers["balanced"])
    np.testing.assert_allclose(balanced_probabilities(probabilities, prior).sum(axis=1), 1)


def test_what_a_rule_needs_is_said() -> None:
    _, probabilities, prior = sample(10)
    with pytest.raises(Ham10000Error, match="class_prior"):
        decide(probabilities, None, "balanced")
    with pytest.raises(Ham10000Error, match="Unknown decision rule 'best'"):
        decide(probabilities, prior, "best")
    with pytest.raises(Ham10000Error, match="7 positive class shares"):
        decide(probabilities, [0.5, 0.5], "balanced")


@pytest.mark.parametrize("coverage", COVERAGES)
def test_the_sets_are_those_of_crepes(coverage: float) -> None:
    labels, probabilities, _ = sample(3000)
    _, new, _ = sample(500, seed=1)
    classes = np.arange(7)
    theirs = ConformalClassifier().fit(1 - probabilities[np.arange(3000), labels], bins=labels)
    # Without smoothing a class's p-value is the share of calibration scores at least as large, itself counted in.
    p_values = np.column_stack(
        [theirs.predict_p((1 - new)[:, [k]], bins=np.full(len(new), k), smoothing=False)[:, 0] for k in classes]
    )
    ours = prediction_sets(new, fit_thresholds(labels, probabilities, coverage))
    np.testing.assert_array_equal(ours, p_values > 1 - coverage + 1e-12)


@pytest.mark.parametrize("n", [1, 4, 9, 10, 19, 20, 99, 100])
def test_the_threshold_is_the_finite_sample_quantile(n: int) -> None:
    probabilities = np.column_stack([np.linspace(0.01, 0.99, n), 1 - np.linspace(0.01, 0.99, n)])
    found = fit_thresholds(np.zeros(n, dtype=int), probabilities, 0.9)
    rank = math.ceil((n + 1) * 9 / 10)
    expected = np.sort(1 - probabilities[:, 0])[rank - 1] if rank <= n else 1.0
    assert found[0] == expected
    assert found[1] == 1  # no image of the class, so nothing can be promised but by every class


def test_the_thresholds_of_a_config_are_found_by_coverage() -> None:
    sets = {"0.9": [0.9] * 7}
    np.testing.assert_array_equal(saved_thresholds(sets, 0.9), sets["0.9"])
    with pytest.raises(Ham10000Error, match=r"coverage 0\.8; it has 0\.9"):
        saved_thresholds(sets, 0.8)
    with pytest.raises(Ham10000Error, match="none at all"):
        saved_thresholds(None, 0.8)
    for wrong in (
        {"class_prior": [0.5, 0.5]},
        {"class_prior": [0.5] * 7},
        {"conformal_thresholds": {"0.9": [2.0] * 7}},
    ):
        with pytest.raises(Exception, match=r"class_prior|conformal_thresholds"):
            Ham10000Config(**wrong)
