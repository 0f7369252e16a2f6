"""Draws the figures of a study from its study.json, each with its finding as title."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ham10000.modeling.configuration_ham10000 import LABELS
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
from ham10000.training.study.report import TITLES, Study, first_protocol, lead_variant, metric, variants
from ham10000.training.utils.figures import GREY, OKABE_ITO, plain, save_figure, style_axes
from ham10000.training.utils.markdown_text import defined, leaves_out_zero, percent, plural, words

# The same variant has the same colour and marker in every figure, so that colour is never the only difference.
_STYLES = {
    "image": (OKABE_ITO["black"], "o"),
    "metadata": (OKABE_ITO["orange"], "D"),
    "fusion-concat": (OKABE_ITO["blue"], "s"),
    "fusion-gated": (OKABE_ITO["green"], "^"),
    "fusion-metablock": (OKABE_ITO["purple"], "v"),
    "fusion-film": (OKABE_ITO["vermilion"], "p"),
}
_HOLLOW: dict[str, Any] = {"markerfacecolor": "white", "markeredgewidth": 1.8}
_BETTER, _WORSE, _NEITHER = OKABE_ITO["blue"], OKABE_ITO["vermilion"], OKABE_ITO["black"]
_VERDICTS = {"helps": _BETTER, "hurts": _WORSE, "no significant difference": _NEITHER}
_RESULTS = ("macro_f1", "balanced_accuracy", "auroc_macro", "melanoma_sensitivity_at_95_specificity")


def style(variant: str) -> tuple[str, str]:
    """Colour and marker of a variant."""
    return _STYLES.get(variant, (OKABE_ITO["sky"], "X"))


def _number(value: Any, form: str = ".2f") -> str:
    return f"{value:{form}}" if defined(value) else "undefined"


def _interval_text(study: Study) -> str:
    return f"{percent(study['settings']['confidence'], 0)} interval"


def _panel_title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=10.5, color="#333333", pad=6)


def _zero_line(axes: Axes) -> None:
    axes.axvline(0, color=GREY, linewidth=1.2, zorder=1)


def _draw_or_say(axes: Axes, value: Study | None, y: float, variant: str, **options: Any) -> None:
    """Draws an interval, or says that there is none, so that a gap is not read as zero."""
    if not draw_interval(axes, value, y, *style(variant), **options):
        across = axes.get_yaxis_transform()
        axes.text(0.02, y, "undefined", transform=across, color=GREY, fontsize=9, va="center")


def _draw_band(axes: Axes, x: Sequence[float], low: Any, high: Any, variant: str) -> None:
    axes.fill_between(x, low, high, color=style(variant)[0], alpha=0.15, linewidth=0)


def _draw_line(axes: Axes, x: Sequence[float], y: Any, variant: str) -> None:
    colour, marker = style(variant)
    axes.plot(x, y, color=colour, marker=marker, markersize=4, linewidth=1.8)


def _seed_dot(study: Study) -> list[Artist]:
    """What the small dots are, where there are several seeds."""
    dot = legend_point("one seed", GREY, markersize=3.5, markerfacecolor="white")
    return [dot] if report.n_seeds(study) > 1 else []


def _variant_points(names: Sequence[str], **options: Any) -> list[Artist]:
    return [legend_point(name, *style(name), **options) for name in names]


def _offset(place: int, count: int) -> float:
    """Height of one of several variants within a row."""
    return 0.7 * ((place + 0.5) / count - 0.5)


def results(study: Study) -> Figure:
    """Four scores of every variant under every protocol, with intervals and seeds."""
    rows, protocols = list(variants(study)), list(study["protocols"])
    hollow = {name: _HOLLOW if place else {} for place, name in enumerate(protocols)}
    figure, grid = panels(len(_RESULTS), 0.9 + 0.3 * len(rows), extra=0.8)
    positions = spaced_rows([protocol for protocol, _, _ in rows], 0.6)
    for place, (axes, key) in enumerate(zip(grid, _RESULTS, strict=True)):
        for y, (protocol, name, values) in zip(positions, rows, strict=True):
            _draw_or_say(axes, metric(values, key), y, name, **hollow[protocol])
        names = [plain(name) for _, name, _ in rows]
        name_rows(axes, positions, names, xlabel=f"Score, with {_interval_text(study)}")
        _panel_title(axes, TITLES[key])
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        if place % 2:
            axes.set_yticklabels([])
    protocol, lead = first_protocol(study)
    scores = {name: value["mean"] for name, v in lead["variants"].items() if (value := metric(v, "macro_f1"))}
    text = f"Macro-F1 is undefined under {protocol}"
    if scores:
        best = max(scores, key=scores.__getitem__)
        text = f"Highest macro-F1, {protocol}: {plain(best)} {scores[best]:.3f}"
        if best != "image" and "image" in scores:
            text += f", the image alone {scores['image']:.3f}"
    set_title(figure, text)
    points = [legend_point(name, GREY, **hollow[name]) for name in protocols] if len(protocols) > 1 else []
    if handles := [*points, *_seed_dot(study)]:
        legend_below(figure, handles, 4)
    return figure


def calibration(study: Study) -> Figure:
    """The ECE of every variant before and after temperature scaling."""
    ways = (("before scaling", OKABE_ITO["orange"], "o", -0.16), ("after scaling", OKABE_ITO["blue"], "s", 0.16))
    rows = [
        (protocol, name, [before, after])
        for protocol, name, values in variants(study)
        if (before := metric(values, "ece_uncalibrated")) and (after := metric(values, "ece"))
    ]
    figure, (axes,) = panels(1, 0.9 + 0.5 * len(rows))
    for place, (_, _, both) in enumerate(rows):
        for value, (_, colour, shape, offset) in zip(both, ways, strict=True):
            draw_interval(axes, value | {"per_seed": []}, place + offset, colour, shape)
    several = len(study["protocols"]) > 1
    names = [f"{plain(name)}\n{protocol}" if several else plain(name) for protocol, name, _ in rows]
    xlabel = f"Expected calibration error (share), with {_interval_text(study)}; 0 is best"
    name_rows(axes, range(len(rows)), names, xlabel=xlabel)
    axes.set_xlim(left=0)
    lead = lead_variant(first_protocol(study)[1])
    _, name, both = next((row for row in rows if row[1] == lead), rows[0])
    old, new = (value["mean"] for value in both)
    change = f"{'lowers' if new < old else 'raises'} the ECE of {plain(name)} from {old:.3f} to {new:.3f}"
    if f"{new:.3f}" == f"{old:.3f}":
        change = f"leaves the ECE of {plain(name)} at {new:.3f}"
    set_title(figure, f"Temperature scaling {change}")
    legend_below(figure, [legend_point(label, colour, shape) for label, colour, shape, _ in ways])
    return figure


def _comparison_title(study: Study) -> str:
    for name, protocol in study["protocols"].items():
        items = report.comparisons(protocol, "metadata")
        helps, hurts = (sum(item["verdict"] == verdict for item in items) for verdict in ("helps", "hurts"))
        if len(items) > 1 and not helps + hurts:
            return f"None of {len(items)} fusions differs significantly from the image alone ({name})"
        if len(items) > 1:
            return f"Metadata helps in {helps} of {len(items)} fusions and hurts in {hurts} ({name})"
        for item in items:
            verdict = report.reworded(item["verdict"])
            said = verdict if helps + hurts else f"makes {verdict}"
            estimate = item["metrics"][item["primary"]]["estimate"]
            return f"Metadata {said}: {plain(item['model'])} {estimate:+.3f} macro-F1 ({name})"
    found = [item for protocol in study["protocols"].values() for item in report.comparisons(protocol)]
    item = max(found, key=lambda item: abs(item["metrics"][item["primary"]]["estimate"]))
    estimate, verdict = item["metrics"][item["primary"]]["estimate"], report.reworded(item["verdict"])
    return f"{plain(item['name'])}: {estimate:+.3f} macro-F1, {verdict}"


def comparisons(study: Study) -> Figure:
    """Paired differences of the primary metric with intervals, and what could have been detected."""
    rows = [(name, item) for name, protocol in study["protocols"].items() for item in report.comparisons(protocol)]
    verdicts = [report.reworded(item["verdict"]) for _, item in rows]
    figure, (axes,) = panels(1, 0.9 + 0.5 * len(rows))
    for y, (_, item) in enumerate(rows):
        least = report.smallest_detectable(item)
        if least is not None and defined(least):
            axes.barh(y, 2 * least, left=-least, height=0.62, color="#E8E8E8", edgecolor="none", zorder=0)
        colour = _VERDICTS.get(verdicts[y], _NEITHER)
        draw_interval(axes, item["metrics"][item["primary"]], y, colour, "o")
    _zero_line(axes)
    several = len(study["protocols"]) > 1
    names = [plain(item["name"]) + (f"\n{name}" if several else "") for name, item in rows]
    titles = sorted({TITLES[item["primary"]] for _, item in rows})
    xlabel = f"Difference in {', '.join(titles)}, with {_interval_text(study)}"
    name_rows(axes, range(len(rows)), names, xlabel=xlabel)
    set_title(figure, _comparison_title(study))
    points = [legend_point(v, colour, linestyle="-") for v, colour in _VERDICTS.items() if v in verdicts]
    detectable = Patch(color="#E8E8E8", label="smaller than detectable with 80 % power")
    legend_below(figure, [*points, detectable, *_seed_dot(study)], 3)
    return figure


def class_changes(study: Study) -> Figure:
    """Lesions that metadata corrects and breaks, by class, one panel for each fusion and protocol."""
    protocols = study["protocols"]
    found = [
        (name, fusion, protocol["class_changes"][fusion])
        for fusion in dict.fromkeys(key for protocol in protocols.values() for key in report.fusions(protocol))
        for name, protocol in protocols.items()
        if protocol["class_changes"].get(fusion)
    ]
    figure, grid = panels(len(found), 2.9)
    ways = (("wrong_to_right", _BETTER, 1, "left"), ("right_to_wrong", _WORSE, -1, "right"))
    largest = max(row[way]["lesions"] for _, _, changes in found for row in changes.values() for way, *_ in ways)
    for axes, (name, fusion, changes) in zip(grid, found, strict=True):
        shown = [label for label in LABELS if label in changes]
        for y, label in enumerate(shown):
            for way, colour, sign, align in ways:
                count = changes[label][way]["lesions"]
                axes.barh(y, sign * count, color=colour, height=0.7)
                where: dict[str, Any] = {"xytext": (4 * sign, 0), "textcoords": "offset points"}
                axes.annotate(f"{count:,}", (sign * count, y), fontsize=9, va="center", ha=align, **where)
        names = [f"{label} ({changes[label]['n_lesions']:,})" for label in shown]
        name_rows(axes, range(len(shown)), names, xlabel="Lesions", ylabel="Class (lesions)")
        axes.axvline(0, color=GREY, linewidth=1.2)
        axes.set_xlim(-1.25 * max(largest, 1), 1.25 * max(largest, 1))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):,.0f}")
        _panel_title(axes, f"{plain(fusion)}, {name}")
    name, fusion, changes = found[0]
    right, wrong = (sum(row[way]["lesions"] for row in changes.values()) for way, *_ in ways)
    text = f"{plain(fusion)} corrects {plural(right, 'lesion')} and breaks {wrong:,}, against the image alone ({name})"
    set_title(figure, text)
    patches = [
        Patch(color=_WORSE, label="right to wrong (to the left)"),
        Patch(color=_BETTER, label="wrong to right (to the right)"),
    ]
    legend_below(figure, patches)
    return figure


def _lead_shortcuts(study: Study) -> tuple[str, Study]:
    """(variant, shortcuts) that a title is about: the first fusion, else the first variant that reads metadata."""
    found = [(name, values) for _, name, values in report.shortcuts(study)]
    return next(iter([row for row in found if report.is_fusion(row[0])] or found))


def _with_part(study: Study, protocol: str, key: str) -> list[tuple[str, Study]]:
    """(variant, shortcuts) of a protocol's variants that have this part."""
    return [(name, values) for where, name, values in report.shortcuts(study) if where == protocol and values.get(key)]


