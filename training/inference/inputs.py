"""Turns files, folders, a csv of metadata and the values of flags into the samples to predict."""

# Nothing here may import pandas: the demo and `ham10000-predict` do without.
import argparse
import filecmp
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ham10000.modeling import METADATA_FIELDS, Ham10000Error, Ham10000Processor
from ham10000.training.data.tables import SYNONYMS, DataOptions, match_columns, read_rows, read_value, spelling_notes
from ham10000.training.utils.files import IMAGE_SUFFIXES, comparable, files_below


@dataclass
class Sample:
    """One thing to predict."""

    name: str | None  # the image as the user named it, or the row's id; None for metadata from flags alone
    image: Path | None = None  # None for a metadata-only checkpoint
    metadata: dict[str, str] = field(default_factory=dict)  # raw values; empty where nothing is known, or read
    origin: str = ""  # source of the metadata, for messages
    warning: str | None = None  # why its prediction is worth nothing, such as an image unlike the training data


@dataclass
class MetadataTable:
    """A csv of metadata."""

    path: Path
    notes: list[str]  # `note: …` on ignored columns and on spellings, `warning: …` on a field without a column
    rows: list[Sample] = field(default_factory=list)  # without images
    by_image: dict[str, Sample] = field(default_factory=dict)  # the same, by every name an image may be looked up with


