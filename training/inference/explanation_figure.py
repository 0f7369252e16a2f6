"""Draws an explanation: image, heat maps, probabilities, and what the metadata changes."""

import itertools
import os
import re
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure, SubFigure
from PIL import Image

from ham10000.modeling import Ham10000Error
from ham10000.training.inference.explanation import UNKNOWN, Explanation, MetadataEffects
from ham10000.training.inference.inputs import Sample
from ham10000.training.inference.output import DISCLAIMER, points, shown_name
from ham10000.training.utils.figures import GREY, OKABE_ITO, new_figure, plain, save_figure, style_axes

FIGURE_SUFFIXES = (".png", ".pdf", ".svg")
# Where the map is 1 this much of the image is hidden, where it is 0 nothing: cold regions are seen as they are.
_OPACITY = 0.65
_HEAT = "viridis"  # blue to yellow, neither of which is a colour of skin, and readable with any colour blindness
# The malignant classes are warm, so that they stand out. No two of up to twelve get the same colour and marker.
_WARM, _COOL = (["vermilion", "orange", "purple"], "os^v"), (["blue", "sky", "green", "black"], "os^")
_DIVERGING = LinearSegmentedColormap.from_list("diverging", [OKABE_ITO["blue"], "white", OKABE_ITO["vermilion"]])


def overlay_heatmap(image: Image.Image, heatmap: np.ndarray) -> Image.Image:
    """Lays a heat map (H, W) in [0, 1] over an image, stretched to its size; an RGB image."""
    heat = Image.fromarray(np.asarray(heatmap, dtype=np.float32)).resize(image.size, Image.Resampling.BILINEAR)
    strength = np.clip(np.asarray(heat), 0, 1)
    colours = Image.fromarray(matplotlib.colormaps[_HEAT](strength, bytes=True)).convert("RGB")
    mask = Image.fromarray(np.rint(255 * _OPACITY * strength).astype(np.uint8))
    return Image.composite(colours, image.convert("RGB"), mask)


def plot_explanation(explanation: Explanation, path: str | os.PathLike[str] | None = None) -> Figure:
    """Draws image, heat maps, probabilities with and without metadata, and the metadata's effects, if there are any.

    With a path the figure is also saved, in the format of its suffix.
    """
    effects = explanation.effects
    heights = [3.9] * (explanation.image is not None) + [4.0] + [4.1] * bool(effects.rows)
    figure = new_figure(12, sum(heights) + 1.2)
    # Constrained layout measures from the edge of the paper, which needs a margin, in inches.
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.08)
    parts = iter(figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0])
    if explanation.image is not None:
        _draw_images(next(parts), explanation, explanation.image)
    if "age" in effects.given:
        bars, sweep = next(parts).subplots(1, 2, width_ratios=[1.15, 1])
        _draw_age_sweep(sweep, effects)
    else:
        bars = next(parts).subplots()
    _draw_probabilities(bars, effects)
    if effects.rows:
        _draw_changes(next(parts).subplots(), effects)
    size = 10 if explanation.warning else 12
    figure.suptitle(_title(explanation), x=0.012, ha="left", fontsize=size, linespacing=1.4)
    figure.supxlabel(DISCLAIMER, x=0.012, ha="left", fontsize=11, fontweight="bold")
    if path is not None:
        with warnings.catch_warnings():
            # A file name may contain letters that matplotlib's font lacks, which it draws as boxes.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
            save_figure(figure, path)
    return figure


def _title(explanation: Explanation) -> str:
    """The most probable class, which by the balanced rule is not the answer, or a warning; and what was given."""
    effects = explanation.effects
    best = int(np.argmax(effects.baseline))
    total = f", malignant total {effects.malignant_total():.1%}" if effects.malignant else ""
    given = ", ".join(f"{field} {value}" for field, value in effects.given.items())
    answer = f"Most probable: {effects.labels[best]} {effects.baseline[best]:.1%}{total}; {explanation.calibration}"
    lines = textwrap.wrap(plain(explanation.warning), 130) if explanation.warning else [plain(answer)]
    lines.append(plain("; ".join(part for part in (shown_name(explanation.name), given) if part)))
    return "\n".join(filter(None, lines))


