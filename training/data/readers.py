"""Where rows come from: every kind of `--data` is read into one raw table of strings beside its images."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import pandas as pd
import pyarrow.parquet as pq
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from ham10000.modeling.configuration_ham10000 import Ham10000Error
from ham10000.training.data.images import downloads, image_dataset, stored_images
from ham10000.training.data.synthetic import make_synthetic
from ham10000.training.data.tables import (
    COLUMNS,
    REQUIRED_COLUMNS,
    checked_columns,
    read_csv,
    read_jsonl,
    read_table,
    string_frame,
)
from ham10000.training.utils.isic import is_one_hot, labels_from_one_hot, read_sites, rename_columns

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
DEFAULT_SYNTHETIC_SIZE = 800

_OFFICIAL_METADATA = ("HAM10000_metadata.csv", "HAM10000_metadata", "HAM10000_metadata.tab", "HAM10000_metadata.tsv")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_KINDS_OF_SOURCE = (
    "`synthetic` or `synthetic:N` (N images); a folder with HAM10000_metadata[.csv] and HAM10000_images_part_1/2; "
    "a folder with metadata.csv or metadata.jsonl (imagefolder); a folder of .parquet files; a csv of pictures below "
    "its folder, or a folder with *GroundTruth.csv, in HAM10000's or ISIC's one-hot format; or a Hub id `user/name`"
)


@dataclass
class RawSource:
    """Rows as they were read, before any check.

    Attributes:
        name: The source as the user wrote it.
        frame: One row per image. String columns as in the source ("" where missing), `file` and `row`, which say
            where the row stands (`row` is the 1-based line of a text file or the 1-based row of a table).
        images: One column `image` (`datasets.Image()`), row by row beside `frame`; never decoded here.
        missing: Per row, whether the source has no image for it.
        notes: Decisions taken while reading, one sentence each.
    """

    name: str
    frame: pd.DataFrame
    images: datasets.Dataset
    missing: list[bool]
    notes: list[str] = field(default_factory=list)


def read_source(source: str, *, synthetic_size: int | None = None, seed: int = 0) -> RawSource:
    """Reads any kind of source, without decoding an image.

    Args:
        source: `synthetic`, `synthetic:N`, a folder, or a Hub dataset id.
        synthetic_size: Number of synthetic images; `synthetic:N` says the same.
        seed: Seed of the synthetic generator.

    Returns:
        The raw rows and their images.

    Raises:
        Ham10000Error: Where the source is none of these, cannot be parsed, or lacks a required column.
    """
    if source == "synthetic" or source.startswith("synthetic:"):
        return _read_synthetic(source, synthetic_size, seed)
    folder = Path(source).expanduser()
    if folder.is_dir():
        return _read_folder(source, folder)
    if folder.is_file() and folder.suffix.lower() in (".csv", ".tsv", ".tab"):
        return _read_labelled(source, folder)
    if folder.exists():
        raise Ham10000Error(f"{source} is a file; give the folder that holds it. A source is {_KINDS_OF_SOURCE}.")
    if _HUB_ID.fullmatch(source):
        return _read_hub(source)
    raise Ham10000Error(f"There is no folder {source!r}. A source is {_KINDS_OF_SOURCE}.")


def _read_synthetic(source: str, size: int | None, seed: int) -> RawSource:
    _, _, number = source.partition(":")
    if number and not number.isdecimal():
        raise Ham10000Error(f"`{source}`: expected `synthetic:N` with N the number of images, got {number!r}.")
    n_images = int(number) if number else size or DEFAULT_SYNTHETIC_SIZE
    rows = make_synthetic(n_images, seed=seed)
    images = [row.pop("image") for row in rows]
    frame = string_frame(pd.DataFrame(rows))
    frame["file"], frame["row"] = source, range(1, len(frame) + 1)
    notes = [f"synthetic pictures and metadata, not patients: {n_images} images, generator seed {seed}"]
    return RawSource(source, frame, image_dataset(images), [False] * len(frame), notes)


def _read_folder(source: str, folder: Path) -> RawSource:
    if any((folder / name).is_file() for name in _OFFICIAL_METADATA):
        return _read_official(source, folder)
    truths = sorted(folder.rglob("*GroundTruth.csv"))
    if len(truths) > 1:
        names = [str(path.relative_to(folder)) for path in truths]
        raise Ham10000Error(f"{source} holds several ground truths, {names}; give one of these files as the source.")
    if truths:
        return _read_labelled(source, truths[0], folder)
    tables = [path for pattern in ("metadata.csv", "metadata.jsonl") for path in sorted(folder.rglob(pattern))]
    if tables:
        return _read_imagefolder(source, folder, tables)
    parquet = [path for path in sorted(folder.rglob("*.parquet")) if not _is_hidden(path.relative_to(folder))]
    if parquet:
        return _read_parquet(source, folder, parquet)
    present = sorted(entry.name for entry in folder.iterdir())[:10]
    raise Ham10000Error(f"{source} holds {present or 'nothing'}, but no metadata. A source is {_KINDS_OF_SOURCE}.")


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _read_official(source: str, folder: Path) -> RawSource:
    tables = [folder / name for name in _OFFICIAL_METADATA if (folder / name).is_file()]
    if len({table.read_bytes() for table in tables}) > 1:
        names = [table.name for table in tables]
        raise Ham10000Error(f"{source} holds {names} with different contents; keep the one that is right.")
    frame, notes = read_csv(tables[0])
    found, copies = _find_images(folder)
    if copies:
        notes.append(f"{copies} image files are copies of others of the same name in a second folder: counted once")
    paths = [found.get(image_id) for image_id in frame["image_id"]]
    unused = sorted(found.keys() - set(frame["image_id"]))
    if unused:
        notes.append(f"{len(unused)} image files have no row in {tables[0].name} and are not used: {_some(unused)}")
    images = [{"bytes": None, "path": path} for path in paths]
    return RawSource(source, frame, image_dataset(images), [path is None for path in paths], notes)


def _find_images(folder: Path, *, every_folder: bool = False) -> tuple[dict[str, str], int]:
    """Maps image ids to files, and counts the files that repeat one already found.

    Kaggle's mirror ships every folder a second time in lower case. scandir reads names only: asking the file system
    about each of 10,015 files would take seconds on a network disk.
    """
    found: dict[str, os.DirEntry[str]] = {}
    copies = 0
    for entry in _image_entries(folder, top=not every_folder):
        image_id = entry.name.rsplit(".", 1)[0]
        first = found.setdefault(image_id, entry)
        if first is entry:
            continue
        copies += 1
        if first.stat().st_size != entry.stat().st_size:
            raise Ham10000Error(f"{first.path} and {entry.path} differ; keep the one that is image {image_id!r}.")
    return {image_id: entry.path for image_id, entry in found.items()}, copies


def _image_entries(folder: str | Path, *, top: bool = False) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                # Other folders of an archive, such as segmentation masks, hold files of the same names.
                if not top or entry.name.lower().startswith(("ham10000_images", "images")):
                    yield from _image_entries(entry.path)
            elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:  # noqa: PTH122 (Path is 5 times slower)
                yield entry


def _read_labelled(source: str, table: Path, folder: Path | None = None) -> RawSource:
    """One table of labels, HAM10000's or ISIC's; metadata may be absent, or in ISIC's *Metadata.csv beside it."""
    folder = folder or table.parent
    (frame, lines), notes = read_table(table), []
    frame = rename_columns(frame)
    if frame.columns.has_duplicates:
        raise Ham10000Error(f"{table}: two columns mean the same; read as {list(frame.columns)}. Keep one of them.")
    if "dx" not in frame.columns and is_one_hot(frame.columns):
        frame["dx"] = labels_from_one_hot(frame, table, lines)
    if "image_id" not in frame.columns and "file_name" in frame.columns:
        frame["image_id"] = frame["file_name"]
    if "image_id" in frame.columns:
        bare = frame["image_id"].str.strip()
        has_suffix = bare.str.lower().str.endswith(tuple(IMAGE_SUFFIXES))
        frame["image_id"] = bare.where(~has_suffix, bare.str.rsplit(".", n=1).str[0])
        extras = [path for path in sorted(table.parent.glob("*Metadata.csv")) if path != table]
        for path in extras[:1]:
            extra, _ = read_table(path)
            extra = rename_columns(extra)
            wanted = [name for name in ("lesion_id", "age", "sex", "localization") if name not in frame.columns]
            wanted = [name for name in wanted if name in extra.columns]
            if wanted and "image_id" in extra.columns:
                frame = frame.merge(extra[["image_id", *wanted]].drop_duplicates("image_id"), "left", "image_id")
                notes.append(f"{', '.join(wanted)} from {path.name}")
                if "lesion_id" in wanted and (alone := frame["lesion_id"].isna()).any():
                    frame["lesion_id"] = frame["lesion_id"].fillna(frame["image_id"])
                    notes.append(f"{alone.sum():,} images without a row there count as lesions of their own")
    for name in ("age", "sex", "localization"):
        if name not in frame.columns:
            frame[name] = "unknown"
            notes.append(f"{table}: no column {name}; every value counts as missing")
    if "localization" in frame.columns:
        frame["localization"], site_notes = read_sites(frame["localization"].fillna("unknown"))
        notes += site_notes
    frame, column_notes = checked_columns(frame, table, lines, ("image_id", "dx"))
    found, _ = _find_images(folder, every_folder=True)
    paths = [found.get(image_id) for image_id in frame["image_id"]]
    images = [{"bytes": None, "path": path} for path in paths]
    return RawSource(source, frame, image_dataset(images), [path is None for path in paths], [*notes, *column_notes])


