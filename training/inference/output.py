"""Predictions as text: a table for a reader; JSON, csv or an ISIC submission for programs."""

import csv
import dataclasses
import io
import json
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ham10000.modeling import LABELS, Ham10000Config, Ham10000Error
from ham10000.training.inference.explanation import MetadataEffects, malignant_total
from ham10000.training.inference.inputs import Sample
from ham10000.training.inference.prediction import Calibration
from ham10000.training.utils.cli import DISCLAIMER
from ham10000.training.utils.files import JsonObject, atomic_write_text, escape_cell

_NAME_WIDTH = 44
_LONGEST_BAR, _SHORTEST_BAR, _COMPACT_BAR = 30, 8, 10
_LEAST_CLASS = 28  # width of a class's name: all but one are shorter
_EIGHTHS = " ▏▎▍▌▋▊▉"
# For terminals whose encoding has no block characters; a space, so that what follows a bar keeps its column.
_ASCII_BLOCKS = str.maketrans({"█": "#", "…": "~"} | dict.fromkeys("▏▎▍", " ") | dict.fromkeys("▌▋▊▉", "#"))

# The columns of a submission to ISIC 2018, task 3 (https://challenge.isic-archive.com/landing/2018/47/), in order.
ISIC_COLUMNS = {"MEL": "mel", "NV": "nv", "BCC": "bcc", "AKIEC": "akiec", "BKL": "bkl", "DF": "df", "VASC": "vasc"}


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says about some samples."""

    samples: Sequence[Sample]
    probabilities: np.ndarray  # (samples, classes), by the checkpoint's temperature
    answers: np.ndarray  # (samples,) class ids by the decision rule
    config: Ham10000Config = dataclasses.field(default_factory=Ham10000Config)
    calibration: Calibration = Calibration()
    sets: Sequence[Sequence[str]] | None = None  # the classes in each sample's prediction set
    coverage: float | None = None  # what the sets promise in every class, for images like the training data
    effects: MetadataEffects | None = None  # of a single sample that is shown to a reader
    unknown_answer: int | None = None  # class id with its metadata unknown, by the same rule; None not to compare

    def set_text(self, row: int) -> str:
        """A sample's set as names with blanks between, or semicolons where a name has a blank itself."""
        between = "; " if any(" " in name for name in self.config.label_names) else " "
        return between.join(self.sets[row] if self.sets else ())

    def sentence(self, row: int) -> str:
        """A sample's set for a reader."""
        return f"{self.coverage:.0%} set: {self.set_text(row) or 'empty, the image is unlike every class'}"


def points(value: float, digits: int = 1) -> str:
    """A difference in percentage points with its sign; `0` where rounding leaves nothing."""
    return f"{value:+.{digits}f}" if abs(value) >= 0.05 else "0"


