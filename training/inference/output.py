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

from ham10000.modeling import LABELS, Ham10000Config, Ham10000Error, Ham10000ForImageClassification, Ham10000Processor
from ham10000.training.inference.explanation import describe_metadata
from ham10000.training.inference.inputs import Sample
from ham10000.training.inference.prediction import calibration_of
from ham10000.training.utils.cli import DISCLAIMER
from ham10000.training.utils.files import atomic_write_text, escape_cell

DEFAULT_WIDTH = 100
_NAME_WIDTH = 44
_LONGEST_BAR, _SHORTEST_BAR, _COMPACT_BAR = 30, 8, 10
_LEAST_CLASS = 28  # width of a class's name: all but one are shorter
_EIGHTHS = " ▏▎▍▌▋▊▉"
# For terminals whose encoding has no block characters; a space, so that what follows a bar keeps its column.
_ASCII_BLOCKS = str.maketrans({"█": "#", "…": "~"} | dict.fromkeys("▏▎▍", " ") | dict.fromkeys("▌▋▊▉", "#"))

# The columns of a submission to ISIC 2018, task 3 (https://challenge.isic-archive.com/landing/2018/47/), in order.
ISIC_COLUMNS = {"MEL": "mel", "NV": "nv", "BCC": "bcc", "AKIEC": "akiec", "BKL": "bkl", "DF": "df", "VASC": "vasc"}


@dataclass(frozen=True)
class Answer:
    """The answer for each sample, next to its probabilities.

    Attributes:
        labels: (samples,) class ids by the decision rule.
        sets: (samples, K) bool prediction sets, or None.
        coverage: What the sets promise in every class, for images like the training data.
        names: The K labels in the order of their ids.
    """

    labels: np.ndarray
    sets: np.ndarray | None = None
    coverage: float | None = None
    names: Sequence[str] = LABELS

    def named_set(self, row: int) -> list[str]:
        """Names of the classes in a sample's set."""
        return [] if self.sets is None else [self.names[int(k)] for k in np.flatnonzero(self.sets[row])]

    def set_text(self, row: int) -> str:
        """A sample's set as names with blanks between, or semicolons where a name has a blank itself."""
        return ("; " if any(" " in name for name in self.names) else " ").join(self.named_set(row))

    def sentence(self, row: int) -> str:
        """A sample's set as text."""
        names = self.set_text(row) or "empty, the image is unlike every class"
        return f"{self.coverage:.0%} set: {names}"


def malignant_total(row: np.ndarray, config: Ham10000Config) -> float:
    """The sum of the probabilities (classes,) of the malignant classes of a model; 0 where it has none."""
    return float(sum(row[config.label_names.index(label)] for label in config.malignant_labels or ()))


