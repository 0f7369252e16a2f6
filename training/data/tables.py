"""The content of a source: tables as text, every row with its line; labels; images as bytes or a path."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
from huggingface_hub import constants

from ham10000.modeling.configuration_ham10000 import LABELS, Ham10000Error
from ham10000.modeling.processing_ham10000 import MISSING_VALUES
from ham10000.training.utils.columns import SYNONYMS, DataOptions, candidates, match_columns, read_rows, spelled
from ham10000.training.utils.files import comparable, without_suffix

# The classes of ISIC 2018, 2019 and MILK10k, whose ground truth has a column for each.
_ONE_HOT = frozenset(
    ["MEL", "NV", "BCC", "AKIEC", "AK", "BKL", "DF", "VASC", "SCC", "SCCKA", "UNK", "BEN_OTH", "MAL_OTH", "INF"]
)
# Of ISIC, PAD-UFES-20 and `marmal88/skin_cancer`, in the form of `spelled`. HAM10000's classes are groups: Tschandl et
# al. 2018 (Scientific Data 5:180161) count solar lentigines, seborrheic and lichen-planus like keratoses as bkl,
# actinic keratoses and Bowen's disease as akiec, angiomas, angiokeratomas and pyogenic granulomas as vasc.
_SPELLINGS = {
    "akiec": "ak; ack; actinic keratosis; actinic keratoses; solar keratosis; bowen's disease; bowens disease; "
    "squamous cell carcinoma in situ; intraepithelial carcinoma",
    "bcc": "basal cell carcinoma",
    "bkl": "sek; benign keratosis; benign keratosis like lesion; benign keratosis like lesions; solar lentigo; "
    "pigmented benign keratosis; seborrheic keratosis; lichen planus like keratosis",
    "df": "dermatofibroma",
    "mel": "melanoma; melanoma nos; melanoma in situ; melanoma invasive",
    "nv": "nev; nevus; nevi; naevus; naevi; melanocytic nevus; melanocytic nevi; melanocytic naevus; "
    "melanocytic naevi",
    "vasc": "vascular lesion; vascular lesions; angioma; hemangioma; haemangioma; angiokeratoma; pyogenic granuloma",
}
LABEL_SPELLINGS = {word: label for label, words in _SPELLINGS.items() for word in (label, *words.split("; "))}


def one_hot_columns(header: Sequence[str]) -> list[str]:
    """The columns of ISIC's classes, or none."""
    found = [name for name in header if name in _ONE_HOT]
    return found if len(found) > 1 else []


def read_labels(
    values: pd.Series, options: DataOptions, declared: Sequence[str] = (), *, name: str = "dx", ours: bool = False
) -> tuple[list[str], pd.Series, list[str]]:
    """Reads the labels of a source and finds the set they form.

    Args:
        values: The label of each row as it is written.
        options: Its `labels` are the set, its `label_map` is applied first.
        declared: Further labels that the source has a column for, whether or not a row has it.
        name: The column, for messages.
        ours: The set is HAM10000's, whatever the rows say.

    Returns:
        The set, in the order of the class ids: HAM10000's seven where every label can be read as one; otherwise the
        source's own in lower case, sorted. The label of each row, one that is not in the set as it was written. A
        sentence for each decision.

    Raises:
        Ham10000Error: Where `label_map` names a label that does not occur.
    """
    words = values.map(spelled)
    present = [word for word in dict.fromkeys([*words, *map(spelled, declared)]) if word not in MISSING_VALUES]
    mapped = {spelled(old): new for old, new in options.label_map.items()}
    if absent := sorted(set(mapped) - set(present)):
        raise Ham10000Error(f"--label_map names {absent}, but the column {name} has {sorted(present)[:30]}.")
    after = {word: mapped.get(word, word) for word in present}  # still the users' words
    known = {word: LABEL_SPELLINGS.get(spelled(new)) for word, new in after.items()}
    notes: list[str] = []
    if options.labels:
        labels = list(options.labels)
        by_word = {spelled(label): label for label in labels}
        read = {word: by_word.get(spelled(new), by_word.get(known[word] or "")) for word, new in after.items()}
    # ISIC 2019 declares UNK, which no training row has.
    elif ours or all(known[word] for word in present if word != "unk" or word in set(words)):
        labels, read = list(LABELS), known
    else:
        written = {spelled(text): text.strip().lower() for text in sorted([*values, *declared], reverse=True)}
        read = {word: new if word in mapped else written[word] for word, new in after.items()}
        labels = sorted({str(label) for word, label in read.items() if word != "unk" or word in set(words)})
        notes.append(f"the labels are the data's own: {', '.join(labels)}")
        if offered := [
            f"'{label}={LABEL_SPELLINGS[label]}'"
            for label in labels
            if label not in LABELS and label in LABEL_SPELLINGS
        ]:
            notes.append(f"to read labels as HAM10000's: --label_map {' '.join(offered)}")
    counts = words.value_counts()
    for word in sorted(word for word, label in read.items() if label and spelled(label) != word and word in counts):
        notes.append(f"{name} {word!r} is read as {read[word]!r} in {counts[word]:,} rows")
    dx = words.map(read)
    return labels, dx.where(dx.notna(), values), notes