def _read_imagefolder(source: str, folder: Path, tables: list[Path]) -> RawSource:
    required = ("file_name", *REQUIRED_COLUMNS[1:])
    frames, notes, paths = [], [], []
    listings: dict[str, set[str]] = {}
    for table in tables:
        frame, table_notes = read_csv(table, required) if table.suffix == ".csv" else read_jsonl(table, required)
        for name, row in zip(frame["file_name"], frame["row"], strict=True):
            parts = name.replace("\\", "/").split("/")
            if ".." in parts or not parts[-1] or Path(name).is_absolute():
                raise Ham10000Error(
                    f"{table}, line {row}: file_name {name!r} must be a path below {table.parent}, without '..'."
                )
            parent = str(table.parent.joinpath(*parts[:-1]))
            if parent not in listings:
                try:
                    listings[parent] = {entry.name for entry in os.scandir(parent)} if Path(parent).is_dir() else set()
                except OSError as error:  # such as a name that is too long
                    raise Ham10000Error(f"{table}, line {row}: file_name {name[:100]!r}: {error.strerror}.") from error
            paths.append(f"{parent}{os.sep}{parts[-1]}" if parts[-1] in listings[parent] else None)
        frames.append(frame.drop(columns="file_name"))
        notes += table_notes
    if len(tables) > 1:
        names = [str(table.relative_to(folder)) for table in tables]
        notes.append(f"{len(tables)} tables joined, the source's own division is not used: {names}")
    images = [{"bytes": None, "path": path} for path in paths]
    frame = pd.concat(frames, ignore_index=True)
    return RawSource(source, frame, image_dataset(images), [path is None for path in paths], notes)


