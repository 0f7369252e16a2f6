"""Tables that a spreadsheet may open: text of strangers must not run there as a formula.

A cell that a spreadsheet would take for a formula is written with an apostrophe before it, and every csv that this
package reads is read without it, so that ids come back as they were:

    =1+1    is written  '=1+1     and read  =1+1
    '=1+1   is written  ''=1+1    and read  '=1+1
    a;=1+1  is written  a;'=1+1   as spreadsheets of some locales separate by semicolons
    -5      is a number and stays

What counts as one: OWASP, "CSV Injection" (https://owasp.org/www-community/attacks/CSV_Injection).
"""

import re
from pathlib import Path
from typing import Any

from ham10000.training.atomic import atomic_path

# Spreadsheets of East Asian locales take the full-width signs, too.
_SIGNS = "=+\\-@＝＋－＠"
# Where a semicolon or a tab separates cells, one inside a text begins a cell of its own, quoted or not.
_BEGINS = rf"""(?=["' ]*[{_SIGNS}\t\r\n])"""
_BEGINS_INSIDE = rf"""(?=["' ]*[{_SIGNS}])"""
_ESCAPE = re.compile(rf"^{_BEGINS}|(?<=[;\t\r\n]){_BEGINS_INSIDE}")
_RESTORE = re.compile(rf"^'{_BEGINS}|(?<=[;\t\r\n])'{_BEGINS_INSIDE}")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)


def escape_cell(text: str) -> str:
    """The text of a cell as it is written; one that looks as if it were escaped gets an apostrophe more."""
    return text if _NUMBER.fullmatch(text) else _ESCAPE.sub("'", text)


def restore_cell(text: str) -> str:
    """The text of a cell as it was before `escape_cell`."""
    return _RESTORE.sub("", text)


def write_table(frame: Any, path: str | Path) -> Path:
    """Writes a table as csv, its text escaped, complete or not at all.

    Args:
        frame: A pandas DataFrame of any columns (this file must not import pandas); floats are written with the
            fewest digits that read back as the same number.
        path: The destination; missing parent folders are created.

    Returns:
        The destination.
    """
    texts = {
        name: [escape_cell(cell) if isinstance(cell, str) else cell for cell in frame[name]]
        for name in frame.columns[[kind.kind not in "biuf" for kind in frame.dtypes]]
    }
    with atomic_path(path) as temporary:
        frame.assign(**texts).to_csv(temporary, index=False, lineterminator="\n")
    return Path(path)


__all__ = ["escape_cell", "restore_cell", "write_table"]
