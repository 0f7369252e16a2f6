"""Readers of sources: every kind of `--data` is read into one raw table of strings next to its images."""

import filecmp
import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import TypedDict

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from ham10000.modeling.configuration_ham10000 import Ham10000Error
from ham10000.modeling.processing_ham10000 import MISSING_VALUES
from ham10000.training.data.synthetic import make_synthetic
from ham10000.training.data.tables import (
    ISIC_CLASSES,
    SYNONYMS,
    DataOptions,
    as_strings,
    candidates,
    match_columns,
    read_rows,
    read_table,
)
from ham10000.training.utils.files import ImageFiles, comparable, files_below, visible, without_suffix

COLUMNS = ("image_id", "lesion_id", "dx", "dx_type", "age", "sex", "localization", "dataset")
IMAGE_FEATURES = datasets.Features({"image": datasets.Image()})
_OFFICIAL_METADATA = ("HAM10000_metadata.csv", "HAM10000_metadata", "HAM10000_metadata.tab", "HAM10000_metadata.tsv")
_TABLE_SUFFIXES = (".csv", ".tsv", ".tab", ".jsonl")
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


class StoredImage(TypedDict):
    """An image as `datasets` stores it: the bytes of its file, or where that lies; both None where there is none."""

    bytes: bytes | None
    path: str | None


def image_dataset(images: Sequence[StoredImage]) -> datasets.Dataset:
    """Images as the column `image`."""
    # Not Dataset.from_dict: it refuses missing images, and prefers a file of the working folder that happens to have
    # the path over the bytes given with it.
    stored = pa.table({"image": pa.array(list(images), type=IMAGE_FEATURES["image"].pa_type)})
    return datasets.Dataset(stored, info=datasets.DatasetInfo(features=IMAGE_FEATURES))


@dataclass
class RawSource:
    """Rows as they were read, before any check; each has its image next to it."""

    name: str  # the source as the user wrote it
    frame: pd.DataFrame  # `COLUMNS` as text, and where a row stands: `file` and `row`, its 1-based line or number
    images: datasets.Dataset = field(default_factory=lambda: image_dataset([]))  # of one column, `image`, not decoded
    missing: list[bool] = field(default_factory=list)  # per row, whether the source has no image for it
    notes: list[str] = field(default_factory=list)  # decisions taken while reading, one sentence each
    columns: dict[str, str] = field(default_factory=dict)  # our field to the source's column, for messages
    header: list[str] = field(default_factory=list)  # the columns there are
    unused: list[str] = field(default_factory=list)  # those of them that are not used
    declared: list[str] = field(default_factory=list)  # labels that the source has, whether or not a row has them
    ours: bool = False  # whether the labels are HAM10000's, whatever the rows say
    looked: str = ""  # where images were looked for


def read_source(source: str, options: DataOptions, *, seed: int = 0) -> RawSource:
    """Reads any kind of source, without decoding an image; the arguments and errors are those of `load_data`."""
    if source.partition(":")[0] == "synthetic":
        return _read_synthetic(source, seed)
    path = Path(source).expanduser()
    if path.is_dir():
        return _read_folder(source, path, options)
    if path.is_file() and (path.suffix.lower() in _TABLE_SUFFIXES or path.name in _OFFICIAL_METADATA):
        return _read_tables(source, [path], _places(path)[-1], options)
    if path.exists():
        raise Ham10000Error(
            f"{source} is a file that is not read; save a spreadsheet as csv (UTF-8), of others give the folder. "
            f"A source is {_KINDS_OF_SOURCE}."
        )
    if _HUB_ID.fullmatch(source):
        return _read_hub(source, options)
    raise Ham10000Error(f"There is no folder {source!r}. A source is {_KINDS_OF_SOURCE}.")


def _read_synthetic(source: str, seed: int) -> RawSource:
    number = source.partition(":")[2] or "800"
    if not number.isdecimal():
        raise Ham10000Error(f"`{source}`: expected `synthetic:N` with N the number of images, got {number!r}.")
    rows = make_synthetic(int(number), seed=seed)
    images = [row.pop("image") for row in rows]
    frame = as_strings(pd.DataFrame(rows))
    frame["file"], frame["row"] = source, range(1, len(frame) + 1)
    notes = [f"synthetic data, not patients: {len(rows)} images, generator seed {seed}"]
    return RawSource(source, frame, image_dataset(images), [False] * len(frame), notes, ours=True)