def shortcuts(study: Study) -> Figure:
    """Macro-F1 lost by shuffling and by hiding each field, one panel for each variant and protocol."""
    ways = (
        ("shuffled", _WORSE, "o", -0.17, "shuffled among the images"),
        ("unknown", _BETTER, "s", 0.17, "set to unknown"),
    )
    found = report.shortcuts(study)
    figure, grid = panels(len(found), 1.15 + 0.42 * max(len(values["fields"]) for _, _, values in found))
    for axes, (protocol, name, values) in zip(grid, found, strict=True):
        for place, field in enumerate(values["fields"].values()):
            for way, colour, shape, offset, _ in ways:
                draw_interval(axes, field[way]["macro_f1_drop"], place + offset, colour, shape)
        names = ["all together" if field == "all" else plain(field) for field in values["fields"]]
        name_rows(axes, range(len(names)), names, xlabel=f"Macro-F1 lost, with {_interval_text(study)}")
        _zero_line(axes)
        _panel_title(axes, f"{plain(name)}, {protocol}")
    name, values = _lead_shortcuts(study)
    text = f"No single field could be shown to matter to {plain(name)}"
    if values["named"]:
        costs = {field: values["fields"][field]["shuffled"]["macro_f1_drop"]["estimate"] for field in values["named"]}
        most = max(costs, key=costs.__getitem__)
        read = words([plain(field) for field in costs])
        text = f"{plain(name)} reads {read}: shuffling {plain(most)} costs {_number(costs[most])} macro-F1"
    set_title(figure, text)
    legend_below(figure, [legend_point(label, colour, shape, linestyle="-") for _, colour, shape, _, label in ways])
    return figure