def shown_name(name: str | None, width: int = _NAME_WIDTH) -> str:
    """A name for the terminal: no control characters, and not so long that the columns are lost."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name or "")
    width = min(width, _NAME_WIDTH)
    return text if len(text) <= width else f"…{text[1 - width :]}"


def format_table(predictions: Predictions, top_k: int | None = None, width: int = 100) -> str:
    """Formats for a reader: bars and the effect of the metadata for one sample, one line each for several.

    `top_k` classes are shown, by default all for one sample and the most probable one for several. In a terminal of
    less than 80 columns lines are broken by it.
    """
    width = max(width, 80)
    lines = (_one if len(predictions.samples) == 1 else _several)(predictions, top_k, width)
    # Sentences are broken between words here, not within them by the terminal.
    sentences = [textwrap.fill(text, width) for text in (f"Probabilities: {predictions.calibration}.", DISCLAIMER)]
    return "\n".join([*lines, "", *sentences]) + "\n"


def _one(predictions: Predictions, top_k: int | None, width: int) -> list[str]:
    """The bars of one sample and, on their right, the probabilities without its metadata."""
    (sample,), (row,), (answer,) = predictions.samples, predictions.probabilities, predictions.answers
    labels, descriptions = predictions.config.label_names, predictions.config.label_descriptions or {}
    malignant, effects = predictions.config.malignant_labels or [], predictions.effects
    other_answer = predictions.unknown_answer
    unknown = None if effects is None or other_answer is None else effects.unknown()
    label_width = max(6, *map(len, labels))
    # What is left of a line of `  label  name   share  bar  unknown  change` goes to the names first, then to the bar.
    room = width - label_width - (14 if unknown is None else 34)
    name_width = max(_LEAST_CLASS, min(max(map(len, descriptions.values())), room - _SHORTEST_BAR))
    bar_width = max(_SHORTEST_BAR, min(_LONGEST_BAR, room - name_width))
    title_width = label_width + 1 + name_width

    def line(title: str, share: float, other: float | None) -> str:
        text = f"  {_cut(title, title_width):<{title_width}} {share:>7.1%}  {_bar(share, bar_width):<{bar_width}}"
        return (text if other is None else f"{text}  {other:>8.1%}  {points(100 * (share - other)):>8}").rstrip()

    # A label without a longer name is not said twice.
    names = {label: name if name != label else "" for label, name in descriptions.items()}
    described = {label: f"{label}, {name}" if name else label for label, name in names.items()}
    lines = [shown_name(sample.name)] if sample.name else []
    if effects is not None:
        lines.append(", ".join(f"{field} {value}" for field, value in effects.given.items()))
    if sample.warning:  # no answer next to it
        lines += ["", *textwrap.wrap(f"WARNING: {sample.warning}", width), ""]
    else:
        lines += ["", f"Predicted: {described[labels[answer]]}", ""]
        lines += [predictions.sentence(0), ""] if predictions.sets is not None else []
    if unknown is not None:
        lines.append(f"  {'metadata':<{title_width}} {'given':>7}  {'':<{bar_width}}  {'unknown':>8}  {'change':>8}")
    for index in np.argsort(-row, kind="stable")[:top_k]:
        title = f"{labels[index]:<{label_width}} {names[labels[index]]}"
        lines.append(line(title, row[index], None if unknown is None else unknown[index]))
    if malignant:
        title = f"malignant total ({' + '.join(malignant)})"
        other_total = None if unknown is None else malignant_total(unknown, labels, malignant)
        lines += ["", line(title, malignant_total(row, labels, malignant), other_total)]
    if other_answer is not None and not sample.warning:
        same = f"also be {labels[answer]}" if other_answer == answer else f"be {described[labels[other_answer]]}"
        text = f"With its metadata unknown the prediction would {same}. Change: in percentage points."
        lines += ["", *textwrap.wrap(text, width)]
    return lines


def _several(predictions: Predictions, top_k: int | None, width: int) -> list[str]:
    """One line per sample: its name, the class with its share, the malignant total, the class's plain name."""
    labels, descriptions = predictions.config.label_names, predictions.config.label_descriptions or {}
    malignant = predictions.config.malignant_labels or []
    label_width = max(5, *map(len, labels))
    fixed = f"  {'label':<{label_width}}  share  {'':<{_COMPACT_BAR}}{'  malignant' if malignant else ''}  "
    room = width - len(fixed) - 1
    names = [sample.name or "" for sample in predictions.samples]
    if len({Path(name).parent for name in names}) == 1:
        names = [Path(name).name for name in names]
    names = [shown_name(name, max(20, room - _LEAST_CLASS)) for name in names]
    name_width = max(len("sample"), *map(len, names))
    lines = [f"{'sample':<{name_width}}{fixed}name"]
    for number, (name, sample) in enumerate(zip(names, predictions.samples, strict=True)):
        if sample.warning:  # no answer next to it
            lines.append(f"{name:<{name_width}}  {'?':<{label_width}}  WARNING: {sample.warning.partition(':')[0]}")
            continue
        row, first = predictions.probabilities[number], int(predictions.answers[number])
        ranks = [index for index in np.argsort(-row, kind="stable") if index != first]
        label, share = labels[first], row[first]
        others = ", ".join(f"{labels[index]} {row[index]:.1%}" for index in ranks[: (top_k or 1) - 1])
        # Whoever asks for more classes gets longer lines, not fewer words.
        text = f"{descriptions[label]}; then {others}" if others else _cut(descriptions[label], room - name_width)
        if predictions.sets is not None:
            text = predictions.sentence(number)
        bar = f"{_bar(share, _COMPACT_BAR):<{_COMPACT_BAR}}"
        total = f"  {malignant_total(row, labels, malignant):>9.1%}" if malignant else ""
        lines.append(f"{name:<{name_width}}  {label:<{label_width}} {share:>6.1%}  {bar}{total}  {text}")
    return lines + (["", f"malignant: total of {' + '.join(malignant)}"] if malignant else [])


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1].rstrip()}…"


def _bar(share: float, width: int) -> str:
    eighths = round(float(share) * width * 8)
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()