COLUMNS = ("image_id", "lesion_id", "dx", "dx_type", "age", "sex", "localization", "dataset")
_FIELD_NAMES = frozenset(name for names in SYNONYMS.values() for name in names)
IMAGE_FEATURES = datasets.Features({"image": datasets.Image()})
TABLE_SUFFIXES = (".csv", ".tsv", ".tab", ".jsonl")


class StoredImage(TypedDict):
    """An image as `datasets` stores it: the bytes of its file, or where that lies; both None where there is none."""

    bytes: bytes | None
    path: str | None


@dataclass
class FieldTable:
    """The fields of a table.

    Attributes:
        frame: String columns `COLUMNS`, "" where missing, `file` and `row`; `image` is what the table calls the image.
        columns: Our field to the source's column.
        header: All columns of the source.
        declared: Labels that have a column, for a table with one-hot labels.
        notes: A sentence for each decision.
    """

    frame: pd.DataFrame
    columns: dict[str, str]
    header: list[str]
    declared: list[str]
    notes: list[str]


def read_table(path: Path) -> tuple[pd.DataFrame, list[int]]:
    """Reads a delimited file, or one JSON object per line for `.jsonl`, as strings.

    Args:
        path: The file.

    Returns:
        The rows, and the line of each.

    Raises:
        Ham10000Error: As `read_rows`; for a line that is not a JSON object, or a field that is a list or an object.
    """
    if path.suffix.lower() != ".jsonl":
        header, cells, lines = read_rows(path)
        return pd.DataFrame(cells, columns=header, dtype=object), lines
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
        if nested := [name for name in record if name in _FIELD_NAMES and isinstance(record[name], (list, dict))]:
            value = record[nested[0]]
            raise Ham10000Error(f"{path}, line {line}: expected one value for {nested[0]}, got {value!r}.")
        rows.append(record)
        lines.append(line)
    return string_frame(pd.DataFrame(rows, dtype=object)), lines