def _draw_images(part: SubFigure, explanation: Explanation, image: Image.Image) -> None:
    """The image, then the same image under each heat map."""
    panels = [("The image", image, "")]
    for label, heatmap in explanation.heatmaps.items():
        share = explanation.effects.baseline[explanation.effects.labels.index(label)]
        which = "the most probable" if len(panels) == 1 else f"{share:.1%}"
        note = "" if heatmap.any() else plain(f"No region speaks for {label}.")
        panels.append((plain(f"What speaks for {label} ({which})"), overlay_heatmap(image, heatmap), note))
    for axes, (title, shown, note) in zip(part.subplots(1, len(panels)), panels, strict=True):
        axes.imshow(np.asarray(shown), interpolation="bilinear")
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
        axes.set_xlabel(note, fontsize=10, color=GREY)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    how = "Grad-CAM: yellow speaks most for the class. Each map has a scale of its own: compare places, not strengths."
    part.supxlabel(how, x=0.012, ha="left", fontsize=10, color=GREY)


def _draw_probabilities(axes: Axes, effects: MetadataEffects) -> None:
    """The probabilities, and next to them those with all metadata unknown, where that differs."""
    order = np.argsort(-effects.baseline, kind="stable")
    positions, shares, unknown = np.arange(len(order)), effects.baseline[order], effects.unknown()
    height, offset = (0.6, 0.0) if unknown is None else (0.38, 0.2)
    label = "probability" if unknown is None else "with the metadata given"
    bars = axes.barh(positions - offset, shares, height, color=OKABE_ITO["blue"], label=label)
    axes.bar_label(bars, [f"{share:.1%}" for share in shares], padding=4, fontsize=10)
    if unknown is not None:
        without = unknown[order]
        bars = axes.barh(positions + offset, without, height, color="#BDBDBD", label="metadata unknown")
        changes = [f"{w:.1%} ({points(100 * (share - w))})" for share, w in zip(shares, without, strict=True)]
        axes.bar_label(bars, changes, padding=4, fontsize=8.5, color=GREY)
        title = "In brackets: what the metadata\nadds, in percentage points"
        axes.legend(loc="lower right", fontsize=10, title=title, title_fontsize=9, frameon=False, alignment="left")
    style_axes(axes, title="Probabilities", grid="x")
    labels = [effects.labels[index] for index in order]
    # By both names, or by the only one.
    both = {label: f"{text} ({label})" if text != label else label for label, text in effects.descriptions.items()}
    axes.set_yticks(positions, [plain(both[label]).replace(" / ", " /\n") for label in labels], fontsize=9)
    for tick, label in zip(axes.get_yticklabels(), labels, strict=True):
        if label in effects.malignant:
            tick.set_color(OKABE_ITO["vermilion"])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    if effects.malignant:
        text = plain(f"In colour: counted in the malignant total ({' + '.join(effects.malignant)})")
        axes.set_xlabel(text, fontsize=10, color=GREY)


