"""Turns files, folders, a csv of metadata and the values of flags into the samples to predict."""

# The csv module and not pandas: it knows the line of every row, and the demo and `ham10000-predict` do without pandas.
import csv
import io
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ham10000.modeling import Ham10000Error, Ham10000Processor
from ham10000.training.utils.files import restore_cell

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
# Columns of a csv that may name the image of a row; the first that exists is used.
KEY_COLUMNS = ("image_id", "image", "file", "file_name", "path")


@dataclass
class Sample:
    """One thing to predict.

    Attributes:
        name: The image as the user named it, or the row's id; None for metadata from flags alone.
        image: The file; None for a metadata-only checkpoint.
        metadata: Raw values by field; None where nothing is known, or the checkpoint reads none.
        origin: Source of the metadata, for messages.
        warning: Why its prediction is worth nothing, such as an image unlike those of HAM10000; None for no reason.
    """

    name: str | None
    image: Path | None = None
    metadata: dict[str, str] | None = None
    origin: str = ""
    warning: str | None = None


@dataclass
class MetadataTable:
    """A csv of metadata.

    Attributes:
        path: The file.
        rows: One sample per row, without an image.
        by_image: The same samples by every name an image may be looked up with.
        note: The columns that are ignored or absent; empty if none.
    """

    path: Path
    rows: list[Sample]
    by_image: dict[str, Sample]
    note: str


