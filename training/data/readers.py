"""Readers of sources: every kind of `--data` is read into one raw table of strings next to its images."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import pandas as pd
import pyarrow.parquet as pq
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from ham10000.modeling.configuration_ham10000 import Ham10000Error
from ham10000.training.data.synthetic import make_synthetic
from ham10000.training.data.tables import (
    COLUMNS,
    TABLE_SUFFIXES,
    FieldTable,
    downloads,
    image_dataset,
    one_hot_columns,
    read_table,
    select_fields,
    stored_images,
    string_frame,
)
from ham10000.training.utils.columns import DataOptions, candidates, match_columns, read_rows, spelled
from ham10000.training.utils.files import ImageFiles, comparable, files_below, visible

_OFFICIAL_METADATA = ("HAM10000_metadata.csv", "HAM10000_metadata", "HAM10000_metadata.tab", "HAM10000_metadata.tsv")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_KINDS_OF_SOURCE = (
    "`synthetic` or `synthetic:N` (N images); a csv with a column for the image and one for the label, above or next "
    "to its images; a folder with such a csv (HAM10000, ISIC, imagefolder) or with a folder for each label; "
    "a folder of .parquet files; or a Hub id `user/name`"
)
# Folders of images that are not labels.
_NO_LABEL = re.compile(
    r"(ham10000_)?(images?|imgs?|pictures|photos|jpe?g)(_part_?\d+)?|.*_input|train|test|val(id(ation)?)?"
)


@dataclass
class RawSource:
    """Rows as they were read, before any check.

    Attributes:
        name: The source as the user wrote it.
        frame: One row per image: the string columns `COLUMNS` ("" where missing), `file` and `row`, which say where
            the row stands (`row` is the 1-based line of a text file or the 1-based row of a table).
        images: One column `image` (`datasets.Image()`), row by row next to `frame`; never decoded here.
        missing: Per row, whether the source has no image for it.
        notes: Decisions taken while reading, one sentence each.
        columns: Our field to the source's column, for messages.
        header: The columns there are.
        declared: Labels that the source has, whether or not a row has them.
        ours: Whether the labels are HAM10000's, whatever the rows say.
        looked: Where images were looked for.
    """

    name: str
    frame: pd.DataFrame
    images: datasets.Dataset
    missing: list[bool]
    notes: list[str] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)
    header: list[str] = field(default_factory=list)
    declared: list[str] = field(default_factory=list)
    ours: bool = False
    looked: str = ""


def read_source(
    source: str, options: DataOptions | None = None, *, synthetic_size: int | None = None, seed: int = 0
) -> RawSource:
    """Reads any kind of source, without decoding an image.

    Args:
        source: `synthetic`, `synthetic:N`, a folder, a table, or a Hub dataset id.
        options: Names of columns and what to group by, where the source's are not recognised.
        synthetic_size: Number of synthetic images; `synthetic:N` says the same.
        seed: Seed of the synthetic generator.

    Returns:
        The raw rows and their images.

    Raises:
        Ham10000Error: Where the source is none of these, cannot be parsed, or lacks a required column.
    """
    options = options or DataOptions()
    if source == "synthetic" or source.startswith("synthetic:"):
        return _read_synthetic(source, synthetic_size, seed)
    path = Path(source).expanduser()
    if path.is_dir():
        return _read_folder(source, path, options)
    if path.is_file() and (path.suffix.lower() in TABLE_SUFFIXES or path.name in _OFFICIAL_METADATA):
        return _read_tables(source, [path], _root(path), options)
    if path.exists():
        raise Ham10000Error(
            f"{source} is a file that is not read; save a spreadsheet as csv (UTF-8), of others give the folder. "
            f"A source is {_KINDS_OF_SOURCE}."
        )
    if _HUB_ID.fullmatch(source):
        return _read_hub(source, options)
    raise Ham10000Error(f"There is no folder {source!r}. A source is {_KINDS_OF_SOURCE}.")


def _read_synthetic(source: str, size: int | None, seed: int) -> RawSource:
    _, _, number = source.partition(":")
    if number and not number.isdecimal():
        raise Ham10000Error(f"`{source}`: expected `synthetic:N` with N the number of images, got {number!r}.")
    n_images = int(number) if number else size or 800
    rows = make_synthetic(n_images, seed=seed)
    images = [row.pop("image") for row in rows]
    frame = string_frame(pd.DataFrame(rows))
    frame["file"], frame["row"] = source, range(1, len(frame) + 1)
    notes = [f"synthetic data, not patients: {n_images} images, generator seed {seed}"]
    return RawSource(source, frame, image_dataset(images), [False] * len(frame), notes, ours=True)


def _read_folder(source: str, folder: Path, options: DataOptions) -> RawSource:
    official = [folder / name for name in _OFFICIAL_METADATA if (folder / name).is_file()]
    if len({table.read_bytes() for table in official}) > 1:
        names = [table.name for table in official]
        raise Ham10000Error(f"{source} has {names} with different contents; keep the one that is right.")
    if official:
        return _read_tables(source, official[:1], folder, options)
    tables = [Path(path) for path in files_below(folder, TABLE_SUFFIXES)]
    if truths := [table for table in tables if table.name.endswith("GroundTruth.csv")]:
        return _read_one_of(source, truths, folder, options)
    if found := [table for table in tables if table.name in ("metadata.csv", "metadata.jsonl")]:
        return _read_tables(source, found, folder, options)
    if parquet := [Path(path) for path in files_below(folder, {".parquet"})]:
        return _read_parquet(source, folder, parquet, options)
    if found := [table for table in tables if _has_labels(table, options)]:
        return _read_one_of(source, found, folder, options)
    images = list(files_below(folder))
    labels = {Path(path).parent for path in images}
    classes = {path.name.lower() for path in labels}
    if folder not in labels and 1 < len(classes) <= len(images) / 2 and not any(map(_NO_LABEL.fullmatch, classes)):
        return _read_class_folders(source, folder)
    if len(tables) == 1:
        return _read_tables(source, tables, folder, options)  # which says what it lacks
    present = sorted(entry.name for entry in folder.iterdir() if visible(entry.name))[:10]
    raise Ham10000Error(
        f"{source} contains {present or 'nothing'}, but no table with a column for the image and one for the label, "
        f"and no folder per label ({len(images):,} images). Name columns with --columns dx=COLUMN image_id=COLUMN; "
        f"save a spreadsheet as csv (UTF-8). A source is {_KINDS_OF_SOURCE}."
    )


def _has_labels(table: Path, options: DataOptions) -> bool:
    """Whether a table has a column for the image and one for the label."""
    try:
        header = (
            list(read_table(table)[0].columns)
            if table.suffix.lower() == ".jsonl"
            else read_rows(table, header_only=True)[0]
        )
        found = match_columns(header, {}, ("image_id", "dx"))
    except Ham10000Error:
        return False
    named = {name for name, column in options.columns.items() if column in header}
    return "image_id" in {*found, *named} and ("dx" in {*found, *named} or bool(one_hot_columns(header)))


def _read_one_of(source: str, tables: Sequence[Path], folder: Path, options: DataOptions) -> RawSource:
    """Of several tables the one for training: validation and test images are for scoring, not to be mixed in."""
    training = [table for table in tables if "train" in table.name.lower()] if len(tables) > 1 else tables
    names = [str(table.relative_to(folder)) for table in tables]
    if len(training) != 1:
        raise Ham10000Error(f"{source} has several tables of labels, {names}; give one of these files as the source.")
    raw = _read_tables(source, training, folder, options)
    if others := [name for table, name in zip(tables, names, strict=True) if table != training[0]]:
        raw.notes.append(
            f"read is {training[0].relative_to(folder)}; to use another, give the file: {', '.join(others)}"
        )
    return raw


def _root(table: Path) -> Path:
    """The folder below which a table's images lie: ISIC puts each ground truth into a folder next to its images."""
    return table.parent.parent if table.parent.name.endswith("GroundTruth") else table.parent