def find_images(inputs: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Lists files, whatever their suffix, and the images below folders: in the order given, sorted by path, each once.

    Raises:
        Ham10000Error: For something that does not exist, or a folder without an image.
    """
    images: list[Path] = []
    for item in inputs:
        path = Path(item)
        if path.is_dir():
            images += (found := sorted(map(Path, files_below(path))))
            if not found:
                raise Ham10000Error(f"The folder {str(path)!r} contains no image ({', '.join(IMAGE_SUFFIXES)}).")
        elif path.exists():
            images.append(path)
        elif str(item).startswith(("http://", "https://")):
            raise Ham10000Error(f"URLs are not fetched, got {str(item)!r}: download the image and give its path.")
        else:
            raise Ham10000Error(f"There is no file or folder {str(path)!r}.")
    return list(dict.fromkeys(images))


def read_metadata(
    path: str | os.PathLike[str], fields: Sequence[str], columns: Mapping[str, str] | None = None
) -> MetadataTable:
    """Reads a csv of metadata; only the columns of the fields are kept.

    Args:
        path: Separated by comma, semicolon or tab, with a header; names as in training (`SYNONYMS`). The image of a
            row is named by the file's name with or without suffix, or by its path, relative to the csv or to the
            working directory.
        fields: The metadata fields of the checkpoint.
        columns: Our field to the csv's column, where it is not recognised.

    Raises:
        Ham10000Error: If the file cannot be read, has none of the fields, or names an image twice.
    """
    path = Path(path)
    header, rows, lines = read_rows(path)
    matched = match_columns(header, columns or {}, path, ("image_id", *fields))
    key = matched.pop("image_id", None)
    if not matched:
        known = "; ".join(f"{name}: {', '.join(SYNONYMS[name])}" for name in fields)
        raise Ham10000Error(
            f"{path} has the columns {header}, but none of {list(fields)} ({known}). Name yours: "
            f"--columns {fields[0]}=COLUMN"
        )
    table = MetadataTable(path, [])
    if ignored := [name for name in header if name and name not in (key, *matched.values())]:
        table.notes.append(f"note: {path}: {', '.join(ignored)} ignored, never an input of this checkpoint")
    if absent := [name for name in fields if name not in matched]:
        table.notes.append(
            f"warning: {path}: no column for {', '.join(absent)}, which counts as missing; the columns are {header}. "
            f"Where one of them has it, name it: --columns {absent[0]}=COLUMN"
        )
    for line, cells in zip(lines, rows, strict=True):
        where = f"{path}, line {line}"
        values = {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
        if not any(values.values()):
            continue
        name = values[key] if key else f"line {line}"
        row = Sample(name, None, {ours: read_value(ours, values[column]) for ours, column in matched.items()}, where)
        table.rows.append(row)
        if key is None:
            continue
        if not name or "\0" in name:
            raise Ham10000Error(f"{where}: {key} is {name!r}; every row needs the name of its image.")
        other = table.by_image.setdefault(comparable(name), row)
        if other is not row:
            raise Ham10000Error(f"{where}: {key} {name!r} is also in {other.origin}; keep one row per image.")
        if key != "image_id":
            table.by_image.setdefault(comparable(str((path.parent / name).resolve())), row)
    if not table.rows:
        raise Ham10000Error(f"{path} has a header but no rows.")
    if key not in (None, "image_id"):
        # Last, so that they give way to what other rows say of the table's own folder.
        for row in table.rows:
            table.by_image.setdefault(comparable(str(Path(str(row.name)).resolve())), row)
    for name, column in matched.items():
        texts = [cells[header.index(column)] for cells in rows]
        table.notes += [f"note: {path}: {note}" for note in spelling_notes(name, texts, column)]
    return table


def collect_samples(processor: Ham10000Processor, options: argparse.Namespace) -> list[Sample]:
    """Turns the options of `ham10000-predict` into samples whose metadata the processor accepts.

    A `Ham10000Error` says that inputs do not exist, contradict each other, or are not for the checkpoint.
    """
    flags = {name: read_value(name, text) for name in METADATA_FIELDS if (text := getattr(options, name)) is not None}
    inputs, table, unknown_values = options.inputs, options.metadata, options.unknown_values
    uses_image, uses_metadata = processor.modality != "metadata", processor.modality != "image"
    given = ", ".join(f"--{name}" for name in flags)
    name = f"The checkpoint {options.checkpoint!r}"
    if flags and table:
        raise Ham10000Error(f"Got {given} and --metadata {table}; give one or the other.")
    if not uses_metadata and (flags or table):
        raise Ham10000Error(f"{name} is image-only and reads no metadata; drop {given or '--metadata'}.")
    if not uses_image and inputs:
        raise Ham10000Error(f"{name} is metadata-only and reads no image; drop {inputs[0]!r}.")
    if uses_image and not inputs:
        raise Ham10000Error(f"{name} reads images; give at least one file or folder.")
    if not uses_image and not flags and not table:
        some = ", ".join(f"--{name}" for name in processor.metadata_fields)
        raise Ham10000Error(f"{name} is metadata-only; give --metadata table.csv, or some of {some}.")
    columns = DataOptions.from_texts(options.columns).columns
    # As text that can be written: file names are bytes, and some are not UTF-8.
    images = {path: os.fsencode(path).decode("utf-8", "backslashreplace") for path in find_images(inputs)}
    if table:
        rows = read_metadata(table, processor.metadata_fields, columns)
        for note in rows.notes:
            print(note, file=sys.stderr)
        samples = _match(images, rows, unknown_values) if uses_image else rows.rows
    elif uses_image:
        samples = [Sample(name, path, flags, "command line") for path, name in images.items()]
    else:
        samples = [Sample(None, None, flags, "command line")]
    for sample in samples:
        try:
            processor.encode_metadata([sample.metadata], unknown_values=unknown_values)
        except Ham10000Error as error:
            # The processor's complaint, with the place where the user can correct it.
            message = str(error).removeprefix("Metadata row 0: ")
            message = message.replace("unknown_values='missing'", "--unknown_values missing")
            raise Ham10000Error(f"{sample.origin}: {message}") from error
    return samples


def _match(images: Mapping[Path, str], table: MetadataTable, unknown_values: str) -> list[Sample]:
    """Gives every image, path to name, its row of the table; one without is an error unless unknown values may be."""
    if not table.by_image:
        raise Ham10000Error(
            f"{table.path} does not say which image a row is of; add one of {', '.join(SYNONYMS['image_id'])}, "
            "or name yours: --columns image_id=COLUMN."
        )
    samples, without = [], []
    taken: dict[str, Path] = {}  # origin of a row to the first image that it is of
    for image, shown in images.items():
        names = (str(image), str(image.resolve()), image.name, image.stem)
        row = next((table.by_image[name] for name in map(comparable, names) if name in table.by_image), None)
        if row is None:
            without.append(image)
        # The same picture twice is one patient's; two pictures of one name may be two patients'.
        elif (other := taken.setdefault(row.origin, image)) != image and not filecmp.cmp(other, image, shallow=False):
            raise Ham10000Error(
                f"{row.origin}: {row.name!r} may be {str(other)!r} or {str(image)!r}, which differ; give each image a "
                "row with its path, in a column such as `path`."
            )
        samples.append(Sample(shown, image, row.metadata if row else {}, row.origin if row else ""))
    if without:
        problem = f"{table.path}: no row for {len(without)} of {len(images)} images"
        if unknown_values == "error":
            raise Ham10000Error(f"{problem}, such as {str(without[0])!r}. Add it, or pass --unknown_values missing.")
        print(f"note: {problem}, whose metadata is unknown", file=sys.stderr)
    return samples
