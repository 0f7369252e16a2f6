"""The figures of a study from its study.json, each with its finding as title, and its tables for a paper."""

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ham10000.modeling import MALIGNANT
from ham10000.training.evaluation import plots
from ham10000.training.evaluation.bootstrap import Estimate, cluster_weights
from ham10000.training.evaluation.paper import FORMATS, N_RESAMPLES, targets, write_curves, write_latex_table
from ham10000.training.study.analysis import ProtocolResult
from ham10000.training.study.crossfit import CrossFitted
from ham10000.training.study.report import TITLES, Study, all_scores, check_study, gaps, lead, subgroup
from ham10000.training.utils.figures import GREY, OKABE_ITO, plain, save_figure, style_axes
from ham10000.training.utils.files import JsonObject
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


def _interval(
    axes: Axes, value: Estimate | None, y: float, style: tuple[str, str], size: int = 7, *, seeds: bool = True
) -> None:
    """Draws an interval, or says why there is none, so that a gap is not read as zero."""
    shown = dict(value or {}) | ({} if seeds else {"per_seed": []})
    if not plots.draw_interval(axes, shown, y, *style, markersize=size):
        text, transform = "answers only" if value is None else "undefined", axes.get_yaxis_transform()
        axes.text(0.02, y, text, transform=transform, color=GREY, fontsize=9, va="center")


def _panel_title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=10.5, color="#333333", pad=6)


def _offset(place: int, count: int) -> float:
    """Height of one of several variants within a row."""
    return 0.7 * ((place + 0.5) / count - 0.5)


def _points(names: Iterable[str], linestyle: str = "none") -> list[Line2D]:
    return [plots.legend_point(name, *_style(name), linestyle=linestyle) for name in names]


def _finished(figure: Figure, finding: str, handles: Sequence[Artist]) -> Figure:
    """The figure with its finding above and its legend below."""
    plots.set_title(figure, finding)
    plots.legend_below(figure, handles, 3)
    return figure


def _readers(study: Study) -> JsonObject:
    """Shortcuts of the variants that read metadata."""
    return {name: lead(study)["variants"][name]["shortcuts"] for name in ("fusion", "metadata")}


def results(study: Study) -> Figure:
    """Four scores of every variant and baseline, with intervals and seeds."""
    protocols = study["protocols"].items()
    rows = [(protocol, *row) for protocol, values in protocols for row in all_scores(values).items()]
    figure, grid = plots.panels(len(_RESULTS), 0.9 + 0.3 * len(rows), extra=0.5)
    positions = plots.spaced_rows([protocol for protocol, _, _ in rows], 0.6)
    names = [
        plain(name.replace(" on metadata", "") + ("" if protocol == rows[0][0] else f" ({protocol})"))
        for protocol, name, _ in rows
    ]
    for place, (axes, key) in enumerate(zip(grid, _RESULTS, strict=True)):
        for y, (_, name, scores) in zip(positions, rows, strict=True):
            _interval(axes, scores.get(key), y, _style(name))
        plots.name_rows(axes, positions, [""] * len(rows) if place % 2 else names, xlabel=f"Score, with {_INTERVAL}")
        _panel_title(axes, TITLES[key])
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    macro_f1 = {n: values["metrics"]["macro_f1"]["estimate"] or 0.0 for n, values in lead(study)["variants"].items()}
    plots.set_title(figure, "Macro-F1: " + ", ".join(f"{name} {score:.3f}" for name, score in macro_f1.items()))
    return figure


def calibration(study: Study) -> Figure:
    """The ECE of every variant before and after calibration, and its floor."""
    variants = lead(study)["variants"]
    before, after = (OKABE_ITO["orange"], "o"), (_BETTER, "s")
    figure, (axes,) = plots.panels(1, 0.9 + 0.55 * len(variants))
    for y, values in enumerate(variants.values()):
        _interval(axes, values["uncalibrated"]["ece"], y - 0.2, before, seeds=False)
        _interval(axes, values["metrics"]["ece"], y + 0.1, after, seeds=False)
        axes.plot([values["ece_floor"]], [y + 0.1], "|", color=_WORSE, markersize=16, markeredgewidth=2)
    xlabel = f"Expected calibration error (share), with {_INTERVAL}; 0 is best"
    plots.name_rows(axes, range(len(variants)), list(variants), xlabel=xlabel)
    axes.set_xlim(left=0)
    ece, floor = variants["fusion"]["metrics"]["ece"]["estimate"] or 0.0, variants["fusion"]["ece_floor"]
    finding = f"Calibrated fusion: ECE {ece:.3f}; a perfectly calibrated model of this size shows {floor:.3f}"
    points = [plots.legend_point("before", *before), plots.legend_point("after calibration", *after)]
    mark = plots.legend_point("floor: a perfectly calibrated model", _WORSE, "|", markersize=12, markeredgewidth=2)
    return _finished(figure, finding, [*points, mark])