def _read_tables(source: str, tables: Sequence[Path], root: Path, options: DataOptions) -> RawSource:
    """Tables with a row per image, which lies anywhere below the root."""
    notes, paths, parts = [], [], []
    indexes: dict[tuple[Path, ...], ImageFiles] = {}
    for table in tables:
        raw, lines = read_table(table)
        raw["\0line"] = lines
        raw, joined = _join_companions(table, raw)
        raw, chosen = _dermoscopic_only(table, raw)
        fields = select_fields(raw.drop(columns="\0line"), table, raw["\0line"].tolist(), options)
        for name, row in zip(fields.frame["image"], fields.frame["row"], strict=True):
            _check_path(name, table, row, root, fields)
        folders = _image_folders(table, root)
        paths += _find_images(fields, table, root, folders, indexes)
        parts.append(fields)
        notes += [*joined, *chosen, *fields.notes]
    for index in indexes.values():
        if index.copies:
            notes.append(
                f"{index.copies} image files are copies of others of the same name in a second folder: counted once"
            )
    first = next(iter(indexes.values()))
    if unused := first.unused():
        names = _some([table.name for table in tables])
        notes.append(f"{len(unused)} image files have no row in {names} and are not used: {_some(unused)}")
    if len(tables) > 1:
        joined_tables = [str(table.relative_to(root)) for table in tables]
        notes.append(f"{len(tables)} tables joined, the source's own division is not used: {joined_tables}")
    looked = " and ".join(f"{folder} ({len(index):,} images)" for key, index in indexes.items() for folder in key)
    return RawSource(
        source,
        pd.concat([part.frame for part in parts], ignore_index=True)[[*COLUMNS, "file", "row"]],
        image_dataset([{"bytes": None, "path": path} for path in paths]),
        [path is None for path in paths],
        notes,
        columns=parts[-1].columns,
        header=parts[-1].header,
        declared=parts[-1].declared,
        ours=tables[0].name in _OFFICIAL_METADATA,
        looked=looked,
    )


