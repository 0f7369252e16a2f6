"""Compares two models on the same images: the difference of their metrics, with a paired interval."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ham10000.modeling.configuration_ham10000 import LABELS, Ham10000Error
from ham10000.training.evaluation.bootstrap import bootstrap_distribution, cluster_weights, percentile_interval
from ham10000.training.evaluation.report import CONFIDENCE, SUMMARY_METRICS, predicted_labels, read_predictions
from ham10000.training.evaluation.weighted_metrics import statistics_of


def paired_differences(
    labels: np.ndarray,
    probabilities: np.ndarray,
    other_probabilities: np.ndarray,
    lesion_groups: Sequence[Any] | np.ndarray,
    *,
    metrics: Sequence[str] = SUMMARY_METRICS,
    n_resamples: int = 2000,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    label_names: Sequence[str] = LABELS,
) -> dict[str, dict[str, Any]]:
    """Differences of metrics, model minus other, with intervals from a paired lesion-clustered bootstrap.

    Both models are scored on the same resampled lesions, so what they share (easy and hard lesions) cancels out; the
    interval is narrower than two separate ones suggest (Efron & Tibshirani 1993, chapter 8).

    Args:
        labels: Class ids (N,).
        probabilities: The model's probabilities (N, K).
        other_probabilities: The other model's, on the same rows.
        lesion_groups: Lesion of each image (N,), known duplicates merged.
        metrics: Names in `weighted_metrics.STATISTICS`.
        n_resamples: Number of resamples.
        confidence: Coverage of the intervals.
        seed: Seed of the resampling.
        label_names: The K labels in the order of their ids; a metric that they have not is left out.

    Returns:
        Metric to `estimate`, `low`, `high` and `n_defined` of the difference.

    Raises:
        Ham10000Error: For inputs that do not fit together.
    """
    weights = cluster_weights(lesion_groups, n_resamples, seed)
    known = statistics_of(label_names)
    metrics = [name for name in metrics if name in known]
    estimate, values = bootstrap_distribution(labels, probabilities, weights, metrics, label_names)
    other_estimate, other_values = bootstrap_distribution(labels, other_probabilities, weights, metrics, label_names)
    return {
        name: percentile_interval(
            estimate[name] - other_estimate[name], values[name] - other_values[name], confidence
        ).as_dict()
        for name in metrics
    }


def compare_predictions(
    path: str | os.PathLike[str], other_path: str | os.PathLike[str], *, n_resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Compares two `predictions.csv` of the same images.

    Args:
        path: The model's predictions.
        other_path: The other model's.
        n_resamples: Number of bootstrap resamples.
        seed: Seed of the bootstrap.

    Returns:
        `n_images`, `n_lesions`, `n_resamples`, `confidence` and `differences` (see `paired_differences`).

    Raises:
        Ham10000Error: If the files have different label sets, different images, or different labels for one.
    """
    table, labels, probabilities = read_predictions(path)
    other_table, other_labels, other_probabilities = read_predictions(other_path)
    names, other_names = predicted_labels(table), predicted_labels(other_table)
    if names != other_names:
        raise Ham10000Error(f"{path} has the labels {names}, {other_path} {other_names}; models of one set compare.")
    order, other_order = np.argsort(table["image_id"].to_numpy()), np.argsort(other_table["image_id"].to_numpy())
    ids, other_ids = table["image_id"].to_numpy()[order], other_table["image_id"].to_numpy()[other_order]
    if len(ids) != len(other_ids) or (ids != other_ids).any():
        only = sorted(set(ids) ^ set(other_ids))[:3]
        raise Ham10000Error(
            f"{path} and {other_path} hold different images ({len(ids)} and {len(other_ids)}, such as {only} in one "
            "of them only); compare evaluations of the same split."
        )
    if (labels[order] != other_labels[other_order]).any():
        row = int(np.flatnonzero(labels[order] != other_labels[other_order])[0])
        raise Ham10000Error(f"{path} and {other_path} disagree on the dx of image {ids[row]!r}.")
    lesion_groups = table["lesion_group"].to_numpy()[order]
    differences = paired_differences(
        labels[order],
        probabilities[order],
        other_probabilities[other_order],
        lesion_groups,
        n_resamples=n_resamples,
        seed=seed,
        label_names=names,
    )
    return {
        "n_images": len(ids),
        "n_lesions": len(np.unique(lesion_groups)),
        "n_resamples": n_resamples,
        "confidence": CONFIDENCE,
        "differences": differences,
    }


__all__ = ["compare_predictions", "paired_differences"]
