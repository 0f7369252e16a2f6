"""The study's figures of scores, calibration, paired differences, moved classes and leakage."""

from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ham10000.modeling.configuration_ham10000 import LABELS
from ham10000.training.markdown_text import defined, percent
from ham10000.training.plots import GREY, OKABE_ITO
from ham10000.training.study_data import (
    TITLES,
    comparisons,
    first_protocol,
    fusions,
    lead_variant,
    metric,
    n_seeds,
    smallest_detectable,
    variants,
)
from ham10000.training.study_plots import (
    colour,
    draw_interval,
    marker,
    name_rows,
    number,
    panel_title,
    panels,
    plain,
    say_undefined,
    set_title,
)

_PANELS = ("macro_f1", "balanced_accuracy", "auroc_macro", "melanoma_sensitivity_at_95_specificity")
_VERDICT_COLOURS = {"helps": OKABE_ITO["blue"], "hurts": OKABE_ITO["vermilion"]}
_VERDICT_WORDS = {"helps": "helps", "hurts": "hurts", "cannot be told apart": "cannot be told from the image alone"}


def _interval_words(study: dict[str, Any]) -> str:
    return f"{percent(study['settings']['confidence'], 0)} interval"


def _hollow(study: dict[str, Any], protocol: str) -> dict[str, Any]:
    """Filled markers for the first protocol, hollow ones for the second."""
    return {} if protocol == next(iter(study["protocols"])) else {"markerfacecolor": "white", "markeredgewidth": 1.8}


def _protocol_legend(study: dict[str, Any], figure: Figure) -> None:
    """Which markers are whose, where there are two protocols; what the small dots are, where there are seeds."""
    names = list(study["protocols"])
    handles = [
        Line2D([], [], color=GREY, marker="o", linestyle="none", markersize=7, label=name, **_hollow(study, name))
        for name in (names if len(names) > 1 else [])
    ]
    handles += _seed_dot(study)
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=10)


def _seed_dot(study: dict[str, Any]) -> list[Line2D]:
    if n_seeds(study) < 2:
        return []
    dot = Line2D([], [], color=GREY, marker="o", linestyle="none", markersize=3.5, label="one seed")
    dot.set_markerfacecolor("white")
    return [dot]


def _results_title(study: dict[str, Any]) -> str:
    protocol, values = first_protocol(study)
    scores = {name: value["mean"] for name, v in values["variants"].items() if (value := metric(v, "macro_f1"))}
    if not scores:
        return f"Macro-F1 is undefined under {protocol}"
    best = max(scores, key=scores.__getitem__)
    text = f"Highest macro-F1, {protocol}: {plain(best)} {scores[best]:.3f}"
    return text + (f", the image alone {scores['image']:.3f}" if best != "image" and "image" in scores else "")


def results(study: dict[str, Any]) -> Figure:
    """Four scores of every variant under every protocol, with intervals and seeds."""
    rows = list(variants(study))
    figure, grid = panels(len(_PANELS), 0.9 + 0.3 * len(rows), extra=0.8)
    names = list(study["protocols"])
    positions = [k + 0.6 * names.index(protocol) for k, (protocol, _, _) in enumerate(rows)]
    for place, (axes, key) in enumerate(zip(grid, _PANELS, strict=True)):
        for y, (protocol, name, values) in zip(positions, rows, strict=True):
            if not draw_interval(axes, metric(values, key), y, colour(name), marker(name), **_hollow(study, protocol)):
                say_undefined(axes, y)
        name_rows(
            axes, positions, [plain(name) for _, name, _ in rows], xlabel=f"Score, with {_interval_words(study)}"
        )
        panel_title(axes, TITLES[key])
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        if place % 2:
            axes.set_yticklabels([])
    set_title(figure, _results_title(study))
    _protocol_legend(study, figure)
    return figure


