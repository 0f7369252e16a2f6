"""The common look of all figures: colours that are safe for colour-blind readers, axes, and saving."""

import os
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ham10000.training.utils.files import atomic_path

# Okabe & Ito 2008, "Color Universal Design": told apart with any form of colour blindness.
OKABE_ITO = {"black": "#000000", "orange": "#E69F00", "sky": "#56B4E9", "green": "#009E73"}
OKABE_ITO |= {"yellow": "#F0E442", "blue": "#0072B2", "vermilion": "#D55E00", "purple": "#CC79A7"}
GREY = "#6B6B6B"


def plain(text: object) -> str:
    """Text from the data for a figure: matplotlib would read a dollar sign as mathematics."""
    return " ".join(str(text).replace("$", r"\$").split())


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches with its own canvas, so that no global pyplot state is touched."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def style_axes(axes: Axes, *, title: str = "", xlabel: str = "", ylabel: str = "", grid: str = "both") -> None:
    """The common look: left-aligned title, no upper and right frame, a light `x`, `y`, `both` or `none` grid behind.

    The title states what the figure shows; labels are quantities with their units.
    """
    if title:
        axes.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=10)
    axes.set_xlabel(xlabel, fontsize=11)
    axes.set_ylabel(ylabel, fontsize=11)
    axes.tick_params(labelsize=10, color=GREY)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GREY)
    axes.set_axisbelow(True)
    if grid != "none":
        axes.grid(axis=grid, color="#E3E3E3", linewidth=0.8)  # type: ignore[arg-type]


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Writes the figure atomically, in the format that the path's suffix names, and returns the path."""
    with atomic_path(path) as temporary:
        # Without the metadata the same figure is the same file, whatever the day.
        metadata = {"Software": None} if temporary.suffix == ".png" else None
        figure.savefig(temporary, dpi=150, metadata=metadata)
    return Path(path)