def _sweep_title(study: Study) -> str:
    name, values = _lead_shortcuts(study)
    age, site = values.get("age_sweep"), values.get("site_sweep")
    if age and leaves_out_zero(age["slope_per_decade"]):
        slope = age["slope_per_decade"]["estimate"]
        way = "rises" if slope > 0 else "falls"
        return f"{plain(name)}, same image: melanoma probability {way} by {abs(slope):.3f} per decade of age"
    if age:
        return f"{plain(name)}, same image: no trend of melanoma probability over age beyond chance"
    if site:
        width = _number(site["range"]["estimate"])
        return f"{plain(name)}, same image: melanoma probability differs by {width} by site"
    return "Mean melanoma probability, the image fixed"


def _draw_ages(axes: Axes, found: list[tuple[str, Study]]) -> None:
    for name, values in found:
        sweep = values["age_sweep"]
        low, mean, high = (np.array(sweep["melanoma"][key], dtype=float) for key in ("low", "mean", "high"))
        _draw_band(axes, sweep["ages"], low, high, name)
        _draw_line(axes, sweep["ages"], mean, name)
    style_axes(axes, xlabel="Age given to the model (years)", ylabel="Mean melanoma probability")
    axes.set_ylim(bottom=0)


def _draw_sites(axes: Axes, found: list[tuple[str, Study]]) -> None:
    # By the first fusion's melanoma probability, the highest on top.
    first = next((values for name, values in found if report.is_fusion(name)), found[0][1])["site_sweep"]
    order = [first["sites"][k] for k in np.argsort(first["melanoma"]["mean"])[::-1]]
    for place, (name, values) in enumerate(found):
        sweep = values["site_sweep"]
        for k, site in enumerate(sweep["sites"]):
            value = {key: sweep["melanoma"][key][k] for key in ("mean", "low", "high")}
            draw_interval(axes, value, order.index(site) + _offset(place, len(found)), *style(name), markersize=4)
    name_rows(axes, range(len(order)), [plain(site) for site in order], xlabel="Mean melanoma probability")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4))