def calibration(study: dict[str, Any]) -> Figure:
    """The ECE of every variant before and after temperature scaling."""
    rows = [row for row in variants(study) if metric(row[2], "ece") and metric(row[2], "ece_uncalibrated")]
    figure, (axes,) = panels(1, 0.9 + 0.5 * len(rows))
    for place, (_, _, values) in enumerate(rows):
        before, after = metric(values, "ece_uncalibrated"), metric(values, "ece")
        assert before is not None
        assert after is not None
        draw_interval(axes, {**before, "per_seed": []}, place - 0.16, OKABE_ITO["orange"], "o")
        draw_interval(axes, {**after, "per_seed": []}, place + 0.16, OKABE_ITO["blue"], "s")
    several = len(study["protocols"]) > 1
    names = [f"{plain(name)}\n{protocol}" if several else plain(name) for protocol, name, _ in rows]
    xlabel = f"Expected calibration error (share), with {_interval_words(study)}; 0 is best"
    name_rows(axes, range(len(rows)), names, xlabel=xlabel)
    axes.set_xlim(left=0)
    lead = lead_variant(first_protocol(study)[1])
    _, name, values = next((row for row in rows if row[1] == lead), rows[0])
    before, after = values["metrics"]["ece_uncalibrated"]["mean"], values["metrics"]["ece"]["mean"]
    if number(after, ".3f") == number(before, ".3f"):
        text = f"leaves the ECE of {plain(name)} at {after:.3f}"
    else:
        text = f"{'lowers' if after < before else 'raises'} the ECE of {plain(name)} from {before:.3f} to {after:.3f}"
    set_title(figure, f"Temperature scaling {text}")
    handles = [
        Line2D([], [], color=OKABE_ITO[name], marker=shape, linestyle="none", markersize=7, label=text)
        for name, shape, text in (("orange", "o", "before scaling"), ("blue", "s", "after scaling"))
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=10)
    return figure


def _comparison_title(study: dict[str, Any]) -> str:
    for name, protocol in study["protocols"].items():
        items = comparisons(protocol, "metadata")
        if len(items) > 1:
            counts = [sum(item["verdict"] == verdict for item in items) for verdict in ("helps", "hurts")]
            if not any(counts):
                return f"None of {len(items)} fusions can be told apart from the image alone ({name})"
            return f"Metadata helps in {counts[0]} of {len(items)} fusions and hurts in {counts[1]} ({name})"
        for item in items:
            primary = item["metrics"][item["primary"]]
            verdict = _VERDICT_WORDS.get(item["verdict"], item["verdict"])
            return f"Metadata {verdict}: {plain(item['model'])} {primary['estimate']:+.3f} macro-F1 ({name})"
    found = [item for protocol in study["protocols"].values() for item in comparisons(protocol)]
    item = max(found, key=lambda item: abs(item["metrics"][item["primary"]]["estimate"]))
    return f"{plain(item['name'])}: {item['metrics'][item['primary']]['estimate']:+.3f} macro-F1, {item['verdict']}"


def comparison(study: dict[str, Any]) -> Figure:
    """Paired differences of the primary metric with intervals, beside what could have been detected."""
    groups = {name: found for name, protocol in study["protocols"].items() if (found := comparisons(protocol))}
    several = len(study["protocols"]) > 1
    rows = [(name, item) for name, found in groups.items() for item in found]
    figure, (axes,) = panels(1, 0.9 + 0.5 * len(rows))
    for y, (_, item) in enumerate(rows):
        least = smallest_detectable(item)
        if defined(least):
            axes.barh(y, 2 * least, left=-least, height=0.62, color="#E8E8E8", edgecolor="none", zorder=0)  # type: ignore[operator]
        draw_interval(axes, item["metrics"][item["primary"]], y, _VERDICT_COLOURS.get(item["verdict"], "black"), "o")
    axes.axvline(0, color=GREY, linewidth=1.2, zorder=1)
    names = [plain(item["name"]) + (f"\n{name}" if several else "") for name, item in rows]
    titles = {TITLES[item["primary"]] for _, item in rows}
    xlabel = f"Difference in {', '.join(sorted(titles))}, with {_interval_words(study)}"
    name_rows(axes, range(len(rows)), names, xlabel=xlabel)
    set_title(figure, _comparison_title(study))
    verdicts = {item["verdict"] for _, item in rows}
    handles: list[Any] = [
        Line2D([], [], color=_VERDICT_COLOURS.get(v, "black"), marker="o", markersize=7, label=v)
        for v in _VERDICT_WORDS
        if v in verdicts
    ]
    handles.append(Patch(color="#E8E8E8", label="smaller than detectable with 80 % power"))
    handles += _seed_dot(study)
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    return figure


