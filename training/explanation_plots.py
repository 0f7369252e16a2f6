"""The figure of one explanation: picture, heat maps, probabilities, and what the metadata changes."""

import os
import warnings
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from PIL import Image

from ham10000.modeling import LABELS
from ham10000.training.explanation_panels import draw_age_sweep, draw_changes, draw_probabilities
from ham10000.training.plots import GREY, new_figure, plain, save_figure
from ham10000.training.prediction_output import DISCLAIMER, calibration_note, malignant_total, shown_name

if TYPE_CHECKING:
    from ham10000.training.explanation import Explanation

# Where the map is 1 this much of the picture is hidden, where it is 0 nothing: cold regions are seen as they are.
_OPACITY = 0.65
_HEAT = "viridis"  # blue to yellow, neither of which is a colour of skin, and readable with any colour blindness
_WIDTH = 12.0


def overlay_heatmap(picture: Image.Image, heatmap: np.ndarray) -> Image.Image:
    """Lays a heat map over a picture.

    Args:
        picture: Any PIL image.
        heatmap: (H, W) in [0, 1]; of another size than the picture it is stretched over the whole of it.

    Returns:
        An RGB image of the picture's size.
    """
    heat = Image.fromarray(np.asarray(heatmap, dtype=np.float32)).resize(picture.size, Image.Resampling.BILINEAR)
    strength = np.clip(np.asarray(heat), 0, 1)
    colours = matplotlib.colormaps[_HEAT](strength)[:, :, :3] * 255
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    opacity = _OPACITY * strength[:, :, None]  # (H, W, 1)
    return Image.fromarray(np.rint((1 - opacity) * pixels + opacity * colours).astype(np.uint8))


def plot_explanation(explanation: "Explanation", path: str | os.PathLike[str] | None = None) -> Figure:
    """Draws picture, heat maps, probabilities with and without metadata, and the effects of the metadata.

    What the variant does not have is left out: a metadata-only model has no picture, an image-only one no effects.

    Args:
        explanation: Result of `explain`.
        path: Where the figure is also saved, in the format of the suffix; None for nowhere.

    Returns:
        The figure.
    """
    effects = explanation.effects
    heights = {"pictures": 3.9 if explanation.picture is not None else 0.0, "bars": 4.0}
    heights["changes"] = 4.1 if effects.rows else 0.0
    names = [name for name, height in heights.items() if height]
    figure = new_figure(_WIDTH, sum(heights.values()) + 1.2)
    # Constrained layout measures from the edge of the paper, which needs a margin, in inches.
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.08)
    parts = figure.subfigures(len(names), 1, squeeze=False, height_ratios=[heights[name] for name in names])
    for name, part in zip(names, parts[:, 0], strict=True):
        if explanation.picture is not None and name == "pictures":
            _draw_pictures(part, explanation, explanation.picture)
        elif name == "changes":
            draw_changes(part.subplots(), effects)
        elif "age" in effects.given:
            bars, sweep = part.subplots(1, 2, width_ratios=[1.15, 1])
            draw_probabilities(bars, effects)
            draw_age_sweep(sweep, effects)
        else:
            draw_probabilities(part.subplots(), effects)
    figure.suptitle(_title(explanation), x=0.012, ha="left", fontsize=12, linespacing=1.4)
    figure.supxlabel(DISCLAIMER, x=0.012, ha="left", fontsize=11, fontweight="bold")
    if path is not None:
        with warnings.catch_warnings():
            # A file name may hold letters that matplotlib's font lacks; a box in the title is no reason to complain.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
            save_figure(figure, path)
    return figure


def _title(explanation: "Explanation") -> str:
    """The answer, and what it was given."""
    effects = explanation.effects
    best = int(np.argmax(effects.baseline))
    total = malignant_total(effects.baseline)
    given = ", ".join(f"{field} {value}" for field, value in effects.given.items())
    note = calibration_note(explanation.temperature)
    lines = (
        f"Predicted: {LABELS[best]} {effects.baseline[best]:.1%}, malignant total {total:.1%}; {note}",
        "; ".join(part for part in (shown_name(explanation.name), given) if part),
    )
    return "\n".join(plain(line) for line in lines if line)


def _draw_pictures(part: SubFigure, explanation: "Explanation", picture: Image.Image) -> None:
    """The picture, then the same picture under each heat map."""
    panels = part.subplots(1, 1 + len(explanation.heatmaps))
    _show(panels[0], picture, "The picture")
    for number, (axes, (label, heatmap)) in enumerate(zip(panels[1:], explanation.heatmaps.items(), strict=True)):
        share = explanation.effects.baseline[LABELS.index(label)]
        which = "the predicted class" if number == 0 else f"{share:.1%}"
        _show(axes, overlay_heatmap(picture, heatmap), f"What speaks for {label} ({which})")
        if not heatmap.any():
            axes.set_xlabel(f"No region speaks for {label}.", fontsize=10, color=GREY)
    part.supxlabel(
        "Grad-CAM: yellow is where the evidence for the class is strongest. Each map is scaled by its own maximum, so "
        "compare places, not strengths.",
        x=0.012,
        ha="left",
        fontsize=10,
        color=GREY,
    )


def _show(axes: Axes, picture: Image.Image, title: str) -> None:
    axes.imshow(np.asarray(picture), interpolation="bilinear")
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


__all__ = ["overlay_heatmap", "plot_explanation"]