def points(value: float, digits: int = 1) -> str:
    """A difference in percentage points with its sign; `0` where rounding leaves nothing."""
    return f"{value:+.{digits}f}" if abs(value) >= 0.05 else "0"


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
        probabilities: (samples, classes).
        model: Gives the labels, their plain names and what is known of the calibration.
        processor: Gives the meaning of the metadata.
        answer: The answers; by default the most probable classes.
        metadata_unknown: (1, classes) probabilities of the one sample with its metadata unknown; None to leave the
            comparison out.
        top_k: Classes shown per sample; by default all for one sample and the most probable one for several.
        unknown_values: As the samples were predicted.
        width: Columns of the terminal; below 80 lines are broken by it.

    Returns:
        Lines of text, the last of which is the disclaimer.
    """
    width = max(width, 80)
    config = model.config
    answer = answer or Answer(probabilities.argmax(axis=1), names=config.label_names)
    if len(samples) == 1:
        lines = [shown_name(samples[0].name)] if samples[0].name else []
        if processor.metadata_fields and config.uses_metadata:
            shown = describe_metadata(processor, samples[0].metadata, unknown_values=unknown_values)
            lines.append(", ".join(f"{field} {value}" for field, value in shown.items()))
        others = None if metadata_unknown is None else metadata_unknown[0]
        if samples[0].warning:
            lines += ["", *textwrap.wrap(f"WARNING: {samples[0].warning}", width)]
        # No answer next to a warning.
        lines += _one(probabilities[0], others, config, top_k, width, None if samples[0].warning else answer)
    else:
        lines = _several(samples, probabilities, config, top_k, width, answer)
    # Sentences are broken between words here, not within them by the terminal.
    sentences = [textwrap.fill(text, width) for text in (f"Probabilities: {calibration_of(model)}.", DISCLAIMER)]
    return "\n".join([*lines, "", *sentences]) + "\n"


def _one(
    row: np.ndarray,
    unknown: np.ndarray | None,
    config: Ham10000Config,
    top_k: int | None,
    width: int,
    answer: Answer | None,
) -> list[str]:
    """The bars of one sample and, on their right, the probabilities without its metadata."""
    order = np.argsort(-row, kind="stable")
    labels, descriptions = config.label_names, config.label_descriptions or {}
    label_width = max(6, *map(len, labels))
    compared = "" if unknown is None else f"  {'':>8}  {'':>8}"
    # What is left of a line of `  label  name   share  bar  unknown  change` goes to the names first, then to the bar.
    room = width - len(f"  {'':<{label_width + 1}} {'':>7}  ") - len(compared) - 1
    name_width = max(_LEAST_CLASS, min(max(map(len, descriptions.values())), room - _SHORTEST_BAR))
    bar_width = max(_SHORTEST_BAR, min(_LONGEST_BAR, room - name_width))

    def line(title: str, share: float, other: float | None) -> str:
        text = f"  {title:<{name_width + label_width + 1}} {share:>7.1%}  {_bar(share, bar_width):<{bar_width}}"
        return (text if other is None else f"{text}  {other:>8.1%}  {points(100 * (share - other)):>8}").rstrip()

    # A label without a longer name is not said twice.
    described = {
        label: label if descriptions[label] == label else f"{label}, {descriptions[label]}" for label in labels
    }
    lines = [""]
    if answer is not None:
        lines += [f"Predicted: {described[labels[answer.labels[0]]]}"]
        lines += ["", answer.sentence(0), ""] if answer.sets is not None else [""]
    if unknown is not None:
        head = f"  {'metadata':<{name_width + label_width + 1}} {'given':>7}"
        lines.append(f"{head}  {'':<{bar_width}}  {'unknown':>8}  {'change':>8}")
    for index in order[:top_k]:
        label = labels[index]
        name = "" if descriptions[label] == label else _cut(descriptions[label], name_width)
        lines.append(line(f"{label:<{label_width}} {name}", row[index], None if unknown is None else unknown[index]))
    if config.malignant_labels:
        total = None if unknown is None else malignant_total(unknown, config)
        title = f"malignant total ({' + '.join(config.malignant_labels)})"
        lines += ["", line(_cut(title, name_width + label_width + 1), malignant_total(row, config), total)]
    if unknown is not None and answer is not None:
        best, other_best = labels[answer.labels[0]], labels[int(unknown.argmax())]
        same = f"also be {best}" if other_best == best else f"be {described[other_best]}"
        text = f"With its metadata unknown the prediction would {same}. Change: in percentage points."
        lines += ["", *textwrap.wrap(text, width)]
    return lines


def _several(
    samples: Sequence[Sample],
    probabilities: np.ndarray,
    config: Ham10000Config,
    top_k: int | None,
    width: int,
    answer: Answer,
) -> list[str]:
    """One line per sample: its name, the class with its share, the malignant total, the class's plain name."""
    labels, descriptions = config.label_names, config.label_descriptions or {}
    label_width = max(5, *map(len, labels))
    with_total = "  malignant" if config.malignant_labels else ""
    fixed = f"  {'label':<{label_width}}  share  {'':<{_COMPACT_BAR}}{with_total}  "
    room = width - len(fixed) - 1
    names = [sample.name or "" for sample in samples]
    if len({Path(name).parent for name in names}) == 1:
        names = [Path(name).name for name in names]
    names = [shown_name(name, max(20, room - _LEAST_CLASS)) for name in names]
    name_width = max(len("sample"), *map(len, names))
    lines = [f"{'sample':<{name_width}}{fixed}name"]
    for number, (name, row, sample) in enumerate(zip(names, probabilities, samples, strict=True)):
        if sample.warning:  # no answer next to it
            lines.append(f"{name:<{name_width}}  {'?':<{label_width}}  WARNING: {sample.warning.partition(':')[0]}")
            continue
        first = int(answer.labels[number])
        ranks = [index for index in np.argsort(-row, kind="stable") if index != first]
        label, share = labels[first], row[first]
        others = ", ".join(f"{labels[index]} {row[index]:.1%}" for index in ranks[: (top_k or 1) - 1])
        # Whoever asks for more classes gets longer lines, not fewer words.
        text = f"{descriptions[label]}; then {others}" if others else _cut(descriptions[label], room - name_width)
        if answer.sets is not None:
            text = answer.sentence(number)
        bar = f"{_bar(share, _COMPACT_BAR):<{_COMPACT_BAR}}"
        total = f"  {malignant_total(row, config):>9.1%}" if config.malignant_labels else ""
        lines.append(f"{name:<{name_width}}  {label:<{label_width}} {share:>6.1%}  {bar}{total}  {text}")
    if config.malignant_labels:
        lines += ["", f"malignant: total of {' + '.join(config.malignant_labels)}"]
    return lines