def _read_folder(source: str, folder: Path, options: DataOptions) -> RawSource:
    official = [folder / name for name in _OFFICIAL_METADATA if (folder / name).is_file()]
    if len({table.read_bytes() for table in official}) > 1:
        names = [table.name for table in official]
        raise Ham10000Error(f"{source} has {names} with different contents; keep the one that is right.")
    if official:
        return _read_tables(source, official[:1], folder, options)
    tables = [Path(path) for path in files_below(folder, _TABLE_SUFFIXES)]
    truths = [table for table in tables if table.name.endswith("GroundTruth.csv")]
    if not truths:
        if metadata := [table for table in tables if table.name in ("metadata.csv", "metadata.jsonl")]:
            return _read_tables(source, metadata, folder, options)
        if parquet := [Path(path) for path in files_below(folder, {".parquet"})]:
            return _read_parquet(source, folder, parquet, options)
    if labelled := truths or [table for table in tables if _has_labels(table, options)]:
        # Of several the one for training: validation and test images are for scoring, not to be mixed in.
        names = [str(table.relative_to(folder)) for table in labelled]
        chosen = [table for table in labelled if len(labelled) == 1 or "train" in table.name.lower()]
        if len(chosen) != 1:
            raise Ham10000Error(f"{source} has several tables of labels, {names}; give one of them as the source.")
        raw = _read_tables(source, chosen, folder, options)
        if len(labelled) > 1:
            read = chosen[0].relative_to(folder)
            raw.notes.append(f"read is {read} of {', '.join(names)}; to use another, give that file")
        return raw
    images = list(files_below(folder))
    labels = {Path(path).parent for path in images}
    classes = {path.name.lower() for path in labels}
    if folder not in labels and 1 < len(classes) <= len(images) / 2 and not any(map(_NO_LABEL.fullmatch, classes)):
        return _read_class_folders(source, folder, images, options)
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
        header = read_rows(table, header_only=True)[0]
        given = {name: column for name, column in options.columns.items() if column in header}
        select_fields(pd.DataFrame(columns=header, dtype=object), table, DataOptions(given))
    except Ham10000Error:
        return False
    return True


def _places(table: Path) -> tuple[Path, ...]:
    """Folders where what belongs to a table may lie: ISIC puts each ground truth into a folder next to its images."""
    return (table.parent, table.parent.parent) if table.parent.name.endswith("GroundTruth") else (table.parent,)


def _read_tables(source: str, tables: Sequence[Path], root: Path, options: DataOptions) -> RawSource:
    """Tables with a row per image, which lies anywhere below the root; each may name its columns its own way."""
    notes: list[str] = []
    parts: list[RawSource] = []
    names: list[str] = []  # of the image of each row
    ids: list[str] = []  # as they are written
    base = _full(root)
    for table in tables:
        texts = _read_with_companions(table, notes)
        part = select_fields(texts, table, options)
        column = "file_name" if "file_name" in texts else part.columns["image_id"]
        for line, name in texts[column].items():
            path = Path(name.replace("\\", "/"))
            leaves = not path.name or ".." in path.parts or (path.is_absolute() and not path.is_relative_to(base))
            if leaves and column != "image_id":  # an id is for `check_rows` to check
                raise Ham10000Error(
                    f"{table}, line {line}: {column} {name[:200]!r} must be a path below {root}, without '..'."
                )
            names.append(name.removeprefix(f"{base}/"))
        ids += list(texts[part.columns["image_id"]])
        parts.append(part)
    frame = pd.concat([part.frame for part in parts], ignore_index=True)
    # In the folders that are a table's own first: others may have files of the same names, such as masks.
    indexes: dict[tuple[Path, ...], ImageFiles] = {}
    paths: list[str | None] = [None] * len(names)
    for folders in dict.fromkeys((_image_folders(tables[0], root), (root,))):
        if None in paths or not indexes:
            index = indexes[folders] = ImageFiles(*folders)
            rows = zip(paths, names, frame["file"], strict=True)
            paths = [path or index.find(name, Path(file).parent) for path, name, file in rows]
    if copies := sum(index.copies for index in indexes.values()):
        notes.append(f"{copies} image files are copies of others of the same name in a second folder: counted once")
    if unused := next(iter(indexes.values())).unused():
        files = _some([table.name for table in tables])
        notes.append(f"{len(unused)} image files have no row in {files} and are not used: {_some(unused)}")
    if len(tables) > 1:
        joined = [str(table.relative_to(root)) for table in tables]
        notes.append(f"{len(tables)} tables joined, the source's own division is not used: {joined}")
        _ids_over_tables(frame, ids, paths, root)
    return replace(
        parts[0],
        name=source,
        frame=frame,
        # A message has our name of a field that they name differently.
        columns=dict(set(parts[0].columns.items()).intersection(*(part.columns.items() for part in parts))),
        images=image_dataset([{"bytes": None, "path": path} for path in paths]),
        missing=[path is None for path in paths],
        notes=list(dict.fromkeys([*notes, *(note for part in parts for note in part.notes)])),
        header=list(dict.fromkeys(name for part in parts for name in part.header)),
        unused=list(dict.fromkeys(name for part in parts for name in part.unused)),
        ours=tables[0].name in _OFFICIAL_METADATA,
        looked=" and ".join(f"{folder} ({len(index):,} images)" for key, index in indexes.items() for folder in key),
    )


