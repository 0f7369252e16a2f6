"""Writes predictions for programs, as JSON or csv, and what every output of them shares."""

import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from ham10000.modeling import LABELS, MALIGNANT
from ham10000.training.files import atomic_write_text, escape_cell
from ham10000.training.isic_submission import format_submission
from ham10000.training.prediction_inputs import Sample

DISCLAIMER = "Research software, not a medical device: never for diagnosis or for decisions about a patient."

_NAME_WIDTH = 44
# For terminals whose encoding has no block characters; a space, so that what follows a bar keeps its column.
_ASCII_BLOCKS = str.maketrans({"█": "#", "…": "~"} | dict.fromkeys("▏▎▍", " ") | dict.fromkeys("▌▋▊▉", "#"))


def malignant_total(row: np.ndarray) -> float:
    """The sum of the probabilities (7,) of the malignant classes."""
    return float(sum(row[LABELS.index(label)] for label in MALIGNANT))


def points(value: float, digits: int = 1) -> str:
    """A difference in percentage points with its sign; `0` where rounding leaves nothing."""
    return f"{value:+.{digits}f}" if abs(value) >= 0.05 else "0"


def is_calibrated(temperature: float) -> bool:
    """Whether a checkpoint has a temperature of its own: a config starts with 1, and a fitted one is never just 1."""
    return float(temperature) != 1.0


def calibration_note(temperature: float) -> str:
    """Whether the probabilities are calibrated, in words; the model itself applies its temperature."""
    if is_calibrated(temperature):
        return f"probabilities are calibrated (temperature {temperature:.3g})"
    return "probabilities are NOT calibrated (temperature 1): read them as scores"


def shown_name(name: str | None, width: int = _NAME_WIDTH) -> str:
    """A name for the terminal: no control characters, and not so long that the columns are lost."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name or "")
    width = min(width, _NAME_WIDTH)
    return text if len(text) <= width else f"…{text[1 - width :]}"


def format_json(
    samples: Sequence[Sample], probabilities: np.ndarray, *, temperature: float, top_k: int | None = None
) -> str:
    """A list of `{"image", "label", "probabilities", "malignant_total", "calibrated"}`.

    Args:
        samples: What was predicted; `image` is null where metadata came from flags.
        probabilities: (samples, 7), calibrated by the temperature already.
        temperature: The checkpoint's; `calibrated` is false where it is 1.
        top_k: Number of classes kept in `probabilities`; by default all, the most probable first.

    Returns:
        JSON in ASCII, which every terminal can print.
    """
    records = []
    for sample, row in zip(samples, probabilities, strict=True):
        order = np.argsort(-row, kind="stable")
        records.append(
            {
                "image": sample.name,
                "label": LABELS[order[0]],
                "probabilities": {LABELS[index]: float(row[index]) for index in order[:top_k]},
                "malignant_total": malignant_total(row),
                "calibrated": is_calibrated(temperature),
            }
        )
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


def format_isic(samples: Sequence[Sample], probabilities: np.ndarray) -> str:
    """A submission to ISIC 2018, task 3, with the pictures' file names, without folder and suffix, as ids.

    Args:
        samples: What was predicted.
        probabilities: (samples, 7).

    Returns:
        The file's text.

    Raises:
        Ham10000Error: For a sample without a name, or two of one name.
    """
    names = [sample.name or "" for sample in samples]
    names = [Path(name).stem if sample.picture else name for name, sample in zip(names, samples, strict=True)]
    return format_submission(names, probabilities)


def write_output(text: str, path: str | None = None) -> None:
    """Writes text to a file or to the terminal.

    Args:
        text: What a formatter returned.
        path: A file, written whole or not at all; None for stdout, whatever its encoding.

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
    "DISCLAIMER",
    "calibration_note",
    "format_csv",
    "format_isic",
    "format_json",
    "is_calibrated",
    "malignant_total",
    "points",
    "shown_name",
    "write_output",
]