def select_fields(
    raw: pd.DataFrame, origin: str | Path, lines: list[int], options: DataOptions | None = None
) -> FieldTable:
    """Finds the column of each field; those a table may lack are filled.

    Args:
        raw: The table.
        origin: Its file, for messages.
        lines: Line of each row.
        options: Names of columns, and the column to group by.

    Returns:
        The fields. Without a lesion id an image counts as its own lesion, with a note.

    Raises:
        Ham10000Error: Where the image or the label has no column, a column that was named does not exist, or of
            ISIC's one-hot columns a row names no class, or several, or has a value that is neither 0 nor 1.
    """
    options, header = options or DataOptions(), [str(name) for name in raw.columns]
    try:
        columns, notes = _choose_columns(raw, header, options)
    except Ham10000Error as error:
        raise Ham10000Error(f"{origin}: {error}") from error
    one_hot = [] if "dx" in columns else one_hot_columns(header)
    absent = [name for name in ("image_id", "dx") if name not in columns and not (name == "dx" and one_hot)]
    if absent:
        raise Ham10000Error(
            f"{origin}: no column for {' and '.join(absent)}; it has {header}. Recognised are "
            + "; ".join(f"{', '.join(SYNONYMS[name])} ({name})" for name in absent)
            + f". Name yours: --columns {' '.join(f'{name}=COLUMN' for name in absent)}"
        )
    texts = string_frame(raw)
    if one_hot and len(texts):
        numbers = texts[one_hot].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
        bad = ~np.isin(numbers, (0.0, 1.0)).all(axis=1) | (numbers.sum(axis=1) != 1)
        if bad.any():
            row = int(bad.argmax())
            raise Ham10000Error(
                f"{origin}, line {lines[row]}: expected a 1 in one of {one_hot} and 0 in the others, got "
                f"{texts[one_hot].iloc[row].tolist()}."
            )
        texts["dx"] = [one_hot[index].lower() for index in numbers.argmax(axis=1)]
    frame = pd.DataFrame(index=texts.index)
    for name in COLUMNS:
        column = columns.get(name, "dx" if name == "dx" else "")
        frame[name] = texts.get(column, "unknown")
    frame["image"] = texts["file_name"] if "file_name" in texts else frame["image_id"]
    if columns["image_id"] == "image_id":
        frame["image_id"] = frame["image_id"].map(without_suffix)
    else:
        frame["image_id"] = _ids_of_files(frame["image_id"].map(comparable).map(without_suffix))
    alone = frame["lesion_id"].str.lower().isin(MISSING_VALUES)
    frame["lesion_id"] = frame["lesion_id"].where(~alone, frame["image_id"])
    if "lesion_id" not in columns:
        notes.append(f"{origin}: no column for lesion_id; every image counts as its own lesion")
    elif alone.any():
        notes.append(f"{origin}: {alone.sum():,} rows without {columns['lesion_id']} count as their own lesions")
    frame["file"], frame["row"] = str(origin), lines
    used = {*columns.values(), *one_hot, "file_name", "image_type"}
    if unused := [name for name in header if name not in used and name]:
        notes.append(f"{origin}: columns that are not used: {', '.join(unused)}")
    return FieldTable(frame, columns, header, [name.lower() for name in one_hot], notes)


def _choose_columns(
    raw: pd.DataFrame, header: Sequence[str], options: DataOptions
) -> tuple[dict[str, str], list[str]]:
    columns, notes = match_columns(header, options.columns), []
    if options.group_by is not None:
        if options.group_by not in header:
            raise Ham10000Error(f"there is no column {options.group_by!r} to group by; it has {list(header)}.")
        instead = f" instead of {columns['lesion_id']}" if "lesion_id" in columns else ""
        columns["lesion_id"] = options.group_by
        notes.append(f"lesions are the rows of one {options.group_by}{instead}")
    labels = [name for name in candidates("dx", header) if name not in options.columns.values()]
    if "dx" not in options.columns and len(labels) > 1:
        # ISIC 2020 has a diagnosis for a fifth of its rows, and benign_malignant for all.
        empty = {name: raw[name].astype(str).str.strip().str.lower().isin(MISSING_VALUES).mean() for name in labels}
        columns["dx"] = next((name for name in labels if empty[name] < 0.5), labels[0])
        others = [name for name in labels if name != columns["dx"]]
        notes.append(
            f"labels from column {columns['dx']}; for another, --columns dx=COLUMN with one of {', '.join(others)}"
        )
    return columns, notes


