"""Predictions as text: a table for a reader; JSON, csv or an ISIC submission for programs."""

import csv
import io
import json
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ham10000.modeling import LABELS, MALIGNANT, Ham10000ForImageClassification, Ham10000Processor
from ham10000.training.inference.inputs import Sample
from ham10000.training.inference.metadata_effects import describe_metadata
from ham10000.training.utils.cli import DISCLAIMER
from ham10000.training.utils.files import atomic_write_text, escape_cell
from ham10000.training.utils.isic_submission import format_submission

DEFAULT_WIDTH = 100
_NAME_WIDTH = 44
_LONGEST_BAR, _SHORTEST_BAR, _COMPACT_BAR = 30, 8, 10
_LEAST_CLASS = 28  # width of a class's name: all but one are shorter
_EIGHTHS = " ▏▎▍▌▋▊▉"
# For terminals whose encoding has no block characters; a space, so that what follows a bar keeps its column.
_ASCII_BLOCKS = str.maketrans({"█": "#", "…": "~"} | dict.fromkeys("▏▎▍", " ") | dict.fromkeys("▌▋▊▉", "#"))
_MALIGNANT = [LABELS.index(label) for label in MALIGNANT]


@dataclass(frozen=True)
class Answer:
    """What is answered for each sample, beside its probabilities.

    Attributes:
        labels: (samples,) class ids by the decision rule.
        sets: (samples, K) bool prediction sets, or None.
        coverage: What the sets promise in every class, for images like the training data.
    """

    labels: np.ndarray
    sets: np.ndarray | None = None
    coverage: float | None = None

    def named_set(self, row: int) -> list[str]:
        """Names of the classes in a sample's set."""
        return [] if self.sets is None else [LABELS[k] for k in np.flatnonzero(self.sets[row])]

    def sentence(self, row: int) -> str:
        """A sample's set as text."""
        names = " ".join(self.named_set(row)) or "empty, the image is unlike every class"
        return f"{self.coverage:.0%} set: {names}"


def malignant_total(row: np.ndarray) -> float:
    """The sum of the probabilities (7,) of the malignant classes."""
    return float(sum(row[index] for index in _MALIGNANT))


def points(value: float, digits: int = 1) -> str:
    """A difference in percentage points with its sign; `0` where rounding leaves nothing."""
    return f"{value:+.{digits}f}" if abs(value) >= 0.05 else "0"


def is_calibrated(temperature: float) -> bool:
    """Whether a checkpoint has its own temperature: a config starts with 1, and a fitted one is never exactly 1."""
    return float(temperature) != 1.0


def calibration_note(temperature: float) -> str:
    """Whether the probabilities are calibrated, as text; the model itself applies its temperature."""
    if is_calibrated(temperature):
        return f"probabilities are calibrated (temperature {temperature:.3g})"
    return "probabilities are NOT calibrated (temperature 1): read them as scores"


