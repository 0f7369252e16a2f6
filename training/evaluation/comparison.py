"""Compares groups of images, and two models on the same images: intervals, p-values, and detectable effects."""

import os
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import binom, norm

from ham10000.modeling.configuration_ham10000 import LABELS, MALIGNANT, Ham10000Error
from ham10000.training.evaluation.bootstrap import (
    CONFIDENCE,
    Bootstrap,
    ClusterWeights,
    Sample,
    cluster_weights,
    statistics_of,
)
from ham10000.training.evaluation.report import SUMMARY_METRICS, predicted_labels, read_predictions
from ham10000.training.utils.files import JsonObject

# With fewer malignant lesions a sensitivity is an anecdote: at ten its 95 % interval is still 0.4 to 0.6 wide.
MIN_MALIGNANT_LESIONS = 10
UNKNOWN = "unknown"

_AGE_BANDS = {"under 30": -np.inf, "30-44": 30, "45-59": 45, "60 and over": 60}  # and the least age of each
# HAM10000's sites, joined to groups that are large enough to say something about.
_SITE_GROUPS = {
    "head and neck": ("ear", "face", "neck", "scalp"),
    "trunk": ("abdomen", "back", "chest", "trunk"),
    "upper extremity": ("hand", "upper extremity"),
    "lower extremity": ("foot", "lower extremity"),
    "acral or genital": ("acral", "genital"),
}
_SITE_TO_GROUP = {site: group for group, sites in _SITE_GROUPS.items() for site in sites}
FIELDS = {
    "age": (*_AGE_BANDS, UNKNOWN),
    "sex": ("female", "male", UNKNOWN),
    "site": (*_SITE_GROUPS, UNKNOWN),
    # Not of the patient but of the archive: which lesions were worth a second photograph.
    "photographs": ("1", "2", "3 or more"),
}


def assign_groups(metadata: pd.DataFrame) -> pd.DataFrame:
    """The age band, sex, site group and, where it is known, the number of photographs of each row, as in `FIELDS`.

    Reads the columns age (years, NaN where missing), sex and localization (`"unknown"` where missing), and photographs
    (how many of the row's lesion the whole dataset contains) where there is one.
    """
    ages = metadata["age"].to_numpy(dtype=np.float64)
    bands = pd.cut(ages, [*_AGE_BANDS.values(), np.inf], right=False, labels=[*_AGE_BANDS])
    sites = metadata["localization"].replace(_SITE_TO_GROUP).to_numpy()
    sexes = metadata["sex"].to_numpy()
    groups = pd.DataFrame({"age": bands.add_categories([UNKNOWN]).fillna(UNKNOWN), "sex": sexes, "site": sites})
    for field in ("sex", "site"):
        if unknown := sorted(set(groups[field]) - set(FIELDS[field])):
            raise Ham10000Error(f"{field} {unknown} belongs to no subgroup; expected some of {list(FIELDS[field])}.")
    if "photographs" in metadata:
        names = np.array(FIELDS["photographs"], dtype=object)
        groups["photographs"] = names[np.minimum(metadata["photographs"].to_numpy(), len(names)) - 1]
    return groups


def subgroup_results(
    metadata: pd.DataFrame,
    labels: np.ndarray,
    probabilities: np.ndarray,
    lesion_groups: ArrayLike,
    *,
    malignant_ids: Sequence[int] = tuple(map(LABELS.index, MALIGNANT)),
    n_resamples: int = 2000,
    seed: int = 0,
) -> JsonObject:
    """Accuracy, and sensitivity and specificity to malignancy, in every subgroup, with lesion-clustered intervals.

    An image counts as called malignant when its most probable class is malignant, whichever of them. Without malignant
    classes the results have the accuracy alone. Lesions are resampled over the whole set, so that a difference between
    groups is that of one resample. The metadata are those of `assign_groups`.

    `largest_gaps` has, for every field, the two groups whose malignant sensitivity differs most, and the interval of
    that difference; None where fewer than two groups are large enough. The pair was chosen for its size, so its
    difference is, on average, overstated.
    """
    groups, predicted = assign_groups(metadata), probabilities.argmax(axis=1)
    weights = cluster_weights(lesion_groups, n_resamples, seed)
    malignant, called = np.isin(labels, malignant_ids), np.isin(predicted, malignant_ids)
    # Statistic to (numerator, denominator) per image; each is a ratio of sums over the group.
    ratios = {"accuracy": (predicted == labels, np.ones(len(labels), dtype=bool))}
    if len(malignant_ids):
        ratios["malignant_sensitivity"] = (called & malignant, malignant)
        ratios["malignant_specificity"] = (~called & ~malignant, ~malignant)
    fields: dict[str, list[JsonObject]] = {}
    gaps: dict[str, JsonObject | None] = {}
    for field in groups.columns:
        fields[field], sensitivities = [], {}
        for name in FIELDS[field]:
            members = (groups[field] == name).to_numpy()
            if not members.any():
                continue
            values = {key: _ratio(weights, *(part & members for part in parts)) for key, parts in ratios.items()}
            n_lesions = len(np.unique(weights.index[members]))
            row: JsonObject = {"group": name, "n_images": int(members.sum()), "n_lesions": n_lesions}
            if len(malignant_ids):
                found = weights.index[members & malignant]
                row |= {"n_malignant": len(found), "n_malignant_lesions": len(np.unique(found))}
                row["too_few"] = row["n_malignant_lesions"] < MIN_MALIGNANT_LESIONS
                if not row["too_few"] and name != UNKNOWN:
                    sensitivities[name] = values["malignant_sensitivity"]
            fields[field].append(row | {key: value.interval() for key, value in values.items()})
        if len(malignant_ids):
            gaps[field] = _largest_gap(sensitivities)
    return {"min_malignant_lesions": MIN_MALIGNANT_LESIONS, "fields": fields, "largest_gaps": gaps}


