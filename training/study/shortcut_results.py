"""From changed predictions to what a model reads: drops, flips and sweeps with lesion-clustered intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ham10000.modeling.configuration_ham10000 import LABELS, MALIGNANT, METADATA_FIELDS, Ham10000Error
from ham10000.training.evaluation.bootstrap import (
    ClusterWeights,
    bootstrap_distribution,
    cluster_weights,
    percentile_interval,
)
from ham10000.training.evaluation.comparison import bootstrap_p_value, holm
from ham10000.training.evaluation.metrics import MELANOMA, validate_labels, validate_probabilities
from ham10000.training.study.shortcuts import MISSING_SHARES, SWEEP_AGES
from ham10000.training.utils.markdown_text import words

# A field is named where the loss from shuffling it has a Holm-corrected p below this.
ALPHA = 0.05
NOTE = (
    "That a model reads a field is not by itself wrong: age is a risk factor. What to worry about is an answer that "
    "flips with the site or the age while the picture stays the same, above all where the field is wrong or missing."
)

_TITLES = {"age": "age", "sex": "sex", "localization": "the site"}
_SWEPT = {"age": "age_sweep", "localization": "site_sweep"}
_MALIGNANT_IDS = [LABELS.index(name) for name in MALIGNANT]


def shortcut_results(
    labels: np.ndarray,
    perturbed: Sequence[Mapping[str, np.ndarray]],
    lesion_groups: Sequence[Any] | np.ndarray,
    *,
    sites: Sequence[str],
    n_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """What each field of metadata is worth to a model, and how far it moves the answers.

    Everything is a mean over the seeds of training and the draws of a perturbation, computed in every resample of the
    lesions; a drop is the macro-F1 as is minus that of the perturbed rows, of the same resample (a paired bootstrap).

    Args:
        labels: Class ids (N,).
        perturbed: For each seed of training the result of `perturbed_probabilities` over the same N rows.
        lesion_groups: Lesion of each image (N,), known duplicates merged.
        sites: Names of the sites of `site_sweep`, which is `config.localization_vocabulary`.
        n_resamples: Number of bootstrap resamples.
        confidence: Coverage of the intervals.
        seed: Seed of the bootstrap.

    Returns:
        Strict JSON; an interval is a dict of `estimate`, `low`, `high` and `n_defined`:

        - `n_images`, `repeats`, and `macro_f1`, the interval as is.
        - `fields`: field, and `all`, to `shuffled` and `unknown`, each with `macro_f1_drop` (an interval with the
          two-sided `p` of no drop), `p_holm` (`p` corrected over the single fields; None for `all`) and `flip_share`,
          the share of images whose top class is another one than as is.
        - `named`: the fields whose shuffled drop is positive with `p_holm` < 0.05; `sentence` and `note` in words.
        - `missing`: a list of `share`, `macro_f1` and `flip_share` for shares 0, 0.1, … 1.
        - `age_sweep` with `ages` and `site_sweep` with `sites`, None where the model has no such field. Along the
          sweep, `mean`, `low` and `high` of the mean probability of `melanoma` and of the three `malignant` classes
          together; `flip_share`, of images whose top class is another one than as is somewhere along it;
          `slope_per_decade`, of the least-squares line of the mean melanoma probability over the age, or `range`, the
          mean melanoma probability of the site where it is highest minus that of the site where it is lowest; the
          pair was chosen for its size, so the difference is, on average, overstated.

    Raises:
        Ham10000Error: For inputs that do not fit together.
    """
    labels = validate_labels(labels)
    _check(labels, perturbed, sites)
    bootstrap = _Bootstrap(labels, cluster_weights(lesion_groups, n_resamples, seed), confidence)

    def stack(name: str) -> np.ndarray:
        """(seeds, 1 or K or values of a sweep, N, 7)."""
        arrays = np.stack([part[name] for part in perturbed])
        return arrays if arrays.ndim == 4 else arrays[:, None]

    as_is = stack("as_is").argmax(axis=-1)  # (S, 1, N)
    estimate, values = bootstrap.macro_f1(as_is)

    def effect(name: str) -> dict[str, Any]:
        predicted = stack(name).argmax(axis=-1)
        other_estimate, other_values = bootstrap.macro_f1(predicted)
        drop = bootstrap.interval(estimate - other_estimate, values - other_values)
        flips = bootstrap.mean_interval((predicted != as_is).mean(axis=(0, 1)))
        p = bootstrap_p_value(values - other_values)
        return {"macro_f1_drop": {**drop, "p": p}, "p_holm": None, "flip_share": flips}

    single = [field for field in METADATA_FIELDS if f"shuffled:{field}" in perturbed[0]]
    fields = {
        field: {kind: effect(f"{kind}:{field}") for kind in ("shuffled", "unknown")} for field in [*single, "all"]
    }
    for kind in ("shuffled", "unknown"):
        effects = [fields[field][kind] for field in single]
        for found, p_holm in zip(effects, holm([found["macro_f1_drop"]["p"] for found in effects]), strict=True):
            found["p_holm"] = p_holm

    missing = []
    for share, name in (
        (0.0, "as_is"),
        *((share, f"missing:{share}") for share in MISSING_SHARES),
        (1.0, "unknown:all"),
    ):
        predicted = stack(name).argmax(axis=-1)
        missing.append(
            {
                "share": share,
                "macro_f1": bootstrap.interval(*bootstrap.macro_f1(predicted)),
                "flip_share": bootstrap.mean_interval((predicted != as_is).mean(axis=(0, 1))),
            }
        )

    shuffled = {field: fields[field]["shuffled"] for field in single}
    results = {
        "n_images": len(labels),
        "repeats": perturbed[0]["shuffled:all"].shape[0],
        "macro_f1": bootstrap.interval(estimate, values),
        "fields": fields,
        "named": [
            field
            for field, found in shuffled.items()
            if found["macro_f1_drop"]["estimate"] > 0 and found["p_holm"] < ALPHA
        ],
        "missing": missing,
        "age_sweep": None,
        "site_sweep": None,
        "note": NOTE,
    }
    if "age" in single:
        results["age_sweep"] = {"ages": list(SWEEP_AGES), **bootstrap.sweep(stack("age_sweep"), as_is, SWEEP_AGES)}
    if "localization" in single:
        results["site_sweep"] = {"sites": list(sites), **bootstrap.sweep(stack("site_sweep"), as_is)}
    return {**results, "sentence": _sentence(results, bootstrap.weights.n_clusters)}


class _Bootstrap:
    """One set of resampled lesions, for everything that is computed from it."""

    def __init__(self, labels: np.ndarray, weights: ClusterWeights, confidence: float):
        if len(weights.index) != len(labels):
            raise Ham10000Error(f"Got {len(weights.index)} lesion groups for {len(labels)} labels.")
        self.labels, self.weights, self.confidence = labels, weights, confidence
        self.sizes = np.bincount(weights.index, minlength=weights.n_clusters)  # (C,)

    def macro_f1(self, predicted: np.ndarray) -> tuple[float, np.ndarray]:
        """(…, N) class ids to the mean macro-F1 over the leading axes, on the sample and in each resample (R,)."""
        rows = predicted.reshape(-1, len(self.labels))
        pairs = [bootstrap_distribution(self.labels, row, self.weights, ["macro_f1"]) for row in rows]
        estimates = [estimate["macro_f1"] for estimate, _ in pairs]
        return float(np.mean(estimates)), np.mean([values["macro_f1"] for _, values in pairs], axis=0)

    def means(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(M, N) values of images to their means (M,), and those of each resample (R, M)."""
        index, count = self.weights.index, self.weights.n_clusters
        sums = np.stack([np.bincount(index, weights=row, minlength=count) for row in values], axis=1)  # (C, M)
        tops = np.concatenate([block @ sums for block in self.weights.blocks()])
        bottoms = np.concatenate([block @ self.sizes for block in self.weights.blocks()])
        return values.mean(axis=1), tops / bottoms[:, None]

    def interval(self, estimate: float, values: np.ndarray) -> dict[str, Any]:
        return percentile_interval(float(estimate), values, self.confidence).as_dict()

    def mean_interval(self, values: np.ndarray) -> dict[str, Any]:
        """Interval of the mean of (N,) values."""
        estimate, resampled = self.means(values[None])
        return self.interval(estimate[0], resampled[:, 0])

    def curve(self, means: np.ndarray, resampled: np.ndarray) -> dict[str, list[Any]]:
        """Intervals of (M,) means, pointwise, as three lists."""
        intervals = [self.interval(mean, column) for mean, column in zip(means, resampled.T, strict=True)]
        keys = {"mean": "estimate", "low": "low", "high": "high"}
        return {key: [interval[name] for interval in intervals] for key, name in keys.items()}

    def sweep(self, probabilities: np.ndarray, as_is: np.ndarray, ages: Sequence[int] | None = None) -> dict[str, Any]:
        """Results of a sweep of probabilities (S, M, N, 7); the slope for ages, the range for sites."""
        melanoma = self.means(probabilities[..., MELANOMA].mean(axis=0, dtype=np.float64))
        malignant = probabilities[..., _MALIGNANT_IDS].sum(axis=-1, dtype=np.float64).mean(axis=0)
        flips = (probabilities.argmax(axis=-1) != as_is).any(axis=1).mean(axis=0)
        results = {
            "melanoma": self.curve(*melanoma),
            "malignant": self.curve(*self.means(malignant)),
            "flip_share": self.mean_interval(flips),
        }
        means, resampled = melanoma
        if ages is None:
            # The same two sites in every resample: the largest difference of each would lie above that of the sample.
            high, low = means.argmax(), means.argmin()
            return {
                **results,
                "range": self.interval(means[high] - means[low], resampled[:, high] - resampled[:, low]),
            }
        decades = np.array(ages) / 10
        slopes = (decades - decades.mean()) / ((decades - decades.mean()) ** 2).sum()
        return {**results, "slope_per_decade": self.interval(means @ slopes, resampled @ slopes)}