def sweeps(study: Study) -> Figure:
    """Mean melanoma probability over the age and over the site given, the image fixed."""
    parts = [
        (protocol, key, draw, found)
        for protocol in study["protocols"]
        for key, draw in (("age_sweep", _draw_ages), ("site_sweep", _draw_sites))
        if (found := _with_part(study, protocol, key))
    ]
    # Room for every bar: as many at each site as there are variants.
    bars = max(len(found) * len(found[0][1][key].get("sites", [])) for _, key, _, found in parts)
    figure, grid = panels(len(parts), max(4.4, 1 + 0.08 * bars))
    for axes, (protocol, key, draw, found) in zip(grid, parts, strict=True):
        draw(axes, found)
        _panel_title(axes, f"{'age' if key == 'age_sweep' else 'site'}, {protocol}")
    set_title(figure, _sweep_title(study))
    names = list(dict.fromkeys(name for *_, found in parts for name, _ in found))
    bands = Line2D([], [], color=GREY, linewidth=2, label=f"bands and bars: {_interval_text(study)}")
    legend_below(figure, [*_variant_points(names, linestyle="-"), bands], 3)
    return figure


def missing(study: Study) -> Figure:
    """Macro-F1 and flips against the share of fields missing at random."""
    found = {name: rows for name in study["protocols"] if (rows := _with_part(study, name, "missing"))}
    parts = (("macro_f1", "Macro-F1", 1), ("flip_share", "Images that flip (%)", 100))
    figure, grid = panels(2 * len(found), 3.0)
    places = [(protocol, *part) for protocol in found for part in parts]
    for axes, (protocol, key, title, factor) in zip(grid, places, strict=True):
        for name, values in found[protocol]:
            points = [(100 * row["share"], row[key]) for row in values["missing"] if defined(row[key]["estimate"])]
            _draw_line(axes, [x for x, _ in points], [factor * row["estimate"] for _, row in points], name)
            known = [(x, row) for x, row in points if defined(row["low"]) and defined(row["high"])]
            low, high = ([factor * row[end] for _, row in known] for end in ("low", "high"))
            _draw_band(axes, [x for x, _ in known], low, high, name)
        style_axes(axes, xlabel="Fields missing at random (%)", ylabel=title)
        _panel_title(axes, protocol)
        axes.set_xlim(-3, 103)
        axes.set_ylim(bottom=0)
    name, values = _lead_shortcuts(study)
    text = "Macro-F1 while fields go missing"
    if values["missing"]:
        full, none = (_number(values["missing"][k]["macro_f1"]["estimate"]) for k in (0, -1))
        text = f"{plain(name)} without any metadata: macro-F1 {none}, with all of it {full}"
    set_title(figure, text)
    names = list(dict.fromkeys(name for rows in found.values() for name, _ in rows))
    bands = Patch(color=GREY, alpha=0.25, label=f"bands: {_interval_text(study)}")
    legend_below(figure, [*_variant_points(names, linestyle="-"), bands], 3)
    return figure


