"""The table that ISIC 2018, task 3, takes: https://challenge.isic-archive.com/landing/2018/47/."""

import csv
import io
from collections.abc import Sequence

import numpy as np

from ham10000.modeling.configuration_ham10000 import LABELS, Ham10000Error

# `ham10000-predict` imports this file: nothing here may import pandas.

# In the order of a submission.
ISIC_COLUMNS = {
    "MEL": "mel",
    "NV": "nv",
    "BCC": "bcc",
    "AKIEC": "akiec",
    "BKL": "bkl",
    "DF": "df",
    "VASC": "vasc",
}


def format_submission(image_ids: Sequence[str], probabilities: np.ndarray) -> str:
    """Columns image, MEL, NV, BCC, AKIEC, BKL, DF and VASC, probabilities to the last bit.

    Args:
        image_ids: Image ids (N,), such as ISIC_0034524: no folder, no suffix.
        probabilities: Probabilities (N, 7), columns in the order of `LABELS`.

    Returns:
        The file's text.

    Raises:
        Ham10000Error: For an id that is empty or there twice, which the challenge's site would refuse.
    """
    seen: set[str] = set()
    for number, image_id in enumerate(image_ids):
        if not image_id or image_id in seen:
            problem = "is there twice" if image_id else "is empty"
            raise Ham10000Error(
                f"An ISIC submission has one row an image, but the id {image_id!r} (row {number + 1}) {problem}; "
                "give each picture a name of its own."
            )
        seen.add(image_id)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *ISIC_COLUMNS])
    order = [LABELS.index(label) for label in ISIC_COLUMNS.values()]
    for image_id, row in zip(image_ids, probabilities[:, order], strict=True):
        writer.writerow([safe_cell(image_id), *row.tolist()])
    return text.getvalue()


def safe_cell(name: str) -> str:
    """A name that a spreadsheet would run as a formula gets a leading apostrophe: file names come from strangers."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name


__all__ = ["ISIC_COLUMNS", "format_submission", "safe_cell"]