def class_changes(study: dict[str, Any]) -> Figure:
    """Lesions that metadata puts right and puts wrong, by class, one panel for each fusion and protocol."""
    found = [
        (name, fusion, protocol["class_changes"][fusion])
        for fusion in dict.fromkeys(key for protocol in study["protocols"].values() for key in fusions(protocol))
        for name, protocol in study["protocols"].items()
        if protocol["class_changes"].get(fusion)
    ]
    figure, grid = panels(len(found), 2.9)
    ways = (("wrong_to_right", OKABE_ITO["blue"], 1), ("right_to_wrong", OKABE_ITO["vermilion"], -1))
    largest = max((row[way]["lesions"] for _, _, changes in found for row in changes.values() for way, _, _ in ways))
    for axes, (name, fusion, changes) in zip(grid, found, strict=True):
        shown = [label for label in LABELS if label in changes]
        for y, label in enumerate(shown):
            for way, bar_colour, sign in ways:
                count = changes[label][way]["lesions"]
                axes.barh(y, sign * count, color=bar_colour, height=0.7)
                axes.annotate(
                    f"{count:,}",
                    (sign * count, y),
                    (4 * sign, 0),
                    textcoords="offset points",
                    fontsize=9,
                    va="center",
                    ha="left" if sign > 0 else "right",
                )
        names = [f"{label} ({changes[label]['n_lesions']:,})" for label in shown]
        name_rows(axes, range(len(shown)), names, xlabel="Lesions", ylabel="Class (lesions)")
        axes.axvline(0, color=GREY, linewidth=1.2)
        axes.set_xlim(-1.25 * max(largest, 1), 1.25 * max(largest, 1))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):,.0f}")
        panel_title(axes, f"{plain(fusion)}, {name}")
    name, fusion, changes = found[0]
    right, wrong = (sum(row[way]["lesions"] for row in changes.values()) for way, _, _ in ways)
    set_title(
        figure,
        f"{plain(fusion)} puts {right:,} lesion{'' if right == 1 else 's'} right and {wrong:,} wrong, against the "
        f"image alone ({name})",
    )
    handles = [
        Patch(color=OKABE_ITO["vermilion"], label="right to wrong (to the left)"),
        Patch(color=OKABE_ITO["blue"], label="wrong to right (to the right)"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=10)
    return figure


def _leakage_title(study: dict[str, Any]) -> str:
    for protocol, name, values in sorted(variants(study), key=lambda row: row[1] != "image"):
        found = values["leakage"]
        if found:
            seen, unseen = (number(found[part]["metrics"]["macro_f1"]["mean"]) for part in ("seen", "unseen"))
            return f"{plain(name)} under {protocol}: macro-F1 {seen} on lesions seen in training, {unseen} on others"
    names = list(study["protocols"])
    lead = lead_variant(first_protocol(study)[1])
    means = [
        number(
            (study["protocols"][name]["variants"].get(lead, {"metrics": {}})["metrics"].get("macro_f1") or {}).get(
                "mean"
            )
        )
        for name in names
    ]
    return f"{plain(lead)}: macro-F1 {means[0]} under {names[0]}, {means[-1]} under {names[-1]}"


def leakage(study: dict[str, Any]) -> Figure:
    """Macro-F1 under both protocols, and on lesions seen and not seen in training."""
    parts: list[tuple[str, list[tuple[str, list[tuple[dict[str, Any] | None, str, bool]]]]]] = []
    names = list(study["protocols"])
    if len(names) > 1:
        keys = list(dict.fromkeys(name for _, name, _ in variants(study)))
        both = [
            (key, [(metric(p["variants"][key], "macro_f1"), name, name != names[0])])
            for key in keys
            for name, p in study["protocols"].items()
            if key in p["variants"]
        ]
        parts.append(("the same network under both protocols", both))
    for protocol_name, protocol in study["protocols"].items():
        seen = [
            (key, [(values["leakage"][part]["metrics"].get("macro_f1"), f"lesions {part}", part == "unseen")])
            for key, values in protocol["variants"].items()
            if values["leakage"]
            for part in ("seen", "unseen")
        ]
        if seen:
            parts.append((f"{protocol_name}: lesions seen in training or not", seen))
    most = max(len(rows) for _, rows in parts)
    figure, grid = panels(len(parts), 1.0 + 0.34 * most, columns=1)
    for axes, (title, rows) in zip(grid, parts, strict=True):
        positions, ticks, y = [], [], 0.0
        for place, (key, ((value, what, hollow),)) in enumerate(rows):
            y += 0.0 if not place else 1.0 if rows[place - 1][0] == key else 1.5
            options = {"markerfacecolor": "white", "markeredgewidth": 1.8} if hollow else {}
            if not draw_interval(axes, value, y, colour(key), marker(key), **options):
                say_undefined(axes, y)
            positions.append(y)
            ticks.append(f"{plain(key)}, {what}")
        name_rows(axes, positions, ticks, xlabel=f"Macro-F1, with {_interval_words(study)}")
        panel_title(axes, title)
    set_title(figure, _leakage_title(study))
    return figure


__all__ = ["calibration", "class_changes", "comparison", "leakage", "results"]