def _subgroup_title(study: Study) -> str:
    name, protocol = first_protocol(study)
    lead = lead_variant(protocol)
    values = protocol["variants"][lead]
    found = report.largest_gap(values)
    if found is None:
        return "Too few groups with enough malignant lesions to compare"
    field, gap = found
    rows = {row["group"]: row["malignant_sensitivity"]["estimate"] for row in values["subgroups"]["fields"][field]}
    low, high = gap["lowest"], gap["highest"]
    within = "" if leaves_out_zero(gap["difference"]) else "; within chance"
    return (
        f"{plain(lead)} finds {rows[low]:.0%} of malignant images at {field} {plain(low)}, {rows[high]:.0%} at "
        f"{plain(high)} ({name}{within})"
    )


def subgroups(study: Study) -> Figure:
    """Sensitivity to malignancy in every subgroup, of the image model and each fusion."""
    protocols = {name: (p, groups) for name, p in study["protocols"].items() if (groups := report.subgroup_rows(p))}
    shown = list(
        dict.fromkeys(key for protocol, _ in protocols.values() for key in report.subgroup_variants(protocol))
    )
    most = max(len(groups) for _, groups in protocols.values())
    figure, grid = panels(len(protocols), 1.2 + most * (0.22 + 0.1 * len(shown)), columns=1)
    for axes, (title, (protocol, groups)) in zip(grid, protocols.items(), strict=True):
        positions, names = spaced_rows([field for field, _ in groups], 0.5), []
        for y, (field, group) in zip(positions, groups, strict=True):
            found = [report.subgroup(protocol["variants"].get(name, {}), field, group) for name in shown]
            first = next(row for row in found if row)
            names.append(subgroup_name(field, first))
            if first["too_few"]:
                say_too_few(axes, y, first)
                continue
            for place, (name, row) in enumerate(zip(shown, found, strict=True)):
                if row is not None:
                    height = y + _offset(place, len(shown))
                    draw_interval(axes, row["malignant_sensitivity"], height, *style(name), markersize=6)
        xlabel = f"Share of malignant images found, with {_interval_text(study)}"
        name_rows(axes, positions, names, xlabel=xlabel, ylabel="Group (malignant images / images)")
        axes.set_xlim(0, 1)
        if len(protocols) > 1:
            _panel_title(axes, title)
    set_title(figure, _subgroup_title(study))
    legend_below(figure, _variant_points(shown), 3)
    return figure


