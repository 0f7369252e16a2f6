"""Compares two models on the same images: paired differences with intervals, p-values, and detectable effects."""

import math
import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binom, norm

from ham10000.modeling.configuration_ham10000 import LABELS, Ham10000Error
from ham10000.training.evaluation.bootstrap import (
    IntervalDict,
    bootstrap_distribution,
    cluster_weights,
    metric_interval,
    statistics_of,
)
from ham10000.training.evaluation.report import CONFIDENCE, SUMMARY_METRICS, predicted_labels, read_predictions
from ham10000.training.utils.files import JsonObject


def paired_differences(
    labels: np.ndarray,
    probabilities: np.ndarray,
    other_probabilities: np.ndarray,
    lesion_groups: ArrayLike,
    *,
    metrics: Sequence[str] = SUMMARY_METRICS,
    n_resamples: int = 2000,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    label_names: Sequence[str] = LABELS,
) -> dict[str, IntervalDict]:
    """Differences of metrics, model minus other, with intervals from a paired lesion-clustered bootstrap.

    Both models are scored on the same resampled lesions, so what they share (easy and hard lesions) cancels out; the
    interval is narrower than two separate ones suggest (Efron & Tibshirani 1993, chapter 8).

    Args:
        labels: Class ids (N,).
        probabilities: The model's probabilities (N, K).
        other_probabilities: The other model's, on the same rows.
        lesion_groups: Lesion of each image (N,), known duplicates merged.
        metrics: Names in `statistics_of(label_names)`.
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
        name: metric_interval(
            name,
            estimate[name] - other_estimate[name],
            values[name] - other_values[name],
            confidence,
            lowest=-math.inf,
        ).as_dict()
        for name in metrics
    }


def compare_predictions(
    path: str | os.PathLike[str], other_path: str | os.PathLike[str], *, n_resamples: int = 2000, seed: int = 0
) -> JsonObject:
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
            f"{path} and {other_path} contain different images ({len(ids)} and {len(other_ids)}, such as {only} in "
            "one of them only); compare evaluations of the same split."
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


def mcnemar_mid_p(only_first: int, only_second: int) -> float:
    """McNemar's test that two models are right equally often, on the same cases, as a two-sided mid-p-value.

    The exact test less half of the observed outcome's probability, which removes its conservatism (Fagerland, Lydersen
    & Laake 2013, 10.1186/1471-2288-13-91). The cases must be independent: give one photograph per lesion.

    Args:
        only_first: Cases that only the first model gets right.
        only_second: Cases that only the second one gets right.

    Returns:
        The p-value in (0, 1]; 1 where the models never differ.

    Raises:
        Ham10000Error: For a negative count.

    Example:
        >>> round(mcnemar_mid_p(1, 7), 4)
        0.0391
    """
    if only_first < 0 or only_second < 0:
        raise Ham10000Error(f"Expected counts of at least 0, got {only_first} and {only_second}.")
    fewer, total = min(only_first, only_second), only_first + only_second
    if total == 0:
        return 1.0
    both_tails = 1.0 if only_first == only_second else 2 * binom.cdf(fewer, total, 0.5)
    observed = binom.pmf(fewer, total, 0.5)
    return float(both_tails - (observed / 2 if only_first == only_second else observed))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts p-values for being several (Holm 1979, Scandinavian Journal of Statistics 6, 65-70).

    Args:
        p_values: P-values (m,), in any order; may be empty.

    Returns:
        The adjusted p-values in the same order, at most 1.

    Raises:
        Ham10000Error: For a value outside [0, 1], NaN included.

    Example:
        >>> holm([0.04, 0.01])
        [0.04, 0.02]
    """
    from statsmodels.stats.multitest import multipletests  # late: it takes a second to import

    values = np.asarray(p_values, dtype=np.float64)
    wrong = np.flatnonzero(~((values >= 0) & (values <= 1)))
    if len(wrong):
        raise Ham10000Error(f"P-values lie in [0, 1]; number {wrong[0]} is {values[wrong[0]]}.")
    return multipletests(values, method="holm")[1].tolist() if len(values) else []


def bootstrap_p_value(values: np.ndarray) -> float:
    """Two-sided p-value of a difference being 0, from its bootstrap distribution.

    Twice the smaller of the two shares of resamples on either side of 0, with one more resample counted into each, so
    that it is never 0 (Davison & Hinkley 1997, "Bootstrap Methods and their Application", section 4.4). A
    resample at exactly 0 counts on both sides, which is cautious for accuracy, whose differences are often exactly 0.
    It says the same as the percentile interval: p < 0.05 where the 95 % interval leaves 0 out.

    Args:
        values: The difference in each resample (R,); NaN entries are left out.

    Returns:
        The p-value in [2 / (R + 1), 1].

    Raises:
        Ham10000Error: If the difference is undefined in every resample.
    """
    defined = values[~np.isnan(values)]
    if len(defined) == 0:
        raise Ham10000Error("A difference that is undefined in every resample has no p-value.")
    smaller = min(np.count_nonzero(defined <= 0), np.count_nonzero(defined >= 0))
    return min(1.0, 2 * (1 + smaller) / (1 + len(defined)))


def smallest_detectable(standard_error: float, *, confidence: float = CONFIDENCE, power: float = 0.8) -> float:
    """The true difference that a two-sided test finds with the given power: (z_{1-a/2} + z_power) * standard error.

    It is a property of the sample's size and of the pairing, not of the difference that was observed; power computed
    from the observed difference would only restate the p-value (Hoenig & Heisey 2001, 10.1198/000313001300339897).

    Args:
        standard_error: Standard error of the difference, at least 0.
        confidence: 1 minus the test's level, in (0, 1).
        power: Probability of finding the difference, in (0, 1).

    Returns:
        The difference, in the units of the standard error.
    """
    return float(norm.ppf((1 + confidence) / 2) + norm.ppf(power)) * standard_error
