"""What a study.json holds, read in one place: the report and the figures ask here and so agree on what there is."""

from collections.abc import Iterator
from typing import Any

from ham10000.modeling.configuration_ham10000 import Ham10000Error
from ham10000.training.evaluation_report import METRIC_TITLES
from ham10000.training.markdown_text import plural, words

STUDY_FORMAT = 1
TITLES = METRIC_TITLES | {
    "auroc_macro": "AUROC",
    "ece": "ECE",
    "melanoma_sensitivity_at_95_specificity": "melanoma sensitivity at 95 % specificity",
}
SUBGROUP_TITLES = {"age": "age", "sex": "sex", "site": "site", "photographs": "photographs of the lesion"}
# The order in which the report shows them.
FIGURES = (
    "results",
    "calibration",
    "comparisons",
    "class_changes",
    "shortcuts",
    "sweeps",
    "missing",
    "subgroups",
    "leakage",
)


def check_study(study: dict[str, Any]) -> None:
    """Refuses what is no study of this format.

    Raises:
        Ham10000Error: For another format, or a study without a protocol.
    """
    if study.get("format") != STUDY_FORMAT:
        raise Ham10000Error(
            f"The study has format {study.get('format')!r}; this version reads format {STUDY_FORMAT}. "
            "Make it anew with this version."
        )
    if not study.get("protocols"):
        raise Ham10000Error("The study holds no protocol; finish at least one before it is reported.")


def is_fusion(variant: str) -> bool:
    """Whether a variant reads both the image and the metadata."""
    return variant.startswith("fusion-")


def fusions(protocol: dict[str, Any]) -> list[str]:
    """The fusion variants of a protocol, in the order of the study."""
    return [name for name in protocol["variants"] if is_fusion(name)]


def lead_variant(protocol: dict[str, Any]) -> str:
    """The variant a single sentence is about: the first fusion, else the image, else the first.

    The first and not the best: a variant picked for its result would look better than it is.
    """
    variants = protocol["variants"]
    return next(iter([*fusions(protocol), *(["image"] if "image" in variants else []), *variants]))


