"""The bootstrap of the study: lesions and training seeds resampled once, for everything that is compared."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from ham10000.training.evaluation.bootstrap import (
    bootstrap_distribution,
    cluster_weights,
    metric_interval,
)

CONFIDENCE = 0.95


class Estimate(TypedDict):
    """A figure of study.json; None is undefined.

    Attributes:
        estimate: The mean over the seeds.
        low: Lower bound of its interval.
        high: Upper bound.
        sd: Standard deviation over the seeds; None for one.
        per_seed: The figure of each seed.
    """

    estimate: float | None
    low: float | None
    high: float | None
    sd: float | None
    per_seed: list[float | None]


@dataclass(frozen=True)
class Sample:
    """A figure before it is summarised; samples of one `Bootstrap` subtract to a paired difference.

    Attributes:
        per_seed: The figure of each seed (S,); NaN where undefined.
        values: Its mean over the drawn seeds in each resample (R,).
        name: Name of the metric, which decides its interval, see `metric_interval`.
        lowest: The least value the figure can have; a difference has none.
    """

    per_seed: np.ndarray
    values: np.ndarray
    name: str = ""
    lowest: float = 0.0

    def __sub__(self, other: "Sample") -> "Sample":
        return Sample(self.per_seed - other.per_seed, self.values - other.values, self.name, -math.inf)

    @property
    def estimate(self) -> float:
        """The mean over the seeds."""
        return float(self.per_seed.mean())

    def summary(self, confidence: float = CONFIDENCE) -> Estimate:
        """The figure with its interval, as study.json has it."""
        interval = metric_interval(self.name, self.estimate, self.values, confidence, lowest=self.lowest)
        several = len(self.per_seed) > 1 and interval.estimate is not None
        return {
            "estimate": interval.estimate,
            "low": interval.low,
            "high": interval.high,
            "sd": float(self.per_seed.std(ddof=1)) if several else None,
            "per_seed": [None if np.isnan(value) else float(value) for value in self.per_seed],
        }


class Bootstrap:
    """Resampled lesions and seeds.

    Each resample draws lesions with replacement, all their images with them, and training seeds with replacement, and
    scores every drawn seed on the drawn lesions (the pigeonhole bootstrap: Owen 2007, 10.1214/07-AOAS122). With one
    seed there is nothing to draw: the interval is for this trained model. All samples of one object share the draws,
    so what two models have in common cancels out of their difference.

    Args:
        labels: Class ids (N,).
        groups: Lesion of each image (N,), known duplicates merged.
        n_seeds: Number of seeds S.
        n_resamples: Number of resamples R.
        seed: Seed of the draws.
    """

    def __init__(self, labels: np.ndarray, groups: np.ndarray, n_seeds: int, n_resamples: int, seed: int = 0):
        self.labels = labels
        self.weights = cluster_weights(groups, n_resamples, seed)
        # A stream of its own: the lesions drawn stay those of every other bootstrap with this seed.
        self.draws = np.random.default_rng([seed, 1]).integers(0, n_seeds, size=(n_seeds, n_resamples))  # (S, R)

    def scores(self, predictions: np.ndarray, metrics: Sequence[str]) -> dict[str, Sample]:
        """Scores every seed's predictions.

        Args:
            predictions: Class ids (S, N) or probabilities (S, N, K). With one row for several seeds (1, …) the same
                predictions stand for every seed.
            metrics: Names in `bootstrap.statistics_of`.

        Returns:
            Metric to sample.
        """
        runs = [bootstrap_distribution(self.labels, rows, self.weights, metrics) for rows in predictions]
        found = {}
        for name in metrics:
            values = np.stack([resampled[name] for _, resampled in runs])
            drawn = values[0] if len(runs) == 1 else np.take_along_axis(values, self.draws, axis=0).mean(axis=0)
            found[name] = Sample(np.array([estimate[name] for estimate, _ in runs]), drawn, name)
        return found

    def means(self, values: np.ndarray) -> list[Sample]:
        """(M, N) values of images to M samples of their means; nothing here varies by seed."""
        index, count = self.weights.index, self.weights.n_clusters
        sums = np.stack([np.bincount(index, weights=row, minlength=count) for row in values], axis=1)  # (C, M)
        sizes = np.bincount(index, minlength=count)
        tops = np.concatenate([block @ sums for block in self.weights.blocks()])  # (R, M)
        bottoms = np.concatenate([block @ sizes for block in self.weights.blocks()])
        means = zip(values.mean(axis=1), (tops / bottoms[:, None]).T, strict=True)
        return [Sample(np.array([mean]), resampled) for mean, resampled in means]


__all__ = ["CONFIDENCE", "Bootstrap", "Estimate", "Sample"]