def _cut(text: str, width: int) -> str:
    """The beginning of a text that is too long."""
    return text if len(text) <= width else f"{text[: width - 1].rstrip()}…"


def _bar(share: float, width: int) -> str:
    eighths = round(float(share) * width * 8)
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()


def format_json(
    samples: Sequence[Sample],
    probabilities: np.ndarray,
    model: Ham10000ForImageClassification,
    *,
    answer: Answer | None = None,
    top_k: int | None = None,
) -> str:
    """Formats as a JSON list of `{"image", "label", "probabilities", "malignant_total", "calibration", "warning"}`.

    `warning` says why the prediction is worth nothing, else it is null; a model without malignant labels has no
    `malignant_total`; `calibration` has `temperature`, the measured `ece` with its
    `part`, and `of_another_run` (see `Calibration`). With prediction sets each also has `"prediction_set"` and
    `"coverage"`.

    Args:
        samples: The samples that were predicted; `image` is null where metadata came from flags.
        probabilities: (samples, classes), by the checkpoint's temperature.
        model: From `load_checkpoint`, which knows what was measured of the calibration.
        answer: The answers; by default the most probable classes.
        top_k: Number of classes kept in `probabilities`; by default all, the most probable first.

    Returns:
        JSON in ASCII, which every terminal can print.
    """
    records, config, labels = [], model.config, model.config.label_names
    answer = answer or Answer(probabilities.argmax(axis=1), names=labels)
    calibration = dataclasses.asdict(calibration_of(model))
    for number, (sample, row) in enumerate(zip(samples, probabilities, strict=True)):
        order = np.argsort(-row, kind="stable")
        records.append(
            {
                "image": sample.name,
                "label": labels[answer.labels[number]],
                "probabilities": {labels[index]: float(row[index]) for index in order[:top_k]},
                **({"malignant_total": malignant_total(row, config)} if config.malignant_labels else {}),
                "calibration": calibration,
                "warning": sample.warning,
            }
            | (
                {}
                if answer.sets is None
                else {"prediction_set": answer.named_set(number), "coverage": answer.coverage}
            )
        )
    return json.dumps(records, indent=2, allow_nan=False) + "\n"


