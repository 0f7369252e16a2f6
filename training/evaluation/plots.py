"""Figures of an evaluation: each title states the finding, colours are safe for colour-blind readers."""

import os
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from sklearn.calibration import calibration_curve

from ham10000.modeling.configuration_ham10000 import Ham10000Error
from ham10000.training.evaluation.metrics import ECE_BINS, confidence_bins, expected_calibration_error
from ham10000.training.utils.figures import GREY, OKABE_ITO, new_figure, plain, save_figure, style_axes
from ham10000.training.utils.files import JsonObject
from ham10000.training.utils.markdown_text import defined

# Goes on past Okabe-Ito's blue to a darker one, so that white numbers are readable from 0.55 on.
_BLUES = LinearSegmentedColormap.from_list("okabe_ito_blues", [(0, "white"), (0.6, OKABE_ITO["blue"]), (1, "#00395A")])
_LARGEST_TITLE, _SMALLEST_TITLE = 12.0, 8.5
# Images from which on a class is named in a title.
_FREQUENT = 10
# Opaque, because lines may pass behind it.
_LEGEND: dict[str, Any] = {"fontsize": 10, "framealpha": 1.0, "edgecolor": "white"}


def set_title(figure: Figure, text: str) -> None:
    """Puts the finding above a figure of its final size, in one line: smaller, or cut off, where too long."""
    title = figure.suptitle(text, x=0.02, ha="left", fontsize=_LARGEST_TITLE, fontweight="bold")
    # The canvas is Agg's, which measures text as it will draw it.
    width = title.get_window_extent(figure.canvas.get_renderer()).width  # type: ignore[attr-defined]
    size = _LARGEST_TITLE * 0.95 * figure.bbox.width / width  # at which it would fit
    title.set_fontsize(min(max(size, _SMALLEST_TITLE), _LARGEST_TITLE))
    if size < _SMALLEST_TITLE:
        title.set_text(textwrap.shorten(text, int(len(text) * size / _SMALLEST_TITLE), placeholder=" …"))


def panels(count: int, height: float, *, columns: int = 2, extra: float = 0.9) -> tuple[Figure, list[Axes]]:
    """A figure 8 inches wide, and its panels by rows of `height` inches; title and legend have `extra` inches."""
    columns = min(count, columns)
    rows = -(-count // columns)
    figure = new_figure(8, extra + rows * height)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.06)  # room for tick labels at the right edge
    grid = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for unused in grid[count:]:
        unused.remove()
    return figure, grid[:count]


def name_rows(axes: Axes, positions: Sequence[float], names: Sequence[str], *, xlabel: str, ylabel: str = "") -> None:
    """Styles a panel whose rows are named on the left, the first on top."""
    style_axes(axes, xlabel=xlabel, ylabel=ylabel, grid="x")
    axes.set_yticks(positions, names)
    axes.set_ylim(max(positions) + 0.6, min(positions) - 0.6)


def draw_interval(axes: Axes, value: JsonObject, y: float, colour: str, shape: str, **options: Any) -> bool:
    """Draws a point with its horizontal interval, as far as they are defined; says whether there was a point.

    The value has `estimate`, `low`, `high` and perhaps `per_seed`, small dots if several; the options are the point's.
    """
    estimate = value.get("estimate")
    if not defined(estimate):
        return False
    if defined(value.get("low")) and defined(value.get("high")):
        axes.plot([value["low"], value["high"]], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
    seeds = [seed for seed in value.get("per_seed") or [] if defined(seed)]
    if len(seeds) > 1:
        # White inside, or they would vanish in the line of the interval.
        axes.plot(seeds, [y] * len(seeds), "o", color=colour, markersize=3.5, markerfacecolor="white")
    # A point at the end of the scale is drawn whole.
    axes.plot(estimate, y, shape, color=colour, **({"markersize": 7, "clip_on": False} | options))
    return True


def draw_band(
    axes: Axes, x: Sequence[float], rows: Sequence[Mapping[str, Any]], colour: str, marker: str, scale: float = 1
) -> None:
    """A curve of intervals, with a band from `low` to `high`; what is undefined leaves a gap."""
    table = scale * pd.DataFrame(rows, columns=["low", "estimate", "high"], dtype=float)
    axes.fill_between(x, table["low"], table["high"], color=colour, alpha=0.15, linewidth=0)
    axes.plot(x, table["estimate"], color=colour, marker=marker, markersize=4, linewidth=1.8)


def legend_point(label: str, colour: str, shape: str = "o", **options: Any) -> Line2D:
    """A marker with a label, for a legend."""
    point = Line2D([], [], color=colour, marker=shape, label=label, linestyle="none", markersize=7)
    point.set(**options)
    return point


def legend_below(figure: Figure, handles: Sequence[Artist], columns: int = 2) -> None:
    """One legend below all panels of a figure."""
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=10)


