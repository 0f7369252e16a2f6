"""Bootstrap intervals that resample whole lesions, and the metrics under many sets of weights that they need."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ham10000.modeling.configuration_ham10000 import LABELS, Ham10000Error
from ham10000.training.evaluation.metrics import (
    ECE_BINS,
    NEGATIVES_PER_FALSE_POSITIVE,
    brier_scores,
    calibration_gaps,
    confidence_bins,
    headline_metrics,
    negative_log_likelihoods,
    sensitivity_metric,
    validate_labels,
    validate_probabilities,
)

CONFIDENCE = 0.95
PER_CLASS_STATISTICS = ("precision", "recall", "f1", "auroc")
# Beside the headline metrics; the search for a recipe ranks by it.
AVERAGE_PRECISION = "average_precision_macro"


def statistics_of(label_names: Sequence[str]) -> tuple[str, ...]:
    """The names of all statistics of a label set; a sensitivity at 95 % specificity for each label."""
    per_class = [f"{name}:{label}" for name in PER_CLASS_STATISTICS for label in label_names]
    return (*headline_metrics(None), AVERAGE_PRECISION, *map(sensitivity_metric, label_names), *per_class)


# Those that class ids are enough for.
_FROM_CONFUSION = {"accuracy", "macro_f1", "weighted_f1", "balanced_accuracy", "precision", "recall", "f1"}


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full(np.shape(numerator), np.nan), where=denominator > 0)


def _nan_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is not NaN; NaN where nothing is left."""
    defined = ~np.isnan(values)
    return _divide(np.where(defined, values, 0.0).sum(axis=-1), defined.sum(axis=-1))


class _Ranking:
    """One class's images sorted by score, with ties; its statistics take weights (B, N) of the images."""

    def __init__(self, positive: np.ndarray, scores: np.ndarray) -> None:
        thresholds = np.append(np.unique(scores), np.inf)  # (T + 1,), of which nothing reaches the last
        self.kinds = []  # for positives and negatives, their rows by score, and how many are below each threshold
        for rows in (np.flatnonzero(positive), np.flatnonzero(~positive)):
            rows = rows[np.argsort(scores[rows])]
            self.kinds.append((rows, np.searchsorted(scores[rows], thresholds)))

    def _flagged(self, weights: np.ndarray) -> Iterator[np.ndarray]:
        """Weight of positives, then of negatives, from each threshold on, (B, T + 1), falling to 0 at the last one."""
        for rows, places in self.kinds:
            below = np.pad(np.cumsum(weights[:, rows], axis=1), [(0, 0), (1, 0)])
            yield below[:, -1:] - below[:, places]

    def auroc(self, weights: np.ndarray) -> np.ndarray:
        """Weighted share of (positive, negative) pairs in the right order, ties counting half."""
        found, false = self._flagged(weights)
        lower = false[:, :1] - (false[:, :-1] + false[:, 1:]) / 2  # negatives below each score
        return _divide((-np.diff(found, axis=1) * lower).sum(axis=1), found[:, 0] * false[:, 0])

    def average_precision(self, weights: np.ndarray) -> np.ndarray:
        """Area under the precision-recall steps, as scikit-learn's `average_precision_score`."""
        found, false = self._flagged(weights)
        precision = np.nan_to_num(_divide(found, found + false), nan=0.0)
        return _divide((-np.diff(found, axis=1) * precision[:, :-1]).sum(axis=1), found[:, 0])

    def sensitivity_at_95_specificity(self, weights: np.ndarray) -> np.ndarray:
        """Largest sensitivity among the thresholds that flag at most 1 in 20 of the negatives."""
        found, false = self._flagged(weights)
        allowed = NEGATIVES_PER_FALSE_POSITIVE * false <= false[:, :1]
        return _divide(np.where(allowed, found, 0.0).max(axis=1), found[:, 0] * (false[:, 0] > 0))