def _read_parquet(source: str, folder: Path, files: list[Path]) -> RawSource:
    try:
        sizes = {str(path): pq.read_metadata(path).num_rows for path in files}
        table = datasets.Dataset.from_parquet([str(path) for path in files])
    except (datasets.exceptions.DatasetGenerationError, OSError, ValueError) as error:
        reason = error.__cause__ or error
        raise Ham10000Error(f"{source}: its {len(files)} .parquet files cannot be read together: {reason}") from error
    assert isinstance(table, datasets.Dataset)
    raw = _from_dataset(source, table, sizes, (folder,))
    if len(files) > 1:
        names = _some([str(path.relative_to(folder)) for path in files])
        raw.notes.append(f"{len(files)} files joined, the source's own division is not used: {names}")
    return raw


def _read_hub(source: str) -> RawSource:
    try:
        loaded = datasets.load_dataset(source)
    except (datasets.exceptions.DatasetsError, HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise Ham10000Error(
            f"{source!r} is no folder here, and as a Hub dataset it cannot be loaded: {error}\n"
            f"A source is {_KINDS_OF_SOURCE}."
        ) from error
    return from_splits(source, loaded, roots=downloads())


def from_splits(source: str, splits: datasets.DatasetDict, *, roots: tuple[Path, ...] | None = None) -> RawSource:
    """Joins the splits of a loaded dataset; its own division is not trusted.

    `marmal88/skin_cancer`, the most used copy on the Hub, has 13,354 rows in its splits for 10,015 photographs.

    Args:
        source: Name for messages.
        splits: The dataset with its splits.
        roots: Folders below which an image that is stored as a path must lie; None for a dataset of one's own, whose
            paths are taken as they are.

    Returns:
        The raw rows of all splits.

    Raises:
        Ham10000Error: For a missing column, splits whose columns differ, or an image outside of `roots`.
    """
    sizes = {f"{source} split {name}": len(split) for name, split in splits.items()}
    try:
        joined = datasets.concatenate_datasets(list(splits.values()))
    except ValueError as error:
        raise Ham10000Error(f"{source}: its splits {list(splits)} cannot be joined: {error}") from error
    raw = _from_dataset(source, joined, sizes, roots)
    raw.notes.append(f"splits joined, the source's own division is not used: {dict(sizes)}")
    return raw


def _from_dataset(
    source: str, table: datasets.Dataset, sizes: dict[str, int], roots: tuple[Path, ...] | None
) -> RawSource:
    if "image" not in table.column_names:
        raise Ham10000Error(f"{source}: column 'image' is missing; it has {table.column_names}.")
    columns = table.select_columns([name for name in table.column_names if name in COLUMNS])
    frame = pd.DataFrame(columns.to_dict(), dtype=object)
    for name, feature in columns.features.items():
        if isinstance(feature, datasets.ClassLabel):
            frame[name] = [None if value is None else feature.int2str(value) for value in frame[name]]
    frame, notes = checked_columns(frame, source, list(range(1, len(frame) + 1)), REQUIRED_COLUMNS)
    frame["file"] = [name for name, size in sizes.items() for _ in range(size)]
    frame["row"] = [row for size in sizes.values() for row in range(1, size + 1)]
    images, missing = stored_images(
        table.select_columns(["image"]).cast_column("image", datasets.Image()),
        [f"{file}, row {row}" for file, row in zip(frame["file"], frame["row"], strict=True)],
        roots,
    )
    return RawSource(source, frame, images, missing, notes)


def _some(names: list[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


__all__ = ["COLUMNS", "DEFAULT_SYNTHETIC_SIZE", "RawSource", "from_splits", "read_source"]
