"""Tables of metadata as text: every value a string, every row with its line, missing columns said at once."""

import csv
import json
from pathlib import Path
from typing import Any

import pandas as pd

from ham10000.modeling.configuration_ham10000 import Ham10000Error
from ham10000.training.utils.files import restore_cell

COLUMNS = ("image_id", "lesion_id", "dx", "dx_type", "age", "sex", "localization", "dataset")
REQUIRED_COLUMNS = ("image_id", "dx", "age", "sex", "localization")


def read_csv(path: Path, required: tuple[str, ...] = REQUIRED_COLUMNS) -> tuple[pd.DataFrame, list[str]]:
    """Reads a delimited file and completes its columns; see `read_table` and `checked_columns`."""
    frame, lines = read_table(path)
    return checked_columns(frame, path, lines, required)


def read_table(path: Path) -> tuple[pd.DataFrame, list[int]]:
    """Reads a delimited file with the csv module, which, unlike pandas, knows the line of every record.

    Args:
        path: A file with commas, tabs or semicolons and a header.

    Returns:
        The rows as strings, those that `files.escape_cell` wrote as they were before it, and the line of each.

    Raises:
        Ham10000Error: For a row with another number of fields, a cell over several lines, a column name that occurs
            twice, or a file that is no UTF-8 text.
    """
    end = 0
    try:
        # utf-8-sig drops the byte order mark that spreadsheets write.
        with path.open(encoding="utf-8-sig", newline="") as stream:
            header_line = stream.readline()
            delimiter = max(",\t;", key=header_line.count)
            # Strict: otherwise a quote that is never closed takes in all rows that follow.
            header = [name.strip() for name in next(csv.reader([header_line], delimiter=delimiter, strict=True), [])]
            if len(set(header)) != len(header):
                raise Ham10000Error(f"{path}: a column name occurs twice in {header}.")
            end = 1
            reader = csv.reader(stream, delimiter=delimiter, strict=True)
            rows, lines = [], []
            for row in reader:
                line, end = end + 1, reader.line_num + 1
                if not any(row):
                    continue
                if end != line:
                    raise Ham10000Error(
                        f"{path}, line {line}: a quoted cell runs on to line {end}; a quote is missing, or write the "
                        "cell on one line."
                    )
                if len(row) != len(header):
                    raise Ham10000Error(f"{path}, line {line}: {len(row)} fields, but the header has {len(header)}.")
                rows.append([restore_cell(cell) for cell in row])
                lines.append(line)
    except csv.Error as error:
        raise Ham10000Error(f"{path}, from line {end + 1}: not a table: {error}. Look for a stray quote.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise Ham10000Error(f"{path} is not a UTF-8 text table: {error}.") from error
    return pd.DataFrame(rows, columns=header, dtype=object), lines


def read_jsonl(path: Path, required: tuple[str, ...]) -> tuple[pd.DataFrame, list[str]]:
    """Reads one JSON object a line and completes its columns; see `checked_columns`.

    Raises:
        Ham10000Error: For a line that is no JSON object, or a file that is no UTF-8 text.
    """
    rows, lines = [], []
    try:
        texts = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise Ham10000Error(f"{path} is not a UTF-8 text file: {error}.") from error
    for line, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except (RecursionError, ValueError) as error:  # ValueError also for a number of 5,000 digits
            raise Ham10000Error(f"{path}, line {line}: not JSON: {error}.") from error
        if not isinstance(record, dict):
            raise Ham10000Error(f"{path}, line {line}: expected a JSON object, got {text.strip()[:40]!r}.")
        rows.append(record)
        lines.append(line)
    return checked_columns(pd.DataFrame(rows, dtype=object), path, lines, required)


def checked_columns(
    frame: pd.DataFrame, origin: str | Path, lines: list[int], required: tuple[str, ...]
) -> tuple[pd.DataFrame, list[str]]:
    """Completes optional columns; a missing required one is an error that names all of them."""
    absent = [name for name in required if name not in frame.columns]
    if absent:
        raise Ham10000Error(
            f"{origin}: column(s) {absent} are missing; it has {[str(name) for name in frame.columns]}. "
            f"Expected {list(required)}, and {[name for name in COLUMNS if name not in required]} if known."
        )
    if frame.columns.has_duplicates:
        raise Ham10000Error(f"{origin}: a column name occurs twice in {list(frame.columns)}.")
    notes = []
    if "image_id" not in frame.columns:
        frame["image_id"] = [
            str(name).replace("\\", "/").rsplit("/", 1)[-1].rsplit(".", 1)[0] for name in frame.file_name
        ]
        notes.append(f"{origin}: no column image_id; the file names without suffix are the ids")
    if "lesion_id" not in frame.columns:
        frame["lesion_id"] = frame["image_id"]
        notes.append(f"{origin}: no column lesion_id; every image counts as a lesion of its own")
    for name in ("dx_type", "dataset"):
        if name not in frame.columns:
            frame[name] = "unknown"
            notes.append(f"{origin}: no column {name}; filled with 'unknown'")
    extra = ["file_name"] if "file_name" in required else []
    frame = string_frame(frame[[*COLUMNS, *extra]])
    frame["file"], frame["row"] = str(origin), lines
    return frame, notes


def string_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """Every value as stripped text, "" where it is missing."""

    def text(value: Any) -> str:
        return "" if value is None or value != value else str(value).strip()

    return pd.DataFrame({name: [text(value) for value in frame[name]] for name in frame.columns}, dtype=object)


__all__ = ["COLUMNS", "REQUIRED_COLUMNS", "checked_columns", "read_csv", "read_jsonl", "read_table", "string_frame"]