def _ratio(weights: ClusterWeights, numerator: np.ndarray, denominator: np.ndarray) -> Sample:
    """A ratio of two counts of images (N,), bool; NaN where undefined."""
    tops, bottoms = weights.sums(np.stack([numerator, denominator])).T
    return Sample(np.array([numerator.sum()]), tops) / Sample(np.array([denominator.sum()]), bottoms)


def _largest_gap(sensitivities: dict[str, Sample]) -> JsonObject | None:
    if len(sensitivities) < 2:
        return None
    lowest, *_, highest = sorted(sensitivities, key=lambda name: sensitivities[name].estimate)
    difference = (sensitivities[highest] - sensitivities[lowest]).interval()
    return {"lowest": lowest, "highest": highest, "difference": difference}


def compare_predictions(
    path: str | os.PathLike[str], other_path: str | os.PathLike[str], *, n_resamples: int = 2000
) -> JsonObject:
    """Compares two `predictions.csv` of the same images: differences, model minus other, with intervals.

    Both models are scored on the same resampled lesions, so what they share (easy and hard lesions) cancels out (Efron
    & Tibshirani 1993, chapter 8). Of `SUMMARY_METRICS` those that the label set has. Files with different label sets,
    different images, or different labels for one image are a `Ham10000Error`.
    """
    (table, labels, probabilities), (other_table, other_labels, others) = map(_by_image, (path, other_path))
    names, other_names = predicted_labels(table), predicted_labels(other_table)
    if names != other_names:
        raise Ham10000Error(f"{path} has the labels {names}, {other_path} {other_names}; models of one set compare.")
    ids, other_ids = table["image_id"].to_numpy(), other_table["image_id"].to_numpy()
    if not np.array_equal(ids, other_ids):
        only = sorted(set(ids) ^ set(other_ids))[:3]
        raise Ham10000Error(
            f"{path} and {other_path} contain different images ({len(ids)} and {len(other_ids)}, such as {only} in "
            "one of them only); compare evaluations of the same split."
        )
    if (differs := labels != other_labels).any():
        raise Ham10000Error(f"{path} and {other_path} disagree on the dx of image {ids[differs][0]!r}.")
    bootstrap = Bootstrap(labels, table["lesion_group"], 1, n_resamples, label_names=names)
    metrics = [name for name in SUMMARY_METRICS if name in statistics_of(names)]
    ours, theirs = (bootstrap.scores(rows[None], metrics) for rows in (probabilities, others))
    return {
        "n_images": len(ids),
        "n_lesions": bootstrap.weights.n_clusters,
        "n_resamples": n_resamples,
        "confidence": CONFIDENCE,
        "differences": {name: (ours[name] - theirs[name]).interval() for name in metrics},
    }


def _by_image(path: str | os.PathLike[str]) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """`read_predictions`, sorted by image id."""
    table, labels, probabilities = read_predictions(path)
    order = np.argsort(table["image_id"].to_numpy())
    return table.iloc[order], labels[order], probabilities[order]


def mcnemar_mid_p(only_first: int, only_second: int) -> float:
    """McNemar's test that two models are right equally often, on the same cases, as a two-sided mid-p-value.

    The exact test less half of the observed outcome's probability, which removes its conservatism (Fagerland, Lydersen
    & Laake 2013, 10.1186/1471-2288-13-91). Takes the number of cases that only one of them gets right, of either. The
    cases must be independent: give one photograph per lesion.
    """
    fewer, total = min(only_first, only_second), only_first + only_second
    if total == 0:
        return 1.0
    observed = binom.pmf(fewer, total, 0.5)
    return float(1 - observed / 2 if 2 * fewer == total else 2 * binom.cdf(fewer, total, 0.5) - observed)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts p-values for being several (Holm 1979, Scandinavian Journal of Statistics 6, 65-70)."""
    from statsmodels.stats.multitest import multipletests  # late: it takes a second to import

    return multipletests(p_values, method="holm")[1].tolist() if len(p_values) else []


def bootstrap_p_value(values: np.ndarray) -> float:
    """Two-sided p-value of a difference being 0, from its bootstrap distribution; NaN entries are left out.

    Twice the smaller of the two shares of resamples on either side of 0, with one more resample counted into each, so
    that it is never 0 (Davison & Hinkley 1997, "Bootstrap Methods and their Application", section 4.4). A resample at
    exactly 0 counts on both sides, which is cautious for accuracy. p < 0.05 where the 95 % interval leaves 0 out.
    """
    smaller = min(np.count_nonzero(values <= 0), np.count_nonzero(values >= 0))
    return min(1.0, 2 * (1 + smaller) / (1 + np.count_nonzero(~np.isnan(values))))


def smallest_detectable(standard_error: float, *, confidence: float = CONFIDENCE, power: float = 0.8) -> float:
    """The true difference that a two-sided test finds with the given power: (z_{1-a/2} + z_power) * standard error.

    Not of the observed difference, whose power would only restate the p-value (Hoenig & Heisey 2001,
    10.1198/000313001300339897).
    """
    return float(norm.ppf((1 + confidence) / 2) + norm.ppf(power)) * standard_error