class WeightedMetrics:
    """Evaluates metrics under weights on clusters of images, a block of weight vectors at a time.

    What is a sum over images (the confusion matrix, ECE's bins, NLL, Brier) is summed per cluster once, and a block of
    weights then costs one matrix product; ranking metrics sort once and cumulate the weights.

    Where a class has weight 0 its recall, F1 and AUROC are undefined (NaN), and the macro metrics average the classes
    that are there. A class that the full sample lacks leaves macro AUROC undefined, as in `compute_metrics`.

    Takes class ids (N,), probabilities (N, K) or, where no statistic needs them, predicted class ids (N,), the
    clusters of the same images, and some of `statistics_of(label_names)`.
    """

    def __init__(
        self,
        labels: np.ndarray,
        predictions: np.ndarray,
        clusters: "ClusterWeights",
        names: Iterable[str],
        label_names: Sequence[str],
    ) -> None:
        self.names, self.label_names, n_classes = tuple(names), list(label_names), len(label_names)
        self._index, n_clusters, known = clusters.index, clusters.n_clusters, statistics_of(label_names)
        labels, given = validate_labels(labels, n_classes), "probabilities (N, K)"
        if np.ndim(predictions) == 1:
            predictions, given = np.eye(n_classes)[validate_labels(predictions, n_classes)], "class ids (N,)"
            known = tuple(name for name in known if name.partition(":")[0] in _FROM_CONFUSION)
        if unknown := sorted(set(self.names) - set(known)):
            raise Ham10000Error(f"Unknown statistic(s) {unknown} of {given}; expected some of {', '.join(known)}.")
        if not len(labels) == len(predictions) == len(self._index):
            lengths = f"{len(labels)} labels, {len(predictions)} predictions and {len(self._index)} clusters"
            raise Ham10000Error(f"Got {lengths}; expected one each.")
        probabilities = validate_probabilities(predictions, len(labels), n_classes)
        self._complete = np.bincount(labels, minlength=n_classes).all()
        cells = (self._index * n_classes + labels) * n_classes + probabilities.argmax(axis=1)
        self._confusion = np.bincount(cells, minlength=n_clusters * n_classes**2).reshape(n_clusters, -1)  # (C, K * K)
        bins = self._index * ECE_BINS + confidence_bins(probabilities.max(axis=1))
        gaps = np.bincount(bins, weights=calibration_gaps(labels, probabilities), minlength=n_clusters * ECE_BINS)
        self._gaps = gaps.reshape(n_clusters, ECE_BINS)
        self._sums = {
            name: np.bincount(self._index, weights=per_image(labels, probabilities), minlength=n_clusters)
            for name, per_image in (("nll", negative_log_likelihoods), ("brier", brier_scores))
            if name in self.names
        }
        self._ranked: dict[str, Callable[[np.ndarray], np.ndarray]] = {}  # statistics of single classes
        for k, label in enumerate(self.label_names):
            ranking = _Ranking(labels == k, probabilities[:, k])
            if {"auroc_macro", f"auroc:{label}"} & set(self.names):
                self._ranked[f"auroc:{label}"] = ranking.auroc
            if AVERAGE_PRECISION in self.names:
                self._ranked[f"average_precision:{label}"] = ranking.average_precision
            if (name := sensitivity_metric(label)) in self.names:
                self._ranked[name] = ranking.sensitivity_at_95_specificity

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Statistic to values (B,), NaN where undefined, under B weight vectors (B, C) of clusters, none all 0."""
        n_classes = len(self.label_names)
        confusion = (weights @ self._confusion).reshape(-1, n_classes, n_classes)
        support, predicted = confusion.sum(axis=2), confusion.sum(axis=1)  # (B, K)
        hits, totals = np.diagonal(confusion, axis1=1, axis2=2), support.sum(axis=1)
        f1 = np.nan_to_num(_divide(2 * hits, support + predicted), nan=0.0)
        tables = {"precision": _divide(hits, predicted), "recall": _divide(hits, support)}
        tables["f1"] = np.where(support == 0, np.nan, f1)
        values = {
            "accuracy": hits.sum(axis=1) / totals,
            "macro_f1": _nan_mean(tables["f1"]),
            "weighted_f1": (f1 * support).sum(axis=1) / totals,
            "balanced_accuracy": _nan_mean(tables["recall"]),
        }
        for name, table in tables.items():
            values |= {f"{name}:{label}": table[:, k] for k, label in enumerate(self.label_names)}
        values |= {name: weights @ sums / totals for name, sums in self._sums.items()}
        if "ece" in self.names:
            values["ece"] = np.abs(weights @ self._gaps).sum(axis=1) / totals
        images = weights[:, self._index] if self._ranked else weights
        values |= {name: statistic(images) for name, statistic in self._ranked.items()}
        for name in {"auroc_macro", AVERAGE_PRECISION} & set(self.names):
            of_classes = [values[f"{name.removesuffix('_macro')}:{label}"] for label in self.label_names]
            values[name] = _nan_mean(np.stack(of_classes, axis=1))
        if not self._complete:
            values["auroc_macro"] = np.full(len(weights), np.nan)
        return {name: values[name] for name in self.names}


# Elements of one block of image weights: about 16 MB of float64, which stays near the cache.
_BLOCK_ELEMENTS = 2_000_000


class Interval(TypedDict):
    """A figure on the full sample with its percentile interval; None where undefined."""

    estimate: float | None
    low: float | None
    high: float | None
    n_defined: int  # of the resamples, on which the bounds rest


@dataclass(frozen=True)
class ClusterWeights:
    """The draws of each cluster in each resample; used twice, they make two bootstraps a paired one."""

    counts: np.ndarray  # (R, C) draws, uint16; every row sums to C
    index: np.ndarray  # (N,) the cluster of each image, in 0…C - 1, by sorted cluster name

    @property
    def n_clusters(self) -> int:
        """Number of clusters C."""
        return int(self.counts.shape[1])

    def blocks(self) -> Iterator[np.ndarray]:
        """Yields `counts` as consecutive float64 blocks (B, n_clusters) that fit a modest memory."""
        rows = max(1, _BLOCK_ELEMENTS // len(self.index))
        for start in range(0, len(self.counts), rows):
            yield self.counts[start : start + rows].astype(np.float64)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """(M, N) values of images to their sums in every resample (R, M)."""
        totals = np.stack([np.bincount(self.index, weights=row, minlength=self.n_clusters) for row in values], axis=1)
        return np.concatenate([block @ totals for block in self.blocks()])


def cluster_weights(clusters: ArrayLike, n_resamples: int = 2000, seed: int = 0) -> ClusterWeights:
    """Draws clusters with replacement, as many as there are, `n_resamples` times.

    Every cluster comes with all its images, which keeps the dependence within it (Davison & Hinkley 1997, "Bootstrap
    Methods and their Application", section 3.8; Field & Welsh 2007, 10.1111/j.1467-9868.2007.00593.x). The draws
    depend on the set of cluster names and the seed, not on the order of the rows. Takes the cluster of each image
    (N,), such as its lesion group; a missing one, or fewer than two, is a `Ham10000Error`.
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
    return ClusterWeights(counts, index)


def percentile_interval(estimate: float, values: np.ndarray, *, metric: str = "", lowest: float = 0.0) -> Interval:
    """Percentile interval of a bootstrap distribution (Efron & Tibshirani 1993, chapter 13).

    That of an ECE is moved by its bias, the mean of the resamples minus the estimate (chapter 10): a resample repeats
    images, which looks like miscalibration. It always contains the estimate, and like it still has the bias of one
    sample's size, so it is read next to `ece_floor`.

    Takes the figure on the full sample and in each resample (R,), of which NaN entries are left out and counted, and
    the least value an ECE can have: minus infinity for a difference of two. Without bounds where the estimate or every
    resample is undefined.
    """
    if math.isnan(estimate):
        return {"estimate": None, "low": None, "high": None, "n_defined": 0}
    defined = values[~np.isnan(values)]
    found: Interval = {"estimate": float(estimate), "low": None, "high": None, "n_defined": len(defined)}
    if len(defined):
        low, high = np.quantile(defined, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).tolist()
        if metric == "ece":
            bias = float(defined.mean() - estimate)
            low, high = min(max(low - bias, lowest), float(estimate)), max(high - bias, float(estimate))
        found["low"], found["high"] = low, high
    return found


def bootstrap_distribution(
    labels: np.ndarray,
    predictions: np.ndarray,
    weights: ClusterWeights,
    statistics: Iterable[str],
    label_names: Sequence[str] = LABELS,
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Evaluates statistics on the full sample and in every resample.

    Takes what `WeightedMetrics` takes. Models whose values are to be subtracted need the same weights.

    Returns:
        Name to value on the full sample, and name to values in the resamples (R,); NaN where undefined.
    """
    metrics = WeightedMetrics(np.asarray(labels), np.asarray(predictions), weights, statistics, label_names)
    full = metrics(np.ones((1, weights.n_clusters)))
    resampled = [metrics(block) for block in weights.blocks()]
    return (
        {name: float(full[name][0]) for name in metrics.names},
        {name: np.concatenate([values[name] for values in resampled]) for name in metrics.names},
    )


# Over lesions and training seeds


class Estimate(TypedDict):
    """A figure of study.json, the mean over the seeds, with its interval and spread; None where undefined."""

    estimate: float | None
    low: float | None
    high: float | None
    sd: float | None  # standard deviation over the seeds; None for one seed
    per_seed: list[float | None]


@dataclass(frozen=True)
class Sample:
    """A figure before it is summarised; samples of one `Bootstrap` subtract to a paired difference."""

    per_seed: np.ndarray  # (S,) the figure of each seed; NaN where undefined
    values: np.ndarray  # (R,) its mean over the drawn seeds in each resample
    name: str = ""  # of the metric, which decides its interval, see `percentile_interval`
    lowest: float = 0.0  # the least value the figure can have; a difference has none

    def __sub__(self, other: "Sample") -> "Sample":
        return Sample(self.per_seed - other.per_seed, self.values - other.values, self.name, -math.inf)

    def __truediv__(self, other: "Sample") -> "Sample":
        with np.errstate(invalid="ignore"):
            return Sample(self.per_seed / other.per_seed, self.values / other.values)

    @property
    def estimate(self) -> float:
        """The mean over the seeds."""
        return float(self.per_seed.mean())

    def interval(self) -> Interval:
        """The interval of the mean over the seeds."""
        return percentile_interval(self.estimate, self.values, metric=self.name, lowest=self.lowest)

    def summary(self) -> Estimate:
        """The figure with its interval, as study.json has it."""
        found, several = self.interval(), len(self.per_seed) > 1
        sd = float(self.per_seed.std(ddof=1)) if several and found["estimate"] is not None else None
        per_seed = [None if np.isnan(value) else float(value) for value in self.per_seed]
        low, high = found["low"], found["high"]
        return {"estimate": found["estimate"], "low": low, "high": high, "sd": sd, "per_seed": per_seed}


def mean_sample(samples: Sequence[Sample]) -> Sample:
    """The mean of several samples, over those that are defined in a resample."""
    values = np.stack([sample.values for sample in samples])
    return Sample(np.mean([sample.per_seed for sample in samples], axis=0), _nan_mean(values.T))


class Bootstrap:
    """Resampled lesions and seeds.

    Each resample draws lesions with replacement, all their images with them, and training seeds with replacement, and
    scores every drawn seed on the drawn lesions (the pigeonhole bootstrap: Owen 2007, 10.1214/07-AOAS122). With one
    seed there is nothing to draw: the interval is for this trained model. All samples of one object share the draws,
    so what two models have in common cancels out of their difference.

    Takes class ids and lesions, known duplicates merged, both (N,).
    """

    def __init__(
        self,
        labels: np.ndarray,
        groups: ArrayLike,
        n_seeds: int,
        n_resamples: int,
        seed: int = 0,
        label_names: Sequence[str] = LABELS,
    ) -> None:
        self.labels, self.label_names = labels, label_names
        self.weights = cluster_weights(groups, n_resamples, seed)
        # A stream of its own: the lesions drawn stay those of every other bootstrap with this seed.
        self.draws = np.random.default_rng([seed, 1]).integers(0, n_seeds, size=(n_seeds, n_resamples))  # (S, R)

    def scores(self, predictions: np.ndarray, metrics: Sequence[str]) -> dict[str, Sample]:
        """Scores every seed's predictions, class ids (S, N) or probabilities (S, N, K), by names of `statistics_of`.

        With one row for several seeds (1, …) the same predictions stand for every seed.
        """
        options = (self.weights, metrics, self.label_names)
        runs = [bootstrap_distribution(self.labels, rows, *options) for rows in predictions]
        found = {}
        for name in metrics:
            values = np.stack([resampled[name] for _, resampled in runs])
            drawn = values[0] if len(runs) == 1 else np.take_along_axis(values, self.draws, axis=0).mean(axis=0)
            found[name] = Sample(np.array([estimate[name] for estimate, _ in runs]), drawn, name)
        return found

    def intervals(self, predictions: np.ndarray, metrics: Sequence[str]) -> dict[str, Interval]:
        """The intervals of one model's class ids (N,) or probabilities (N, K)."""
        return {name: sample.interval() for name, sample in self.scores(predictions[None], metrics).items()}

    def means(self, values: np.ndarray) -> list[Sample]:
        """(M, N) values of images to M samples of their means; nothing here varies by seed."""
        resampled = self.weights.sums(values) / self.weights.sums(np.ones((1, values.shape[1])))  # (R, M)
        return [Sample(np.array([mean]), row) for mean, row in zip(values.mean(axis=1), resampled.T, strict=True)]
