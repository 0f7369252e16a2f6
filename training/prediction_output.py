"""Writes predictions for readers and programs: as a table with bars, as JSON or as csv."""

import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from ham10000.modeling import LABELS, MALIGNANT, Ham10000Error, Ham10000ForImageClassification, Ham10000Processor
from ham10000.training.atomic import atomic_write_text
from ham10000.training.prediction_inputs import Sample
from ham10000.training.spreadsheet import escape_cell

DISCLAIMER = "Research software, not a medical device: never for diagnosis or for decisions about a patient."

_SINGLE_BAR, _COMPACT_BAR, _NAME_WIDTH = 30, 10, 44
_EIGHTHS = " ▏▎▍▌▋▊▉"
# For terminals whose encoding has no block characters.
_ASCII_BLOCKS = str.maketrans({"█": "#", "…": "~"} | dict.fromkeys(_EIGHTHS[1:4]) | dict.fromkeys(_EIGHTHS[4:], "#"))


def format_table(
    samples: Sequence[Sample],
    probabilities: np.ndarray,
    model: Ham10000ForImageClassification,
    processor: Ham10000Processor,
    *,
    top_k: int | None = None,
    unknown_values: str = "error",
) -> str:
    """The predictions for a reader: seven bars for one sample, one line each for several.

    Args:
        samples: What was predicted.
        probabilities: (samples, 7).
        model: Gives the plain names of the labels.
        processor: Gives the meaning of the metadata.
        top_k: Classes shown a sample; by default all for one sample and the most probable one for several.
        unknown_values: As the samples were predicted.

    Returns:
        Lines of text, the last of which says what this is not for.
    """
    descriptions = model.config.label_descriptions
    order = np.argsort(-probabilities, axis=1, kind="stable")
    malignant = probabilities[:, [LABELS.index(label) for label in MALIGNANT]].sum(axis=1)
    if len(samples) == 1:
        width = max(len(text) for text in descriptions.values())
        best = LABELS[order[0, 0]]
        lines = [_shown(samples[0].name)] if samples[0].name else []
        if processor.metadata_fields:
            lines.append(_describe_metadata(samples[0], processor, unknown_values))
        lines += ["", f"Predicted: {best}, {descriptions[best]}", ""]
        for index in order[0, :top_k]:
            share, label = probabilities[0, index], LABELS[index]
            bar = _bar(share, _SINGLE_BAR)
            lines.append(f"  {label:<6} {descriptions[label]:<{width}} {share:>7.1%}  {bar}".rstrip())
        title = f"malignant total ({' + '.join(MALIGNANT)})"
        lines += ["", f"  {title:<{width + 7}} {malignant[0]:>7.1%}"]
    else:
        names = [_shown(name) for name in _without_folder(samples)]
        width = max(len("sample"), *(len(name) for name in names))
        lines = [f"{'sample':<{width}}  label  share  {'':<{_COMPACT_BAR}}  malignant  name"]
        for name, row, ranks, risk in zip(names, probabilities, order, malignant, strict=True):
            label, share = LABELS[ranks[0]], row[ranks[0]]
            others = ", ".join(f"{LABELS[index]} {row[index]:.1%}" for index in ranks[1 : top_k or 1])
            text = f"{descriptions[label]}; then {others}" if others else descriptions[label]
            bar = _bar(share, _COMPACT_BAR)
            lines.append(f"{name:<{width}}  {label:<5} {share:>6.1%}  {bar:<{_COMPACT_BAR}}  {risk:>9.1%}  {text}")
        lines += ["", f"malignant: total of {' + '.join(MALIGNANT)}"]
    return "\n".join([*lines, "", DISCLAIMER]) + "\n"


def _describe_metadata(sample: Sample, processor: Ham10000Processor, unknown_values: str) -> str:
    """The values the model saw, not those that were written."""
    row = processor.encode_metadata([sample.metadata or {}], unknown_values=unknown_values)[0].tolist()
    vocabularies = {"sex": processor.sex_vocabulary, "localization": processor.localization_vocabulary}
    parts = []
    for name, value in zip(processor.metadata_fields, row, strict=True):
        known = f"{value:g}" if name == "age" else "" if value != value else vocabularies[name][int(value)]
        parts.append(f"{name} {'unknown' if value != value else known}")
    return ", ".join(parts)


def _without_folder(samples: Sequence[Sample]) -> list[str]:
    """Names without the folder that all of them share."""
    names = [sample.name or "" for sample in samples]
    same_folder = len({Path(name).parent for name in names}) == 1
    return [Path(name).name for name in names] if same_folder else names


def _shown(name: str | None) -> str:
    """A name for the terminal: no control characters, and not so long that the columns are lost."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name or "")
    return text if len(text) <= _NAME_WIDTH else f"…{text[1 - _NAME_WIDTH :]}"


def _bar(share: float, width: int) -> str:
    eighths = round(float(share) * width * 8)
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()


def format_json(samples: Sequence[Sample], probabilities: np.ndarray, *, top_k: int | None = None) -> str:
    """A list of `{"image", "label", "probabilities"}`, the most probable class first.

    Args:
        samples: What was predicted; `image` is null where metadata came from flags.
        probabilities: (samples, 7).
        top_k: Number of classes kept; by default all.

    Returns:
        JSON in ASCII, which every terminal can print.
    """
    records = []
    for sample, row in zip(samples, probabilities, strict=True):
        order = np.argsort(-row, kind="stable")
        shares = {LABELS[index]: float(row[index]) for index in order[:top_k]}
        records.append({"image": sample.name, "label": LABELS[order[0]], "probabilities": shares})
    return json.dumps(records, indent=2, allow_nan=False) + "\n"


def format_csv(samples: Sequence[Sample], probabilities: np.ndarray) -> str:
    """Columns image, label, p_akiec … p_vasc, probabilities to the last bit.

    A name that a spreadsheet would run as a formula gets a leading apostrophe (`spreadsheet.escape_cell`): file names
    come from strangers.

    Args:
        samples: What was predicted.
        probabilities: (samples, 7).

    Returns:
        The file's text.
    """
    text = io.StringIO()
    names = [escape_cell(sample.name or "") for sample in samples]
    # Python before 3.13 leaves a carriage return without quotes.
    quoting: Literal[0, 1] = csv.QUOTE_ALL if any("\r" in name for name in names) else csv.QUOTE_MINIMAL
    writer = csv.writer(text, lineterminator="\n", quoting=quoting)
    writer.writerow(["image", "label", *(f"p_{label}" for label in LABELS)])
    for name, row in zip(names, probabilities, strict=True):
        writer.writerow([name, LABELS[int(row.argmax())], *row.tolist()])
    return text.getvalue()


def write_output(text: str, path: str | None = None) -> None:
    """Writes text to a file or to the terminal.

    Args:
        text: What a formatter returned.
        path: A file, written whole or not at all; None for stdout, whatever its encoding.

    Raises:
        Ham10000Error: If the file cannot be written.
    """
    if path:
        try:
            atomic_write_text(path, text)
        except OSError as error:
            raise Ham10000Error(f"Cannot write --output {path!r}: {error}.") from error
        print(f"wrote {path}", file=sys.stderr)
        return
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(_ASCII_BLOCKS).encode(encoding, "backslashreplace").decode(encoding)
    print(text, end="")


__all__ = ["DISCLAIMER", "format_csv", "format_json", "format_table", "write_output"]