def format_csv(
    samples: Sequence[Sample],
    probabilities: np.ndarray,
    label_names: Sequence[str] = LABELS,
    *,
    answer: Answer | None = None,
) -> str:
    """Formats as csv with the columns image, label, one p_LABEL per label, with every digit, and warning.

    File names may come from untrusted sources: one that a spreadsheet would run as a formula gets a leading
    apostrophe (`spreadsheet.escape_cell`).

    Args:
        samples: The samples that were predicted.
        probabilities: (samples, classes).
        label_names: The labels in the order of their ids.
        answer: The answers; by default the most probable classes. With sets there is a column `set`, see
            `Answer.set_text`.
    """
    answer = answer or Answer(probabilities.argmax(axis=1), names=label_names)
    with_sets = answer.sets is not None
    text = io.StringIO()
    names = [escape_cell(sample.name or "") for sample in samples]
    # Python before 3.13 leaves a carriage return without quotes.
    quoting: Literal[0, 1] = csv.QUOTE_ALL if any("\r" in name for name in names) else csv.QUOTE_MINIMAL
    writer = csv.writer(text, lineterminator="\n", quoting=quoting)
    sets = ["set"] if with_sets else []
    writer.writerow(["image", "label", *(f"p_{label}" for label in label_names), *sets, "warning"])
    for number, (name, row, sample) in enumerate(zip(names, probabilities, samples, strict=True)):
        sets = [escape_cell(answer.set_text(number))] if with_sets else []
        label = escape_cell(label_names[answer.labels[number]])
        writer.writerow([name, label, *row.tolist(), *sets, sample.warning or ""])
    return text.getvalue()


def format_isic(samples: Sequence[Sample], probabilities: np.ndarray, label_names: Sequence[str] = LABELS) -> str:
    """Formats as a submission to ISIC 2018, task 3; the ids are the images' file names without folder and suffix.

    Args:
        samples: The samples that were predicted.
        probabilities: (samples, classes).
        label_names: The seven labels in the order of their ids.

    Raises:
        Ham10000Error: For other labels than HAM10000's, a sample without a name, or two with the same name.
    """
    names = [Path(sample.name or "").stem if sample.image else sample.name or "" for sample in samples]
    return format_submission(names, probabilities, label_names)


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


def check_submission_labels(label_names: Sequence[str]) -> None:
    """Refuses a model of other labels than HAM10000's seven.

    Raises:
        Ham10000Error: For labels that ISIC 2018, task 3, has not, or lacks.
    """
    if set(label_names) != set(LABELS):
        raise Ham10000Error(
            f"ISIC 2018, task 3, asks for the seven classes {list(LABELS)}; this model has {list(label_names)}. Use a "
            "model of these seven, or the format csv."
        )


def format_submission(image_ids: Sequence[str], probabilities: np.ndarray, label_names: Sequence[str] = LABELS) -> str:
    """Columns image, MEL, NV, BCC, AKIEC, BKL, DF and VASC, probabilities with every digit.

    Args:
        image_ids: Image ids (N,), such as ISIC_0034524: no folder, no suffix.
        probabilities: Probabilities (N, 7), columns in the order of `label_names`.
        label_names: The seven labels in the order of their ids.

    Returns:
        The file's text.

    Raises:
        Ham10000Error: For an id that is empty or there twice, which the challenge's site would refuse, or that
            `check_submission_ids` refuses, and for other labels than the seven.
    """
    check_submission_labels(label_names)
    check_submission_ids(image_ids)
    seen: set[str] = set()
    for number, image_id in enumerate(image_ids):
        if not image_id or image_id in seen:
            problem = "is duplicated" if image_id else "is empty"
            raise Ham10000Error(
                f"An ISIC submission has one row an image, but the id {image_id!r} (row {number + 1}) {problem}; "
                "give each image its own name."
            )
        seen.add(image_id)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *ISIC_COLUMNS])
    order = [list(label_names).index(label) for label in ISIC_COLUMNS.values()]
    for image_id, row in zip(image_ids, probabilities[:, order], strict=True):
        writer.writerow([image_id, *row.tolist()])
    return text.getvalue()


def check_submission_ids(image_ids: Sequence[str]) -> None:
    """Refuses ids that a spreadsheet would run as a formula: ISIC's scorer compares ids, so none can be escaped.

    Raises:
        Ham10000Error: For the first such id.
    """
    for image_id in image_ids:
        if escape_cell(image_id) != image_id:
            raise Ham10000Error(
                f"Image id {image_id!r} cannot stand in a submission: a spreadsheet would run it as a formula. ISIC's "
                "ids have the form ISIC_0024306; give the image another name."
            )
