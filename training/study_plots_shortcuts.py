"""The study's figures of shortcuts, sweeps, missing fields and subgroups."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ham10000.training.markdown_text import defined, leaves_out_zero, percent, words
from ham10000.training.plots import GREY, OKABE_ITO, style_axes
from ham10000.training.study_data import (
    first_protocol,
    largest_gap,
    lead_shortcuts,
    lead_variant,
    subgroup,
    subgroup_rows,
    subgroup_variants,
)
from ham10000.training.study_data import shortcuts as found_shortcuts
from ham10000.training.study_plots import (
    colour,
    draw_interval,
    marker,
    name_rows,
    number,
    panel_title,
    panels,
    plain,
    set_title,
    variant_legend,
)

_FIELDS = {"age": "age (years)"}
_WAYS = (("shuffled", OKABE_ITO["vermilion"], "o", -0.17), ("unknown", OKABE_ITO["blue"], "s", 0.17))


def _confidence(study: dict[str, Any]) -> str:
    return percent(study["settings"]["confidence"], 0)


def _in_protocol(study: dict[str, Any], protocol: str, key: str) -> list[tuple[str, dict[str, Any]]]:
    """(variant, shortcuts) of a protocol's variants that have this part."""
    return [(name, values) for where, name, values in found_shortcuts(study) if where == protocol and values.get(key)]


def shortcuts(study: dict[str, Any]) -> Figure:
    """Macro-F1 lost by shuffling and by hiding each field, one panel for each variant and protocol."""
    found = found_shortcuts(study)
    figure, grid = panels(len(found), 1.15 + 0.42 * max(len(values["fields"]) for _, _, values in found))
    for axes, (protocol, name, values) in zip(grid, found, strict=True):
        for place, ways in enumerate(values["fields"].values()):
            for way, bar_colour, shape, offset in _WAYS:
                draw_interval(axes, ways[way]["macro_f1_drop"], place + offset, bar_colour, shape)
        names = ["all together" if field == "all" else plain(field) for field in values["fields"]]
        xlabel = f"Macro-F1 lost, with {_confidence(study)} interval"
        name_rows(axes, range(len(names)), names, xlabel=xlabel)
        axes.axvline(0, color=GREY, linewidth=1.2, zorder=1)
        panel_title(axes, f"{plain(name)}, {protocol}")
    _, name, values = lead_shortcuts(study)
    if values["named"]:
        most = max(values["named"], key=lambda field: values["fields"][field]["shuffled"]["macro_f1_drop"]["estimate"])
        cost = values["fields"][most]["shuffled"]["macro_f1_drop"]["estimate"]
        read = words([plain(field) for field in values["named"]])
        text = f"{plain(name)} reads {read}: shuffling {plain(most)} costs {number(cost)} macro-F1"
    else:
        text = f"No single field could be shown to matter to {plain(name)}"
    set_title(figure, text)
    handles = [
        Line2D([], [], color=bar_colour, marker=shape, markersize=7, label=text)
        for (_, bar_colour, shape, _), text in zip(_WAYS, ("shuffled among the images", "set to unknown"), strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=10)
    return figure


def _sweep_title(study: dict[str, Any]) -> str:
    _, name, values = lead_shortcuts(study)
    if age := values.get("age_sweep"):
        if not leaves_out_zero(age["slope_per_decade"]):
            return f"{plain(name)}, same picture: no trend of melanoma probability over age beyond chance"
        slope = age["slope_per_decade"]["estimate"]
        way = "rises" if slope > 0 else "falls"
        return f"{plain(name)}, same picture: melanoma probability {way} by {abs(slope):.3f} a decade of age"
    if site := values.get("site_sweep"):
        return (
            f"{plain(name)}, same picture: melanoma probability differs by {number(site['range']['estimate'])} by site"
        )
    return "Mean melanoma probability, the picture fixed"


def _site_order(found: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """Sites by the first fusion's melanoma probability, the highest first."""
    first = next((values for name, values in found if name.startswith("fusion-")), found[0][1])["site_sweep"]
    return [first["sites"][k] for k in np.argsort(first["melanoma"]["mean"])[::-1]]


def _draw_ages(axes: Axes, found: list[tuple[str, dict[str, Any]]]) -> None:
    for name, values in found:
        sweep = values["age_sweep"]
        low, mean, high = (np.array(sweep["melanoma"][key], dtype=float) for key in ("low", "mean", "high"))
        axes.fill_between(sweep["ages"], low, high, color=colour(name), alpha=0.15, linewidth=0)
        axes.plot(sweep["ages"], mean, color=colour(name), marker=marker(name), markersize=4, linewidth=1.8)
    style_axes(axes, xlabel="Age given to the model (years)", ylabel="Mean melanoma probability")
    axes.set_ylim(bottom=0)


def _draw_sites(axes: Axes, found: list[tuple[str, dict[str, Any]]]) -> None:
    order = _site_order(found)
    for place, (name, values) in enumerate(found):
        sweep, offset = values["site_sweep"], 0.7 * ((place + 0.5) / len(found) - 0.5)
        for k, site in enumerate(sweep["sites"]):
            value = {key: sweep["melanoma"][key][k] for key in ("mean", "low", "high")}
            draw_interval(axes, value, order.index(site) + offset, colour(name), marker(name), markersize=4)
    name_rows(axes, range(len(order)), [plain(site) for site in order], xlabel="Mean melanoma probability")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4))


