"""Two variants of a study on the same images: what differs, whether chance explains it, and which lesions move."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ham10000.modeling.configuration_ham10000 import LABELS, Ham10000Error
from ham10000.training.evaluation.bootstrap import cluster_weights, percentile_interval
from ham10000.training.evaluation.comparison import bootstrap_p_value, holm, mcnemar_mid_p, smallest_detectable
from ham10000.training.evaluation.metrics import validate_labels, validate_probabilities
from ham10000.training.evaluation.report import METRIC_TITLES
from ham10000.training.study.seeds import STUDY_METRICS, seed_draws, two_way_distribution, validate_seeds

# The metric the verdict rests on. It was fixed before any result: to pick it afterwards would make the p-values void.
PRIMARY = "macro_f1"
LEVEL = 0.05
POWER = 0.8
COMPARISON_KINDS = ("metadata", "fusion", "tta", "recipe")


def _mean_predictions(
    labels: np.ndarray, probabilities: np.ndarray, other_probabilities: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Checked labels, and both models' class ids (N,) from their probabilities averaged over seeds."""
    labels = validate_labels(labels)
    means = [validate_seeds(labels, of_model).mean(axis=0) for of_model in (probabilities, other_probabilities)]
    ours, others = (validate_probabilities(mean, len(labels)).argmax(axis=1) for mean in means)
    return labels, ours, others


def _mcnemar(right: np.ndarray, other_right: np.ndarray) -> dict[str, Any]:
    only, only_other = int((right & ~other_right).sum()), int((other_right & ~right).sum())
    return {"only_model_right": only, "only_other_right": only_other, "p": mcnemar_mid_p(only, only_other)}


def _difference(per_seed: np.ndarray, values: np.ndarray, confidence: float) -> dict[str, Any]:
    """A metric's difference: `estimate`, `low`, `high`, `p`, `standard_error`, `smallest_detectable`, `per_seed`."""
    interval = percentile_interval(float(per_seed.mean()), values, confidence)
    row: dict[str, Any] = {"estimate": interval.estimate, "low": interval.low, "high": interval.high}
    if interval.low is None:
        row |= dict.fromkeys(("p", "standard_error", "smallest_detectable"))
    else:
        defined = values[~np.isnan(values)]
        # No spread can be told from one resample; one is enough only to try that everything runs.
        error = float(defined.std(ddof=1)) if len(defined) > 1 else 0.0
        row["p"] = bootstrap_p_value(defined)
        row["standard_error"] = error
        row["smallest_detectable"] = smallest_detectable(error, confidence=confidence, power=POWER)
    row["per_seed"] = [None if np.isnan(value) else float(value) for value in per_seed]
    return row