def _ids_over_tables(frame: pd.DataFrame, names: Sequence[str], paths: Sequence[str | None], root: Path) -> None:
    """Makes the ids of file names again, by their paths; copies of one file keep one id, to be found as duplicates."""
    files: dict[int, str] = {}
    seen: dict[str, list[str]] = {}
    for row, (name, path) in enumerate(zip(names, paths, strict=True)):
        if path and name != without_suffix(name):
            others = seen.setdefault(frame["image_id"][row], [])
            first = next((other for other in others if filecmp.cmp(other, path, shallow=False)), path)
            others.append(first)
            files[row] = str(Path(first).relative_to(root))
    frame.loc[list(files), "image_id"] = _ids_of_files(pd.Series(files, dtype=object))


def _read_with_companions(table: Path, notes: list[str]) -> pd.DataFrame:
    """Reads a table as stripped text, with the columns of ISIC's `…_Metadata.csv` and `…_LesionGroupings.csv`.

    They are joined by image or, in MILK10k, by lesion. Of the ISIC Archive's kinds of images those are kept that the
    models are for, where there are others too.
    """
    raw = as_strings(read_table(table))
    for place, kind in product(_places(table), ("Metadata", "LesionGroupings")):
        path = place / f"{table.stem.removesuffix('GroundTruth')}{kind}.csv"
        extra = as_strings(read_table(path)) if path.is_file() else pd.DataFrame()
        for name in ("image_id", "lesion_id"):
            ours, theirs = candidates(name, raw.columns, (), table), candidates(name, extra.columns, (), path)
            if ours and theirs:
                break
        else:
            continue
        added = [column for column in extra.columns if column not in (*raw.columns, theirs[0])]
        extra = extra[[theirs[0], *added]].drop_duplicates(theirs[0] if name == "image_id" else None)
        unmatched = (~extra[theirs[0]].isin(raw[ours[0]])).sum()
        raw = raw.join(extra.set_index(theirs[0]), on=ours[0])
        unused = f", of which {unmatched:,} rows have no label in {table.name} and are not used" if unmatched else ""
        notes.append(f"{', '.join(added)} from {path.name}{unused}")
    if "image_type" in raw.columns:
        kept = raw["image_type"].str.lower() == "dermoscopic"
        if kept.any() and not kept.all():
            notes.append(
                f"{table}: {(~kept).sum():,} rows whose image_type is not dermoscopic are not used; to use them too, "
                "remove the column image_type"
            )
            return raw[kept]
    return raw


def _image_folders(table: Path, root: Path) -> tuple[Path, ...]:
    """The folders whose names say that they have a table's images, or the root."""
    isic = table.stem.lower().removesuffix("groundtruth") + "input"
    names = ("ham10000_images", "images") if table.name in _OFFICIAL_METADATA else (isic,)
    found = [path for place in _places(table) for path in place.iterdir() if path.name.lower().startswith(names)]
    return tuple(sorted(path for path in found if path.is_dir())) or (root,)


def _read_class_folders(source: str, folder: Path, paths: list[str], options: DataOptions) -> RawSource:
    """A folder of images for each label, as the imagefolder of `datasets` means it."""
    names = [comparable(str(Path(path).relative_to(folder))) for path in paths]
    table = {"file_name": names, "label": [name.split("/")[-2] for name in names]}
    raw = select_fields(pd.DataFrame(table, index=range(1, len(names) + 1), dtype=object), folder, options)
    raw.notes.append("the label of an image is the name of its folder; folders above, such as test, are joined")
    images = image_dataset([{"bytes": None, "path": path} for path in paths])
    return replace(raw, name=source, images=images, missing=[False] * len(paths), header=[])


