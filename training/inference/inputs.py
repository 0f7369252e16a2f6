"""Turns files, folders, a csv of metadata and the values of flags into the samples to predict."""

# Nothing here may import pandas: the demo and `ham10000-predict` do without.
import filecmp
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ham10000.modeling import Ham10000Error, Ham10000Processor
from ham10000.training.data.tables import SYNONYMS, match_columns, read_rows, read_value, spelling_notes
from ham10000.training.utils.files import IMAGE_SUFFIXES, comparable, files_below


@dataclass
class Sample:
    """One thing to predict."""

    name: str | None  # the image as the user named it, or the row's id; None for metadata from flags alone
    image: Path | None = None  # None for a metadata-only checkpoint
    metadata: dict[str, str] | None = None  # raw values; None where nothing is known, or the checkpoint reads none
    origin: str = ""  # source of the metadata, for messages
    warning: str | None = None  # why its prediction is worth nothing, such as an image unlike the training data


@dataclass
class MetadataTable:
    """A csv of metadata.

    Its notes begin with `note:` (columns that are ignored, spellings that were read as others) or `warning:` (a field
    without a column).
    """

    path: Path
    rows: list[Sample]  # without images
    by_image: dict[str, Sample]  # the same, by every name an image may be looked up with
    notes: list[str]


def find_images(inputs: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Lists files, whatever their suffix, and the images below folders: in the order given, sorted by path, each once.

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
            images += (found := sorted(Path(file) for file in files_below(path)))
            if not found:
                raise Ham10000Error(f"The folder {str(path)!r} contains no image ({', '.join(IMAGE_SUFFIXES)}).")
        elif exists:
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
    notes = []
    if ignored := [name for name in header if name and name not in (key, *matched.values())]:
        notes.append(f"note: {path}: {', '.join(ignored)} ignored, never an input of this checkpoint")
    if absent := [name for name in fields if name not in matched]:
        notes.append(
            f"warning: {path}: no column for {', '.join(absent)}, which counts as missing; the columns are {header}. "
            f"Where one of them has it, name it: --columns {absent[0]}=COLUMN"
        )
    table = MetadataTable(path, [], {}, notes)
    spellings: list[dict[str, str]] = []
    by_cwd: list[tuple[str, Sample]] = []
    for line, cells in zip(lines, rows, strict=True):
        where = f"{path}, line {line}"
        values = {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
        if not any(values.values()):
            continue
        name = values[key] if key else f"line {line}"
        written = {field: values[column] for field, column in matched.items()}
        row = Sample(name, None, {field: read_value(field, value) for field, value in written.items()}, where)
        spellings.append(written)
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
            by_cwd.append((name, row))
    # Last, so that they give way to what other rows say of the table's own folder.
    for name, row in by_cwd:
        table.by_image.setdefault(comparable(str(Path(name).resolve())), row)
    if not table.rows:
        raise Ham10000Error(f"{path} has a header but no rows.")
    for field in matched.keys() - {"age"}:
        said = spelling_notes(field, [row[field] for row in spellings], matched[field])
        table.notes += [f"note: {path}: {note}" for note in said]
    return table


def collect_samples(
    processor: Ham10000Processor,
    inputs: Sequence[str],
    values: Mapping[str, str | None],
    table: str | None,
    *,
    checkpoint: str,
    columns: Mapping[str, str],
    unknown_values: str,
) -> list[Sample]:
    """Turns what the command line gives into samples whose metadata the processor accepts.

    Args:
        processor: The checkpoint's processor.
        inputs: Files and folders.
        values: Raw metadata of every image, by field; None for what was not given.
        table: A csv for `read_metadata` instead of `values`.
        checkpoint: Its name, for messages.
        columns: As for `read_metadata`.
        unknown_values: `"missing"` accepts a value outside the vocabulary, and an image without a row.

    Raises:
        Ham10000Error: For inputs that do not exist, contradict each other, or that the checkpoint does not read.
    """
    flags = {name: read_value(name, value) for name, value in values.items() if value is not None}
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
        rows = read_metadata(table, processor.metadata_fields, columns)
        for note in rows.notes:
            print(note, file=sys.stderr)
        samples = _match(images, rows, unknown_values) if uses_image else rows.rows
    elif uses_image:
        samples = [Sample(_text(image), image, dict(flags) or None, "command line") for image in images]
    else:
        samples = [Sample(None, None, flags, "command line")]
    for sample in samples:
        if not sample.metadata:
            continue
        try:
            processor.encode_metadata([sample.metadata], unknown_values=unknown_values)
        except Ham10000Error as error:
            # The processor's complaint, with the place where the user can correct it.
            message = str(error).removeprefix("Metadata row 0: ")
            message = message.replace("unknown_values='missing'", "--unknown_values missing")
            raise Ham10000Error(f"{sample.origin}: {message}") from error
    return samples


def _match(images: Sequence[Path], table: MetadataTable, unknown_values: str) -> list[Sample]:
    """Gives every image its row of the table; an image without one is an error, unless unknown values may be."""
    if not table.by_image:
        raise Ham10000Error(
            f"{table.path} does not say which image a row is of; add one of {', '.join(SYNONYMS['image_id'])}, "
            "or name yours: --columns image_id=COLUMN."
        )
    samples, without = [], []
    taken: dict[str, Path] = {}  # origin of a row to the first image that it is of
    for image in images:
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


def _text(path: Path) -> str:
    """A path as text that can be written: file names are bytes, and some are not UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
