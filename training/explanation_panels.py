"""The panels of an explanation: probabilities, the age varied, and the change of each probability."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from ham10000.modeling import LABEL_DESCRIPTIONS, LABELS, MALIGNANT
from ham10000.training.metadata_effects import ALL_FIELDS, UNKNOWN, MetadataEffect, MetadataEffects
from ham10000.training.plots import GREY, OKABE_ITO, style_axes
from ham10000.training.prediction_output import malignant_total, points

# One colour and marker a class: the malignant ones warm, so that they are told from the benign at a glance.
_STYLES = {
    "mel": ("vermilion", "o"),
    "bcc": ("orange", "s"),
    "akiec": ("purple", "^"),
    "nv": ("blue", "o"),
    "bkl": ("sky", "s"),
    "df": ("green", "^"),
    "vasc": ("black", "v"),
}
_DIVERGING = LinearSegmentedColormap.from_list(
    "okabe_ito_diverging", [OKABE_ITO["blue"], "white", OKABE_ITO["vermilion"]]
)
_LEAST_SCALE = 5.0  # points: a change of a tenth of a point must not look like one


def draw_probabilities(axes: Axes, effects: MetadataEffects) -> None:
    """Draws the seven probabilities, and beside them those with all metadata unknown, where that differs."""
    order = np.argsort(-effects.baseline, kind="stable")
    positions = np.arange(len(order))
    without = effects.unknown()
    compared = without is not None and any(value != UNKNOWN for value in effects.given.values())
    height = 0.38 if compared else 0.6
    offset = 0.2 if compared else 0.0
    axes.barh(
        positions - offset,
        effects.baseline[order],
        height,
        color=OKABE_ITO["blue"],
        label="with the metadata given" if compared else "probability",
    )
    for position, index in zip(positions, order, strict=True):
        share = effects.baseline[index]
        axes.text(share + 0.01, position - offset, f"{share:.1%}", va="center", fontsize=10)
        if without is not None and compared:
            change = 100 * (share - without[index])
            text = f"{without[index]:.1%} ({points(change)})"
            axes.text(without[index] + 0.01, position + offset, text, va="center", fontsize=8.5, color=GREY)
    if without is not None and compared:
        axes.barh(positions + offset, without[order], height, color="#BDBDBD", label="metadata unknown")
        title = "In brackets: what the metadata\nadds, in percentage points"
        axes.legend(loc="lower right", fontsize=10, title=title, title_fontsize=9, frameon=False, alignment="left")
    style_axes(axes, title="Probabilities", grid="x")
    axes.set_yticks(positions, [_class_name(LABELS[index]) for index in order], fontsize=9)
    for tick, index in zip(axes.get_yticklabels(), order, strict=True):
        if LABELS[index] in MALIGNANT:
            tick.set_color(OKABE_ITO["vermilion"])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.set_xlabel(f"In colour: counted in the malignant total ({' + '.join(MALIGNANT)})", fontsize=10, color=GREY)


def _class_name(label: str) -> str:
    return f"{LABEL_DESCRIPTIONS[label]} ({label})".replace(" / ", " /\n")


def draw_age_sweep(axes: Axes, effects: MetadataEffects) -> None:
    """Draws every class's probability over the ages, all else as given."""
    rows = effects.varied("age")
    ages = [float(row.value) for row in rows]
    table = np.stack([row.probabilities for row in rows])  # (ages, 7)
    for label, (colour, marker) in _STYLES.items():
        axes.plot(
            ages,
            table[:, LABELS.index(label)],
            marker=marker,
            color=OKABE_ITO[colour],
            markersize=4,
            linewidth=1.6,
            label=label,
        )
    given = effects.given["age"]
    if given != UNKNOWN:
        axes.axvline(float(given), color=GREY, linestyle=":", linewidth=1.6, zorder=1)
        axes.annotate(
            f"given: {given}",
            (float(given), 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(4, -2),
            textcoords="offset points",
            va="top",
            fontsize=9.5,
            color=GREY,
        )
    style_axes(axes, title="The same with another age", xlabel="Age (years)")
    axes.set_ylim(0, max(0.05, 1.12 * float(table.max())))
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.legend(fontsize=9.5, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def draw_changes(axes: Axes, effects: MetadataEffects) -> None:
    """Draws the change of each probability, in percentage points, for every field but the age varied, or unknown."""
    columns, starts = _columns(effects)
    table = np.stack([row.probabilities for row in columns], axis=1) - effects.baseline[:, None]  # (7, columns)
    totals = np.array([malignant_total(row.probabilities) for row in columns]) - malignant_total(effects.baseline)
    changes = 100 * np.vstack([table, totals])  # (8, columns) points
    scale = max(_LEAST_SCALE, float(np.abs(changes).max()))
    axes.imshow(changes, cmap=_DIVERGING, vmin=-scale, vmax=scale, aspect="auto")
    for row, column in np.ndindex(*changes.shape):
        value = float(changes[row, column])
        text = points(value, digits=1 if abs(value) < 9.95 else 0)
        strong = abs(value) > 0.7 * scale
        colour = "white" if strong else "black" if abs(value) >= 0.05 else "#A0A0A0"
        axes.text(column, row, text, ha="center", va="center", fontsize=9, color=colour)
    for start in starts[1:]:
        axes.axvline(start - 0.5, color=GREY, linewidth=1.2)
    axes.axhline(len(LABELS) - 0.5, color=GREY, linewidth=1.2)
    style_axes(axes, title="Change of each probability, in percentage points, when one field is changed", grid="none")
    axes.set_yticks(range(len(LABELS) + 1), [*LABELS, "malignant total"])
    axes.set_xticks(range(len(columns)), [_column_name(row, effects) for row in columns], rotation=40, ha="right")
    for tick, row in zip(axes.get_xticklabels(), columns, strict=True):
        tick.set_rotation_mode("anchor")
        tick.set_fontsize(9.5)
        if effects.given.get(row.field) == row.value:
            tick.set_fontweight("bold")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _columns(effects: MetadataEffects) -> tuple[list[MetadataEffect], list[int]]:
    """The changes shown, field by field, and where each group begins; ages have a panel of their own."""
    groups = [[row for row in effects.rows if row.value == UNKNOWN]]
    groups += [effects.varied(field) for field in effects.given if field != "age"]
    starts = np.cumsum([0] + [len(group) for group in groups[:-1]]).tolist()
    return [row for group in groups for row in group], starts


def _column_name(row: MetadataEffect, effects: MetadataEffects) -> str:
    if row.value == UNKNOWN:
        return f"{'all' if row.field == ALL_FIELDS else row.field} unknown"
    return f"{row.value} (given)" if effects.given.get(row.field) == row.value else row.value


__all__ = ["draw_age_sweep", "draw_changes", "draw_probabilities"]
