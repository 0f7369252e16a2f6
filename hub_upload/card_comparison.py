"""A model beside its siblings and the published baseline, and what the differences allow to say."""

import urllib.parse
from collections.abc import Sequence
from typing import Any

from ham10000.hub_upload.card_markdown import NO_BREAK, count, escape, interval, join, percent, section, table
from ham10000.hub_upload.run_files import RunFiles, Sibling
from ham10000.training.evaluation_report import METRIC_TITLES, SUMMARY_METRICS
from ham10000.training.published import published_baseline

_LOWER_IS_BETTER = ("ece",)
_SHORT_TITLES = {
    "auroc_macro": "AUROC",
    "ece": "ECE",
    "melanoma_sensitivity_at_95_specificity": "melanoma sensitivity at 95 % specificity",
}


def variant_name(run: RunFiles) -> str:
    """`fusion, tf_efficientnetv2_s, 224 px` or `metadata`, escaped."""
    if run.modality == "metadata":
        return "metadata"
    size = run.processor["image_processor"]["size"]
    pixels = f"{size['height']} px" if size["height"] == size["width"] else f"{size['height']} x {size['width']} px"
    return escape(f"{run.modality}, {run.config['backbone']}, {pixels}")


def link(repo_id: str | None, text: str) -> str:
    """A link to a repository of the Hub, or the bare text."""
    return f"[{text}](https://huggingface.co/{urllib.parse.quote(repo_id)})" if repo_id else text


def _protocol_cells(evaluation: dict[str, Any]) -> list[str]:
    split = evaluation["split"]
    leak = split.get("leakage", {}).get(split["name"], {}).get("all")
    return [escape(split.get("protocol", "none")), percent(leak)]


def comparison_table(rows: Sequence[tuple[str, RunFiles]], *, with_published: bool = True) -> str:
    """Headline figures of several models, one row each.

    Args:
        rows: Ready first cell and run; runs without an evaluation are left out.
        with_published: Whether the published baseline is the last row.

    Returns:
        Markdown.
    """
    titles = [_SHORT_TITLES.get(name, METRIC_TITLES[name]) for name in SUMMARY_METRICS]
    cells = [
        [
            name,
            *_protocol_cells(run.evaluation),
            *(interval(run.evaluation["intervals"][metric]) for metric in SUMMARY_METRICS),
        ]
        for name, run in rows
        if run.evaluation is not None
    ]
    if with_published:
        published = published_baseline()
        cells.append(
            [
                escape(published["name"]),
                escape(published["protocol"]),
                percent(published["leak"]),
                *(interval(published["intervals"].get(metric)) for metric in SUMMARY_METRICS),
            ]
        )
    # Eight columns fit the page only if an interval may be broken.
    cells = [[cell.replace(NO_BREAK, " ") for cell in row] for row in cells]
    return table(["model", "protocol", "leak", *titles], cells, align="ll" + "r" * (len(SUMMARY_METRICS) + 1))


def _reading(metric: str, difference: dict[str, Any], this: str) -> str:
    """One difference in words."""
    if difference["estimate"] is None or difference["low"] is None:
        return "undefined here"
    if difference["low"] <= 0 <= difference["high"]:
        return "the two cannot be told apart"
    better = (difference["low"] > 0) != (metric in _LOWER_IS_BETTER)
    return f"{this} is better" if better else f"{this} is worse"


def paired_table(comparison: dict[str, Any], this: str, other: str) -> str:
    """The paired differences of two models, with a reading of each.

    Args:
        comparison: As `Sibling.comparison`.
        this: Name of the model, escaped.
        other: Name of the one it is compared with, escaped.

    Returns:
        A sentence and a table.
    """
    rows = [
        [
            METRIC_TITLES.get(metric, escape(metric)),
            interval(difference, signed=True),
            _reading(metric, difference, this),
        ]
        for metric, difference in comparison["differences"].items()
    ]
    return join(
        f"**{this} minus {other}**, on the same {count(comparison['n_images'])} images of "
        f"{count(comparison['n_lesions'])} lesions, both resampled together:",
        table(["metric", f"{this} minus {other}", "reading"], rows, align="lrl"),
    )


def same_protocol(runs: Sequence[RunFiles]) -> bool:
    """Whether all evaluated runs were scored on the same images by the same protocol."""
    keys = {
        (
            run.evaluation["split"].get("protocol"),
            run.evaluation["split"].get("sha256"),
            run.evaluation["split"]["name"],
        )
        for run in runs
        if run.evaluation is not None
    }
    return len(keys) <= 1


def leak_note(*, with_published: bool) -> str:
    """What the column `leak` means and why protocols do not compare."""
    published = " The published row resamples images, ours lesions, and its split leaks." if with_published else ""
    return (
        "*Leak* is the share of test images whose lesion another photograph shows in training. **Numbers of different "
        f"protocols do not compare.**{published}"
    )


def comparison_section(run: RunFiles, siblings: Sequence[Sibling]) -> str:
    """The section that sets an evaluated model beside its siblings and the published baseline.

    Args:
        run: The run.
        siblings: The other variants; those without an evaluation are left out.

    Returns:
        Markdown, empty for a run without an evaluation.
    """
    if run.evaluation is None:
        return ""
    evaluated = [sibling for sibling in siblings if sibling.run.evaluation is not None]
    # A result on synthetic pictures has nothing to do with a published one.
    with_published = not run.synthetic
    if not evaluated and not with_published:
        return ""
    rows = [(f"**this model**: {variant_name(run)}", run)]
    rows += [(link(sibling.repo_id, variant_name(sibling.run)), sibling.run) for sibling in evaluated]
    notes = [leak_note(with_published=with_published)]
    if not same_protocol([run, *(sibling.run for sibling in evaluated)]):
        notes.append("The siblings were not all scored on the same images.")
    paired = [
        paired_table(sibling.comparison, run.modality, sibling.run.modality)
        for sibling in evaluated
        if sibling.comparison is not None
    ]
    if paired:
        paired.append(
            "One training run each: another seed may move these differences, and none is adjusted for looking at "
            "several metrics."
        )
    return section(
        "Beside its siblings and the published baseline"
        if evaluated and with_published
        else "Beside its siblings"
        if evaluated
        else "Beside the published baseline",
        comparison_table(rows, with_published=with_published),
        " ".join(notes),
        *paired,
        level=3,
    )


__all__ = [
    "SUMMARY_METRICS",
    "comparison_section",
    "comparison_table",
    "leak_note",
    "link",
    "paired_table",
    "same_protocol",
    "variant_name",
]
