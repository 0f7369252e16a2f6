"""Predictions for a reader: seven bars and what the metadata changed for one sample, one line each for several."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ham10000.modeling import LABELS, MALIGNANT, Ham10000ForImageClassification, Ham10000Processor
from ham10000.training.metadata_effects import describe_metadata
from ham10000.training.prediction_inputs import Sample
from ham10000.training.prediction_output import DISCLAIMER, calibration_note, malignant_total, points, shown_name

DEFAULT_WIDTH = 100
_LONGEST_BAR, _SHORTEST_BAR, _COMPACT_BAR = 30, 8, 10
_LEAST_NAME = 28  # of a class: all but one are shorter
_EIGHTHS = " ▏▎▍▌▋▊▉"


def format_table(
    samples: Sequence[Sample],
    probabilities: np.ndarray,
    model: Ham10000ForImageClassification,
    processor: Ham10000Processor,
    *,
    metadata_unknown: np.ndarray | None = None,
    top_k: int | None = None,
    unknown_values: str = "error",
    width: int = DEFAULT_WIDTH,
) -> str:
    """The predictions for a reader.

    Args:
        samples: What was predicted.
        probabilities: (samples, 7).
        model: Gives the plain names of the labels and the temperature.
        processor: Gives the meaning of the metadata.
        metadata_unknown: (1, 7), what the one sample's probabilities are when its metadata is unknown; None to leave
            the comparison out.
        top_k: Classes shown a sample; by default all for one sample and the most probable one for several.
        unknown_values: As the samples were predicted.
        width: Columns of the terminal; below 80 lines are broken by it.

    Returns:
        Lines of text, the last of which says what this is not for.
    """
    if len(samples) == 1:
        lines = [shown_name(samples[0].name)] if samples[0].name else []
        if processor.metadata_fields and model.config.uses_metadata:
            shown = describe_metadata(processor, samples[0].metadata, unknown_values=unknown_values)
            lines.append(", ".join(f"{field} {value}" for field, value in shown.items()))
        others = None if metadata_unknown is None else metadata_unknown[0]
        lines += _one(probabilities[0], others, model.config.label_descriptions, top_k, max(width, 80))
    else:
        lines = _several(samples, probabilities, model.config.label_descriptions, top_k, max(width, 80))
    note = calibration_note(model.config.temperature)
    # Sentences are broken between words here, not within them by the terminal.
    sentences = [textwrap.fill(text, max(width, 80)) for text in (f"{note[0].upper()}{note[1:]}.", DISCLAIMER)]
    return "\n".join([*lines, "", *sentences]) + "\n"


def _one(
    row: np.ndarray, unknown: np.ndarray | None, descriptions: dict[str, str], top_k: int | None, width: int
) -> list[str]:
    """The bars of one sample and, beside them, what they would be without its metadata."""
    order = np.argsort(-row, kind="stable")
    best = LABELS[order[0]]
    compared = "" if unknown is None else f"  {'':>8}  {'':>8}"
    # What is left of a line of `  label  name   share  bar  unknown  change` goes to the names first, then to the bar.
    room = width - len(f"  {'':<7} {'':>7}  ") - len(compared) - 1
    longest = max(len(text) for text in descriptions.values())
    name_width = max(_LEAST_NAME, min(longest, room - _SHORTEST_BAR))
    bar_width = max(_SHORTEST_BAR, min(_LONGEST_BAR, room - name_width))

    def line(title: str, share: str, bar: str, other: str = "", change: str = "") -> str:
        text = f"  {title:<{name_width + 7}} {share:>7}  {bar:<{bar_width}}"
        return (text if unknown is None else f"{text}  {other:>8}  {change:>8}").rstrip()

    def numbers(share: float, other: float | None, bar: str) -> tuple[str, ...]:
        shown = (f"{share:.1%}", bar)
        return shown if other is None else (*shown, f"{other:.1%}", points(100 * (share - other)))

    lines = ["", f"Predicted: {best}, {descriptions[best]}", ""]
    if unknown is not None:
        lines.append(line("metadata", "given", "", "unknown", "change"))
    for index in order[:top_k]:
        name = _cut(descriptions[LABELS[index]], name_width)
        other = None if unknown is None else float(unknown[index])
        lines.append(line(f"{LABELS[index]:<6} {name}", *numbers(row[index], other, _bar(row[index], bar_width))))
    total = None if unknown is None else malignant_total(unknown)
    title = f"malignant total ({' + '.join(MALIGNANT)})"
    lines += ["", line(title, *numbers(malignant_total(row), total, _bar(malignant_total(row), bar_width)))]
    if unknown is not None:
        other_best = LABELS[int(unknown.argmax())]
        same = f"also be {best}" if other_best == best else f"be {other_best}, {descriptions[other_best]}"
        text = f"With its metadata unknown the prediction would {same}. Change: in percentage points."
        lines += ["", *textwrap.wrap(text, width)]
    return lines


def _several(
    samples: Sequence[Sample], probabilities: np.ndarray, descriptions: dict[str, str], top_k: int | None, width: int
) -> list[str]:
    """One line a sample: its name, the class with its share, the malignant total, the class's plain name."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    fixed = f"  label  share  {'':<{_COMPACT_BAR}}  malignant  "
    room = width - len(fixed) - 1
    names = [shown_name(name, max(20, room - _LEAST_NAME)) for name in _without_folder(samples)]
    name_width = max(len("sample"), *(len(name) for name in names))
    lines = [f"{'sample':<{name_width}}{fixed}name"]
    for name, row, ranks in zip(names, probabilities, order, strict=True):
        label, share = LABELS[ranks[0]], row[ranks[0]]
        others = ", ".join(f"{LABELS[index]} {row[index]:.1%}" for index in ranks[1 : top_k or 1])
        # Who asks for more classes gets longer lines, not fewer words.
        text = f"{descriptions[label]}; then {others}" if others else _cut(descriptions[label], room - name_width)
        bar = _bar(share, _COMPACT_BAR)
        risk = f"{malignant_total(row):.1%}"
        lines.append(f"{name:<{name_width}}  {label:<5} {share:>6.1%}  {bar:<{_COMPACT_BAR}}  {risk:>9}  {text}")
    return [*lines, "", f"malignant: total of {' + '.join(MALIGNANT)}"]


def _without_folder(samples: Sequence[Sample]) -> list[str]:
    """Names without the folder that all of them share."""
    names = [sample.name or "" for sample in samples]
    same_folder = len({Path(name).parent for name in names}) == 1
    return [Path(name).name for name in names] if same_folder else names


def _cut(text: str, width: int) -> str:
    """The beginning of a text that is too long."""
    return text if len(text) <= width else f"{text[: width - 1].rstrip()}…"


def _bar(share: float, width: int) -> str:
    eighths = round(float(share) * width * 8)
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()


__all__ = ["DEFAULT_WIDTH", "format_table"]
