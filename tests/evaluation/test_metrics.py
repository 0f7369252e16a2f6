"""The metrics against scikit-learn called directly, and against numbers worked out by hand."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from predicted import predictions
from sklearn import metrics as sk

from ham10000.modeling.configuration_ham10000 import LABELS, Ham10000Error
from ham10000.training.evaluation.metrics import (
    HEADLINE_METRICS,
    Ham10000Metrics,
    compute_metrics,
    confidence_bins,
    expected_calibration_error,
    sensitivity_at_95_specificity,
    softmax,
    trainer_compute_metrics,
)


def test_parity_with_scikit_learn() -> None:
    labels, probabilities = predictions()
    predicted, classes = probabilities.argmax(axis=1), list(range(7))
    result = compute_metrics(labels, probabilities)
    expected = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "macro_f1": sk.f1_score(labels, predicted, average="macro", zero_division=0),
        "weighted_f1": sk.f1_score(labels, predicted, average="weighted", zero_division=0),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "auroc_macro": sk.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro"),
        "nll": sk.log_loss(labels, probabilities, labels=classes),
        "brier": np.mean(np.sum((np.eye(7)[labels] - probabilities) ** 2, axis=1)),
    }
    assert {name: result[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert result["confusion_matrix"] == sk.confusion_matrix(labels, predicted, labels=classes).tolist()
    assert list(result["per_class"]) == list(LABELS)
    report = sk.classification_report(labels, predicted, labels=classes, target_names=LABELS, output_dict=True)
    for k, label in enumerate(LABELS):
        expected = {name.removesuffix("-score"): value for name, value in report[label].items()}
        expected["auroc"] = sk.roc_auc_score(labels == k, probabilities[:, k])
        assert result["per_class"][label] == pytest.approx(expected, abs=1e-15)
    assert result["undefined"] == {}


def test_melanoma_sensitivity_allows_exactly_one_false_alarm_in_twenty() -> None:
    scores = np.concatenate([np.linspace(0, 0.95, 20), [0.92, 0.2]])
    positive = np.arange(22) >= 20
    assert sensitivity_at_95_specificity(positive, scores) == 0.5
    # With 19 negatives not one false alarm is allowed, and the highest score is a negative's.
    assert sensitivity_at_95_specificity(positive[1:], scores[1:]) == 0.0


def test_ece_worked_out_by_hand() -> None:
    """Bins of 1/15: 0.40 and 0.38 share (0.333, 0.4]; 0.90 is in (0.867, 0.933]."""
    probabilities = np.array([[top] + [(1 - top) / 6] * 6 for top in (0.40, 0.38, 0.90, 0.90)])
    labels = np.array([0, 1, 0, 2])
    # |1 - 0.78| / 4 from the first bin (one hit, confidences sum to 0.78), |1 - 1.80| / 4 from the other.
    assert expected_calibration_error(labels, probabilities) == pytest.approx((0.22 + 0.80) / 4, abs=1e-12)
    assert confidence_bins(np.array([0.0, 1 / 15, 0.4, 0.41, 1.0])).tolist() == [0, 0, 5, 6, 14]
    assert expected_calibration_error(np.array([3, 3]), np.eye(7)[[3, 3]]) == 0


def test_absent_classes_are_reported_not_guessed() -> None:
    labels, probabilities = predictions()
    kept = (labels != 3) & (labels != 4)
    labels, probabilities = labels[kept], probabilities[kept]
    result, predicted = compute_metrics(labels, probabilities), probabilities.argmax(axis=1)
    assert result["auroc_macro"] is None
    nothing = {"recall": 0.0, "f1": 0.0, "support": 0, "auroc": None}
    assert {name: result["per_class"]["df"][name] for name in nothing} == nothing
    assert result["undefined"]["auroc_macro"] == "no images, or no others, of df, mel"
    assert "mel" in result["undefined"]["melanoma_sensitivity_at_95_specificity"]
    assert result["absent_classes"] == ["df", "mel"]
    for name, score in (("macro_f1", sk.f1_score), ("balanced_accuracy", sk.recall_score)):
        expected = score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0)
        assert result[name] == pytest.approx(expected, abs=1e-12)
    json.dumps(result, allow_nan=False)
    json.dumps(compute_metrics([0], np.eye(7)[[1]]), allow_nan=False)


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([0, 7], np.full((2, 7), 1 / 7), "row 1 is 7"),
        ([0, -1], np.full((2, 7), 1 / 7), "row 1 is -1"),
        ([0.0, 1.0], np.full((2, 7), 1 / 7), "whole numbers"),
        ([], np.zeros((0, 7)), "N > 0"),
        ([0, 1], np.full((3, 7), 1 / 7), r"shape \(2, 7\), got \(3, 7\)"),
        ([0, 1], [[1.0], [0.5, 0.5]], "one per class"),
        ([0, 1], np.array([np.full(7, 1 / 7), np.full(7, np.nan)]), "Row 1 of the probabilities is not finite"),
        ([0, 1], np.array([[2.0, -1, 0, 0, 0, 0, 0]] * 2), r"outside \[0, 1\].*not logits"),
        ([0, 1], np.full((2, 7), 0.1), "does not sum to 1"),
    ],
)
def test_bad_input_is_named(labels: object, probabilities: object, message: str) -> None:
    with pytest.raises(Ham10000Error, match=message):
        compute_metrics(labels, probabilities)


def test_metric_class_equals_the_function_and_adds_batches(tmp_path: Path) -> None:
    labels, probabilities = predictions(200)
    expected = compute_metrics(labels, probabilities)
    metric = Ham10000Metrics(cache_dir=str(tmp_path))
    assert metric.compute(predictions=probabilities, references=labels) == expected
    for rows in (slice(0, 64), slice(64, 200)):
        metric.add_batch(predictions=probabilities[rows], references=labels[rows])
    assert metric.compute() == expected
    with pytest.raises(Ham10000Error, match="does not sum to 1"):
        metric.compute(predictions=probabilities * 0.5, references=labels)


def test_trainer_metrics_take_logits_or_a_tuple() -> None:
    labels, probabilities = predictions(200)
    logits = np.log(probabilities).astype(np.float32)
    result = trainer_compute_metrics(SimpleNamespace(predictions=(logits, np.zeros((200, 3))), label_ids=labels))
    assert result == trainer_compute_metrics(SimpleNamespace(predictions=logits, label_ids=labels))
    assert set(result) == set(HEADLINE_METRICS)
    assert result["nll"] == pytest.approx(compute_metrics(labels, probabilities)["nll"], abs=1e-6)
    few = trainer_compute_metrics(SimpleNamespace(predictions=logits[:1], label_ids=labels[:1]))
    assert "auroc_macro" not in few
    with pytest.raises(Ham10000Error, match="first is row 2"):
        softmax(np.array([[0.0] * 7, [1.0] * 7, [np.inf] + [0.0] * 6]))


@pytest.mark.parametrize("count", [2, 11])
def test_any_label_set(count: int) -> None:
    names, generator = [f"class {index}" for index in range(count)], np.random.default_rng(count)
    labels = np.append(np.arange(count), generator.integers(0, count, size=200))
    probabilities = generator.dirichlet(np.ones(count), size=len(labels))
    result = compute_metrics(labels, probabilities, names, positive="class 1")
    expected = sk.f1_score(labels, probabilities.argmax(axis=1), average="macro")
    assert result["macro_f1"] == pytest.approx(expected, abs=1e-12)
    assert list(result["per_class"]) == names
    false, true, _ = sk.roc_curve(labels == 1, probabilities[:, 1])
    assert result["class 1_sensitivity_at_95_specificity"] == pytest.approx(true[false <= 0.05].max())
    without = compute_metrics(labels, probabilities, names)
    assert without["positive"] is None
    assert not [name for name in without if name.endswith("specificity")]
    with pytest.raises(Ham10000Error, match="'melanoma' is not a label"):
        compute_metrics(labels, probabilities, names, positive="melanoma")
    with pytest.raises(Ham10000Error, match=rf"got \({len(labels)}, {count}\)"):
        compute_metrics(labels, probabilities, [*names, "another"])
