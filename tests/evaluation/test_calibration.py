"""Temperature scaling, against known temperatures and a brute-force search."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import bootstrap
from sklearn.metrics import log_loss

from ham10000.modeling import Ham10000Error
from ham10000.training.evaluation.bootstrap import (
    bootstrap_distribution,
    cluster_weights,
    metric_interval,
    percentile_interval,
)
from ham10000.training.evaluation.decision import (
    TEMPERATURE_RANGE,
    fit_temperature,
    fit_vector_scaling,
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


def test_calibration_lowers_ece_and_nll_and_leaves_every_decision() -> None:
    labels, logits = simulate(n=5000)
    before = compute_metrics(labels, softmax(2.5 * logits))
    after = compute_metrics(labels, softmax(2.5 * logits / fit_temperature(labels, softmax(2.5 * logits))))
    for name in ("accuracy", "macro_f1", "balanced_accuracy", "confusion_matrix"):
        assert after[name] == before[name]
    assert after["ece"] < 0.3 * before["ece"]
    assert after["nll"] < before["nll"]
    # Exactly the same within a row; between rows one of seven probabilities may change its rank.
    assert after["auroc_macro"] == pytest.approx(before["auroc_macro"], abs=0.01)


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
