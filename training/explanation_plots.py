"""The figure of one explanation: picture, heat maps, probabilities, and what the metadata changes."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ham10000.modeling import LABEL_DESCRIPTIONS, LABELS, MALIGNANT
from ham10000.training.metadata_effects import ALL_FIELDS, UNKNOWN, MetadataEffects
from ham10000.training.plots import GREY, OKABE_ITO, new_figure, save_figure, style_axes
from ham10000.training.prediction_output import DISCLAIMER

if TYPE_CHECKING:
    from ham10000.training.explanation import Explanation

# Where the map is 1 this much of the picture is hidden, where it is 0 nothing: cold regions are seen as they are.
_OPACITY = 0.6
_HEAT = "viridis"  # blue to yellow, neither of which is a colour of skin, and readable with any colour blindness


def overlay_heatmap(picture: Image.Image, heatmap: np.ndarray) -> Image.Image:
    """Lays a heat map over a picture.

    Args:
        picture: Any PIL image.
        heatmap: (H, W) in [0, 1]; of another size than the picture it is stretched over the whole of it.

    Returns:
        An RGB image of the picture's size.
    """
    heat = Image.fromarray(np.asarray(heatmap, dtype=np.float32)).resize(picture.size, Image.Resampling.BILINEAR)
    strength = np.clip(np.asarray(heat), 0, 1)[:, :, None]  # (H, W, 1)
    colours = matplotlib.colormaps[_HEAT](strength[:, :, 0])[:, :, :3] * 255
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    opacity = _OPACITY * strength
    return Image.fromarray(np.rint((1 - opacity) * pixels + opacity * colours).astype(np.uint8))


def plot_explanation(explanation: "Explanation", path: str | os.PathLike[str] | None = None) -> Figure:
    """Draws picture, heat maps, probabilities with and without metadata, and the effects of the metadata.

    Args:
        explanation: Result of `explain`.
        path: Where the figure is also saved, in the format of the suffix; None for nowhere.

    Returns:
        The figure.
    """
    figure = new_figure(10, 4)
    for axes, image in zip(figure.subplots(1, 3), (explanation.picture,) * 3, strict=True):
        if image is not None:
            axes.imshow(np.asarray(image))
    if path is not None:
        save_figure(figure, path)
    return figure


__all__ = ["overlay_heatmap", "plot_explanation"]
