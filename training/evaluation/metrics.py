"""The metrics of every results file, over scikit-learn."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import datasets
import evaluate
import numpy as np
from numpy.typing import ArrayLike
from scipy import special
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, roc_auc_score, roc_curve

from ham10000.modeling.configuration_ham10000 import LABELS, Ham10000Error
from ham10000.training.utils.files import JsonObject

if TYPE_CHECKING:
    from transformers import EvalPrediction

# The class whose sensitivity has its own row, where a label set has it.
DEFAULT_POSITIVE = "mel"
SENSITIVITY = "sensitivity_at_95_specificity"
ECE_BINS = 15
# A float32 softmax over seven classes sums to 1 within about 1e-6; a bfloat16 one does not, and should be redone.
SUM_TOLERANCE = 1e-4
# One false alarm in 20 is allowed at 95 % specificity. As a whole number it keeps the comparison exact.
NEGATIVES_PER_FALSE_POSITIVE = 20

# The headline metrics and what a table calls them.
METRIC_TITLES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "weighted_f1": "weighted F1",
    "balanced_accuracy": "balanced accuracy",
    "auroc_macro": "AUROC (macro, one-vs-rest)",
    "ece": "ECE (15 bins)",
    "nll": "NLL (nats)",
    "brier": "Brier score",
    "melanoma_sensitivity_at_95_specificity": "melanoma sensitivity at 95 % specificity",
}
_METRICS = tuple(METRIC_TITLES)[:-1]  # the last is the sensitivity to a class, which depends on the label set


def sensitivity_metric(positive: str) -> str:
    """Name of the sensitivity to a class at 95 % specificity; for mel `melanoma_sensitivity_at_95_specificity`."""
    return f"{'melanoma' if positive == DEFAULT_POSITIVE else positive}_{SENSITIVITY}"


def choose_positive(label_names: Sequence[str], positive: str | None = None) -> str | None:
    """The class whose sensitivity is reported: `positive`, else mel; None where the label set has no mel."""
    if positive is not None and positive not in label_names:
        raise Ham10000Error(f"--positive {positive!r} is not a label of this model; expected one of {[*label_names]}.")
    return positive or (DEFAULT_POSITIVE if DEFAULT_POSITIVE in label_names else None)


def headline_metrics(positive: str | None = DEFAULT_POSITIVE) -> tuple[str, ...]:
    """The metrics of a results file that have an interval; the last is the sensitivity to `positive`, if any."""
    return _METRICS if positive is None else (*_METRICS, sensitivity_metric(positive))


HEADLINE_METRICS = headline_metrics()


def validate_labels(labels: ArrayLike, n_classes: int = len(LABELS)) -> np.ndarray:
    """Returns class ids (N,), N > 0, as int64; anything else is a `Ham10000Error`."""
    array = np.asarray(labels)
    if array.ndim != 1 or len(array) == 0:
        raise Ham10000Error(f"Expected class ids of shape (N,) with N > 0, got shape {array.shape}.")
    if not np.issubdtype(array.dtype, np.integer):
        raise Ham10000Error(f"Expected whole numbers as class ids, got {array.dtype}.")
    if len(wrong := np.flatnonzero((array < 0) | (array >= n_classes))):
        raise Ham10000Error(f"Class ids are 0…{n_classes - 1}; row {wrong[0]} is {array[wrong[0]]}.")
    return array.astype(np.int64)


def validate_probabilities(probabilities: ArrayLike, n_rows: int, n_classes: int | None = None) -> np.ndarray:
    """Returns probabilities (N, K) as float64, unchanged in value; K is `n_classes`, or any from 2."""
    try:
        array = np.asarray(probabilities, dtype=np.float64)
    except ValueError as error:
        raise Ham10000Error(f"Probabilities must be rows of numbers, one per class: {error}.") from error
    columns = n_classes or (array.shape[1] if array.ndim == 2 and array.shape[1] > 1 else "classes")
    if array.shape != (n_rows, columns):
        raise Ham10000Error(f"Expected probabilities of shape ({n_rows}, {columns}), got {array.shape}.")
    for problem, mask in (
        ("is not finite", ~np.isfinite(array).all(axis=1)),
        ("has a value outside [0, 1]", ((array < 0) | (array > 1)).any(axis=1)),
        ("does not sum to 1", np.abs(array.sum(axis=1) - 1) > SUM_TOLERANCE),
    ):
        if mask.any():
            row = int(np.flatnonzero(mask)[0])
            raise Ham10000Error(
                f"Row {row} of the probabilities {problem}: {array[row].tolist()} ({int(mask.sum())} such rows). "
                "Expected a softmax over the classes, not logits."
            )
    return array


def softmax(logits: ArrayLike) -> np.ndarray:
    """Softmax of logits (…, K) over the last axis in float64, whatever precision they came in.

    Raises:
        Ham10000Error: For logits that are not finite.
    """
    array = np.asarray(logits, dtype=np.float64)
    if len(rows := np.flatnonzero(~np.isfinite(array).all(axis=-1))):
        raise Ham10000Error(f"{len(rows)} row(s) of the logits are not finite, the first is row {rows[0]}.")
    return special.softmax(array, axis=-1)


def confidence_bins(confidence: np.ndarray) -> np.ndarray:
    """Index (N,) of the equal-width bin ((b - 1) / 15, b / 15] of each confidence (N,); 0 joins the first."""
    return np.digitize(confidence, np.linspace(0, 1, ECE_BINS + 1)[1:-1], right=True)


def calibration_gaps(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Each image's hit (0 or 1) minus the probability of its top label (N,); sums of it per bin make the ECE."""
    return (probabilities.argmax(axis=1) == labels) - probabilities.max(axis=1)


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Expected calibration error, in [0, 1], of the top label of probabilities (N, K), over equal-width bins.

    The mean over images of |accuracy - mean confidence| of the image's bin (Naeini et al., AAAI 2015; Guo et al. 2017,
    arXiv:1706.04599). It is biased upwards in small samples: a perfectly calibrated model does not reach 0.
    """
    bins = confidence_bins(probabilities.max(axis=1))
    gaps = np.bincount(bins, weights=calibration_gaps(labels, probabilities))
    return float(np.abs(gaps).sum() / len(labels))


def ece_floor(probabilities: np.ndarray) -> float:
    """The ECE that a perfectly calibrated model with these probabilities (N, K) would show on average.

    The ECE of a finite sample is biased upwards; its floor, the mean over 200 sets of labels that are drawn by the
    probabilities themselves, says by how much (consistency resampling: Broecker & Smith 2007, 10.1175/WAF993.1).
    """
    generator, cumulated = np.random.default_rng(0), np.cumsum(probabilities, axis=1)[:, :-1]
    draws = ((generator.random((len(probabilities), 1)) > cumulated).sum(axis=1) for _ in range(200))
    return float(np.mean([expected_calibration_error(labels, probabilities) for labels in draws]))


def negative_log_likelihoods(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """-log of the true class's probability (N,), in nats; 0 is read as the float64 epsilon, as scikit-learn does."""
    true = probabilities[np.arange(len(labels)), labels]
    return -np.log(np.clip(true, np.finfo(np.float64).eps, 1))