def first_protocol(study: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The protocol a single sentence is about; lesion-grouped where it was run, as the study's order says."""
    return next(iter(study["protocols"].items()))


def seed_counts(study: dict[str, Any]) -> dict[str, int]:
    """Number of training seeds under each protocol."""
    seeds = study["settings"]["seeds"]
    if isinstance(seeds, list):  # as written before each protocol had its own
        seeds = dict.fromkeys(study["protocols"], seeds)
    return {name: len(seeds[name]) for name in study["protocols"]}


def n_seeds(study: dict[str, Any]) -> int:
    """Number of training seeds, the largest of all protocols."""
    return max(seed_counts(study).values())


def seeds_phrase(study: dict[str, Any]) -> str:
    """Such as `3 training seeds`, or `3 (lesion-grouped) and 1 (image-stratified) training seeds`."""
    counts = seed_counts(study)
    if len(set(counts.values())) == 1:
        return plural(n_seeds(study), "training seed")
    return f"{words([f'{number} ({name})' for name, number in counts.items()])} training seeds"


def metric(variant: dict[str, Any], name: str) -> dict[str, Any] | None:
    """A metric of a variant, None where it is absent or undefined."""
    value = variant["metrics"].get(name)
    return None if value is None or value.get("mean") is None else value


def variants(study: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yields (protocol, variant, values) of everything that was trained."""
    for protocol_name, protocol in study["protocols"].items():
        for name, values in protocol["variants"].items():
            yield protocol_name, name, values


def shortcuts(study: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """(protocol, variant, shortcuts) of every variant that reads metadata."""
    return [(protocol, name, values["shortcuts"]) for protocol, name, values in variants(study) if values["shortcuts"]]


def lead_shortcuts(study: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """The shortcuts a title is about: those of the first fusion, else of the first variant that reads metadata."""
    found = shortcuts(study)
    return next(iter([row for row in found if is_fusion(row[1])] or found))


def comparisons(protocol: dict[str, Any], kind: str | None = None) -> list[dict[str, Any]]:
    """The comparisons of a protocol, of one kind or all, whose primary difference is defined."""
    return [
        comparison
        for comparison in protocol["comparisons"]
        if kind in (None, comparison["kind"])
        and comparison["metrics"][comparison["primary"]].get("estimate") is not None
    ]


def smallest_detectable(comparison: dict[str, Any]) -> float | None:
    """The difference of the primary metric that would have been found with 80 % power, after Holm where recorded."""
    primary = comparison["metrics"][comparison["primary"]]
    return comparison.get("smallest_detectable", primary.get("smallest_detectable"))


def leak(protocol: dict[str, Any]) -> float | None:
    """Share of the test images whose lesion another photograph shows in train; None where it is not recorded."""
    return ((protocol["split"].get("leakage") or {}).get("test") or {}).get("all")


def subgroup_rows(protocol: dict[str, Any]) -> list[tuple[str, str]]:
    """(field, group) of every subgroup with images, in the order of the first variant that has subgroups."""
    for values in protocol["variants"].values():
        if values.get("subgroups"):
            return [(field, row["group"]) for field, rows in values["subgroups"]["fields"].items() for row in rows]
    return []


def subgroup_variants(protocol: dict[str, Any]) -> list[str]:
    """The variants the subgroups are shown of: the image beside each fusion; where neither is there, all."""
    names = [*(["image"] if "image" in protocol["variants"] else []), *fusions(protocol)]
    return [key for key in names or list(protocol["variants"]) if protocol["variants"][key].get("subgroups")]


def _has_subgroups(protocol: dict[str, Any]) -> bool:
    """Whether one group is large enough for a point in a figure."""
    rows = subgroup_rows(protocol)
    found = [subgroup(protocol["variants"][name], *row) for name in subgroup_variants(protocol) for row in rows]
    return any(row and not row["too_few"] and row["malignant_sensitivity"]["estimate"] is not None for row in found)


def subgroup(values: dict[str, Any], field: str, group: str) -> dict[str, Any] | None:
    """One group of one variant, None where the variant has no such group."""
    rows = (values.get("subgroups") or {"fields": {}})["fields"].get(field, [])
    return next((row for row in rows if row["group"] == group), None)


def largest_gap(values: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The field and gap in which a variant's sensitivity to malignancy differs most; None where none compares."""
    gaps = {
        field: gap
        for field, gap in ((values.get("subgroups") or {}).get("largest_gaps") or {}).items()
        if gap and gap["difference"]["estimate"] is not None
    }
    return max(gaps.items(), key=lambda item: item[1]["difference"]["estimate"]) if gaps else None


def _has_calibration(study: dict[str, Any]) -> bool:
    return any(metric(v, "ece") and metric(v, "ece_uncalibrated") for _, _, v in variants(study))


def _has_leakage(study: dict[str, Any]) -> bool:
    return len(study["protocols"]) > 1 or any(values["leakage"] for _, _, values in variants(study))


def available_figures(study: dict[str, Any]) -> tuple[str, ...]:
    """Names of the figures the study has data for; `plot_study` draws these and the report points to these.

    Args:
        study: Content of study.json.

    Returns:
        Some of `FIGURES`, in that order.
    """
    protocols = study["protocols"].values()
    found = [values for _, _, values in shortcuts(study)]
    has = {
        "results": any(metric(values, "macro_f1") for _, _, values in variants(study)),
        "calibration": _has_calibration(study),
        "comparisons": any(comparisons(protocol) for protocol in protocols),
        "class_changes": any(protocol["class_changes"] for protocol in protocols),
        "shortcuts": any(values["fields"] for values in found),
        "sweeps": any(values.get("age_sweep") or values.get("site_sweep") for values in found),
        "missing": any(values.get("missing") for values in found),
        "subgroups": any(map(_has_subgroups, protocols)),
        "leakage": _has_leakage(study),
    }
    return tuple(name for name in FIGURES if has[name])


__all__ = [
    "FIGURES",
    "STUDY_FORMAT",
    "SUBGROUP_TITLES",
    "TITLES",
    "available_figures",
    "check_study",
    "comparisons",
    "first_protocol",
    "fusions",
    "is_fusion",
    "largest_gap",
    "lead_shortcuts",
    "lead_variant",
    "leak",
    "metric",
    "n_seeds",
    "seed_counts",
    "seeds_phrase",
    "shortcuts",
    "smallest_detectable",
    "subgroup",
    "subgroup_rows",
    "subgroup_variants",
    "variants",
]