def shown_name(name: str | None, width: int = _NAME_WIDTH) -> str:
    """A name for the terminal: no control characters, and not so long that the columns are lost."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name or "")
    width = min(width, _NAME_WIDTH)
    return text if len(text) <= width else f"…{text[1 - width :]}"


def format_table(
    samples: Sequence[Sample],
    probabilities: np.ndarray,
    model: Ham10000ForImageClassification,
    processor: Ham10000Processor,
    *,
    answer: Answer | None = None,
    metadata_unknown: np.ndarray | None = None,
    top_k: int | None = None,
    unknown_values: str = "error",
    width: int = DEFAULT_WIDTH,
) -> str:
    """Formats for a reader: bars and the effect of the metadata for one sample, one line each for several.

    Args:
        samples: The samples that were predicted.
        probabilities: (samples, 7).
        model: Gives the plain names of the labels and the temperature.
        processor: Gives the meaning of the metadata.
        answer: The answers; by default the most probable classes.
        metadata_unknown: (1, 7) probabilities of the one sample with its metadata unknown; None to leave the
            comparison out.
        top_k: Classes shown per sample; by default all for one sample and the most probable one for several.
        unknown_values: As the samples were predicted.
        width: Columns of the terminal; below 80 lines are broken by it.

    Returns:
        Lines of text, the last of which is the disclaimer.
    """
    width = max(width, 80)
    answer = answer or Answer(probabilities.argmax(axis=1))
    descriptions = model.config.label_descriptions or {}
    if len(samples) == 1:
        lines = [shown_name(samples[0].name)] if samples[0].name else []
        if processor.metadata_fields and model.config.uses_metadata:
            shown = describe_metadata(processor, samples[0].metadata, unknown_values=unknown_values)
            lines.append(", ".join(f"{field} {value}" for field, value in shown.items()))
        others = None if metadata_unknown is None else metadata_unknown[0]
        lines += _one(probabilities[0], others, descriptions, top_k, width, answer)
    else:
        lines = _several(samples, probabilities, descriptions, top_k, width, answer)
    note = calibration_note(model.config.temperature)
    # Sentences are broken between words here, not within them by the terminal.
    sentences = [textwrap.fill(text, width) for text in (f"{note[0].upper()}{note[1:]}.", DISCLAIMER)]
    return "\n".join([*lines, "", *sentences]) + "\n"


def _one(
    row: np.ndarray,
    unknown: np.ndarray | None,
    descriptions: dict[str, str],
    top_k: int | None,
    width: int,
    answer: Answer,
) -> list[str]:
    """The bars of one sample and, on their right, the probabilities without its metadata."""
    order = np.argsort(-row, kind="stable")
    best = LABELS[answer.labels[0]]
    compared = "" if unknown is None else f"  {'':>8}  {'':>8}"
    # What is left of a line of `  label  name   share  bar  unknown  change` goes to the names first, then to the bar.
    room = width - len(f"  {'':<7} {'':>7}  ") - len(compared) - 1
    name_width = max(_LEAST_CLASS, min(max(map(len, descriptions.values())), room - _SHORTEST_BAR))
    bar_width = max(_SHORTEST_BAR, min(_LONGEST_BAR, room - name_width))

    def line(title: str, share: float, other: float | None) -> str:
        text = f"  {title:<{name_width + 7}} {share:>7.1%}  {_bar(share, bar_width):<{bar_width}}"
        return (text if other is None else f"{text}  {other:>8.1%}  {points(100 * (share - other)):>8}").rstrip()

    lines = ["", f"Predicted: {best}, {descriptions[best]}", ""]
    if answer.sets is not None:
        lines[-1:] = [answer.sentence(0), ""]
    if unknown is not None:
        lines.append(
            f"  {'metadata':<{name_width + 7}} {'given':>7}  {'':<{bar_width}}  {'unknown':>8}  {'change':>8}"
        )
    for index in order[:top_k]:
        name = _cut(descriptions[LABELS[index]], name_width)
        lines.append(line(f"{LABELS[index]:<6} {name}", row[index], None if unknown is None else unknown[index]))
    total = None if unknown is None else malignant_total(unknown)
    lines += ["", line(f"malignant total ({' + '.join(MALIGNANT)})", malignant_total(row), total)]
    if unknown is not None:
        other_best = LABELS[int(unknown.argmax())]
        same = f"also be {best}" if other_best == best else f"be {other_best}, {descriptions[other_best]}"
        text = f"With its metadata unknown the prediction would {same}. Change: in percentage points."
        lines += ["", *textwrap.wrap(text, width)]
    return lines


def _several(
    samples: Sequence[Sample],
    probabilities: np.ndarray,
    descriptions: dict[str, str],
    top_k: int | None,
    width: int,
    answer: Answer,
) -> list[str]:
    """One line per sample: its name, the class with its share, the malignant total, the class's plain name."""
    fixed = f"  label  share  {'':<{_COMPACT_BAR}}  malignant  "
    room = width - len(fixed) - 1
    names = [sample.name or "" for sample in samples]
    if len({Path(name).parent for name in names}) == 1:
        names = [Path(name).name for name in names]
    names = [shown_name(name, max(20, room - _LEAST_CLASS)) for name in names]
    name_width = max(len("sample"), *map(len, names))
    lines = [f"{'sample':<{name_width}}{fixed}name"]
    for number, (name, row) in enumerate(zip(names, probabilities, strict=True)):
        first = int(answer.labels[number])
        ranks = [index for index in np.argsort(-row, kind="stable") if index != first]
        label, share = LABELS[first], row[first]
        others = ", ".join(f"{LABELS[index]} {row[index]:.1%}" for index in ranks[: (top_k or 1) - 1])
        # Whoever asks for more classes gets longer lines, not fewer words.
        text = f"{descriptions[label]}; then {others}" if others else _cut(descriptions[label], room - name_width)
        if answer.sets is not None:
            text = answer.sentence(number)
        bar = f"{_bar(share, _COMPACT_BAR):<{_COMPACT_BAR}}"
        lines.append(f"{name:<{name_width}}  {label:<5} {share:>6.1%}  {bar}  {malignant_total(row):>9.1%}  {text}")
    return [*lines, "", f"malignant: total of {' + '.join(MALIGNANT)}"]


