"""Draws `idea.png`, the README's image: a photograph and its metadata, three variants, seven probabilities.

The photograph is synthetic and so are the probabilities: it shows what goes where, and no result.
"""

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

from ham10000.modeling.configuration_ham10000 import LABELS, MALIGNANT
from ham10000.training.data.synthetic import Lesion, render
from ham10000.training.utils.files import atomic_path

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
# Illustrative; sums to one.
PROBABILITIES = (0.03, 0.05, 0.12, 0.02, 0.47, 0.29, 0.02)


def box(axes: plt.Axes, x: float, y: float, text: str, colour: str, width: float = 1.9, height: float = 0.62) -> None:
    """Draws a rounded box with its text in the middle, in the units of the axes."""
    style = "round,pad=0.02,rounding_size=0.1"
    axes.add_patch(FancyBboxPatch((x, y - height / 2), width, height, boxstyle=style, fc="white", ec=colour, lw=2))
    axes.text(x + width / 2, y, text, ha="center", va="center", fontsize=11)


def arrow(axes: plt.Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    """Draws an arrow between two points, in the units of the axes."""
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.8})


def draw() -> plt.Figure:
    """Draws the image.

    Returns:
        A figure of 8 x 4.2 inches on white, which reads on a light and on a dark page.
    """
    figure = plt.figure(figsize=(8, 4.2), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 8), ylim=(0, 4.2))
    axes.axis("off")
    lesion = Lesion.draw("mel", np.random.default_rng(3))
    image = np.asarray(render(lesion, np.random.default_rng(4), (400, 300)))
    axes.imshow(image, extent=(0.2, 1.9, 2.55, 3.83), aspect="auto", zorder=2)
    axes.text(1.05, 2.38, "image (here synthetic)", ha="center", fontsize=9, color="#444444")
    box(axes, 0.2, 1.45, "age 60\nsex male\nsite back", ORANGE, 1.7, 0.95)
    axes.text(1.05, 0.77, "each field may be unknown", ha="center", fontsize=9, color="#444444")
    for y, text, colour in ((3.4, "image\ntimm backbone", BLUE), (2.3, "fusion\nof both", GREEN)):
        box(axes, 2.75, y, text, colour)
    box(axes, 2.75, 1.2, "metadata\nMLP", ORANGE)
    arrow(axes, (1.95, 3.4), (2.7, 3.4), BLUE)
    arrow(axes, (1.95, 3.0), (2.7, 2.45), BLUE)
    arrow(axes, (1.95, 1.7), (2.7, 2.15), ORANGE)
    arrow(axes, (1.95, 1.2), (2.7, 1.2), ORANGE)
    for y, colour in ((3.4, BLUE), (2.3, GREEN), (1.2, ORANGE)):
        arrow(axes, (4.7, y), (5.25, 2.3 + (y - 2.3) * 0.3), colour)
    bars = figure.add_axes((0.735, 0.25, 0.235, 0.62))
    colours = [ORANGE if label in MALIGNANT else "#888888" for label in LABELS]
    bars.barh(range(len(LABELS)), PROBABILITIES, color=colours)
    bars.set(yticks=range(len(LABELS)), yticklabels=LABELS, xticks=[], xlim=(0, 0.62))
    bars.invert_yaxis()
    bars.tick_params(length=0, labelsize=11)
    for position, value in enumerate(PROBABILITIES):
        bars.text(value + 0.015, position, f"{value:.2f}", va="center", fontsize=10)
    bars.spines[["top", "right", "bottom"]].set_visible(False)
    bars.set_title("seven probabilities", fontsize=11)
    axes.text(6.85, 0.82, "orange: malignant or precursor", ha="center", fontsize=9, color="#444444")
    axes.text(
        4,
        0.3,
        "Two protocols: lesion-grouped (no lesion on two sides) and image-stratified (the baseline's; leaks).\n"
        "Research only, never for diagnosis. The numbers are made up.",
        ha="center",
        va="center",
        fontsize=10,
    )
    return figure


def main() -> None:
    """Writes `idea.png` beside this script, at twice the width a README shows."""
    with atomic_path(Path(__file__).with_name("idea.png")) as temporary:
        draw().savefig(temporary, dpi=200)


if __name__ == "__main__":
    main()