def _read_parquet(source: str, folder: Path, files: list[Path], options: DataOptions) -> RawSource:
    try:
        sizes = {str(path): pq.read_metadata(path).num_rows for path in files}
        # `datasets` takes a path for a pattern.
        table = datasets.Dataset.from_parquet([glob.escape(_full(path)) for path in files])
    except (datasets.exceptions.DatasetGenerationError, OSError, ValueError) as error:
        reason = error.__cause__ or error
        raise Ham10000Error(f"{source}: its {len(files)} .parquet files cannot be read together: {reason}") from error
    assert isinstance(table, datasets.Dataset)
    return _from_dataset(source, table, sizes, (folder,), options)


def _read_hub(source: str, options: DataOptions) -> RawSource:
    """Joins a Hub dataset's splits; `marmal88/skin_cancer` repeats images in them: 13,354 rows for 10,015."""
    try:
        splits = datasets.load_dataset(source)
        joined = datasets.concatenate_datasets(list(splits.values()))
    except (datasets.exceptions.DatasetsError, HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise Ham10000Error(
            f"{source!r} is no folder here, and as a Hub dataset it cannot be loaded: {error}\n"
            f"A source is {_KINDS_OF_SOURCE}."
        ) from error
    sizes = {f"{source} split {name}": len(split) for name, split in splits.items()}
    downloads = (Path(constants.HF_HUB_CACHE), Path(datasets.config.HF_DATASETS_CACHE))
    return _from_dataset(source, joined, sizes, downloads, options)


def _from_dataset(
    source: str, table: datasets.Dataset, sizes: dict[str, int], roots: tuple[Path, ...], options: DataOptions
) -> RawSource:
    """Rows of a dataset that joins parts of these sizes; an image stored as a path must lie below one of the roots."""
    kinds = [name for name, feature in table.features.items() if isinstance(feature, datasets.Image)]
    images_column = next((name for name in ("image", *kinds) if name in table.column_names), None)
    if images_column is None:
        raise Ham10000Error(f"{source}: no column with images, such as 'image'; it has {table.column_names}.")
    simple = [name for name, kind in table.features.items() if isinstance(kind, (datasets.Value, datasets.ClassLabel))]
    columns = table.select_columns([name for name in simple if name != images_column])
    places = [(name, row) for name, size in sizes.items() for row in range(1, size + 1)]
    raw = pd.DataFrame(columns.to_dict(), index=pd.MultiIndex.from_tuples(places, names=["file", "row"]), dtype=object)
    for name, feature in columns.features.items():
        if isinstance(feature, datasets.ClassLabel):
            # -1 is a label that is not given, as in the test split of a challenge.
            raw[name] = [None if value in (None, -1) else feature.int2str(value) for value in raw[name]]
    notes = []
    if len(sizes) > 1:
        parts = _some([f"{name} ({size:,} rows)" for name, size in sizes.items()])
        notes.append(f"{len(sizes)} parts joined, the source's own division is not used: {parts}")
    if "image_id" not in match_columns(list(raw.columns), options.columns, source, ("image_id",)):
        raw["image_id"] = [f"{number:06d}" for number in range(1, len(raw) + 1)]
        notes.append(f"{source}: no column for image_id; images are numbered")
    found = select_fields(raw, source, options)
    kind = columns.features.get(found.columns.get("dx", ""))
    images = table.select_columns([images_column]).rename_columns({images_column: "image"})
    images, missing = _stored_images(images.cast_column("image", datasets.Image()), places, roots)
    declared = kind.names if isinstance(kind, datasets.ClassLabel) else found.declared
    return replace(found, images=images, missing=missing, notes=[*notes, *found.notes], declared=declared)


def select_fields(raw: pd.DataFrame, origin: str | Path, options: DataOptions) -> RawSource:
    """Finds the column of each field, and fills those a table may lack: its rows, still without images.

    The table is indexed by line, or by file and line. Errors are an image or a label without a column, a column that
    was named and does not exist, and of ISIC's one-hot columns a row without one 1 and otherwise 0.
    """
    texts = as_strings(raw if raw.index.nlevels > 1 else pd.concat({str(origin): raw}))
    header, notes = list(texts.columns), []
    columns = match_columns(header, options.columns, origin)
    labels = [] if "dx" in options.columns else candidates("dx", header, options.columns.values(), origin)
    if options.group_by is not None:
        if options.group_by not in header:
            raise Ham10000Error(f"{origin}: there is no column {options.group_by!r} to group by; it has {header}.")
        instead = f" instead of {columns['lesion_id']}" if "lesion_id" in columns else ""
        columns["lesion_id"] = options.group_by
        notes.append(f"lesions are the rows of one {options.group_by}{instead}")
    if len(labels) > 1:
        # ISIC 2020 has a diagnosis for a fifth of its rows, and benign_malignant for all.
        columns["dx"] = next((name for name in labels if is_missing(texts[name]).mean() < 0.5), labels[0])
        others = ", ".join(name for name in labels if name != columns["dx"])
        notes.append(f"labels from column {columns['dx']}; for another, --columns dx=COLUMN with one of {others}")
    classes = [name for name in header if name in ISIC_CLASSES]
    one_hot = classes if "dx" not in columns and len(classes) > 1 else []
    absent = [name for name in ("image_id", "dx") if name not in columns and not (name == "dx" and one_hot)]
    if absent:
        raise Ham10000Error(
            f"{origin}: no column for {' and '.join(absent)}; it has {header}. Recognised are "
            + "; ".join(f"{', '.join(SYNONYMS[name])} ({name})" for name in absent)
            + f". Name yours: --columns {' '.join(f'{name}=COLUMN' for name in absent)}"
        )
    found = {name: texts[column] for name, column in columns.items()}
    if one_hot:
        found["dx"] = _one_hot_labels(texts[one_hot])
    frame = pd.DataFrame({name: found.get(name, "unknown") for name in COLUMNS}, index=texts.index)
    if columns["image_id"] == "image_id":
        frame["image_id"] = frame["image_id"].map(without_suffix)
    else:
        frame["image_id"] = _ids_of_files(frame["image_id"])
    used = {*columns.values(), *one_hot, "file_name", "image_type"}
    unused = [name for name in header if name not in used and name]
    declared = [name.lower() for name in one_hot]
    frame = frame.rename_axis(["file", "row"]).reset_index()
    return RawSource(str(origin), frame, notes=notes, columns=columns, header=header, unused=unused, declared=declared)


def is_missing(texts: pd.Series) -> pd.Series:
    """Whether each text stands for no value."""
    return texts.str.strip().str.lower().isin(MISSING_VALUES)


def _one_hot_labels(texts: pd.DataFrame) -> pd.Series:
    """The label of each row of ISIC's columns, of which one must be 1 and the others 0."""
    numbers = texts.apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    bad = ~np.isin(numbers, (0.0, 1.0)).all(axis=1) | (numbers.sum(axis=1) != 1)
    if bad.any():
        file, line = texts.index[bad][0]
        raise Ham10000Error(
            f"{file}, line {line}: expected a 1 in one of {list(texts.columns)} and 0 in the others, "
            f"got {texts[bad].iloc[0].tolist()}."
        )
    return pd.Series(texts.columns.str.lower()[numbers.argmax(axis=1)], index=texts.index)


def _ids_of_files(names: pd.Series) -> pd.Series:
    """File names as ids; with their folders where two folders have files of one name."""
    names = names.map(comparable).map(without_suffix)
    stems = names.str.rsplit("/", n=1).str[-1]
    return names.str.strip("/").str.replace("/", "_") if names.nunique() > stems.nunique() else stems


def _stored_images(
    images: datasets.Dataset, places: Sequence[tuple[str, int]], roots: tuple[Path, ...]
) -> tuple[datasets.Dataset, list[bool]]:
    """Finds the images without bytes: gives them their full paths, and says whether each is missing.

    A table can name any file of its reader's machine, which would then be read, cached and exported as one of its
    images. Where the bytes are stored the path is a name only, and may be anything. Others must lie below one of
    `roots`, a relative one below the first; symbolic links in them are followed.
    """
    column = images.with_format("arrow")[:].column("image")
    if not pc.struct_field(column, "bytes").null_count:
        return images, [False] * len(images)
    entries: list[StoredImage] = column.to_pylist()
    missing = []
    for number, (entry, (file, row)) in enumerate(zip(entries, places, strict=True)):
        entry = entries[number] = entry or {"bytes": None, "path": None}
        path = entry["path"]
        if entry["bytes"] is None and path:
            full = entry["path"] = _full(roots[0] / path)
            if not any(Path(full).is_relative_to(_full(root)) for root in roots):
                raise Ham10000Error(
                    f"{file}, row {row}: image is stored as the path {path[:200]!r}, outside the data folder, and "
                    "without bytes: refused, as a table may name any file of this machine. Store their bytes, which "
                    "`to_parquet` alone does not, by `dataset.with_format('arrow').map("
                    "datasets.table.embed_table_storage, batched=True)` before it, "
                    "or put the images into the folder and name them by relative paths."
                )
        # Unlike a Path's, this is False for a name that is too long.
        missing.append(entry["bytes"] is None and not os.path.isfile(entry["path"] or ""))  # noqa: PTH113
    return image_dataset(entries), missing


def _full(path: Path) -> str:
    """The path from the root of the file system, without `..`."""
    return os.path.normpath(path.absolute())


def _some(names: list[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