def _largest_error(confusion: np.ndarray, names: Sequence[str]) -> str:
    errors = confusion - np.diag(np.diag(confusion))
    if not errors.any():
        return "no image is misread"
    true, predicted = np.unravel_index(errors.argmax(), errors.shape)
    count, support = int(errors[true, predicted]), int(confusion[true].sum())
    return f"commonest error: {names[true]} read as {names[predicted]} ({count:,} of {support:,})"


def plot_confusion_matrix(metrics: JsonObject, path: str | os.PathLike[str]) -> Path:
    """Draws the confusion matrix: colour is the share of the true class (row), the numbers are images."""
    confusion = np.asarray(metrics["confusion_matrix"])
    names = [plain(label) for label in metrics["per_class"]]
    support = confusion.sum(axis=1, keepdims=True)
    share = confusion / np.maximum(support, 1)
    figure = new_figure(8, 7)
    axes = figure.add_subplot()
    image, write = axes.imshow(share, cmap=_BLUES, vmin=0, vmax=1), partial(axes.text, ha="center", va="center")
    for row, column in np.ndindex(*confusion.shape):
        count, part = confusion[row, column], share[row, column]
        if count == 0:
            write(column, row, "0", fontsize=10, color="#B5B5B5")
            continue
        colour = "white" if part > 0.55 else "black"
        write(column, row - 0.1, f"{count:,}", fontsize=12, color=colour)
        percent = f"{part:.0%}" if part >= 0.005 else "<1%"
        write(column, row + 0.24, percent, fontsize=9, color=colour)
    finding = f"Accuracy {metrics['accuracy']:.3f}; {_largest_error(confusion, names)}"
    style_axes(axes, title=finding, xlabel="Predicted class", ylabel="True class (images)", grid="none")
    # Long names would run into each other side by side.
    slanted = max(map(len, names)) * len(names) > 60
    axes.set_xticks(range(len(names)), names, rotation=40 if slanted else 0, ha="right" if slanted else "center")
    axes.set_yticks(range(len(names)), [f"{k} ({n[0]:,})" for k, n in zip(names, support, strict=True)])
    axes.spines[:].set_visible(False)
    # White lines between the cells, drawn as the minor grid.
    axes.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.grid(True, which="minor", color="#EDEDED", linewidth=1)
    axes.tick_params(which="both", length=0)
    bar = figure.colorbar(image, ax=axes, shrink=0.7, pad=0.02)
    bar.set_label("Share of the true class", fontsize=11)
    bar.outline.set_visible(False)
    return save_figure(figure, path)


def plot_reliability(labels: np.ndarray, probabilities: np.ndarray, path: str | os.PathLike[str]) -> Path:
    """Draws accuracy against confidence of the top label, and how many images have which confidence.

    The bins are those of the ECE. Bars on the accuracies are 95 % Wilson intervals, which take the images as
    independent; they show which bins are too small to read.
    """
    from statsmodels.stats.proportion import proportion_confint  # late: it takes a second to import

    confidence, hits = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    accuracy, mean_confidence = calibration_curve(hits, confidence, n_bins=ECE_BINS, pos_label=True)
    counts = np.bincount(confidence_bins(confidence), minlength=ECE_BINS)
    n = counts[counts > 0]
    low, high = proportion_confint(np.rint(accuracy * n), n, method="wilson")
    gap = float(confidence.mean() - hits.mean())
    finding = f"{'Over' if gap > 0 else 'Under'}confident by {abs(gap) * 100:.1f} points on average"
    if abs(gap) < 0.01:
        finding = "Confidence matches accuracy on average"
    ece = expected_calibration_error(labels, probabilities)
    figure = new_figure(8, 7)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1.2, label="perfect calibration")
    bars = [np.maximum(accuracy - low, 0), np.maximum(high - accuracy, 0)]
    draw = partial(upper.errorbar, color=OKABE_ITO["blue"], marker="o", markersize=6, linewidth=1.8, elinewidth=1)
    draw(mean_confidence, accuracy, bars, capsize=3, label="this model (95 % interval of the bin)")
    style_axes(upper, title=f"{finding} (ECE {ece:.3f}, {len(labels):,} images)", ylabel="Accuracy in the bin (share)")
    upper.set_xlim(0, 1)
    upper.set_ylim(0, 1.02)
    upper.legend(loc="lower right", **_LEGEND)
    edges = np.linspace(0, 1, ECE_BINS + 1)
    lower.bar(edges[:-1], counts, width=1 / ECE_BINS, align="edge", color=OKABE_ITO["sky"], edgecolor="white")
    style_axes(lower, xlabel="Confidence: probability of the predicted class", ylabel="Images", grid="y")
    lower.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    return save_figure(figure, path)