def format_json(predictions: Predictions, top_k: int | None = None) -> str:
    """Formats as a JSON list, an object per sample, in ASCII, which every terminal can print.

    `image` is null where metadata came from flags; `probabilities` has the `top_k` most probable classes, by default
    all; `warning` is null or says why the prediction is worth nothing.
    """
    records, labels = [], predictions.config.label_names
    for number, (sample, row) in enumerate(zip(predictions.samples, predictions.probabilities, strict=True)):
        record: JsonObject = {
            "image": sample.name,
            "label": labels[predictions.answers[number]],
            "probabilities": {labels[k]: float(row[k]) for k in np.argsort(-row, kind="stable")[:top_k]},
        }
        if malignant := predictions.config.malignant_labels:
            record["malignant_total"] = malignant_total(row, labels, malignant)
        record |= {"calibration": dataclasses.asdict(predictions.calibration), "warning": sample.warning}
        if predictions.sets is not None:
            record |= {"prediction_set": predictions.sets[number], "coverage": predictions.coverage}
        records.append(record)
    return json.dumps(records, indent=2, allow_nan=False) + "\n"


def format_csv(predictions: Predictions) -> str:
    """Formats as csv: image, label, one p_LABEL per label, with every digit, `set` if there are any, and warning.

    Names and labels may come from untrusted sources: one that is a formula to a spreadsheet gets an apostrophe.
    """
    labels, with_sets = predictions.config.label_names, predictions.sets is not None
    rows = [["image", "label", *(escape_cell(f"p_{label}") for label in labels), *["set"] * with_sets, "warning"]]
    for number, (sample, row) in enumerate(zip(predictions.samples, predictions.probabilities, strict=True)):
        texts = [sample.name or "", labels[predictions.answers[number]], *[predictions.set_text(number)] * with_sets]
        name, label, *sets = map(escape_cell, texts)
        rows.append([name, label, *row.tolist(), *sets, sample.warning or ""])
    return _csv(rows)


def _csv(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    # Python before 3.13 leaves a carriage return without quotes.
    quoting: Literal[0, 1] = csv.QUOTE_ALL if any("\r" in str(row[0]) for row in rows) else csv.QUOTE_MINIMAL
    csv.writer(text, lineterminator="\n", quoting=quoting).writerows(rows)
    return text.getvalue()


def write_output(text: str, path: str | None) -> None:
    """Writes text to a file, complete or not at all, or without a path to the terminal, whatever its encoding."""
    if path:
        atomic_write_text(path, text)
        print(f"wrote {path}", file=sys.stderr)
        return
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = text.translate(_ASCII_BLOCKS)
    print(text, end="")  # `run_cli` escapes what the encoding still lacks


def check_submission_labels(label_names: Sequence[str]) -> None:
    """Raises a Ham10000Error for a model of other labels than HAM10000's seven, which ISIC 2018, task 3, asks for."""
    if set(label_names) != set(LABELS):
        raise Ham10000Error(
            f"ISIC 2018, task 3, asks for the seven classes {list(LABELS)}; this model has {list(label_names)}. Use a "
            "model of these seven, or the format csv."
        )


def format_submission(image_ids: Sequence[str], probabilities: np.ndarray, label_names: Sequence[str] = LABELS) -> str:
    """Formats as csv with the columns image, MEL, NV, BCC, AKIEC, BKL, DF and VASC, with every digit.

    Ids are such as ISIC_0034524, without folder and suffix; a `Ham10000Error` says that one is empty, duplicated or a
    formula, or that the labels, in the order of the (N, 7) probabilities, are not the seven.
    """
    check_submission_labels(label_names)
    check_submission_ids(image_ids)
    order = [list(label_names).index(label) for label in ISIC_COLUMNS.values()]
    shares = zip(image_ids, probabilities[:, order].tolist(), strict=True)
    return _csv([["image", *ISIC_COLUMNS], *([image_id, *row] for image_id, row in shares)])


def check_submission_ids(image_ids: Sequence[str]) -> None:
    """Raises a Ham10000Error for an id that is empty, twice there or a formula, which ISIC would not know escaped."""
    seen: set[str] = set()
    for row, image_id in enumerate(image_ids, start=1):
        problem = "" if image_id else "is empty"
        if image_id in seen:
            problem = "is duplicated"
        elif escape_cell(image_id) != image_id:
            problem = "is a formula to a spreadsheet, so it cannot stand in a submission"
        if problem:
            raise Ham10000Error(f"ISIC needs one name per image, but the id {image_id!r} (row {row}) {problem}.")
        seen.add(image_id)