def compare_variants(  # two sets of predictions, what they share, and their names
    labels: np.ndarray,
    probabilities: np.ndarray,
    other_probabilities: np.ndarray,
    lesion_groups: Sequence[Any] | np.ndarray,
    *,
    image_ids: Sequence[str] | np.ndarray,
    model: str,
    other: str,
    kind: str,
    metrics: Sequence[str] = STUDY_METRICS,
    n_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Differences of metrics, model minus other, with paired intervals and p-values, and McNemar's test on accuracy.

    The bootstrap is that of `study_statistics.summarise_seeds`, with the same lesions and seeds drawn for both models:
    what they share cancels out. With one seed the result holds for these two trained models only.

    McNemar's test compares the two models whose probabilities are averaged over the seeds, over all images and over
    one photograph a lesion, the first in the order of image ids. Photographs of one lesion are not independent, so
    only the second keeps its level; the first is there for the counts.

    Args:
        labels: Class ids (N,).
        probabilities: The model's probabilities (S, N, 7).
        other_probabilities: The other model's, same rows, same seeds.
        lesion_groups: Lesion of each image (N,), known duplicates merged.
        image_ids: Image ids (N,), each once.
        model: Name of the model.
        other: Name of the other.
        kind: One of `COMPARISON_KINDS`.
        metrics: Names in `weighted_metrics.STATISTICS`, `PRIMARY` among them.
        n_resamples: Number of resamples R. No p-value is below 2 / (R + 1).
        confidence: Coverage of the intervals, and 1 minus the level of `smallest_detectable`.
        seed: Seed of the resampling.

    Returns:
        `name`, `model`, `other`, `kind`, `n_images`, `n_lesions`, `primary`; `metrics`: metric to `estimate`, `low`,
        `high`, `p`, `standard_error`, `smallest_detectable` (with 80 % power, for a single test) and `per_seed`, None
        for what is undefined; `mcnemar`: `images` and `lesions`, each with `only_model_right`, `only_other_right` and
        `p`. To be completed by `adjust_comparisons`. Strict JSON.

    Raises:
        Ham10000Error: For an unknown kind, metrics without the primary one, or inputs that do not fit together.
    """
    if kind not in COMPARISON_KINDS:
        raise Ham10000Error(f"Unknown kind of comparison {kind!r}; expected one of {list(COMPARISON_KINDS)}.")
    if PRIMARY not in metrics:
        raise Ham10000Error(f"`metrics` must hold {PRIMARY!r}, which the verdict rests on; got {list(metrics)}.")
    probabilities = validate_seeds(labels, probabilities)
    other_probabilities = validate_seeds(labels, other_probabilities)
    if len(probabilities) != len(other_probabilities):
        raise Ham10000Error(
            f"{model} has {len(probabilities)} seeds and {other} {len(other_probabilities)}; they are compared seed "
            "by seed, so both need the same ones."
        )
    ids = np.asarray(image_ids)
    if len(ids) != len(labels) or len(np.unique(ids)) != len(ids):
        raise Ham10000Error(
            f"Expected {len(labels)} image ids, each once; got {len(ids)}, {len(np.unique(ids))} of them different."
        )

    weights = cluster_weights(lesion_groups, n_resamples, seed)
    draws = seed_draws(len(probabilities), n_resamples, seed)
    estimates, values = two_way_distribution(labels, probabilities, weights, metrics, draws)
    other_estimates, other_values = two_way_distribution(labels, other_probabilities, weights, metrics, draws)

    labels, predicted, other_predicted = _mean_predictions(labels, probabilities, other_probabilities)
    right, other_right = predicted == labels, other_predicted == labels
    order = np.argsort(ids)
    first = order[np.unique(weights.index[order], return_index=True)[1]]  # one row per lesion
    return {
        "name": f"{model} - {other}",
        "model": model,
        "other": other,
        "kind": kind,
        "n_images": len(labels),
        "n_lesions": weights.n_clusters,
        "primary": PRIMARY,
        "metrics": {
            name: _difference(estimates[name] - other_estimates[name], values[name] - other_values[name], confidence)
            for name in metrics
        },
        "mcnemar": {
            "images": _mcnemar(right, other_right),
            "lesions": _mcnemar(right[first], other_right[first]),
        },
    }


def adjust_comparisons(comparisons: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Completes a family of comparisons: Holm's correction, the verdict and the sentence.

    The verdict is that of the primary metric: "helps" or "hurts" where its corrected p-value is below 0.05, "cannot be
    told apart" otherwise. Not being told apart is no proof of being equal; the smallest effect that would have been
    found says how much may be hidden. That effect is for the corrected test: at level 0.05 / m for m
    comparisons, which Holm's procedure is never less powerful than.

    Args:
        comparisons: All comparisons made under one protocol, from `compare_variants`.

    Returns:
        Copies with `p_holm`, `smallest_detectable` (of the primary metric, with at least 80 % power after the
        correction), `mcnemar["p_holm"]` (of one photograph a lesion), `verdict` and `sentence`.

    Raises:
        Ham10000Error: If the primary metric of one is undefined.
    """
    primaries = [comparison["metrics"][comparison["primary"]] for comparison in comparisons]
    for comparison, primary in zip(comparisons, primaries, strict=True):
        if primary["p"] is None:
            raise Ham10000Error(
                f"{comparison['primary']} of {comparison['name']!r} is undefined: nothing to judge by."
            )
    adjusted = holm([primary["p"] for primary in primaries])
    adjusted_mcnemar = holm([comparison["mcnemar"]["lesions"]["p"] for comparison in comparisons])
    completed = []
    for comparison, primary, p, p_mcnemar in zip(comparisons, primaries, adjusted, adjusted_mcnemar, strict=True):
        row = comparison | {
            "p_holm": p,
            "smallest_detectable": smallest_detectable(
                primary["standard_error"], confidence=1 - LEVEL / len(comparisons), power=POWER
            ),
            "mcnemar": comparison["mcnemar"] | {"p_holm": p_mcnemar},
        }
        row["verdict"] = "cannot be told apart" if p >= LEVEL else "helps" if primary["estimate"] > 0 else "hurts"
        completed.append(row | {"sentence": _sentence(row)})
    return completed


def _sentence(comparison: dict[str, Any]) -> str:
    primary, p = comparison["metrics"][comparison["primary"]], comparison["p_holm"]
    p_text = "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
    facts = (
        f"{comparison['model']} against {comparison['other']}: {METRIC_TITLES[comparison['primary']]} "
        f"{primary['estimate']:+.3f} [{primary['low']:+.3f}, {primary['high']:+.3f}], {p_text} after Holm"
    )
    size = f"at this size ({comparison['n_lesions']:,} lesions)"
    if comparison["verdict"] != "cannot be told apart":
        return f"{facts}: it {comparison['verdict']}."
    if primary["standard_error"] == 0:
        # Both models call every image the same; a test of nothing has no power to speak of.
        return f"{facts}: the two give the same answers {size}."
    return (
        f"{facts}: no significant difference {size}; an effect of {comparison['smallest_detectable']:.3f} would have "
        f"been found with {100 * POWER:.0f} % power."
    )


def class_changes(
    labels: np.ndarray,
    probabilities: np.ndarray,
    other_probabilities: np.ndarray,
    lesion_groups: Sequence[Any] | np.ndarray,
) -> dict[str, dict[str, Any]]:
    """Per class, how many images and lesions the model gets right that the other got wrong, and the other way round.

    The predictions are those of the probabilities averaged over the seeds: one answer per image and model, which may
    be that of no single seed. A lesion counts where one of its photographs moves, so it may count both ways.

    Args:
        labels: Class ids (N,).
        probabilities: The model's probabilities (S, N, 7): after.
        other_probabilities: The other model's: before.
        lesion_groups: Lesion of each image (N,), known duplicates merged.

    Returns:
        Label to `n_images`, `n_lesions`, `right_to_wrong` and `wrong_to_right`, both with `images` and `lesions`.

    Raises:
        Ham10000Error: For inputs that do not fit together.
    """
    labels, after, before = _mean_predictions(labels, probabilities, other_probabilities)
    groups = np.asarray(lesion_groups)
    if groups.shape != labels.shape:
        raise Ham10000Error(f"Expected one lesion for each of {len(labels)} images, got shape {groups.shape}.")

    def count(rows: np.ndarray) -> dict[str, int]:
        return {"images": int(rows.sum()), "lesions": len(np.unique(groups[rows]))}

    changes = {}
    for k, label in enumerate(LABELS):
        members, total = labels == k, count(labels == k)
        changes[label] = {
            "n_images": total["images"],
            "n_lesions": total["lesions"],
            "right_to_wrong": count(members & (before == k) & (after != k)),
            "wrong_to_right": count(members & (before != k) & (after == k)),
        }
    return changes


def moved_images(
    image_ids: Sequence[str] | np.ndarray,
    lesion_ids: Sequence[str] | np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
    other_probabilities: np.ndarray,
) -> list[dict[str, str]]:
    """The images that the two models call differently, from the probabilities averaged over the seeds.

    Args:
        image_ids: Image ids (N,).
        lesion_ids: Lesion ids (N,).
        labels: Class ids (N,).
        probabilities: The model's probabilities (S, N, 7): after.
        other_probabilities: The other model's: before.

    Returns:
        A row per image that moves, by lesion and image id: `lesion_id`, `image_id`, `dx`, `before`, `after` and
        `direction` (`right_to_wrong`, `wrong_to_right` or `wrong_to_wrong`).

    Raises:
        Ham10000Error: For inputs that do not fit together.
    """
    labels, after, before = _mean_predictions(labels, probabilities, other_probabilities)
    if not len(image_ids) == len(lesion_ids) == len(labels):
        raise Ham10000Error(
            f"Got {len(image_ids)} image ids and {len(lesion_ids)} lesion ids for {len(labels)} labels; expected one "
            "of each per image."
        )
    images, lesions = np.asarray(image_ids), np.asarray(lesion_ids)
    rows = [
        {
            "lesion_id": str(lesions[row]),
            "image_id": str(images[row]),
            "dx": LABELS[labels[row]],
            "before": LABELS[before[row]],
            "after": LABELS[after[row]],
            "direction": f"{_word(before[row] == labels[row])}_to_{_word(after[row] == labels[row])}",
        }
        for row in np.flatnonzero(before != after)
    ]
    return sorted(rows, key=lambda row: (row["lesion_id"], row["image_id"]))


def _word(right: bool) -> str:
    return "right" if right else "wrong"


__all__ = [
    "COMPARISON_KINDS",
    "PRIMARY",
    "adjust_comparisons",
    "class_changes",
    "compare_variants",
    "moved_images",
]