def plot_training_curves(history: Sequence[JsonObject], path: str | os.PathLike[str], kept: int | None = None) -> Path:
    """Draws losses, validation scores and learning rate over the epochs, with the epoch that is kept marked.

    A row of the history has `epoch` and any of the series below; None and absent values leave a gap. Without `kept` it
    is the last epoch.
    """
    if not history:
        raise Ham10000Error("The training history has no epochs; there is nothing to draw.")
    series = {  # of the history, to panel, label, colour and marker
        "train_loss": ("loss", "training", "orange", "s"),
        "validation_loss": ("loss", "validation", "blue", "o"),
        "validation_macro_f1": ("score", "macro-F1", "blue", "o"),
        "validation_balanced_accuracy": ("score", "balanced accuracy", "green", "^"),
        "learning_rate": ("rate", "", "purple", "D"),
    }
    ylabels = {"loss": "Loss (nats)", "score": "Validation score (0 to 1)", "rate": "Learning rate"}
    table = pd.DataFrame(history, columns=["epoch", *series]).astype(float)
    epochs, macro_f1 = table["epoch"], table["validation_macro_f1"]
    figure, has_scores = new_figure(8, 6), bool(macro_f1.notna().any())
    # A run that trained on validation has no scores: no empty panel for them.
    top = ("loss", "score" if has_scores else "loss")
    panels = figure.subplot_mosaic([[*top], ["rate", "rate"]], height_ratios=[3, 1])
    for name, (panel, label, colour, marker) in series.items():
        if panel in panels and table[name].notna().any():
            (line,) = panels[panel].plot(epochs, table[name], f"{marker}-", label=label, markersize=4.5)
            line.set(color=OKABE_ITO[colour], linewidth=1.8)
    finding = f"{len(history)} epochs without validation scores"
    if has_scores:
        row = len(history) - 1 if kept is None else int(np.flatnonzero(epochs == kept)[0])
        best, at = macro_f1[row], epochs[row]
        finding = f"Validation macro-F1 {best:.3f} at epoch {at:g} of {len(history)}, which is kept"
        for axes in panels.values():
            axes.axvline(at, color=GREY, linestyle=":", linewidth=1.4, zorder=1)
        panels["score"].plot(at, best, "o", markersize=11, fillstyle="none", color="black", label="kept")
    for name, axes in panels.items():
        style_axes(axes, xlabel="Epoch", ylabel=ylabels[name])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axes.get_legend_handles_labels()[1]:
            # Above the panel: within it some line is always covered.
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, **_LEGEND)
    panels["rate"].set_ylim(bottom=0)
    panels["rate"].ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    set_title(figure, finding)
    return save_figure(figure, path)


def _plot_scores(
    rows: Sequence[tuple[str, JsonObject]],
    series: Mapping[str, tuple[str, str, str]],
    positions: Sequence[float],
    height: float,
    **labels: str,
) -> Figure:
    """Named rows of two scores in [0, 1] with their intervals; `series` is key to label, colour and marker."""
    figure, (axes,) = panels(1, height)
    for y, (_, row) in zip(positions, rows, strict=True):
        for (key, (_, colour, shape)), offset in zip(series.items(), (-0.15, 0.15), strict=True):
            if key == "malignant_sensitivity" and row["too_few"]:
                say_too_few(axes, y + offset, row)
            else:
                draw_interval(axes, row[key], y + offset, OKABE_ITO[colour], shape)
    name_rows(axes, positions, [name for name, _ in rows], **labels)
    axes.set_xlim(0, 1)
    legend_below(figure, [legend_point(text, OKABE_ITO[colour], shape) for text, colour, shape in series.values()])
    return figure


