"""Results over seeds: mean, spread, and intervals for both of their causes, the lesions and the training runs."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ham10000.modeling.configuration_ham10000 import LABELS, Ham10000Error
from ham10000.training.evaluation.bootstrap import (
    ClusterWeights,
    bootstrap_distribution,
    cluster_weights,
    percentile_interval,
)

STUDY_METRICS = (
    "macro_f1",
    "balanced_accuracy",
    "accuracy",
    "weighted_f1",
    "auroc_macro",
    "melanoma_sensitivity_at_95_specificity",
    "ece",
    "nll",
)


def validate_seeds(labels: np.ndarray, probabilities: Any) -> np.ndarray:
    """Checks the shape of the predictions of several seeds; their values are checked where they are scored.

    Args:
        labels: Class ids (N,).
        probabilities: Probabilities (S, N, 7).

    Returns:
        The probabilities as float64 (S, N, 7).

    Raises:
        Ham10000Error: For another shape, or no seed.
    """
    array = np.asarray(probabilities, dtype=np.float64)
    if array.ndim != 3 or len(array) == 0 or array.shape[1:] != (len(labels), len(LABELS)):
        raise Ham10000Error(
            f"Expected probabilities of shape (S, {len(labels)}, {len(LABELS)}) for S >= 1 seeds, got {array.shape}."
        )
    return array


def seed_draws(n_seeds: int, n_resamples: int, seed: int) -> np.ndarray:
    """Which seeds each resample averages: as many as there are, drawn with replacement.

    Args:
        n_seeds: Number of seeds S.
        n_resamples: Number of resamples R.
        seed: Seed of the generator.

    Returns:
        Indices (S, R) in 0…S - 1; all 0 for one seed.
    """
    # A stream of its own: the lesions drawn stay those of every other bootstrap with this seed.
    return np.random.default_rng([seed, 1]).integers(0, n_seeds, size=(n_seeds, n_resamples))


def two_way_distribution(
    labels: np.ndarray, probabilities: np.ndarray, weights: ClusterWeights, metrics: Sequence[str], draws: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Evaluates metrics for each seed, and their mean over the drawn seeds in every resample of the lesions.

    Every drawn seed is scored on the resample's lesions: seeds and lesions are crossed, since every model saw every
    image. For a paired comparison call it for both models with the same `weights` and `draws`, and subtract.

    Args:
        labels: Class ids (N,).
        probabilities: Probabilities (S, N, 7).
        weights: The resampled lesions, from `cluster_weights` over the same rows.
        metrics: Names in `weighted_metrics.STATISTICS`.
        draws: The resampled seeds (S, R), from `seed_draws`.

    Returns:
        Metric to its value for each seed (S,), and metric to its mean over the drawn seeds (R,); NaN where undefined.

    Raises:
        Ham10000Error: For inputs that do not fit together.
    """
    probabilities = validate_seeds(labels, probabilities)
    runs = [bootstrap_distribution(labels, of_seed, weights, metrics) for of_seed in probabilities]
    estimates = {name: np.array([estimate[name] for estimate, _ in runs]) for name in metrics}
    values = {
        name: np.take_along_axis(np.stack([resampled[name] for _, resampled in runs]), draws, axis=0).mean(axis=0)
        for name in metrics
    }
    return estimates, values


def seed_summary(per_seed: np.ndarray, values: np.ndarray, confidence: float) -> dict[str, Any]:
    """One metric as the study records it.

    Args:
        per_seed: The metric of each seed (S,); NaN where undefined.
        values: Its mean over the drawn seeds in each resample (R,).
        confidence: Coverage of the interval.

    Returns:
        `mean`, `sd` (None for one seed), `per_seed`, `low` and `high`; None for what is undefined.
    """
    interval = percentile_interval(float(per_seed.mean()), values, confidence)
    spread = float(per_seed.std(ddof=1)) if len(per_seed) > 1 and interval.estimate is not None else None
    return {
        "mean": interval.estimate,
        "sd": spread,
        "per_seed": [None if np.isnan(value) else float(value) for value in per_seed],
        "low": interval.low,
        "high": interval.high,
    }