def comparisons(study: Study) -> Figure:
    """Paired differences of the primary metric with intervals, and what could have been detected."""
    rows, primary = lead(study)["comparisons"], study["study"]["primary"]
    figure, (axes,) = plots.panels(1, 0.9 + 0.5 * len(rows))
    for y, item in enumerate(rows):
        least = item["smallest_detectable"]
        axes.barh(y, 2 * least, left=-least, height=0.62, color="#E8E8E8", edgecolor="none", zorder=0)
        _interval(axes, item["metrics"][primary]["estimate"], y, (_VERDICTS[item["verdict"]], "o"))
    axes.axvline(0, color=GREY, linewidth=1.2, zorder=1)
    axes.margins(x=0.06)
    axes.autoscale()
    names = [f"{item['model']} - {item['other']}" for item in rows]
    plots.name_rows(axes, range(len(rows)), names, xlabel=f"Difference in {TITLES[primary]}, with {_INTERVAL}")
    estimate, verdict = rows[0]["metrics"][primary]["estimate"]["estimate"] or 0.0, rows[0]["verdict"]
    said = verdict if verdict.startswith("no") else f"it {verdict}"
    finding = f"{names[0]}: {estimate:+.3f} {TITLES[primary]}, {said}"
    shown = {item["verdict"] for item in rows}
    points = [plots.legend_point(name, colour, linestyle="-") for name, colour in _VERDICTS.items() if name in shown]
    bar = Patch(color="#E8E8E8", label="smaller than detectable with 80 % power")
    return _finished(figure, finding, [*points, bar])


def class_changes(study: Study) -> Figure:
    """Lesions that each second-stage variant corrects and breaks, by class."""
    rows = lead(study)["comparisons"][:2]
    figure, grid = plots.panels(len(rows), 2.9)
    ways = (("lesions_gained", _BETTER, 1, "left"), ("lesions_lost", _WORSE, -1, "right"))
    largest = max([1, *(row[way] for item in rows for row in item["changes"].values() for way, *_ in ways)])
    for axes, item in zip(grid, rows, strict=True):
        for way, colour, sign, align in ways:
            counts = [row[way] for row in item["changes"].values()]
            axes.barh(range(len(counts)), [sign * count for count in counts], color=colour, height=0.7)
            write = partial(axes.annotate, textcoords="offset points", fontsize=9, ha=align, va="center")
            for y, count in enumerate(counts):
                write(f"{count:,}", (sign * count, y), (4 * sign, 0))
        names = [f"{label} ({row['lesions']:,})" for label, row in item["changes"].items()]
        plots.name_rows(axes, range(len(names)), names, xlabel="Lesions", ylabel="Class (lesions)")
        axes.axvline(0, color=GREY, linewidth=1.2)
        axes.set_xlim(-1.5 * largest, 1.5 * largest)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):,.0f}")
        _panel_title(axes, f"{item['model']}, against {item['other']}")
    first = rows[0]
    gained, lost = (sum(row[way] for row in first["changes"].values()) for way, *_ in ways)
    finding = f"{first['model']} corrects {gained:,} lesions and breaks {lost:,}, against {first['other']}"
    bars = ((_WORSE, "broken (to the left)"), (_BETTER, "corrected"))
    return _finished(figure, finding, [Patch(color=colour, label=label) for colour, label in bars])