def _cut(text: str, width: int) -> str:
    """The beginning of a text that is too long."""
    return text if len(text) <= width else f"{text[: width - 1].rstrip()}…"


def _bar(share: float, width: int) -> str:
    eighths = round(float(share) * width * 8)
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()


def format_json(
    samples: Sequence[Sample],
    probabilities: np.ndarray,
    *,
    answer: Answer | None = None,
    temperature: float,
    top_k: int | None = None,
) -> str:
    """Formats as a JSON list of `{"image", "label", "probabilities", "malignant_total", "calibrated"}`.

    With prediction sets each also has `"prediction_set"` and `"coverage"`.

    Args:
        samples: The samples that were predicted; `image` is null where metadata came from flags.
        probabilities: (samples, 7), already calibrated by the temperature.
        answer: The answers; by default the most probable classes.
        temperature: The checkpoint's; `calibrated` is false where it is 1.
        top_k: Number of classes kept in `probabilities`; by default all, the most probable first.

    Returns:
        JSON in ASCII, which every terminal can print.
    """
    records = []
    answer = answer or Answer(probabilities.argmax(axis=1))
    for number, (sample, row) in enumerate(zip(samples, probabilities, strict=True)):
        order = np.argsort(-row, kind="stable")
        records.append(
            {
                "image": sample.name,
                "label": LABELS[answer.labels[number]],
                "probabilities": {LABELS[index]: float(row[index]) for index in order[:top_k]},
                "malignant_total": malignant_total(row),
                "calibrated": is_calibrated(temperature),
            }
            | (
                {}
                if answer.sets is None
                else {"prediction_set": answer.named_set(number), "coverage": answer.coverage}
            )
        )
    return json.dumps(records, indent=2, allow_nan=False) + "\n"


def format_csv(samples: Sequence[Sample], probabilities: np.ndarray, *, answer: Answer | None = None) -> str:
    """Formats as csv with the columns image, label, p_akiec … p_vasc and every digit of the probabilities.

    File names may come from untrusted sources: one that a spreadsheet would run as a formula gets a leading
    apostrophe (`spreadsheet.escape_cell`).

    Args:
        samples: The samples that were predicted.
        probabilities: (samples, 7).
        answer: The answers; by default the most probable classes. With sets there is a column `set`, its classes with
            spaces between.
    """
    answer = answer or Answer(probabilities.argmax(axis=1))
    with_sets = answer.sets is not None
    text = io.StringIO()
    names = [escape_cell(sample.name or "") for sample in samples]
    # Python before 3.13 leaves a carriage return without quotes.
    quoting: Literal[0, 1] = csv.QUOTE_ALL if any("\r" in name for name in names) else csv.QUOTE_MINIMAL
    writer = csv.writer(text, lineterminator="\n", quoting=quoting)
    writer.writerow(["image", "label", *(f"p_{label}" for label in LABELS), *(["set"] if with_sets else [])])
    for number, (name, row) in enumerate(zip(names, probabilities, strict=True)):
        sets = [" ".join(answer.named_set(number))] if with_sets else []
        writer.writerow([name, LABELS[answer.labels[number]], *row.tolist(), *sets])
    return text.getvalue()


def format_isic(samples: Sequence[Sample], probabilities: np.ndarray) -> str:
    """Formats as a submission to ISIC 2018, task 3; the ids are the images' file names without folder and suffix.

    Args:
        samples: The samples that were predicted.
        probabilities: (samples, 7).

    Raises:
        Ham10000Error: For a sample without a name, or two with the same name.
    """
    names = [Path(sample.name or "").stem if sample.image else sample.name or "" for sample in samples]
    return format_submission(names, probabilities)


def write_output(text: str, path: str | None = None) -> None:
    """Writes text to a file, complete or not at all, or to the terminal, whatever its encoding.

    Args:
        text: Result of a formatter.
        path: The file; None for stdout.

    Raises:
        Ham10000Error: If the file cannot be written.
    """
    if path:
        atomic_write_text(path, text)
        print(f"wrote {path}", file=sys.stderr)
        return
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(_ASCII_BLOCKS).encode(encoding, "backslashreplace").decode(encoding)
    print(text, end="")


__all__ = [
    "DEFAULT_WIDTH",
    "DISCLAIMER",
    "Answer",
    "calibration_note",
    "format_csv",
    "format_isic",
    "format_json",
    "format_table",
    "is_calibrated",
    "malignant_total",
    "points",
    "shown_name",
    "write_output",
]