def _join_companions(table: Path, raw: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Adds the columns of ISIC's `…_Metadata.csv` and `…_LesionGroupings.csv`, by image or, in MILK10k, by lesion."""
    places = dict.fromkeys((table.parent, _root(table)))
    stem = table.stem.removesuffix("GroundTruth")
    found = [place / f"{stem}{kind}.csv" for place in places for kind in ("Metadata", "LesionGroupings")]
    found = [path for path in found if path.is_file()]
    if not found:
        other = [path for path in sorted(table.parent.glob("*Metadata.csv")) if path != table and visible(path.name)]
        found = other if len(other) == 1 else []
    notes = []
    for path in found:
        extra, _ = read_table(path)
        for name in ("image_id", "lesion_id"):
            ours, theirs = candidates(name, raw.columns), candidates(name, extra.columns)
            if ours and theirs:
                break
        else:
            continue
        extra = extra.rename(columns={theirs[0]: ours[0]})
        added = [column for column in extra.columns if column not in raw.columns]
        extra = extra[[ours[0], *added]].drop_duplicates(ours[0] if name == "image_id" else None)
        matched = extra[ours[0]].isin(raw[ours[0]])
        raw = raw.merge(extra, "left", ours[0])
        notes.append(f"{', '.join(added)} from {path.name}")
        if not matched.all() and name == "lesion_id":
            notes.append(f"{(~matched).sum():,} rows of {path.name} have no label in {table.name} and are not used")
    return raw, notes


def _dermoscopic_only(table: Path, raw: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Of the ISIC Archive's kinds of images those that the models are for, where a table has others too."""
    if "image_type" not in raw.columns:
        return raw, []
    kept = raw["image_type"].astype(str).map(spelled) == "dermoscopic"
    if kept.all() or not kept.any():
        return raw, []
    note = (
        f"{table}: {(~kept).sum():,} rows whose image_type is not dermoscopic are not used; to use them too, remove "
        "the column image_type"
    )
    return raw[kept].reset_index(drop=True), [note]


def _image_folders(table: Path, root: Path) -> tuple[Path, ...]:
    """Folders to look for a table's images first: others may have files of the same names, such as masks."""
    if table.stem.endswith("GroundTruth"):
        name = table.stem.removesuffix("GroundTruth") + "Input"
        folders = [place / name for place in dict.fromkeys((table.parent, _root(table)))]
    elif table.name in _OFFICIAL_METADATA:
        folders = sorted(root.iterdir())
        folders = [path for path in folders if path.name.lower().startswith(("ham10000_images", "images"))]
    else:
        folders = []
    return tuple(path for path in folders if path.is_dir()) or (root,)


def _check_path(name: str, table: Path, row: int, root: Path, fields: FieldTable) -> None:
    column = "file_name" if "file_name" in fields.header else fields.columns["image_id"]
    if column == "image_id":  # an id, which `check_rows` checks
        return
    path = Path(name.replace("\\", "/"))
    if not path.name or ".." in path.parts or (path.is_absolute() and not path.is_relative_to(root.absolute())):
        raise Ham10000Error(f"{table}, line {row}: {column} {name[:200]!r} must be a path below {root}, without '..'.")


def _find_images(
    fields: FieldTable, table: Path, root: Path, folders: tuple[Path, ...], indexes: dict[tuple[Path, ...], ImageFiles]
) -> list[str | None]:
    """The file of each row, from the folders first and then from anywhere below the root."""
    paths: list[str | None] = [None] * len(fields.frame)
    for places in dict.fromkeys((folders, (root,))):
        if None in paths or not indexes:
            index = indexes.get(places) or indexes.setdefault(places, ImageFiles(*places))
            paths = [
                path or index.find(name.removeprefix(f"{root.absolute()}/"), table.parent)
                for path, name in zip(paths, fields.frame["image"], strict=True)
            ]
    return paths


def _read_class_folders(source: str, folder: Path) -> RawSource:
    """A folder of images for each label, as the imagefolder of `datasets` means it."""
    paths = list(files_below(folder))
    names = [comparable(str(Path(path).relative_to(folder))) for path in paths]
    raw = pd.DataFrame({"file_name": names, "label": [name.split("/")[-2] for name in names]}, dtype=object)
    fields = select_fields(raw, folder, list(range(1, len(raw) + 1)))
    notes = [*fields.notes, "the label of an image is the name of its folder"]
    if any(name.count("/") > 1 for name in names):
        notes.append("folders above these are joined; the source's own division is not used")
    images = image_dataset([{"bytes": None, "path": path} for path in paths])
    return RawSource(source, fields.frame, images, [False] * len(paths), notes, fields.columns)


def _read_parquet(source: str, folder: Path, files: list[Path], options: DataOptions) -> RawSource:
    try:
        sizes = {str(path): pq.read_metadata(path).num_rows for path in files}
        table = datasets.Dataset.from_parquet([str(path) for path in files])
    except (datasets.exceptions.DatasetGenerationError, OSError, ValueError) as error:
        reason = error.__cause__ or error
        raise Ham10000Error(f"{source}: its {len(files)} .parquet files cannot be read together: {reason}") from error
    assert isinstance(table, datasets.Dataset)
    raw = _from_dataset(source, table, sizes, (folder,), options)
    if len(files) > 1:
        names = _some([str(path.relative_to(folder)) for path in files])
        raw.notes.append(f"{len(files)} files joined, the source's own division is not used: {names}")
    return raw


def _read_hub(source: str, options: DataOptions) -> RawSource:
    try:
        loaded = datasets.load_dataset(source)
    except (datasets.exceptions.DatasetsError, HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise Ham10000Error(
            f"{source!r} is no folder here, and as a Hub dataset it cannot be loaded: {error}\n"
            f"A source is {_KINDS_OF_SOURCE}."
        ) from error
    return from_splits(source, loaded, options, roots=downloads())


def from_splits(
    source: str,
    splits: datasets.DatasetDict,
    options: DataOptions | None = None,
    *,
    roots: tuple[Path, ...] | None = None,
) -> RawSource:
    """Joins the splits of a loaded dataset; its own division is not trusted.

    `marmal88/skin_cancer`, the most used copy on the Hub, has 13,354 rows in its splits for 10,015 photographs.

    Args:
        source: Name for messages.
        splits: The dataset with its splits.
        options: Names of columns and what to group by.
        roots: Folders below which an image that is stored as a path must lie; None for your own dataset, whose
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
    raw = _from_dataset(source, joined, sizes, roots, options or DataOptions())
    raw.notes.append(f"splits joined, the source's own division is not used: {dict(sizes)}")
    return raw


def _from_dataset(
    source: str, table: datasets.Dataset, sizes: dict[str, int], roots: tuple[Path, ...] | None, options: DataOptions
) -> RawSource:
    kinds = [name for name, feature in table.features.items() if isinstance(feature, datasets.Image)]
    images_column = next((name for name in ("image", *kinds) if name in table.column_names), None)
    if images_column is None:
        raise Ham10000Error(f"{source}: no column with images, such as 'image'; it has {table.column_names}.")
    simple = [name for name, kind in table.features.items() if isinstance(kind, (datasets.Value, datasets.ClassLabel))]
    columns = table.select_columns([name for name in simple if name != images_column])
    raw = pd.DataFrame(columns.to_dict(), dtype=object)
    for name, feature in columns.features.items():
        if isinstance(feature, datasets.ClassLabel):
            raw[name] = [None if value is None else feature.int2str(value) for value in raw[name]]
    numbers, notes = list(range(1, len(raw) + 1)), []
    if "image_id" not in match_columns(list(raw.columns), options.columns, ("image_id",)):
        raw["image_id"] = [f"{number:06d}" for number in numbers]
        notes.append(f"{source}: no column for image_id; images are numbered")
    fields = select_fields(raw, source, numbers, options)
    kind = columns.features.get(fields.columns.get("dx", ""))
    declared = kind.names if isinstance(kind, datasets.ClassLabel) else fields.declared
    frame = fields.frame[[*COLUMNS]].copy()
    frame["file"] = [name for name, size in sizes.items() for _ in range(size)]
    frame["row"] = [row for size in sizes.values() for row in range(1, size + 1)]
    images, missing = stored_images(
        table.select_columns([images_column])
        .rename_columns({images_column: "image"} if images_column != "image" else {})
        .cast_column("image", datasets.Image()),
        [f"{file}, row {row}" for file, row in zip(frame["file"], frame["row"], strict=True)],
        roots,
    )
    return RawSource(source, frame, images, missing, [*notes, *fields.notes], fields.columns, fields.header, declared)


def _some(names: list[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
