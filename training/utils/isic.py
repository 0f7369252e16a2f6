"""The ISIC challenges' formats: one-hot ground truth and their names of sites."""

from pathlib import Path

import numpy as np
import pandas as pd

from ham10000.modeling.configuration_ham10000 import Ham10000Error
from ham10000.training.utils.isic_submission import ISIC_COLUMNS

# Of ISIC 2019 and later, which have no class here, or another name.
_OTHER_COLUMNS = {"AK": "akiec", "SCC": "SCC", "UNK": "UNK"}
# ISIC's sites are coarser than HAM10000's: each is read as the HAM10000 site that is most frequent within it.
ISIC_SITES = {
    "anterior torso": "trunk",
    "posterior torso": "back",
    "lateral torso": "trunk",
    "torso": "trunk",
    "head/neck": "face",
    "palms/soles": "acral",
    "oral/genital": "genital",
}
_NAMES = {
    "image": "image_id",
    "isic_id": "image_id",
    "image_name": "image_id",
    "age_approx": "age",
    "anatom_site_general": "localization",
    "anatom_site_general_challenge": "localization",
    "diagnosis": "dx",
}


def rename_columns(frame: pd.DataFrame) -> pd.DataFrame:
    """Gives ISIC's columns the names of HAM10000's; columns that have them already stay."""
    renamed = {old: new for old, new in _NAMES.items() if old in frame.columns and new not in frame.columns}
    return frame.rename(columns=renamed)


def labels_from_one_hot(frame: pd.DataFrame, origin: str | Path, lines: list[int]) -> list[str]:
    """Reads the label of each row from ISIC's one-hot columns.

    Args:
        frame: String columns, among them those of `ISIC_COLUMNS`.
        origin: The file, for messages.
        lines: Line of each row in it.

    Returns:
        One label a row; a class without a counterpart keeps ISIC's name, and is for the caller to refuse.

    Raises:
        Ham10000Error: For a row that names no class, or several, or a value that is neither 0 nor 1.
    """
    names = [name for name in (*ISIC_COLUMNS, *_OTHER_COLUMNS) if name in frame.columns]
    labels = []
    for line, values in zip(lines, frame[names].to_numpy(), strict=True):
        numbers = pd.to_numeric(pd.Series(values), errors="coerce").to_numpy(dtype=np.float64)
        if not np.isin(numbers, (0.0, 1.0)).all() or numbers.sum() != 1:
            raise Ham10000Error(
                f"{origin}, line {line}: expected a 1 in one of {names} and 0 in the others, got {list(values)}."
            )
        name = names[int(numbers.argmax())]
        labels.append({**ISIC_COLUMNS, **_OTHER_COLUMNS}[name])
    return labels


def is_one_hot(columns: pd.Index) -> bool:
    """Whether a table has ISIC's seven columns."""
    return set(ISIC_COLUMNS) <= set(columns)


def read_sites(values: pd.Series) -> tuple[pd.Series, list[str]]:
    """Reads ISIC's names of sites as HAM10000's.

    Args:
        values: Names of sites as in the source; HAM10000's own stay as they are.

    Returns:
        The names, and a sentence for each name that was read as another.
    """
    known = values.astype(str).str.strip().str.lower()
    mapped = known.map(ISIC_SITES)
    notes = [
        f"site {site!r} is coarser than HAM10000's and read as {ISIC_SITES[str(site)]!r} in {count:,} rows"
        for site, count in known[mapped.notna()].value_counts().sort_index().items()
    ]
    return mapped.where(mapped.notna(), values), notes


__all__ = [
    "ISIC_COLUMNS",
    "ISIC_SITES",
    "is_one_hot",
    "labels_from_one_hot",
    "read_sites",
    "rename_columns",
]
