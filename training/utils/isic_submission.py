"""The table that ISIC 2018, task 3, takes: https://challenge.isic-archive.com/landing/2018/47/."""

import csv
import io
from collections.abc import Sequence

import numpy as np

from ham10000.modeling.configuration_ham10000 import LABELS, Ham10000Error
from ham10000.training.utils.files import escape_cell

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
    """Columns image, MEL, NV, BCC, AKIEC, BKL, DF and VASC, probabilities to the last bit.

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
            problem = "is there twice" if image_id else "is empty"
            raise Ham10000Error(
                f"An ISIC submission has one row an image, but the id {image_id!r} (row {number + 1}) {problem}; "
                "give each picture a name of its own."
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
                "ids have the form ISIC_0024306; give the picture another name."
            )