def _ids_of_files(names: pd.Series) -> pd.Series:
    """File names as ids; with their folders where two folders have files of one name."""
    stems = names.str.rsplit("/", n=1).str[-1]
    return names.str.strip("/").str.replace("/", "_") if names.nunique() > stems.nunique() else stems


def string_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """Every value as stripped text, "" where it is missing."""

    def text(value: object) -> str:
        return "" if value is None or value != value else str(value).strip()

    return pd.DataFrame({str(name): [text(value) for value in frame[name]] for name in frame.columns}, dtype=object)


def image_dataset(images: Sequence[StoredImage]) -> datasets.Dataset:
    """Images as one column.

    Args:
        images: `bytes` and `path` of each, either or both None.

    Returns:
        Column `image`.
    """
    # Not Dataset.from_dict: it refuses missing images, and prefers a file of the working folder that happens to have
    # the path over the bytes given with it.
    stored = pa.table({"image": pa.array(list(images), type=IMAGE_FEATURES["image"].pa_type)})
    return datasets.Dataset(stored, info=datasets.DatasetInfo(features=IMAGE_FEATURES))


def downloads() -> tuple[Path, ...]:
    """The folders that contain what was fetched from the Hub."""
    return Path(constants.HF_HUB_CACHE), Path(datasets.config.HF_DATASETS_CACHE)


def stored_images(
    images: datasets.Dataset, places: Sequence[str], roots: tuple[Path, ...] | None
) -> tuple[datasets.Dataset, list[bool]]:
    """Finds the images without bytes, and refuses a path that leaves the folders it may name.

    A table can name any file of its reader's machine, which would then be read, cached and exported as one of its
    images. Where the bytes are stored the path is a name only, and may be anything.

    Args:
        images: Column `image`, of type `datasets.Image()`.
        places: File and row of each image, for messages.
        roots: Folders below which paths must lie, a relative one below the first; symbolic links in them are followed.
            None takes every path as it is.

    Returns:
        The images, with full paths, and whether each is missing.

    Raises:
        Ham10000Error: For the first image outside of `roots`.
    """
    if images._indices is not None:  # a selection, whose table still has all rows
        images = images.flatten_indices()
    chunks: list[pa.StructArray] = []
    missing: list[bool] = []
    for chunk in images.data.column("image").chunks:
        stored, paths = chunk.flatten()
        names = paths.to_pylist()
        for index in np.flatnonzero(stored.is_null().to_numpy(zero_copy_only=False)).tolist():
            if names[index] and roots is not None:
                names[index] = _below(names[index], places[len(missing) + index], roots)
        no_bytes = stored.is_null().to_pylist()
        missing += [empty and not (name and _is_file(name)) for empty, name in zip(no_bytes, names, strict=True)]
        chunks.append(pa.StructArray.from_arrays([stored, pa.array(names, paths.type)], ["bytes", "path"]))
    table = pa.table({"image": pa.chunked_array(chunks, IMAGE_FEATURES["image"].pa_type)})
    return datasets.Dataset(table, info=datasets.DatasetInfo(features=IMAGE_FEATURES)), missing


def _below(path: str, place: str, roots: tuple[Path, ...]) -> str:
    """The path in full, or an error where it leads out of every folder."""
    full = os.path.normpath(roots[0].absolute() / path)
    if any(Path(full).is_relative_to(os.path.normpath(root.absolute())) for root in roots):
        return full
    raise Ham10000Error(
        f"{place}: image is stored as the path {path[:200]!r}, outside the data folder, and without bytes: refused, "
        "as a table may name any file of this machine. Store their bytes, which `to_parquet` alone does not, by "
        "`dataset.with_format('arrow').map(datasets.table.embed_table_storage, batched=True)` before it, "
        "or put the images into the folder and name them by relative paths."
    )


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # such as a name that is too long, or with a null byte
        return False
