"""Bootstrap intervals that resample whole lesions, since photographs of one lesion are not independent."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ham10000.modeling.configuration_ham10000 import LABELS, Ham10000Error
from ham10000.training.evaluation.weighted_metrics import WeightedMetrics

# Elements of one block of image weights: about 16 MB of float64, which stays near the cache.
_BLOCK_ELEMENTS = 2_000_000


@dataclass(frozen=True)
class Interval:
    """A figure with its percentile interval.

    Attributes:
        estimate: The figure on the full sample, None where it is undefined.
        low: Lower bound, None where it is undefined.
        high: Upper bound, likewise.
        n_defined: Number of resamples in which the figure was defined; the bounds rest on these only.
    """

    estimate: float | None
    low: float | None
    high: float | None
    n_defined: int

    def as_dict(self) -> dict[str, float | int | None]:
        """The fields, for a JSON file."""
        return asdict(self)


@dataclass(frozen=True)
class ClusterWeights:
    """How often each cluster is drawn in each resample; used twice, it makes two bootstraps a paired one.

    Attributes:
        counts: Draws (n_resamples, n_clusters), uint16; every row sums to n_clusters.
        index: Cluster of each image (N,), in 0…n_clusters - 1, by sorted cluster name.
    """

    counts: np.ndarray
    index: np.ndarray

    @property
    def n_resamples(self) -> int:
        """Number of resamples."""
        return int(self.counts.shape[0])

    @property
    def n_clusters(self) -> int:
        """Number of clusters."""
        return int(self.counts.shape[1])

    def blocks(self) -> Iterator[np.ndarray]:
        """Yields `counts` as consecutive float64 blocks (B, n_clusters) that fit a modest memory."""
        rows = max(1, _BLOCK_ELEMENTS // len(self.index))
        for start in range(0, self.n_resamples, rows):
            yield self.counts[start : start + rows].astype(np.float64)


def cluster_weights(clusters: ArrayLike, n_resamples: int = 2000, seed: int = 0) -> ClusterWeights:
    """Draws clusters with replacement, as many as there are, `n_resamples` times.

    Every cluster comes with all its images, which keeps the dependence within it (Davison & Hinkley 1997, "Bootstrap
    Methods and their Application", section 3.8; Field & Welsh 2007, 10.1111/j.1467-9868.2007.00593.x).
    The draws depend on the set of cluster names and the seed, not on the order of the rows.

    Args:
        clusters: Cluster of each image (N,), such as its lesion group.
        n_resamples: Number of resamples.
        seed: Seed of the generator.

    Returns:
        The weights, to be handed to any number of bootstraps over the same rows.

    Raises:
        Ham10000Error: For a missing cluster, fewer than two clusters, or fewer than one resample.
    """
    names = np.asarray(clusters)
    if names.ndim != 1 or pd.isna(names).any():
        raise Ham10000Error(f"Expected one cluster for each image, got shape {names.shape} or missing values.")
    if n_resamples < 1:
        raise Ham10000Error(f"Expected at least one resample, got n_resamples={n_resamples}.")
    unique, index = np.unique(names, return_inverse=True)
    n_clusters = len(unique)
    if n_clusters < 2:
        raise Ham10000Error(f"A bootstrap over clusters needs at least two of them, got {n_clusters}.")
    generator = np.random.default_rng(seed)
    counts = np.empty((n_resamples, n_clusters), dtype=np.uint16)
    # Multinomial counts by counting draws: for thousands of clusters much faster than Generator.multinomial.
    for row in counts:
        row[:] = np.bincount(generator.integers(0, n_clusters, size=n_clusters), minlength=n_clusters)
    return ClusterWeights(counts=counts, index=index)


def percentile_interval(estimate: float, values: np.ndarray, confidence: float = 0.95) -> Interval:
    """Percentile interval of a bootstrap distribution (Efron & Tibshirani 1993, chapter 13).

    Args:
        estimate: The figure on the full sample; NaN where undefined.
        values: The figure in each resample (R,); NaN entries are left out and counted.
        confidence: Coverage in (0, 1).

    Returns:
        The interval; without bounds where the estimate or every resample is undefined.

    Raises:
        Ham10000Error: For a confidence outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise Ham10000Error(f"`confidence` must be between 0 and 1, got {confidence}.")
    if math.isnan(estimate):
        return Interval(None, None, None, 0)
    defined = values[~np.isnan(values)]
    if len(defined) == 0:
        return Interval(float(estimate), None, None, 0)
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(estimate), float(low), float(high), len(defined))


def bootstrap_distribution(
    labels: np.ndarray,
    predictions: np.ndarray,
    weights: ClusterWeights,
    statistics: Iterable[str],
    label_names: Sequence[str] = LABELS,
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Evaluates statistics on the full sample and in every resample.

    For a paired comparison call it once for each model with the same `weights` and rows, and subtract.

    Args:
        labels: Class ids (N,).
        predictions: Probabilities (N, K), or predicted class ids (N,) where no statistic needs probabilities.
        weights: The resamples, from `cluster_weights` over the same rows.
        statistics: Names in `weighted_metrics.statistics_of(label_names)`.
        label_names: The K labels in the order of their ids.

    Returns:
        Name to value on the full sample, and name to values in the resamples (R,); NaN where undefined.

    Raises:
        Ham10000Error: For unknown or repeated names, or inputs that do not fit together.
    """
    names = list(statistics)
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise Ham10000Error(f"Statistic name(s) given twice: {repeated}.")
    metrics = WeightedMetrics(
        np.asarray(labels), np.asarray(predictions), weights.index, weights.n_clusters, names, label_names
    )
    full = metrics(np.ones((1, weights.n_clusters)))
    resampled = [metrics(block) for block in weights.blocks()]
    return (
        {name: float(full[name][0]) for name in names},
        {name: np.concatenate([values[name] for values in resampled]) for name in names},
    )


def cluster_bootstrap(
    labels: np.ndarray,
    predictions: np.ndarray,
    clusters: ArrayLike,
    statistics: Iterable[str],
    n_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    label_names: Sequence[str] = LABELS,
) -> dict[str, Interval]:
    """Percentile intervals of metrics, resampling whole clusters (lesions) with replacement.

    What a resample without a class does is said in `weighted_metrics.WeightedMetrics`. The interval of ECE lies too
    high, at times above its own estimate: a resample repeats images, and that looks like miscalibration.

    Args:
        labels: Class ids (N,).
        predictions: Probabilities (N, K), or predicted class ids (N,).
        clusters: Cluster of each image (N,).
        statistics: As in `bootstrap_distribution`.
        n_resamples: Number of resamples.
        confidence: Coverage in (0, 1).
        seed: Seed of the resampling; the same seed gives the same intervals.
        label_names: The K labels in the order of their ids.

    Returns:
        Statistic to interval, in the order given.

    Raises:
        Ham10000Error: For inputs that do not fit together.

    Example:
        >>> cluster_bootstrap([0, 1, 1, 4], [0, 1, 0, 4], ["a", "b", "b", "c"], ["accuracy"])["accuracy"].estimate
        0.75
    """
    weights = cluster_weights(clusters, n_resamples, seed)
    estimates, values = bootstrap_distribution(labels, predictions, weights, statistics, label_names)
    return {name: percentile_interval(estimates[name], values[name], confidence) for name in estimates}
