"""Draws the figures of a study from its study.json, each with its finding as title."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ham10000.training.evaluation.plots import (
    draw_interval,
    legend_below,
    legend_point,
    name_rows,
    panels,
    say_too_few,
    set_title,
    spaced_rows,
    subgroup_name,
)
from ham10000.training.study import report
from ham10000.training.study.report import TITLES, Study
from ham10000.training.utils.figures import GREY, OKABE_ITO, plain, save_figure, style_axes
from ham10000.training.utils.markdown_text import leaves_out_zero, words

# The same variant has the same colour and marker in every figure, so that colour is never the only difference.
_STYLES = {
    "image": (OKABE_ITO["black"], "o"),
    "metadata": (OKABE_ITO["orange"], "D"),
    "fusion": (OKABE_ITO["blue"], "s"),
    "control": (OKABE_ITO["green"], "^"),
}
_BETTER, _WORSE = OKABE_ITO["blue"], OKABE_ITO["vermilion"]
_VERDICTS = {"helps": _BETTER, "hurts": _WORSE, "no significant difference": OKABE_ITO["black"]}
_RESULTS = ("macro_f1", "balanced_accuracy", "auroc_macro", "melanoma_sensitivity_at_95_specificity")
_INTERVAL = "95 % interval"


def _style(variant: str) -> tuple[str, str]:
    return _STYLES.get(variant, (OKABE_ITO["sky"], "X"))


def _interval(axes: Axes, value: Mapping[str, Any] | None, y: float, colour: str, marker: str, **options: Any) -> None:
    """Draws an interval, or says that there is none, so that a gap is not read as zero."""
    if not draw_interval(axes, None if value is None else dict(value), y, colour, marker, **options):
        axes.text(0.02, y, "undefined", transform=axes.get_yaxis_transform(), color=GREY, fontsize=9, va="center")


def _panel_title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=10.5, color="#333333", pad=6)


def _zero_line(axes: Axes) -> None:
    axes.axvline(0, color=GREY, linewidth=1.2, zorder=1)


def _offset(place: int, count: int) -> float:
    """Height of one of several variants within a row."""
    return 0.7 * ((place + 0.5) / count - 0.5)


def _points(names: Sequence[str], **options: Any) -> list[Any]:
    return [legend_point(name, *_style(name), **options) for name in names]


def _readers(study: Study) -> dict[str, Any]:
    """Shortcuts of the variants that read metadata, fusion first."""
    found = {name: values["shortcuts"] for name, values in report.lead(study)["variants"].items()}
    return {name: found[name] for name in sorted(found) if found[name]}


def results(study: Study) -> Figure:
    """Four scores of every variant and baseline, with intervals and seeds."""
    lead = report.lead(study)
    rows: list[tuple[str, str, Mapping[str, Any]]] = []
    for protocol, values in study["protocols"].items():
        rows += [(protocol, name, variant["metrics"]) for name, variant in values["variants"].items()]
        rows += [(protocol, row["name"], row["scores"]) for row in values["baselines"]]
    figure, grid = panels(len(_RESULTS), 0.9 + 0.3 * len(rows), extra=0.5)
    positions = spaced_rows([protocol for protocol, _, _ in rows], 0.6)
    several = len(study["protocols"]) > 1
    for place, (axes, key) in enumerate(zip(grid, _RESULTS, strict=True)):
        for y, (_, name, scores) in zip(positions, rows, strict=True):
            if key in scores:
                _interval(axes, scores[key], y, *_style(name))
            else:
                axes.text(
                    0.02, y, "answers only", transform=axes.get_yaxis_transform(), color=GREY, fontsize=9, va="center"
                )
        names = [f"{name.replace(' on metadata', '')}" for _, name, _ in rows]
        if several:
            names = [
                f"{name}{'' if p == rows[0][0] else f' ({p})'}" for name, (p, _, _) in zip(names, rows, strict=True)
            ]
        name_rows(axes, positions, [plain(name) for name in names], xlabel=f"Score, with {_INTERVAL}")
        _panel_title(axes, TITLES[key])
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        if place % 2:
            axes.set_yticklabels([])
    scores = {name: values["metrics"]["macro_f1"]["estimate"] or 0.0 for name, values in lead["variants"].items()}
    set_title(figure, "Macro-F1: " + ", ".join(f"{name} {score:.3f}" for name, score in scores.items()))
    return figure


def calibration(study: Study) -> Figure:
    """The ECE of every variant before and after calibration, and its floor."""
    variants = report.lead(study)["variants"]
    ways = (("before", OKABE_ITO["orange"], "o", -0.2), ("after calibration", _BETTER, "s", 0.1))
    figure, (axes,) = panels(1, 0.9 + 0.55 * len(variants))
    for place, values in enumerate(variants.values()):
        both = (values["uncalibrated"]["ece"], values["metrics"]["ece"])
        for value, (_, colour, marker, offset) in zip(both, ways, strict=True):
            _interval(axes, {**value, "per_seed": []}, place + offset, colour, marker)
        axes.plot([values["ece_floor"]], [place + 0.1], "|", color=_WORSE, markersize=16, markeredgewidth=2)
    xlabel = f"Expected calibration error (share), with {_INTERVAL}; 0 is best"
    name_rows(axes, range(len(variants)), list(variants), xlabel=xlabel)
    axes.set_xlim(left=0)
    name = "fusion" if "fusion" in variants else "image"
    ece, floor = variants[name]["metrics"]["ece"]["estimate"] or 0.0, variants[name]["ece_floor"]
    set_title(figure, f"Calibrated {name}: ECE {ece:.3f}, of which {floor:.3f} is the floor of this size")
    handles = [legend_point(label, colour, marker) for label, colour, marker, _ in ways]
    floor_mark = legend_point("floor: a perfectly calibrated model", _WORSE, "|", markersize=12, markeredgewidth=2)
    legend_below(figure, [*handles, floor_mark], 3)
    return figure


def comparisons(study: Study) -> Figure:
    """Paired differences of the primary metric with intervals, and what could have been detected."""
    rows, primary = report.lead(study)["comparisons"], study["study"]["primary"]
    figure, (axes,) = panels(1, 0.9 + 0.5 * len(rows))
    for y, item in enumerate(rows):
        least = item["smallest_detectable"]
        axes.barh(y, 2 * least, left=-least, height=0.62, color="#E8E8E8", edgecolor="none", zorder=0)
        _interval(axes, item["metrics"][primary]["estimate"], y, _VERDICTS[item["verdict"]], "o")
    _zero_line(axes)
    axes.margins(x=0.06)
    axes.autoscale()
    names = [f"{item['model']} - {item['other']}" for item in rows]
    name_rows(axes, range(len(rows)), names, xlabel=f"Difference in {TITLES[primary]}, with {_INTERVAL}")
    first = rows[0]
    estimate = first["metrics"][primary]["estimate"]["estimate"] or 0.0
    verdict = "no significant difference" if first["verdict"].startswith("no") else f"it {first['verdict']}"
    set_title(figure, f"{names[0]}: {estimate:+.3f} {TITLES[primary]}, {verdict}")
    shown = {item["verdict"] for item in rows}
    points = [legend_point(name, colour, linestyle="-") for name, colour in _VERDICTS.items() if name in shown]
    legend_below(figure, [*points, Patch(color="#E8E8E8", label="smaller than detectable with 80 % power")], 3)
    return figure


def class_changes(study: Study) -> Figure:
    """Lesions that each second-stage variant corrects and breaks, by class."""
    rows = report.lead(study)["comparisons"][:2]
    figure, grid = panels(len(rows), 2.9)
    ways = (("lesions_gained", _BETTER, 1, "left"), ("lesions_lost", _WORSE, -1, "right"))
    largest = max([1, *(row[way] for item in rows for row in item["changes"].values() for way, *_ in ways)])
    for axes, item in zip(grid, rows, strict=True):
        changes = item["changes"]
        for y, row in enumerate(changes.values()):
            for way, colour, sign, align in ways:
                axes.barh(y, sign * row[way], color=colour, height=0.7)
                where: dict[str, Any] = {"xytext": (4 * sign, 0), "textcoords": "offset points"}
                axes.annotate(f"{row[way]:,}", (sign * row[way], y), fontsize=9, va="center", ha=align, **where)
        names = [f"{label} ({row['lesions']:,})" for label, row in changes.items()]
        name_rows(axes, range(len(names)), names, xlabel="Lesions", ylabel="Class (lesions)")
        axes.axvline(0, color=GREY, linewidth=1.2)
        axes.set_xlim(-1.5 * largest, 1.5 * largest)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):,.0f}")
        _panel_title(axes, f"{item['model']}, against {item['other']}")
    gained, lost = (sum(row[way] for row in rows[0]["changes"].values()) for way, *_ in ways)
    set_title(
        figure, f"{rows[0]['model']} corrects {gained:,} lesions and breaks {lost:,}, against {rows[0]['other']}"
    )
    legend_below(figure, [Patch(color=_WORSE, label="broken (to the left)"), Patch(color=_BETTER, label="corrected")])
    return figure


def shortcuts(study: Study) -> Figure:
    """Macro-F1 lost by shuffling and by hiding each field."""
    ways = (
        ("shuffled", _WORSE, "o", -0.17, "shuffled among the images"),
        ("unknown", _BETTER, "s", 0.17, "set to unknown"),
    )
    found = _readers(study)
    figure, grid = panels(len(found), 1.15 + 0.42 * max(len(values["fields"]) for values in found.values()))
    for axes, (name, values) in zip(grid, found.items(), strict=True):
        for place, field in enumerate(values["fields"].values()):
            for way, colour, marker, offset, _ in ways:
                _interval(axes, field[way]["drop"] | {"per_seed": []}, place + offset, colour, marker)
        names = ["all together" if field == "all" else plain(field) for field in values["fields"]]
        name_rows(axes, range(len(names)), names, xlabel=f"Macro-F1 lost, with {_INTERVAL}")
        _zero_line(axes)
        _panel_title(axes, name)
    name, values = next(iter(found.items()))
    named = [plain(field) for field in values["named"]]
    text = f"{name} reads {words(named)}" if named else f"No single field could be shown to matter to {name}"
    set_title(figure, text)
    legend_below(figure, [legend_point(label, colour, marker, linestyle="-") for _, colour, marker, _, label in ways])
    return figure


def sweeps(study: Study) -> Figure:
    """Mean melanoma probability over the age and over the site given, the image fixed."""
    found = _readers(study)
    figure, (left, right) = panels(2, 4.6)
    sites = [site for _, site in sorted(_curve(next(iter(found.values()))["site_sweep"]), reverse=True)]
    for place, (name, values) in enumerate(found.items()):
        colour, marker = _style(name)
        sweep = values["age_sweep"]
        low, mean, high = (
            np.array([row[key] for row in sweep["melanoma"]], dtype=float) for key in ("low", "estimate", "high")
        )
        left.fill_between(sweep["values"], low, high, color=colour, alpha=0.15, linewidth=0)
        left.plot(sweep["values"], mean, color=colour, marker=marker, markersize=4, linewidth=1.8)
        for site, row in zip(values["site_sweep"]["values"], values["site_sweep"]["melanoma"], strict=True):
            y = sites.index(site) + _offset(place, len(found))
            _interval(right, row | {"per_seed": []}, y, colour, marker, markersize=4)
    style_axes(left, xlabel="Age given to the model (years)", ylabel="Mean melanoma probability")
    left.set_ylim(bottom=0)
    name_rows(right, range(len(sites)), [plain(site) for site in sites], xlabel="Mean melanoma probability")
    right.set_xlim(left=0)
    right.xaxis.set_major_locator(MaxNLocator(nbins=4))
    name, values = next(iter(found.items()))
    slope = values["age_sweep"]["change"]
    text = "no trend of melanoma probability over age beyond chance"
    if leaves_out_zero(slope):
        way = "rises" if slope["estimate"] > 0 else "falls"
        text = f"melanoma probability {way} by {abs(slope['estimate']):.3f} per decade of age"
    set_title(figure, f"{name}, same image: {text}")
    legend_below(figure, _points(list(found), linestyle="-"), 3)
    return figure


def _curve(sweep: Mapping[str, Any]) -> list[tuple[float, str]]:
    """(mean melanoma probability, value) along a sweep."""
    return [(row["estimate"], value) for row, value in zip(sweep["melanoma"], sweep["values"], strict=True)]


def missing(study: Study) -> Figure:
    """Macro-F1 and flips against the share of fields missing at random."""
    found = _readers(study)
    figure, grid = panels(2, 3.0)
    for axes, (key, title, factor) in zip(
        grid, (("macro_f1", "Macro-F1", 1), ("flips", "Images that flip (%)", 100)), strict=True
    ):
        for name, values in found.items():
            shares = [100 * row["share"] for row in values["missing"]]
            low, mean, high = (
                factor * np.array([row[key][end] for row in values["missing"]], dtype=float)
                for end in ("low", "estimate", "high")
            )
            colour, marker = _style(name)
            axes.fill_between(shares, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(shares, mean, color=colour, marker=marker, markersize=4, linewidth=1.8)
        style_axes(axes, xlabel="Fields missing at random (%)", ylabel=title)
        axes.set_xlim(-3, 103)
        axes.set_ylim(bottom=0)
    name, values = next(iter(found.items()))
    full, none = (values["missing"][k]["macro_f1"]["estimate"] for k in (0, -1))
    set_title(figure, f"{name} without any metadata: macro-F1 {none:.3f}, with all of it {full:.3f}")
    legend_below(figure, _points(list(found), linestyle="-"), 3)
    return figure


def subgroups(study: Study) -> Figure:
    """Sensitivity to malignancy in every subgroup, of the image model and fusion."""
    variants = {name: values for name, values in report.lead(study)["variants"].items() if name in ("image", "fusion")}
    fields = variants["image"]["subgroups"]["fields"]
    groups = [(field, row) for field, rows in fields.items() for row in rows]
    figure, (axes,) = panels(1, 1.2 + len(groups) * (0.22 + 0.1 * len(variants)))
    positions = spaced_rows([field for field, _ in groups], 0.5)
    for y, (field, row) in zip(positions, groups, strict=True):
        if row["too_few"]:
            say_too_few(axes, y, row)
            continue
        for place, (name, values) in enumerate(variants.items()):
            found = report.subgroup(values, field, row["group"])
            height = y + _offset(place, len(variants))
            _interval(axes, found["malignant_sensitivity"], height, *_style(name), markersize=6)
    names = [subgroup_name(field, row) for field, row in groups]
    xlabel = f"Share of malignant images found, with {_INTERVAL}"
    name_rows(axes, positions, names, xlabel=xlabel, ylabel="Group (malignant images / images)")
    axes.set_xlim(0, 1)
    lead = "fusion" if "fusion" in variants else "image"
    gaps = report.gaps(variants[lead])
    text = "Too few groups with enough malignant lesions to compare"
    if gaps:
        field, gap = max(gaps.items(), key=lambda item: item[1]["difference"]["estimate"])
        low, high = (
            report.subgroup(variants[lead], field, gap[end])["malignant_sensitivity"]["estimate"]
            for end in ("lowest", "highest")
        )
        text = f"{lead} finds {low:.0%} of malignant images at {field} {plain(gap['lowest'])}, {high:.0%} at "
        text += plain(gap["highest"])
    set_title(figure, text)
    legend_below(figure, _points(list(variants)), 3)
    return figure


DRAW: dict[str, Callable[[Study], Figure]] = {
    "results": results,
    "calibration": calibration,
    "comparisons": comparisons,
    "class_changes": class_changes,
    "shortcuts": shortcuts,
    "sweeps": sweeps,
    "missing": missing,
    "subgroups": subgroups,
}


def plot_study(study: Study, folder: str | os.PathLike[str], suffix: str = ".png") -> list[Path]:
    """Draws every figure of the report.

    Args:
        study: Content of study.json.
        folder: Receives `results.png` and the like; made where it does not exist.
        suffix: Names the format, such as `.pdf`.

    Returns:
        The files written, in the order of the report.

    Raises:
        Ham10000Error: For a study of another format, or without a protocol.
    """
    report.check_study(study)
    return [save_figure(draw(study), Path(folder, f"{name}{suffix}")) for name, draw in DRAW.items()]