def brier_scores(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Brier's original score (1950), in [0, 2]: squared differences to the one-hot label, summed over the classes."""
    return ((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(axis=1)


def sensitivity_at_95_specificity(positive: np.ndarray, scores: np.ndarray) -> float | None:
    """The largest sensitivity among all thresholds that keep at least 95 % of the negatives below them.

    None without positives or without negatives.
    """
    if positive.all() or not positive.any():
        return None
    false_positive_rate, sensitivity, _ = roc_curve(positive, scores, drop_intermediate=False)
    return float(sensitivity[false_positive_rate <= 1 / NEGATIVES_PER_FALSE_POSITIVE].max())


def compute_metrics(
    labels: ArrayLike, probabilities: ArrayLike, label_names: Sequence[str] = LABELS, positive: str | None = None
) -> JsonObject:
    """All metrics of one set of predictions.

    Macro-F1 and balanced accuracy average the classes that have images, as scikit-learn's `f1_score(labels=present)`;
    `absent_classes` names the others. Precision, recall and F1 are 0 where their denominator is (scikit-learn's
    `zero_division=0`). What cannot be computed is None and has its reason under `undefined`.

    Args:
        labels: Class ids (N,).
        probabilities: Probabilities (N, K), rows summing to 1; the prediction is the first largest.
        label_names: The K labels in the order of their ids.
        positive: Class of the sensitivity row; by default mel, and no row where the label set has none.

    Returns:
        `n_images`, `positive`, `absent_classes`, the names in `headline_metrics(positive)` (nll in nats, brier in
        [0, 2], the others in [0, 1]), `confusion_matrix` (K rows true, K columns predicted), `per_class` (label to
        precision, recall, f1, support, auroc) and `undefined` (name to reason). Strict JSON as it stands.

    Raises:
        Ham10000Error: For labels or probabilities of a wrong shape or value, or an unknown positive class.

    Example:
        >>> compute_metrics([5, 4], softmax(np.eye(7)[[5, 5]]))["accuracy"]
        0.5
    """
    positive = choose_positive(label_names, positive)
    labels = validate_labels(labels, len(label_names))
    probabilities = validate_probabilities(probabilities, len(labels), len(label_names))
    predicted = probabilities.argmax(axis=1)
    ids = list(range(len(label_names)))
    precision, recall, f1, support = precision_recall_fscore_support(labels, predicted, labels=ids, zero_division=0)
    aurocs = [
        float(roc_auc_score(labels == k, probabilities[:, k])) if 0 < support[k] < len(labels) else None for k in ids
    ]
    unranked = [label for label, auroc in zip(label_names, aurocs, strict=True) if auroc is None]
    undefined = {"auroc_macro": f"no images, or no others, of {', '.join(unranked)}"} if unranked else {}
    sensitivity = {}
    if positive is not None:
        index, name = list(label_names).index(positive), sensitivity_metric(positive)
        sensitivity[name] = sensitivity_at_95_specificity(labels == index, probabilities[:, index])
        if sensitivity[name] is None:
            undefined[name] = f"no images of {positive}, or no others"
    names = ("precision", "recall", "f1", "support", "auroc")
    rows = zip(precision.tolist(), recall.tolist(), f1.tolist(), support.astype(int).tolist(), aurocs, strict=True)
    return {
        "n_images": len(labels),
        "positive": positive,
        "absent_classes": [label for label, count in zip(label_names, support, strict=True) if not count],
        "accuracy": float((predicted == labels).mean()),
        "macro_f1": float(f1[support > 0].mean()),
        "weighted_f1": float(np.average(f1, weights=support)),
        "balanced_accuracy": float(recall[support > 0].mean()),
        "auroc_macro": None if unranked else float(np.mean([auroc for auroc in aurocs if auroc is not None])),
        "ece": expected_calibration_error(labels, probabilities),
        "nll": float(negative_log_likelihoods(labels, probabilities).mean()),
        "brier": float(brier_scores(labels, probabilities).mean()),
        **sensitivity,
        "confusion_matrix": confusion_matrix(labels, predicted, labels=ids).tolist(),
        "per_class": {label: dict(zip(names, row, strict=True)) for label, row in zip(label_names, rows, strict=True)},
        "undefined": undefined,
    }


def trainer_compute_metrics(eval_pred: "EvalPrediction") -> dict[str, float]:
    """The headline metrics, as the `compute_metrics` argument of `transformers.Trainer`.

    Args:
        eval_pred: A `transformers.EvalPrediction`; its predictions are logits (N, K) or a tuple that begins with them.
            Of seven the labels are HAM10000's.

    Returns:
        Name to value, without the metrics that this evaluation set leaves undefined.
    """
    predictions = eval_pred.predictions
    logits = predictions[0] if isinstance(predictions, (tuple, list)) else predictions
    n_classes = np.shape(logits)[-1]
    names = LABELS if n_classes == len(LABELS) else [str(index) for index in range(n_classes)]
    metrics = compute_metrics(eval_pred.label_ids, softmax(logits), names)
    return {name: metrics[name] for name in headline_metrics(metrics["positive"]) if metrics[name] is not None}


class Ham10000Metrics(evaluate.Metric):
    """`compute_metrics` as an `evaluate.Metric`, defined here because `evaluate.load` always needs the network.

    `predictions` are rows of seven probabilities, `references` class ids. `add_batch`, several processes and the
    cache file work as in any other metric.

    Example:
        >>> metric = Ham10000Metrics(keep_in_memory=True)
        >>> metric.compute(predictions=[[0, 0, 0, 0, 1.0, 0, 0]], references=[4])["accuracy"]
        1.0
    """

    def _info(self) -> evaluate.MetricInfo:
        # float64: a float32 round trip would move the metrics away from compute_metrics'.
        rows, ids = datasets.Sequence(datasets.Value("float64")), datasets.Value("int64")
        return evaluate.MetricInfo(
            description="Classification, ranking and calibration metrics of the seven HAM10000 classes.",
            citation="Tschandl, Rosendahl & Kittler 2018, 10.1038/sdata.2018.161",
            features=datasets.Features({"predictions": rows, "references": ids}),
        )

    def _compute(self, predictions: ArrayLike, references: ArrayLike) -> JsonObject:
        return compute_metrics(np.asarray(references), predictions)