def sweeps(study: dict[str, Any]) -> Figure:
    """Mean melanoma probability over the age and over the site given, the picture fixed."""
    parts = [
        (protocol, key, draw, found)
        for protocol in study["protocols"]
        for key, draw in (("age_sweep", _draw_ages), ("site_sweep", _draw_sites))
        if (found := _in_protocol(study, protocol, key))
    ]
    # Room for every bar: as many at each site as there are variants.
    bars = max(len(found) * len(found[0][1][key].get("sites", [])) for _, key, _, found in parts)
    figure, grid = panels(len(parts), max(4.4, 1 + 0.08 * bars))
    for axes, (protocol, key, draw, found) in zip(grid, parts, strict=True):
        draw(axes, found)
        panel_title(axes, f"{'age' if key == 'age_sweep' else 'site'}, {protocol}")
    set_title(figure, _sweep_title(study))
    names = dict.fromkeys(name for _, _, _, found in parts for name, _ in found)
    what = Line2D([], [], color=GREY, linewidth=2, label=f"bands and bars: {_confidence(study)} interval")
    variant_legend(figure, list(names), what, line="-")
    return figure


def missing(study: dict[str, Any]) -> Figure:
    """Macro-F1 and flips against the share of fields missing at random."""
    protocols = [name for name in study["protocols"] if _in_protocol(study, name, "missing")]
    figure, grid = panels(2 * len(protocols), 3.0)
    rows = (("macro_f1", "Macro-F1", 1), ("flip_share", "Images that flip (%)", 100))
    places = [(protocol, row) for protocol in protocols for row in rows]
    for axes, (protocol, (key, title, factor)) in zip(grid, places, strict=True):
        for name, values in _in_protocol(study, protocol, "missing"):
            points = [row for row in values["missing"] if defined(row[key]["estimate"])]
            shares = [100 * row["share"] for row in points]
            axes.plot(
                shares,
                [factor * row[key]["estimate"] for row in points],
                color=colour(name),
                marker=marker(name),
                markersize=4,
                linewidth=1.8,
            )
            known = [row for row in points if defined(row[key]["low"]) and defined(row[key]["high"])]
            low, high = ([factor * row[key][end] for row in known] for end in ("low", "high"))
            axes.fill_between(
                [100 * row["share"] for row in known], low, high, color=colour(name), alpha=0.15, linewidth=0
            )
        style_axes(axes, xlabel="Fields missing at random (%)", ylabel=title)
        panel_title(axes, protocol)
        axes.set_xlim(-3, 103)
        axes.set_ylim(bottom=0)
    _, name, values = lead_shortcuts(study)
    if values["missing"]:
        none, everything = (values["missing"][k]["macro_f1"]["estimate"] for k in (0, -1))
        text = f"{plain(name)} without any metadata: macro-F1 {number(everything)}, with all of it {number(none)}"
    else:
        text = "Macro-F1 while fields go missing"
    set_title(figure, text)
    names = dict.fromkeys(name for protocol in protocols for name, _ in _in_protocol(study, protocol, "missing"))
    variant_legend(
        figure, list(names), Patch(color=GREY, alpha=0.25, label=f"bands: {_confidence(study)} interval"), line="-"
    )
    return figure


def _subgroup_title(study: dict[str, Any]) -> str:
    name, protocol = first_protocol(study)
    lead = lead_variant(protocol)
    values = protocol["variants"][lead]
    found = largest_gap(values)
    if found is None:
        return "Too few groups with enough malignant lesions to compare"
    field, gap = found
    within = "" if leaves_out_zero(gap["difference"]) else "; within chance"
    low, high = (
        row["malignant_sensitivity"]["estimate"]
        for end in ("lowest", "highest")
        if (row := subgroup(values, field, gap[end])) is not None
    )
    return (
        f"{plain(lead)} finds {low:.0%} of malignant images at {field} {plain(gap['lowest'])}, {high:.0%} at "
        f"{plain(gap['highest'])} ({name}{within})"
    )


def subgroups(study: dict[str, Any]) -> Figure:
    """Sensitivity to malignancy in every subgroup, the image model beside each fusion."""
    protocols = {name: protocol for name, protocol in study["protocols"].items() if subgroup_rows(protocol)}
    shown = list(dict.fromkeys(key for protocol in protocols.values() for key in subgroup_variants(protocol)))
    most = max(len(subgroup_rows(protocol)) for protocol in protocols.values())
    figure, grid = panels(len(protocols), 1.2 + most * (0.22 + 0.1 * len(shown)), columns=1)
    for axes, (title, protocol) in zip(grid, protocols.items(), strict=True):
        positions, names, y, last = [], [], 0.0, None
        for field, group in subgroup_rows(protocol):
            y += 0.0 if last is None else 1.0 if last == field else 1.5
            last = field
            positions.append(y)
            found = [(name, subgroup(protocol["variants"].get(name, {}), field, group)) for name in shown]
            first = next((row for _, row in found if row), None)
            counts = f" ({first['n_malignant']:,} / {first['n_images']:,})" if first else ""
            names.append(f"{_FIELDS.get(field, plain(field))}: {plain(group)}{counts}")
            if first is None or first["too_few"]:
                reason = "too few malignant lesions" if first and first["n_malignant"] else "no malignant lesion"
                axes.text(0.01, y, reason, color=GREY, fontsize=9, va="center")
                continue
            for place, (name, row) in enumerate(found):
                if row is not None:
                    offset = 0.7 * ((place + 0.5) / len(found) - 0.5)
                    value = row["malignant_sensitivity"]
                    draw_interval(axes, value, y + offset, colour(name), marker(name), markersize=6)
        xlabel = f"Share of malignant images found, with {_confidence(study)} interval"
        name_rows(axes, positions, names, xlabel=xlabel, ylabel="Group (malignant images / images)")
        axes.set_xlim(0, 1)
        if len(protocols) > 1:
            panel_title(axes, title)
    set_title(figure, _subgroup_title(study))
    variant_legend(figure, shown)
    return figure


__all__ = ["missing", "shortcuts", "subgroups", "sweeps"]
