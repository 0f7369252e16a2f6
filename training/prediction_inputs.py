"""Turns files, folders, a csv of metadata and the values of flags into the samples to predict."""

import csv
import io
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ham10000.modeling import Ham10000Error, Ham10000Processor
from ham10000.training.files import restore_cell

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
# Columns of a csv that may name the picture of a row, the first that there is.
KEY_COLUMNS = ("image_id", "image", "file", "file_name", "path")


@dataclass
class Sample:
    """One thing to predict.

    Attributes:
        name: The picture as the user named it, or the row's id; None for metadata from flags alone.
        picture: The file; None for a metadata-only checkpoint.
        metadata: Raw values by field; None where nothing is known (or the checkpoint reads none).
        origin: Where the metadata comes from, for messages.
    """

    name: str | None
    picture: Path | None = None
    metadata: dict[str, str] | None = None
    origin: str = ""


@dataclass
class MetadataTable:
    """A csv of metadata.

    Attributes:
        path: The file.
        rows: One sample a row, without a picture.
        by_picture: The same samples by every name a picture may be looked up with.
        note: What was ignored or is absent; empty if nothing.
    """

    path: Path
    rows: list[Sample]
    by_picture: dict[str, Sample]
    note: str


def find_pictures(inputs: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Lists the pictures that files and folders stand for.

    Args:
        inputs: Files, taken whatever their suffix, and folders, searched with their sub-folders for
            `PICTURE_SUFFIXES` in any case; hidden files and folders are skipped.

    Returns:
        The files in the order of `inputs`, those of one folder sorted by path, each once.

    Raises:
        Ham10000Error: For something that does not exist, or a folder without a picture.
    """
    pictures: list[Path] = []
    for item in inputs:
        path = Path(item)
        try:
            exists, is_folder = path.exists(), path.is_dir()
        except OSError as error:  # such as a name that is too long
            raise Ham10000Error(f"Cannot look for {str(item)[:100]!r}: {error.strerror}.") from error
        if is_folder:
            found = []
            for folder, folders, names in os.walk(path):
                folders[:] = [name for name in folders if not name.startswith(".")]
                # Apple's archiver leaves a hidden `._name.jpg` beside each picture, which is none.
                kept = [name for name in names if not name.startswith(".")]
                found += [Path(folder, name) for name in kept if name.lower().endswith(PICTURE_SUFFIXES)]
            if not found:
                raise Ham10000Error(f"The folder {str(path)!r} holds no picture ({', '.join(PICTURE_SUFFIXES)}).")
            pictures += sorted(found)
        elif exists:
            pictures.append(path)
        elif str(item).startswith(("http://", "https://")):
            raise Ham10000Error(f"URLs are not fetched, got {str(item)!r}: download the picture and give its path.")
        else:
            raise Ham10000Error(f"There is no file or folder {str(path)!r}.")
    return list(dict.fromkeys(pictures))


def read_metadata(path: str | os.PathLike[str], fields: Sequence[str]) -> MetadataTable:
    """Reads a csv of metadata; only the columns in `fields` are kept, whatever else it holds.

    Args:
        path: Separated by comma, semicolon or tab, with a header. The picture of a row is named in the first of the
            columns image_id, image, file, file_name, path that there is: by the file's name with or without suffix,
            or by its path, relative to the csv or to the working directory.
        fields: The metadata fields of the checkpoint.

    Returns:
        The table.

    Raises:
        Ham10000Error: If the file cannot be read, has none of the fields, or names a picture twice.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise Ham10000Error(f"Cannot read the metadata {str(path)!r}: {error}. Expected a UTF-8 csv file.") from error
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    rows = _csv_rows(path, text, delimiter)
    header = [name.strip().lower() for name in next(rows, (1, []))[1]]
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise Ham10000Error(f"{path}: the column(s) {repeated} are there twice; keep one of each.")
    if not set(header) & set(fields):
        raise Ham10000Error(f"{path} has the columns {header}, but none of {list(fields)}.")
    key = next((name for name in KEY_COLUMNS if name in header), None)
    table = MetadataTable(path, [], {}, _column_note(path, header, key, fields))
    for line, cells in rows:
        if not any(cell.strip() for cell in cells):
            continue
        where = f"{path}, line {line}"
        if len(cells) != len(header):
            raise Ham10000Error(f"{where}: {len(cells)} cells, but the header has {len(header)}; quote the cells.")
        values = {name: restore_cell(cell.strip()) for name, cell in zip(header, cells, strict=True)}
        metadata = {name: values[name] for name in fields if name in values}
        row = Sample(values[key] if key else f"line {line}", None, metadata, where)
        table.rows.append(row)
        if key and (not row.name or "\0" in row.name):
            raise Ham10000Error(f"{where}: {key} is {row.name!r}; every row needs the name of its picture.")
        if key and row.name:
            other = table.by_picture.setdefault(row.name, row)
            if other is not row:
                raise Ham10000Error(f"{where}: {key} {row.name!r} is also in {other.origin}; keep one row a picture.")
            if key != "image_id":
                table.by_picture.setdefault(str((path.parent / row.name).resolve()), row)
    if not table.rows:
        raise Ham10000Error(f"{path} has a header but no rows.")
    return table


def _csv_rows(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yields each row with its line; strict, as otherwise an unclosed quote takes in all rows that follow."""
    reader, end = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), 0
    try:
        for cells in reader:
            line, end = end + 1, reader.line_num
            if line != end:
                raise Ham10000Error(
                    f"{path}, line {line}: a quoted cell runs on to line {end}; a quote is missing, or write the cell "
                    "on one line."
                )
            yield line, cells
    except csv.Error as error:
        raise Ham10000Error(f"{path}, from line {end + 1}: not a table: {error}. Look for a stray quote.") from error


def _column_note(path: Path, header: list[str], key: str | None, fields: Sequence[str]) -> str:
    parts = []
    if ignored := [name for name in header if name and name not in fields and name != key]:
        parts.append(f"{', '.join(ignored)} ignored, never an input of this checkpoint")
    if absent := [name for name in fields if name not in header]:
        parts.append(f"no column {', '.join(absent)}, which counts as missing")
    return f"{path}: {'; '.join(parts)}" if parts else ""


def match_metadata(pictures: Sequence[Path], table: MetadataTable, *, unknown_values: str = "error") -> list[Sample]:
    """Gives every picture its row of the table.

    Args:
        pictures: The files.
        table: Result of `read_metadata`.
        unknown_values: `"missing"` lets a picture without a row have missing metadata.

    Returns:
        One sample a picture, in order.

    Raises:
        Ham10000Error: For pictures without a row, unless allowed.
    """
    if not table.by_picture:
        raise Ham10000Error(f"{table.path} does not say which picture a row is of; add one of {list(KEY_COLUMNS)}.")
    samples, without = [], []
    for picture in pictures:
        names = (str(picture), str(picture.resolve()), picture.name, picture.stem)
        row = next((table.by_picture[name] for name in names if name in table.by_picture), None)
        if row is None:
            without.append(picture)
            row = Sample(None, None, {}, "")
        samples.append(Sample(_text(picture), picture, row.metadata, row.origin))
    if without and unknown_values == "error":
        raise Ham10000Error(
            f"{table.path} has no row for {len(without)} of {len(pictures)} pictures, such as {str(without[0])!r}. "
            "Add the rows, or pass --unknown_values missing to predict these pictures without metadata."
        )
    if without:
        _note(f"{table.path}: no row for {len(without)} of {len(pictures)} pictures, whose metadata is unknown")
    return samples


def collect_samples(
    processor: Ham10000Processor,
    inputs: Sequence[str],
    values: Mapping[str, str | None],
    table: str | None = None,
    *,
    checkpoint: str,
    unknown_values: str = "error",
) -> list[Sample]:
    """Turns what the command line gives into samples whose metadata the processor accepts.

    Args:
        processor: The checkpoint's processor.
        inputs: Files and folders, as for `find_pictures`.
        values: Raw metadata of every picture, by field; None for what was not given.
        table: A csv, as for `read_metadata`, instead of `values`.
        checkpoint: Name of the checkpoint, for messages.
        unknown_values: `"missing"` accepts a value outside the vocabulary, and a picture without a row.

    Returns:
        At least one sample.

    Raises:
        Ham10000Error: For inputs that do not exist, contradict each other, or that the checkpoint does not read.
    """
    flags = {name: value for name, value in values.items() if value is not None}
    uses_image = "pixel_values" in processor.model_input_names
    uses_metadata = "metadata" in processor.model_input_names
    if flags and table:
        given = ", ".join(f"--{name}" for name in flags)
        raise Ham10000Error(f"Got {given} and --metadata {table}; give one or the other.")
    if not uses_metadata and (flags or table):
        given = ", ".join(f"--{name}" for name in flags) or "--metadata"
        raise Ham10000Error(f"The checkpoint {checkpoint!r} is image-only and reads no metadata; drop {given}.")
    if not uses_image and inputs:
        raise Ham10000Error(
            f"The checkpoint {checkpoint!r} is metadata-only and reads no picture; drop {inputs[0]!r}."
        )
    if uses_image and not inputs:
        raise Ham10000Error(f"The checkpoint {checkpoint!r} reads pictures; give at least one file or folder.")
    if not uses_image and not flags and not table:
        raise Ham10000Error(
            f"The checkpoint {checkpoint!r} is metadata-only; give --metadata table.csv, or some of "
            + ", ".join(f"--{name}" for name in processor.metadata_fields)
            + "."
        )
    pictures = find_pictures(inputs)
    if table:
        rows = read_metadata(table, processor.metadata_fields)
        if rows.note:
            _note(rows.note)
        samples = match_metadata(pictures, rows, unknown_values=unknown_values) if uses_image else rows.rows
    elif uses_image:
        samples = [Sample(_text(picture), picture, dict(flags) or None, "command line") for picture in pictures]
    else:
        samples = [Sample(None, None, flags, "command line")]
    for sample in samples:
        if sample.metadata:
            _check_metadata(sample, processor, unknown_values)
    return samples


def _check_metadata(sample: Sample, processor: Ham10000Processor, unknown_values: str) -> None:
    """Raises the processor's complaint about a row with the place the user can correct it at."""
    try:
        processor.encode_metadata([sample.metadata or {}], unknown_values=unknown_values)
    except Ham10000Error as error:
        message = (
            str(error).removeprefix("Metadata row 0: ").replace("unknown_values='missing'", "--unknown_values missing")
        )
        raise Ham10000Error(f"{sample.origin}: {message}") from error


def _text(path: Path) -> str:
    """A path as text that can be written: file names are bytes, and some are no UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


__all__ = [
    "KEY_COLUMNS",
    "PICTURE_SUFFIXES",
    "MetadataTable",
    "Sample",
    "collect_samples",
    "find_pictures",
    "match_metadata",
    "read_metadata",
]