def _check(labels: np.ndarray, perturbed: Sequence[Mapping[str, np.ndarray]], sites: Sequence[str]) -> None:
    if not perturbed:
        raise Ham10000Error("`perturbed` is empty; expected one dict of probabilities for each seed of training.")
    shapes = {name: np.shape(array) for name, array in perturbed[0].items()}
    for number, part in enumerate(perturbed):
        if {name: np.shape(array) for name, array in part.items()} != shapes:
            raise Ham10000Error(f"Seeds 0 and {number} have other perturbations, rows, fields or repeats; repeat one.")
        for name, array in part.items():
            if np.ndim(array) < 2 or np.shape(array)[-2:] != (len(labels), len(LABELS)):
                raise Ham10000Error(f"{name!r} of seed {number} has shape {np.shape(array)} for {len(labels)} labels.")
            rows = np.reshape(array, (-1, len(LABELS)))
            validate_probabilities(rows, len(rows))
    if "site_sweep" in shapes and shapes["site_sweep"][0] != len(sites):
        raise Ham10000Error(
            f"`site_sweep` goes over {shapes['site_sweep'][0]} sites, but {len(sites)} names are given."
        )


def _sentence(results: dict[str, Any], n_lesions: int) -> str:
    named, fields = results["named"], [field for field in results["fields"] if field != "all"]
    size = f"at this size ({results['n_images']:,} images of {n_lesions:,} lesions)"

    def drop(field: str) -> str:
        interval = results["fields"][field]["shuffled"]["macro_f1_drop"]
        return f"{interval['estimate']:.2f} macro-F1 [{interval['low']:.2f}, {interval['high']:.2f}]"

    if not named:
        costs = "; ".join(f"{_TITLES[field]} {drop(field)}" for field in fields)
        return f"No field could be shown to matter {size}. What shuffling costs: {costs}."
    clauses = []
    for field in named:
        clause = f"shuffling {_TITLES[field]} costs {drop(field)}"
        if sweep := results.get(_SWEPT.get(field, "")):
            clause += (
                f", and some other {_TITLES[field].removeprefix('the ')} with all else as it is flips the answer for "
                f"{sweep['flip_share']['estimate']:.0%} of the images"
            )
        clauses.append(clause)
    text = f"The model reads {words([_TITLES[field] for field in named])}: {'; '.join(clauses)}."
    others = [_TITLES[field] for field in fields if field not in named]
    return f"{text} That {words(others, 'or')} matters could not be shown {size}." if others else text


__all__ = ["ALPHA", "NOTE", "shortcut_results"]