def _draw_age_sweep(axes: Axes, effects: MetadataEffects) -> None:
    """Every class's probability over the ages, all else as given."""
    rows = effects.varied("age")
    ages = [float(row.value) for row in rows]
    table = np.stack([row.probabilities for row in rows])  # (ages, classes)
    warm, cool = (zip(*map(itertools.cycle, styles), strict=True) for styles in (_WARM, _COOL))
    for label, shares in zip(effects.labels, table.T, strict=True):
        colour, marker = next(warm if label in effects.malignant else cool)
        axes.plot(ages, shares, f"-{marker}", color=OKABE_ITO[colour], label=plain(label), markersize=4, linewidth=1.6)
    given = effects.given["age"]
    if given != UNKNOWN:
        axes.axvline(float(given), color=GREY, linestyle=":", linewidth=1.6, zorder=1)
        inside = axes.get_xaxis_transform()  # years to the right, share of the axes upwards
        axes.text(float(given), 0.99, f" given: {given}", transform=inside, va="top", fontsize=9.5, color=GREY)
    style_axes(axes, title="The same with another age", xlabel="Age (years)")
    axes.set_ylim(0, max(0.05, 1.12 * float(table.max())))
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.legend(fontsize=9.5, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _draw_changes(axes: Axes, effects: MetadataEffects) -> None:
    """The change of each probability, in percentage points, for every field but the age varied, or unknown."""
    groups = [[row for row in effects.rows if row.value == UNKNOWN]]
    groups += [effects.varied(field) for field in effects.given if field != "age"]  # ages have their own panel
    columns = [row for group in groups for row in group]
    table = np.stack([row.probabilities for row in columns], axis=1) - effects.baseline[:, None]  # (classes, columns)
    totals = np.array([effects.malignant_total(row.probabilities) for row in columns]) - effects.malignant_total()
    changes = 100 * (np.vstack([table, totals]) if effects.malignant else table)  # (classes + 1, columns) points
    scale = max(5.0, float(np.abs(changes).max()))  # a change of a tenth of a point must not look like one
    axes.imshow(changes, cmap=_DIVERGING, vmin=-scale, vmax=scale, aspect="auto")
    for row, column in np.ndindex(*changes.shape):
        value = float(changes[row, column])
        text = points(value, digits=1 if abs(value) < 9.95 else 0)
        colour = "white" if abs(value) > 0.7 * scale else "black" if abs(value) >= 0.05 else "#A0A0A0"
        axes.text(column, row, text, ha="center", va="center", fontsize=9, color=colour)
    for start in np.cumsum([len(group) for group in groups[:-1]]):
        axes.axvline(start - 0.5, color=GREY, linewidth=1.2)
    if effects.malignant:
        axes.axhline(len(effects.labels) - 0.5, color=GREY, linewidth=1.2)
    style_axes(axes, title="Change of each probability, in percentage points, when one field is changed", grid="none")
    names = [*map(plain, effects.labels), *(["malignant total"] if effects.malignant else [])]
    axes.set_yticks(range(len(names)), names)
    given = [effects.given.get(row.field) == row.value for row in columns]
    names = [f"{row.field} unknown" if row.value == UNKNOWN else plain(row.value) for row in columns]
    names = [f"{name} (given)" if own else name for name, own in zip(names, given, strict=True)]
    axes.set_xticks(range(len(columns)), names, rotation=40, ha="right", rotation_mode="anchor", fontsize=9.5)
    for tick, own in zip(axes.get_xticklabels(), given, strict=True):
        tick.set_fontweight("bold" if own else "normal")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def explanation_paths(samples: Sequence[Sample], target: str) -> list[Path]:
    """Returns the path of each sample's figure; in a folder the sample's name, numbered where two are alike.

    The target is a file for one sample, whose suffix is one of `FIGURE_SUFFIXES`, or a folder, which need not exist;
    a `Ham10000Error` says that it does not fit, or is an input.
    """
    path = Path(target)
    paths, taken = [], set()
    if path.is_file() or (path.suffix and not path.is_dir()):
        if len(samples) > 1:
            raise Ham10000Error(f"--explain {target!r} is one file for {len(samples)} samples; give a folder.")
        if path.suffix.lower() not in FIGURE_SUFFIXES:
            raise Ham10000Error(f"--explain {target!r}: expected {', '.join(FIGURE_SUFFIXES)}, or a folder.")
        paths.append(path)
    else:
        for number, sample in enumerate(samples, start=1):
            name = sample.name or ""
            # A name for a file of any system, from an image's path or a csv's cell.
            stem = re.sub(r"[^\w.-]+", "_", Path(name).stem if sample.image is not None else name).strip("._")[:100]
            stem = stem or f"row_{number}"
            # In lower case, because some file systems take a.png and A.png for one file.
            while stem.lower() in taken:
                stem += f"_{number}"
            taken.add(stem.lower())
            paths.append(path / f"{stem}.png")
    images = {sample.image.resolve() for sample in samples if sample.image is not None}
    for figure in paths:
        if figure.resolve() in images:
            raise Ham10000Error(f"--explain would overwrite the image {str(figure)!r}; give another folder.")
    return paths
