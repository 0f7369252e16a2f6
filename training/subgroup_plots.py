"""The figure of the subgroups: in whom malignant lesions are found, and in whom they are missed."""

import os
from pathlib import Path
from typing import Any

from ham10000.training.plots import GREY, OKABE_ITO, new_figure, plain, save_figure, style_axes

_FIELD_TITLES = {"age": "age (years)", "sex": "sex", "site": "site", "photographs": "photographs of the lesion"}


def _finding(subgroups: dict[str, Any]) -> str:
    """The largest difference between two groups, in words."""
    gaps = {field: gap for field, gap in subgroups["largest_gaps"].items() if gap}
    if not gaps:
        return "Too few groups with enough malignant lesions to compare"
    field = max(gaps, key=lambda name: gaps[name]["difference"]["estimate"])
    rows = {row["group"]: row["malignant_sensitivity"]["estimate"] for row in subgroups["fields"][field]}
    lowest, highest = gaps[field]["lowest"], gaps[field]["highest"]
    where = "with {} photograph(s)" if field == "photographs" else f"at {field} {{}}"
    low, high = where.format(plain(lowest)), where.format(plain(highest))
    return f"Malignant found: {rows[lowest]:.0%} {low}, {rows[highest]:.0%} {high}"


def plot_subgroups(subgroups: dict[str, Any], path: str | os.PathLike[str]) -> Path:
    """Draws sensitivity and specificity to malignancy of each group with their intervals.

    Args:
        subgroups: Result of `subgroup_results`.
        path: Destination.

    Returns:
        The destination.
    """
    rows = [(field, row) for field, groups in subgroups["fields"].items() for row in groups]
    figure = new_figure(8, 1.6 + 0.36 * len(rows))
    axes = figure.add_subplot()
    names, position, positions = [], 0.0, []
    for index, (field, row) in enumerate(rows):
        if index and rows[index - 1][0] != field:
            position += 0.6  # a gap between the fields
        positions.append(position)
        names.append(f"{_FIELD_TITLES[field]}: {plain(row['group'])}  ({row['n_malignant']:,} / {row['n_images']:,})")
        for name, colour, marker, offset in (
            ("malignant_sensitivity", OKABE_ITO["vermilion"], "o", -0.15),
            ("malignant_specificity", OKABE_ITO["blue"], "s", 0.15),
        ):
            interval = row[name]
            if name == "malignant_sensitivity" and row["too_few"]:
                reason = "too few malignant lesions" if row["n_malignant"] else "no malignant lesion"
                axes.text(0.01, position + offset, reason, color=GREY, fontsize=9, va="center")
                continue
            if interval["estimate"] is None:
                continue
            if interval["low"] is not None:
                axes.plot([interval["low"], interval["high"]], [position + offset] * 2, color=colour, linewidth=2.2)
            axes.plot(interval["estimate"], position + offset, marker, color=colour, markersize=7, clip_on=False)
        position += 1
    for label, colour, marker in (
        ("sensitivity: malignant images called malignant", "vermilion", "o"),
        ("specificity: benign images called benign", "blue", "s"),
    ):
        axes.plot([], [], marker, color=OKABE_ITO[colour], markersize=7, label=label)
    xlabel = "Share of images, with 95 % interval"
    style_axes(axes, xlabel=xlabel, grid="x")
    figure.suptitle(_finding(subgroups), x=0.02, ha="left", fontsize=12, fontweight="bold")
    axes.set_yticks(positions, names)
    axes.set_ylabel("Group (malignant images / images)", fontsize=11)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=10)
    return save_figure(figure, path)


__all__ = ["plot_subgroups"]
