"""Decision rules and prediction sets, against their definitions and against crepes."""

import math

import numpy as np
import pytest
from crepes import ConformalClassifier
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from ham10000.modeling import Ham10000Config, Ham10000Error
from ham10000.training.evaluation.decision import (
    COVERAGES,
    RULES,
    balanced_probabilities,
    decide,
    fit_thresholds,
    prediction_sets,
    saved_thresholds,
)
from ham10000.training.evaluation.metrics import softmax


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


def test_coverage_holds_in_every_class_on_new_images() -> None:
    labels, probabilities, _ = sample(20_000)
    thresholds = fit_thresholds(labels, probabilities, 0.9)
    new_labels, new, _ = sample(20_000, seed=2)
    hit = prediction_sets(new, thresholds)[np.arange(len(new)), new_labels]
    for k in range(7):
        assert hit[new_labels == k].mean() == pytest.approx(0.9, abs=0.035)


def test_a_config_carries_prior_and_thresholds(tmp_path) -> None:
    _, _, prior = sample(1000)
    sets = {"0.9": [0.9] * 7}
    Ham10000Config(class_prior=prior.tolist(), conformal_thresholds=sets).save_pretrained(tmp_path)
    found = Ham10000Config.from_pretrained(tmp_path)
    assert found.class_prior == prior.tolist()
    np.testing.assert_array_equal(saved_thresholds(found.conformal_thresholds, 0.9), sets["0.9"])
    with pytest.raises(Ham10000Error, match=r"coverage 0\.8; it has 0\.9"):
        saved_thresholds(found.conformal_thresholds, 0.8)
    with pytest.raises(Ham10000Error, match="none at all"):
        saved_thresholds(None, 0.8)
    for wrong in (
        {"class_prior": [0.5, 0.5]},
        {"class_prior": [0.5] * 7},
        {"conformal_thresholds": {"0.9": [2.0] * 7}},
    ):
        with pytest.raises(Exception, match=r"class_prior|conformal_thresholds"):
            Ham10000Config(**wrong)