def shortcuts(study: Study) -> Figure:
    """Macro-F1 lost by shuffling and by hiding each field."""
    ways = {
        "shuffled": ("shuffled among the images", (_WORSE, "o"), -0.17),
        "unknown": ("set to unknown", (_BETTER, "s"), 0.17),
    }
    found = _readers(study)
    figure, grid = plots.panels(len(found), 1.15 + 0.42 * max(len(values["fields"]) for values in found.values()))
    for axes, (name, values) in zip(grid, found.items(), strict=True):
        for place, field in enumerate(values["fields"].values()):
            for way, (_, style, offset) in ways.items():
                _interval(axes, field[way]["drop"], place + offset, style, seeds=False)
        names = ["all together" if field == "all" else plain(field) for field in values["fields"]]
        plots.name_rows(axes, range(len(names)), names, xlabel=f"Macro-F1 lost, with {_INTERVAL}")
        axes.axvline(0, color=GREY, linewidth=1.2, zorder=1)
        _panel_title(axes, name)
    named = [plain(field) for field in found["fusion"]["named"]]
    finding = f"fusion reads {words(named)}" if named else "No single field could be shown to matter to fusion"
    points = [plots.legend_point(label, *style, linestyle="-") for label, style, _ in ways.values()]
    return _finished(figure, finding, points)


def sweeps(study: Study) -> Figure:
    """Mean melanoma probability over the age and over the site given, the image fixed."""
    found = _readers(study)
    figure, (left, right) = plots.panels(2, 4.6)
    fusion = found["fusion"]
    site_names, means = fusion["site_sweep"]["values"], [row["estimate"] for row in fusion["site_sweep"]["melanoma"]]
    order = sorted(range(len(means)), key=lambda k: (means[k], site_names[k]), reverse=True)
    for place, (variant, values) in enumerate(found.items()):
        plots.draw_band(left, values["age_sweep"]["values"], values["age_sweep"]["melanoma"], *_style(variant))
        for y, k in enumerate(order):
            row, height = values["site_sweep"]["melanoma"][k], y + _offset(place, len(found))
            _interval(right, row, height, _style(variant), 4, seeds=False)
    style_axes(left, xlabel="Age given to the model (years)", ylabel="Mean melanoma probability")
    left.set_ylim(bottom=0)
    sites = [plain(site_names[k]) for k in order]
    plots.name_rows(right, range(len(sites)), sites, xlabel="Mean melanoma probability")
    right.set_xlim(left=0)
    right.xaxis.set_major_locator(MaxNLocator(nbins=4))
    slope, text = fusion["age_sweep"]["change"], "no trend of melanoma probability over age beyond chance"
    if leaves_out_zero(slope):
        way = "rises" if slope["estimate"] > 0 else "falls"
        text = f"melanoma probability {way} by {abs(slope['estimate']):.3f} per decade of age"
    return _finished(figure, f"fusion, same image: {text}", _points(found, "-"))


def missing(study: Study) -> Figure:
    """Macro-F1 and flips against the share of fields missing at random."""
    found = _readers(study)
    figure, grid = plots.panels(2, 3.0)
    kinds = (("macro_f1", "Macro-F1", 1), ("flips", "Images that flip (%)", 100))
    for axes, (key, title, factor) in zip(grid, kinds, strict=True):
        for name, values in found.items():
            shares, rows = zip(*((100 * row["share"], row[key]) for row in values["missing"]), strict=True)
            plots.draw_band(axes, shares, rows, *_style(name), scale=factor)
        style_axes(axes, xlabel="Fields missing at random (%)", ylabel=title)
        axes.set_xlim(-3, 103)
        axes.set_ylim(bottom=0)
    full, none = (found["fusion"]["missing"][k]["macro_f1"]["estimate"] for k in (0, -1))
    finding = f"fusion without any metadata: macro-F1 {none:.3f}, with all of it {full:.3f}"
    return _finished(figure, finding, _points(found, "-"))


