"""What the study's figures share: one colour a variant, titles that fit one line, intervals, panels."""

from collections.abc import Sequence
from typing import Any, Literal

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ham10000.training.markdown_text import defined
from ham10000.training.plots import GREY, OKABE_ITO, new_figure, plain, style_axes

# The same variant has the same colour and marker in every figure.
_STYLES = {
    "image": ("black", "o"),
    "metadata": ("orange", "D"),
    "fusion-concat": ("blue", "s"),
    "fusion-gated": ("green", "^"),
    "fusion-metablock": ("purple", "v"),
    "fusion-film": ("vermilion", "p"),
}
_LARGEST_TITLE, _SMALLEST_TITLE = 12.0, 8.5


def colour(variant: str) -> str:
    """Colour of a variant."""
    return OKABE_ITO[_STYLES.get(variant, ("sky", "X"))[0]]


def marker(variant: str) -> str:
    """Marker of a variant, so that colour is never the only difference."""
    return _STYLES.get(variant, ("sky", "X"))[1]


def number(value: Any, form: str = ".2f") -> str:
    """A number for a title; `undefined` where there is none."""
    return f"{value:{form}}" if defined(value) else "undefined"


def set_title(figure: Figure, text: str) -> None:
    """Puts the finding above the figure, in one line: smaller where it is long, cut off at a word where too long.

    Args:
        figure: The figure, with its final size.
        text: The finding.
    """
    size = _LARGEST_TITLE
    title = figure.suptitle(text, x=0.02, ha="left", fontsize=size, fontweight="bold")
    room = 0.96 * figure.bbox.width

    def too_wide() -> bool:
        # The canvas is Agg's, which measures text as it will draw it.
        return title.get_window_extent(figure.canvas.get_renderer()).width > room  # type: ignore[attr-defined]

    while too_wide() and size > _SMALLEST_TITLE:
        size -= 0.5
        title.set_fontsize(size)
    words = text.split(" ")
    while too_wide() and len(words) > 1:
        words.pop()
        title.set_text(" ".join(words).rstrip(",;:") + " …")


def draw_interval(
    axes: Axes, value: dict[str, Any] | None, y: float, variant_colour: str, shape: str, **options: Any
) -> bool:
    """A point with its horizontal interval, as far as they are defined.

    Args:
        axes: Where to.
        value: `estimate` or `mean`, `low`, `high` and perhaps `per_seed`, drawn as small dots if there are several.
        y: Height.
        variant_colour: Colour.
        shape: Marker.
        **options: Further options of the point, such as `markerfacecolor`.

    Returns:
        Whether there was a point to draw.
    """
    estimate = None if value is None else value.get("estimate", value.get("mean"))
    if value is None or estimate is None or not defined(estimate):
        return False
    if defined(value.get("low")) and defined(value.get("high")):
        axes.plot([value["low"], value["high"]], [y, y], color=variant_colour, linewidth=2, solid_capstyle="butt")
    seeds = [seed for seed in value.get("per_seed") or [] if defined(seed)]
    if len(seeds) > 1:
        # White inside, or they would vanish in the line of the interval.
        axes.plot(seeds, [y] * len(seeds), "o", color=variant_colour, markersize=3.5, markerfacecolor="white")
    # A point at the end of the scale is drawn whole.
    axes.plot(estimate, y, shape, color=variant_colour, **({"markersize": 7, "clip_on": False} | options))
    return True


def say_undefined(axes: Axes, y: float) -> None:
    """Says at a height that there is no number, so that a gap is no zero."""
    axes.text(0.02, y, "undefined", transform=axes.get_yaxis_transform(), color=GREY, fontsize=9, va="center")


def panels(count: int, height: float, *, columns: int = 2, extra: float = 0.9) -> tuple[Figure, list[Axes]]:
    """A figure 8 inches wide with so many panels, at most `columns` beside each other.

    Args:
        count: Number of panels.
        height: Height of a row of panels in inches.
        columns: Largest number of panels in a row.
        extra: Inches for the title and the legend.

    Returns:
        The figure and its panels, row by row.
    """
    columns = min(count, columns)
    rows = -(-count // columns)
    figure = new_figure(8, extra + rows * height)
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(w_pad=0.12, h_pad=0.06)  # type: ignore[call-arg]  # room for tick labels at the right edge
    grid = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for unused in grid[count:]:
        unused.remove()
    return figure, grid[:count]


def panel_title(axes: Axes, text: str) -> None:
    """The small title of one panel."""
    axes.set_title(text, loc="left", fontsize=10.5, color="#333333", pad=6)


def name_rows(axes: Axes, positions: Sequence[float], names: Sequence[str], *, xlabel: str, ylabel: str = "") -> None:
    """The look of a panel whose rows are named on the left, the first on top."""
    style_axes(axes, xlabel=xlabel, ylabel=ylabel, grid="x")
    axes.set_yticks(positions, names)
    axes.set_ylim(max(positions) + 0.6, min(positions) - 0.6)


def variant_legend(
    figure: Figure, variants: Sequence[str], *more: Artist, line: Literal["-", "none"] = "none"
) -> None:
    """One legend of the variants below the figure, and whatever else needs a word."""
    handles: list[Artist] = [
        Line2D([], [], color=colour(name), marker=marker(name), linestyle=line, markersize=7, label=name)
        for name in variants
    ]
    figure.legend(handles=[*handles, *more], loc="outside lower center", ncols=3, frameon=False, fontsize=10)


__all__ = [
    "colour",
    "draw_interval",
    "marker",
    "name_rows",
    "number",
    "panel_title",
    "panels",
    "plain",
    "say_undefined",
    "set_title",
    "variant_legend",
]