def _leakage_title(study: Study) -> str:
    for protocol, name, values in sorted(variants(study), key=lambda row: row[1] != "image"):
        if found := values["leakage"]:
            seen, unseen = (_number(found[part]["metrics"]["macro_f1"]["mean"]) for part in ("seen", "unseen"))
            return f"{plain(name)} under {protocol}: macro-F1 {seen} on lesions seen in training, {unseen} on others"
    lead = lead_variant(first_protocol(study)[1])
    found = [(where, metric(values, "macro_f1")) for where, name, values in variants(study) if name == lead]
    scores = [f"{_number(value and value['mean'])} under {where}" for where, value in found]
    return f"{plain(lead)}: macro-F1 {', '.join(scores)}"


def leakage(study: Study) -> Figure:
    """Macro-F1 under both protocols, and on lesions seen and not seen in training."""
    protocols = list(study["protocols"])
    # Title of a panel to its rows: (variant, label, macro-F1, whether the marker is hollow).
    parts: dict[str, list[tuple[str, str, Study | None, bool]]] = {}
    if len(protocols) > 1:
        rows = [(name, where, metric(v, "macro_f1"), where != protocols[0]) for where, name, v in variants(study)]
        order = list(dict.fromkeys(name for name, *_ in rows))
        parts["the same network under both protocols"] = sorted(rows, key=lambda row: order.index(row[0]))
    for protocol, name, values in variants(study):
        for part in ("seen", "unseen") if values["leakage"] else ():
            score = values["leakage"][part]["metrics"].get("macro_f1")
            rows = parts.setdefault(f"{protocol}: lesions seen in training or not", [])
            rows.append((name, f"lesions {part}", score, part == "unseen"))
    figure, grid = panels(len(parts), 1.0 + 0.34 * max(map(len, parts.values())), columns=1)
    for axes, (title, rows) in zip(grid, parts.items(), strict=True):
        positions = spaced_rows([name for name, *_ in rows], 0.5)
        for y, (name, _, value, is_hollow) in zip(positions, rows, strict=True):
            _draw_or_say(axes, value, y, name, **(_HOLLOW if is_hollow else {}))
        names = [f"{plain(name)}, {label}" for name, label, _, _ in rows]
        name_rows(axes, positions, names, xlabel=f"Macro-F1, with {_interval_text(study)}")
        _panel_title(axes, title)
    set_title(figure, _leakage_title(study))
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
    "leakage": leakage,
}


def plot_study(study: Study, folder: str | os.PathLike[str]) -> list[Path]:
    """Draws every figure the study has data for; the others are neither written nor pointed to by the report.

    Args:
        study: Content of study.json.
        folder: Receives `results.png` and the like; made where it does not exist.

    Returns:
        The files written, in the order of the report.

    Raises:
        Ham10000Error: For a study of another format, or without a protocol.
    """
    report.check_study(study)
    names = report.available_figures(study)
    return [save_figure(DRAW[name](study), Path(folder, f"{name}.png")) for name in names]


__all__ = ["DRAW", "plot_study", "style"]