def plot_per_class(results: JsonObject, path: str | os.PathLike[str]) -> Path:
    """Draws recall and F1 of each class with their intervals, from the result of `evaluate_predictions`."""
    metrics, intervals = results["metrics"]["per_class"], results["intervals"]["per_class"]
    recalls = {label: found["recall"] for label, found in intervals.items() if found["recall"]["estimate"] is not None}
    # A class of a few images has a recall of 0 or 1 by chance.
    frequent = [label for label in recalls if metrics[label]["support"] >= _FREQUENT] or list(recalls)
    among = "" if len(frequent) == len(recalls) else f", of those with {_FREQUENT} images or more,"
    weakest = min(frequent, key=lambda label: recalls[label]["estimate"])
    recall = recalls[weakest]
    bounds = "" if recall["low"] is None else f" [{recall['low']:.2f}, {recall['high']:.2f}]"
    rows = [(f"{plain(label)} ({row['support']:,})", intervals[label]) for label, row in metrics.items()]
    series = {"recall": ("recall (sensitivity)", "blue", "o"), "f1": ("F1", "vermilion", "s")}
    text = {"xlabel": "Score, with 95 % interval (bootstrap over lesions)", "ylabel": "Class (images)"}
    figure = _plot_scores(rows, series, range(len(rows)), 1.4 + 0.4 * len(rows), **text)
    set_title(figure, f"The class missed most{among} is {plain(weakest)}: recall {recall['estimate']:.2f}{bounds}")
    return save_figure(figure, path)


def _subgroup_finding(subgroups: JsonObject) -> str:
    gaps = {field: gap for field, gap in subgroups["largest_gaps"].items() if gap}
    if not gaps:
        return "Too few groups with enough malignant lesions to compare"
    field, gap = max(gaps.items(), key=lambda item: item[1]["difference"]["estimate"])
    rates = {row["group"]: row["malignant_sensitivity"]["estimate"] for row in subgroups["fields"][field]}
    where = "with {} photograph(s)" if field == "photographs" else f"at {field} {{}}"
    said = [f"{rates[group]:.0%} {where.format(plain(group))}" for group in (gap["lowest"], gap["highest"])]
    return f"Malignant found: {', '.join(said)}"


def subgroup_name(field: str, row: JsonObject) -> str:
    """A group of a field, with its counts, as the name of a row."""
    title = "age (years)" if field == "age" else plain(field)
    return f"{title}: {plain(row['group'])} ({row['n_malignant']:,} / {row['n_images']:,})"


def spaced_rows(fields: Sequence[str], gap: float) -> list[float]:
    """Heights of rows one below the other, with a gap where the field changes."""
    return list(np.arange(len(fields)) + gap * pd.factorize(np.array(fields))[0])


def say_too_few(axes: Axes, y: float, row: JsonObject) -> None:
    """Says why a group has no point."""
    reason = "too few malignant lesions" if row["n_malignant"] else "no malignant lesion"
    axes.text(0.01, y, reason, color=GREY, fontsize=9, va="center")


def plot_subgroups(subgroups: JsonObject, path: str | os.PathLike[str]) -> Path:
    """Draws sensitivity and specificity to malignancy of each group, from the result of `subgroup_results`."""
    groups = [(field, row) for field, rows in subgroups["fields"].items() for row in rows]
    series = {
        "malignant_sensitivity": ("sensitivity: malignant images called malignant", "vermilion", "o"),
        "malignant_specificity": ("specificity: benign images called benign", "blue", "s"),
    }
    rows = [(subgroup_name(field, row), row) for field, row in groups]
    positions = spaced_rows([field for field, _ in groups], 0.6)
    text = {"xlabel": "Share of images, with 95 % interval", "ylabel": "Group (malignant images / images)"}
    figure = _plot_scores(rows, series, positions, 0.7 + 0.36 * len(rows), **text)
    set_title(figure, _subgroup_finding(subgroups))
    return save_figure(figure, path)


def plot_results(results: JsonObject, folder: Path, suffix: str = ".png") -> None:
    """Draws what an `eval_results.json` has: the confusion matrix, the classes, and subgroups where there are any."""
    plot_confusion_matrix(results["metrics"], folder / f"confusion_matrix{suffix}")
    plot_per_class(results, folder / f"per_class{suffix}")
    if (results.get("subgroups") or {}).get("largest_gaps"):
        plot_subgroups(results["subgroups"], folder / f"subgroups{suffix}")