def summarise_seeds(
    labels: np.ndarray,
    probabilities: np.ndarray,
    lesion_groups: Sequence[Any] | np.ndarray,
    *,
    metrics: Sequence[str] = STUDY_METRICS,
    n_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Mean and standard deviation over seeds of each metric, with a two-way bootstrap interval of the mean.

    Each resample draws lesions with replacement, all their photographs with them, and training seeds with replacement
    (the pigeonhole bootstrap: Owen 2007, 10.1214/07-AOAS122), so the interval is for the recipe on further lesions
    and further seeds. **With one seed there is nothing to draw: the interval then holds for this trained model only.**

    For S seeds the variance it gives to what a seed does to every lesion alike is too small by (S - 1) / S, and that
    of what it does to single lesions too large by up to 3 - 2 / S (ibid.: on the whole conservative). Simulated 95 %
    intervals of two to five seeds cover 94 to 98 % where seeds move the score no more than the choice of lesions
    does, but 52 % (two seeds) to 84 % (five) where nothing but the seed varies.

    Args:
        labels: Class ids (N,).
        probabilities: Probabilities (S, N, 7), one block per seed on the same rows.
        lesion_groups: Lesion of each image (N,), known duplicates merged.
        metrics: Names in `weighted_metrics.STATISTICS`, such as `"macro_f1"` or `"recall:mel"`.
        n_resamples: Number of resamples.
        confidence: Coverage of the intervals.
        seed: Seed of the resampling.

    Returns:
        Metric to `mean`, `sd` (sample standard deviation over seeds, None for one), `per_seed`, `low` and `high`.
        None for what is undefined. Strict JSON.

    Raises:
        Ham10000Error: For inputs that do not fit together.
    """
    probabilities = validate_seeds(labels, probabilities)
    weights = cluster_weights(lesion_groups, n_resamples, seed)
    draws = seed_draws(len(probabilities), n_resamples, seed)
    estimates, values = two_way_distribution(labels, probabilities, weights, metrics, draws)
    return {name: seed_summary(estimates[name], values[name], confidence) for name in metrics}


def _mean_over_classes(tables: list[np.ndarray]) -> np.ndarray:
    """Mean of the per-class values that are defined; NaN where none is."""
    stacked = np.stack(tables)
    defined = ~np.isnan(stacked)
    with np.errstate(invalid="ignore"):
        return np.where(defined, stacked, 0).sum(axis=0) / defined.sum(axis=0)


def leakage_scores(
    labels: np.ndarray,
    probabilities: np.ndarray,
    seen: np.ndarray,
    lesion_groups: Sequence[Any] | np.ndarray,
    *,
    n_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any] | None:
    """The score on test lesions that training showed in another photograph, against that on new ones.

    The two parts hold different lesions, of a different mix of classes, so their difference is not the leak's effect
    alone. Macro-F1 and balanced accuracy average the classes that both parts have: a class which one part lacks would
    enter its macro-F1 as 0. Lesions are resampled over both parts at once, for with cross-validation one photograph of
    a lesion may be seen and another not.

    Args:
        labels: Class ids (N,).
        probabilities: Probabilities (S, N, 7).
        seen: Whether another photograph of the image's lesion is in train (N,), bool.
        lesion_groups: Lesion of each image (N,), known duplicates merged.
        n_resamples: Number of resamples.
        confidence: Coverage of the intervals.
        seed: Seed of the resampling.

    Returns:
        `seen` and `unseen`, each with `n_images`, `n_lesions` and `metrics` (macro_f1, balanced_accuracy and accuracy,
        each as in `summarise_seeds`); `difference`, seen minus unseen, likewise; `classes`, the labels averaged.
        None where a part has fewer than two lesions, or the parts no class in common.

    Raises:
        Ham10000Error: For inputs that do not fit together.
    """
    labels, seen, groups = np.asarray(labels), np.asarray(seen), np.asarray(lesion_groups)
    probabilities = validate_seeds(labels, probabilities)
    if seen.shape != labels.shape or seen.dtype != bool or groups.shape != labels.shape:
        raise Ham10000Error(
            f"Expected `seen` (bool) and `lesion_groups` of shape {labels.shape}, got {seen.dtype} {seen.shape} and "
            f"{groups.shape}."
        )
    classes = [label for k, label in enumerate(LABELS) if (labels[seen] == k).any() and (labels[~seen] == k).any()]
    if not classes or min(len(set(groups[seen])), len(set(groups[~seen]))) < 2:
        return None
    averaged = {"macro_f1": "f1", "balanced_accuracy": "recall"}
    names = ["accuracy", *(f"{name}:{label}" for name in averaged.values() for label in classes)]
    weights = cluster_weights(groups, n_resamples, seed)
    draws = seed_draws(len(probabilities), n_resamples, seed)

    def part(rows: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Metric to its value for each seed (S,), and metric to its resampled mean (R,), of some of the images."""
        members = ClusterWeights(weights.counts, weights.index[rows])
        with np.errstate(invalid="ignore"):  # a resample without a lesion of the part is NaN and left out
            tables = two_way_distribution(labels[rows], probabilities[:, rows], members, names, draws)
        estimates, values = (
            {
                metric: _mean_over_classes([table[f"{name}:{label}"] for label in classes])
                for metric, name in averaged.items()
            }
            | {"accuracy": table["accuracy"]}
            for table in tables
        )
        return estimates, values

    parts = {"seen": part(seen), "unseen": part(~seen)}
    results: dict[str, Any] = {
        name: {
            "n_images": int(rows.sum()),
            "n_lesions": len(set(groups[rows])),
            "metrics": {
                metric: seed_summary(estimate, parts[name][1][metric], confidence)
                for metric, estimate in parts[name][0].items()
            },
        }
        for name, rows in (("seen", seen), ("unseen", ~seen))
    }
    (estimates, values), (other_estimates, other_values) = parts["seen"], parts["unseen"]
    results["difference"] = {
        metric: seed_summary(
            estimates[metric] - other_estimates[metric], values[metric] - other_values[metric], confidence
        )
        for metric in estimates
    }
    return results | {"classes": classes}


__all__ = [
    "STUDY_METRICS",
    "leakage_scores",
    "seed_draws",
    "seed_summary",
    "summarise_seeds",
    "two_way_distribution",
    "validate_seeds",
]