def subgroups(study: Study) -> Figure:
    """Sensitivity to malignancy in every subgroup, of the image model and fusion."""
    variants = {name: lead(study)["variants"][name] for name in ("image", "fusion")}
    groups = [(field, row) for field, rows in variants["image"]["subgroups"]["fields"].items() for row in rows]
    figure, (axes,) = plots.panels(1, 1.2 + len(groups) * (0.22 + 0.1 * len(variants)))
    positions = plots.spaced_rows([field for field, _ in groups], 0.5)
    for y, (field, row) in zip(positions, groups, strict=True):
        if row["too_few"]:
            plots.say_too_few(axes, y, row)
            continue
        for place, (name, values) in enumerate(variants.items()):
            found = subgroup(values, field, row["group"])["malignant_sensitivity"]
            _interval(axes, found, y + _offset(place, len(variants)), _style(name), 6)
    names = [plots.subgroup_name(*group) for group in groups]
    xlabel = f"Share of malignant images found, with {_INTERVAL}"
    plots.name_rows(axes, positions, names, xlabel=xlabel, ylabel="Group (malignant images / images)")
    axes.set_xlim(0, 1)
    finding = "Too few groups with enough malignant lesions to compare"
    if found := gaps(variants["fusion"]):
        field = max(found, key=lambda field: found[field]["difference"]["estimate"])
        low, high = (subgroup(variants["fusion"], field, found[field][end]) for end in ("lowest", "highest"))
        least, most = (f"{row['malignant_sensitivity']['estimate']:.0%}" for row in (low, high))
        of_low, of_high = plain(low["group"]), plain(high["group"])
        finding = f"fusion finds {least} of malignant images at {field} {of_low}, {most} at {of_high}"
    return _finished(figure, finding, _points(variants))


# Each draws the file of its name.
DRAW = (results, calibration, comparisons, class_changes, shortcuts, sweeps, missing, subgroups)


def plot_study(study: Study, folder: str | os.PathLike[str], suffix: str = ".png") -> list[Path]:
    """Draws every figure of the report.

    Args:
        study: Content of study.json.
        folder: Receives `results.png` and the like; made where it does not exist.
        suffix: Names the format, such as `.pdf`.

    Returns:
        The files written, in the order of the report.

    Raises:
        Ham10000Error: As `check_study`.
    """
    check_study(study)
    return [save_figure(draw(study), Path(folder, f"{draw.__name__}{suffix}")) for draw in DRAW]


# For a paper


def _ends(value: Mapping[str, object] | None) -> dict[str, object]:
    return {end: None if value is None else value.get(end) for end in ("estimate", "low", "high")}


def study_tables(protocol: ProtocolResult) -> dict[str, pd.DataFrame]:
    """Results, classes, comparisons and subgroups of one protocol, one row per figure."""
    variants = protocol["variants"].items()
    tables: dict[str, list[dict[str, object]]] = {
        "results": [
            {"variant": variant, "metric": TITLES[name], **_ends(found)}
            for variant, values in variants
            for name, found in values["metrics"].items()
        ],
        "per_class": [
            {"variant": variant, "class": label, "metric": name, **_ends(found)}
            for variant, values in variants
            for label, row in values["per_class"].items()
            for name, found in row.items()
        ],
        "comparisons": [
            {
                **{"model": row["model"], "other": row["other"], "p (Holm)": row["p_holm"], "verdict": row["verdict"]},
                **{"metric": TITLES[name], **_ends(found["estimate"]), "p": found["p"]},
            }
            for row in protocol["comparisons"]
            for name, found in row["metrics"].items()
        ],
        "subgroups": [
            {
                **{"variant": variant, "field": field, "group": group["group"], "images": group["n_images"]},
                "malignant lesions": group["n_malignant_lesions"],
                **_ends(None if group["too_few"] else group["malignant_sensitivity"]),
            }
            for variant, values in variants
            for field, groups in values["subgroups"]["fields"].items()
            for group in groups
        ],
    }
    return {name: pd.DataFrame(rows) for name, rows in tables.items() if rows}


def write_study_tables(study: Study, variants: Mapping[str, CrossFitted], directory: str | Path) -> None:
    """Writes the first protocol's tables, curves and operating points of image and fusion, and all figures."""
    directory, protocol = Path(directory), lead(study)
    about = f"{protocol['n_images']:,} images of {protocol['n_lesions']:,} lesions, cross-validated; 95 % intervals."
    for name, table in study_tables(protocol).items():
        write_latex_table(table, directory / name, f"{name.replace('_', ' ').capitalize()}, {about}")
    for variant in ("image", "fusion"):
        predictions, probabilities = variants[variant].predictions, variants[variant].probabilities().mean(axis=0)
        weights = cluster_weights(predictions.groups, N_RESAMPLES)
        found = targets(predictions.labels, probabilities, predictions.classes, MALIGNANT)
        write_curves(directory, found, weights, about, f"_{variant}")
    for suffix in FORMATS:
        plot_study(study, directory, suffix)