def find_images(inputs: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Lists the image files of files and folders.

    Args:
        inputs: Files, taken whatever their suffix, and folders, searched with their sub-folders for
            `IMAGE_SUFFIXES` in any case; hidden files and folders are skipped.

    Returns:
        The files in the order of `inputs`, those of one folder sorted by path, each once.

    Raises:
        Ham10000Error: For something that does not exist, or a folder without an image.
    """
    images: list[Path] = []
    for item in inputs:
        path = Path(item)
        try:
            exists, is_folder = path.exists(), path.is_dir()
        except OSError as error:  # such as a name that is too long
            raise Ham10000Error(f"Cannot look for {str(item)[:100]!r}: {error.strerror}.") from error
        if is_folder:
            # Apple's archiver leaves a hidden `._name.jpg` next to each image, which is not an image.
            found = [
                file
                for file in sorted(path.rglob("*"))
                if file.suffix.lower() in IMAGE_SUFFIXES
                and not any(part.startswith(".") for part in file.relative_to(path).parts)
                and not file.is_dir()
            ]
            if not found:
                raise Ham10000Error(f"The folder {str(path)!r} contains no image ({', '.join(IMAGE_SUFFIXES)}).")
            images += found
        elif exists:
            images.append(path)
        elif str(item).startswith(("http://", "https://")):
            raise Ham10000Error(f"URLs are not fetched, got {str(item)!r}: download the image and give its path.")
        else:
            raise Ham10000Error(f"There is no file or folder {str(path)!r}.")
    return list(dict.fromkeys(images))


def read_metadata(path: str | os.PathLike[str], fields: Sequence[str]) -> MetadataTable:
    """Reads a csv of metadata; only the columns in `fields` are kept.

    Args:
        path: Separated by comma, semicolon or tab, with a header. The first of `KEY_COLUMNS` that exists names the
            image of a row: by the file's name with or without suffix, or by its path, relative to the csv or to the
            working directory.
        fields: The metadata fields of the checkpoint.

    Raises:
        Ham10000Error: If the file cannot be read, has none of the fields, or names an image twice.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise Ham10000Error(f"Cannot read the metadata {str(path)!r}: {error}. Expected a UTF-8 csv file.") from error
    lines = _csv_rows(path, text)
    header = [name.strip().lower() for name in next(lines, (1, []))[1]]
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise Ham10000Error(f"{path}: the column(s) {repeated} occur twice; keep one of each.")
    if not set(header) & set(fields):
        raise Ham10000Error(f"{path} has the columns {header}, but none of {list(fields)}.")
    key = next((name for name in KEY_COLUMNS if name in header), None)
    notes = []
    if ignored := [name for name in header if name and name not in fields and name != key]:
        notes.append(f"{', '.join(ignored)} ignored, never an input of this checkpoint")
    if absent := [name for name in fields if name not in header]:
        notes.append(f"no column {', '.join(absent)}, which counts as missing")
    table = MetadataTable(path, [], {}, f"{path}: {'; '.join(notes)}" if notes else "")
    for line, cells in lines:
        where = f"{path}, line {line}"
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise Ham10000Error(f"{where}: {len(cells)} cells, but the header has {len(header)}; quote the cells.")
        values = {name: restore_cell(cell.strip()) for name, cell in zip(header, cells, strict=True)}
        name = values[key] if key else f"line {line}"
        row = Sample(name, None, {field: values[field] for field in fields if field in values}, where)
        table.rows.append(row)
        if key is None:
            continue
        if not name or "\0" in name:
            raise Ham10000Error(f"{where}: {key} is {name!r}; every row needs the name of its image.")
        other = table.by_image.setdefault(name, row)
        if other is not row:
            raise Ham10000Error(f"{where}: {key} {name!r} is also in {other.origin}; keep one row per image.")
        if key != "image_id":
            table.by_image.setdefault(str((path.parent / name).resolve()), row)
    if not table.rows:
        raise Ham10000Error(f"{path} has a header but no rows.")
    return table


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yields each row with its line; strict, as otherwise an unclosed quote takes in all rows that follow."""
    delimiter = max(",;\t", key=text.split("\n", 1)[0].count)
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
        inputs: Files and folders, as for `find_images`.
        values: Raw metadata of every image, by field; None for what was not given.
        table: A csv, as for `read_metadata`, instead of `values`.
        checkpoint: Name of the checkpoint, for messages.
        unknown_values: `"missing"` accepts a value outside the vocabulary, and an image without a row.

    Returns:
        At least one sample.

    Raises:
        Ham10000Error: For inputs that do not exist, contradict each other, or that the checkpoint does not read.
    """
    flags = {name: value for name, value in values.items() if value is not None}
    uses_image = "pixel_values" in processor.model_input_names
    uses_metadata = "metadata" in processor.model_input_names
    given = ", ".join(f"--{name}" for name in flags)
    name = f"The checkpoint {checkpoint!r}"
    if flags and table:
        raise Ham10000Error(f"Got {given} and --metadata {table}; give one or the other.")
    if not uses_metadata and (flags or table):
        raise Ham10000Error(f"{name} is image-only and reads no metadata; drop {given or '--metadata'}.")
    if not uses_image and inputs:
        raise Ham10000Error(f"{name} is metadata-only and reads no image; drop {inputs[0]!r}.")
    if uses_image and not inputs:
        raise Ham10000Error(f"{name} reads images; give at least one file or folder.")
    if not uses_image and not flags and not table:
        options = ", ".join(f"--{field}" for field in processor.metadata_fields)
        raise Ham10000Error(f"{name} is metadata-only; give --metadata table.csv, or some of {options}.")
    images = find_images(inputs)
    if table:
        rows = read_metadata(table, processor.metadata_fields)
        if rows.note:
            print(f"note: {rows.note}", file=sys.stderr)
        samples = _match(images, rows, unknown_values) if uses_image else rows.rows
    elif uses_image:
        samples = [Sample(_text(image), image, dict(flags) or None, "command line") for image in images]
    else:
        samples = [Sample(None, None, flags, "command line")]
    for sample in samples:
        if sample.metadata:
            _check_metadata(sample, processor, unknown_values)
    return samples


def _match(images: Sequence[Path], table: MetadataTable, unknown_values: str) -> list[Sample]:
    """Gives every image its row of the table; an image without one is an error, unless unknown values may be."""
    if not table.by_image:
        raise Ham10000Error(f"{table.path} does not say which image a row is of; add one of {list(KEY_COLUMNS)}.")
    samples, without = [], []
    for image in images:
        names = (str(image), str(image.resolve()), image.name, image.stem)
        row = next((table.by_image[name] for name in names if name in table.by_image), None)
        if row is None:
            without.append(image)
        samples.append(Sample(_text(image), image, row.metadata if row else {}, row.origin if row else ""))
    problem = f"{table.path}: no row for {len(without)} of {len(images)} images"
    if without and unknown_values == "error":
        raise Ham10000Error(
            f"{problem}, such as {str(without[0])!r}. Add the rows, or pass --unknown_values missing to predict these "
            "images without metadata."
        )
    if without:
        print(f"note: {problem}, whose metadata is unknown", file=sys.stderr)
    return samples


def _check_metadata(sample: Sample, processor: Ham10000Processor, unknown_values: str) -> None:
    """Raises the processor's complaint about a row with the place where the user can correct it."""
    try:
        processor.encode_metadata([sample.metadata or {}], unknown_values=unknown_values)
    except Ham10000Error as error:
        message = str(error).removeprefix("Metadata row 0: ")
        message = message.replace("unknown_values='missing'", "--unknown_values missing")
        raise Ham10000Error(f"{sample.origin}: {message}") from error


def _text(path: Path) -> str:
    """A path as text that can be written: file names are bytes, and some are not UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


__all__ = [
    "IMAGE_SUFFIXES",
    "KEY_COLUMNS",
    "MetadataTable",
    "Sample",
    "collect_samples",
    "find_images",
    "read_metadata",
]
