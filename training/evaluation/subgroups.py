"""Results by age band, sex, site and photographs: a mean can hide a group in which malignancies are missed."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ham10000.modeling.configuration_ham10000 import LABELS, MALIGNANT, Ham10000Error
from ham10000.training.evaluation.bootstrap import ClusterWeights, cluster_weights, percentile_interval
from ham10000.training.evaluation.metrics import validate_labels, validate_probabilities
from ham10000.training.utils.files import JsonObject

# With fewer malignant lesions a sensitivity is an anecdote: at ten its 95 % interval is still 0.4 to 0.6 wide.
MIN_MALIGNANT_LESIONS = 10
UNKNOWN = "unknown"

_AGE_BANDS = ((30, "under 30"), (45, "30-44"), (60, "45-59"), (np.inf, "60 and over"))
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
    "age": (*(name for _, name in _AGE_BANDS), UNKNOWN),
    "sex": ("female", "male", UNKNOWN),
    "site": (*_SITE_GROUPS, UNKNOWN),
    # Not of the patient but of the archive: which lesions were worth a second photograph.
    "photographs": ("1", "2", "3 or more"),
}
STATISTICS = ("accuracy", "malignant_sensitivity", "malignant_specificity")
_MALIGNANT_IDS = tuple(LABELS.index(label) for label in MALIGNANT)


def assign_groups(metadata: pd.DataFrame) -> pd.DataFrame:
    """The age band, sex, site group and, where it is known, the number of photographs of each row.

    Args:
        metadata: Columns age (years, NaN where missing), sex and localization (`"unknown"` where missing); optionally
            photographs, how many of the row's lesion the whole dataset contains.

    Returns:
        Columns age, sex and site, with photographs also photographs; values as in `FIELDS`.

    Raises:
        Ham10000Error: For a missing column, a sex or site that is in no group, or a number of photographs that is not
            a whole number of at least 1.
    """
    missing = sorted({"age", "sex", "localization"} - set(metadata.columns))
    if missing:
        raise Ham10000Error(f"Subgroups need the column(s) {missing}; got {list(metadata.columns)}.")
    ages = metadata["age"].to_numpy(dtype=np.float64)
    bounds = np.array([bound for bound, _ in _AGE_BANDS])
    bands = np.array([name for _, name in _AGE_BANDS] + [UNKNOWN], dtype=object)
    band = np.where(np.isnan(ages), len(bounds), np.searchsorted(bounds, ages, side="right"))
    sites = metadata["localization"].map(lambda site: _SITE_TO_GROUP.get(site, site))
    groups = pd.DataFrame({"age": bands[band], "sex": metadata["sex"].to_numpy(), "site": sites.to_numpy()})
    for field in ("sex", "site"):
        unknown = sorted(set(groups[field]) - set(FIELDS[field]))
        if unknown:
            raise Ham10000Error(f"{field} {unknown} belongs to no subgroup; expected some of {list(FIELDS[field])}.")
    if "photographs" in metadata:
        photographs = metadata["photographs"].to_numpy()
        if not np.issubdtype(photographs.dtype, np.integer):
            raise Ham10000Error(f"photographs must be whole numbers (int), got {photographs.dtype}.")
        if (photographs < 1).any():
            row = int(np.flatnonzero(photographs < 1)[0])
            raise Ham10000Error(f"photographs must be at least 1; row {row} is {photographs[row]}.")
        names = np.array(FIELDS["photographs"], dtype=object)
        groups["photographs"] = names[np.minimum(photographs, len(names)) - 1]
    return groups


def subgroup_results(
    metadata: pd.DataFrame,
    labels: np.ndarray,
    probabilities: np.ndarray,
    lesion_groups: ArrayLike,
    *,
    malignant_ids: Sequence[int] = _MALIGNANT_IDS,
    n_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> JsonObject:
    """Accuracy, and sensitivity and specificity to malignancy, in every subgroup, with lesion-clustered intervals.

    An image counts as called malignant when its most probable class is malignant, whichever of them. Without malignant
    classes the results have the accuracy alone.
    Lesions are resampled over the whole set, so that a difference between groups is that of one resample.

    Args:
        metadata: Columns age, sex and localization, optionally photographs (N rows).
        labels: Class ids (N,).
        probabilities: Probabilities (N, K).
        lesion_groups: Lesion of each image (N,), known duplicates merged.
        malignant_ids: Ids of the malignant classes; by default those of HAM10000.
        n_resamples: Number of bootstrap resamples.
        confidence: Coverage of the intervals.
        seed: Seed of the bootstrap.

    Returns:
        `min_malignant_lesions`; `fields`: column of `assign_groups` to a list of groups (those with images), each with
        `group`, `n_images`, `n_lesions`, `n_malignant`, `n_malignant_lesions`, `too_few` and an interval for each of
        `STATISTICS`; `largest_gaps`: field to the two groups, not too small, whose malignant sensitivity differs
        most, with the interval of that difference (None where fewer than two groups are large enough). The pair was
        chosen for its size, so its difference is, on average, overstated. Strict JSON.

    Raises:
        Ham10000Error: For inputs that do not fit together.
    """
    probabilities = validate_probabilities(probabilities, len(labels))
    labels, predicted = validate_labels(labels, probabilities.shape[1]), probabilities.argmax(axis=1)
    if len(metadata) != len(labels):
        raise Ham10000Error(f"Got {len(metadata)} rows of metadata for {len(labels)} labels.")
    groups = assign_groups(metadata)
    weights = cluster_weights(lesion_groups, n_resamples, seed)
    statistics = STATISTICS if len(malignant_ids) else STATISTICS[:1]
    malignant, called = np.isin(labels, malignant_ids), np.isin(predicted, malignant_ids)
    # Statistic to (numerator, denominator) per image; each is a ratio of sums over the group.
    ratios = {
        "accuracy": (predicted == labels, np.ones(len(labels), dtype=bool)),
        "malignant_sensitivity": (called & malignant, malignant),
        "malignant_specificity": (~called & ~malignant, ~malignant),
    }
    fields: dict[str, list[JsonObject]] = {}
    gaps: dict[str, JsonObject | None] = {}
    for field in groups.columns:
        rows, sensitivities = [], {}
        for name in FIELDS[field]:
            members = (groups[field] == name).to_numpy()
            if not members.any():
                continue
            values = {
                statistic: _ratio(weights, *(part & members for part in ratios[statistic])) for statistic in statistics
            }
            row: JsonObject = {
                "group": name,
                "n_images": int(members.sum()),
                "n_lesions": len(np.unique(weights.index[members])),
            }
            if len(malignant_ids):
                row["n_malignant"] = int((members & malignant).sum())
                row["n_malignant_lesions"] = len(np.unique(weights.index[members & malignant]))
                row["too_few"] = row["n_malignant_lesions"] < MIN_MALIGNANT_LESIONS
            row |= {key: percentile_interval(*value, confidence).as_dict() for key, value in values.items()}
            rows.append(row)
            if not row.get("too_few", True) and name != UNKNOWN:
                sensitivities[name] = values["malignant_sensitivity"]
        fields[field] = rows
        if len(malignant_ids):
            gaps[field] = _largest_gap(sensitivities, confidence)
    return {"min_malignant_lesions": MIN_MALIGNANT_LESIONS, "fields": fields, "largest_gaps": gaps}


def _ratio(weights: ClusterWeights, numerator: np.ndarray, denominator: np.ndarray) -> tuple[float, np.ndarray]:
    """A ratio of two counts of images (N,), bool: on the sample, and in each resample (R,); NaN where undefined."""
    counts = np.stack(
        [np.bincount(weights.index, weights=part, minlength=weights.n_clusters) for part in (numerator, denominator)]
    )  # (2, C)
    tops, bottoms = np.concatenate([block @ counts.T for block in weights.blocks()]).T
    values = np.divide(tops, bottoms, out=np.full_like(tops, np.nan), where=bottoms > 0)
    return (float(numerator.sum() / denominator.sum()) if denominator.any() else float("nan")), values


def _largest_gap(sensitivities: dict[str, tuple[float, np.ndarray]], confidence: float) -> JsonObject | None:
    if len(sensitivities) < 2:
        return None
    ordered = sorted(sensitivities, key=lambda name: sensitivities[name][0])
    (low, low_values), (high, high_values) = sensitivities[ordered[0]], sensitivities[ordered[-1]]
    difference = percentile_interval(high - low, high_values - low_values, confidence)
    return {"lowest": ordered[0], "highest": ordered[-1], "difference": difference.as_dict()}
