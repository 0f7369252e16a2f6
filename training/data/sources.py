"""One `datasets.Dataset` of checked rows from any source of HAM10000."""

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import pandas as pd
from PIL import Image

from ham10000.modeling.configuration_ham10000 import LABELS, Ham10000Error
from ham10000.modeling.image_processing_ham10000 import IMAGE_FORMATS
from ham10000.training.data.checks import DataReport, check_rows
from ham10000.training.data.readers import read_source
from ham10000.training.data.tables import COLUMNS, IMAGE_FEATURES
from ham10000.training.utils.cli import progress_bar
from ham10000.training.utils.columns import DataOptions


def features_of(labels: Sequence[str] = LABELS) -> datasets.Features:
    """The columns of every dataset, with `dx` as an index into the labels."""
    text = datasets.Value("string")
    return datasets.Features(
        {
            **IMAGE_FEATURES,
            "image_id": text,
            "lesion_id": text,
            "dx": datasets.ClassLabel(names=list(labels)),
            "dx_type": text,
            "age": datasets.Value("float32"),
            "sex": text,
            "localization": text,
            "dataset": text,
        }
    )


FEATURES = features_of()


def load_data(
    source: str,
    options: DataOptions | None = None,
    *,
    drop_unreadable: bool = False,
    drop_duplicates: bool = False,
    drop_unknown_labels: bool = False,
    invalid_to_missing: bool = False,
    check_images: bool = False,
    synthetic_size: int | None = None,
    seed: int = 0,
) -> tuple[datasets.Dataset, DataReport]:
    """Reads and checks a source; nothing is dropped unless an option asks for it, and then a note says so.

    Args:
        source: `synthetic` or `synthetic:N` (N images); a table (csv) above or next to its images; a folder with such
            a table (HAM10000, ISIC, imagefolder) or with a folder per label; a folder of Parquet files; a Hub dataset
            id, of which all splits are joined because their division cannot be trusted.
        options: Names of columns, the label set, and what to group by, where they are not HAM10000's.
        drop_unreadable: Drop rows whose image is missing or cannot be decoded; implies `check_images`.
        drop_duplicates: Keep the first row of every image id.
        drop_unknown_labels: Drop rows whose label is none of the set: that of the options, else HAM10000's.
        invalid_to_missing: Read an unknown sex or site and an impossible age as missing.
        check_images: Decode every image once and report those that fail.
        synthetic_size: Number of synthetic images (default 800); `synthetic:N` says the same.
        seed: Seed of the synthetic generator; other sources do not use it.

    Returns:
        The dataset and its report. Columns: `image` (`Image`, stored as path or bytes and not yet decoded),
        `image_id`, `lesion_id` (the image's id where the lesion is unknown), `dx` (`ClassLabel`, whose names are the
        report's `labels`), `dx_type`, `age` (float32 years, null where missing; 0 is a real age), `sex` and
        `localization` (lower case, "unknown" where missing), `dataset`.

    Raises:
        Ham10000Error: For an unknown source, missing columns, or rows with problems: file, row, field, value, what
            was expected and the option that would drop them.

    Example:
        >>> data, report = load_data("synthetic:200")
        >>> print(report)
    """
    options = options or DataOptions()
    raw = read_source(source, options, synthetic_size=synthetic_size, seed=seed)
    unreadable = (
        _unreadable(raw.images, np.array(raw.missing, dtype=bool)) if check_images or drop_unreadable else None
    )
    rows, keep, report = check_rows(
        raw,
        options,
        unreadable_images=unreadable,
        drop_unreadable=drop_unreadable,
        drop_duplicates=drop_duplicates,
        drop_unknown_labels=drop_unknown_labels,
        invalid_to_missing=invalid_to_missing,
    )
    images = raw.images if keep.all() else raw.images.select(np.flatnonzero(keep))
    columns = {name: rows[name].tolist() for name in COLUMNS}
    columns["age"] = [None if age != age else age for age in columns["age"]]
    features = datasets.Features({name: kind for name, kind in features_of(report.labels).items() if name in COLUMNS})
    table = datasets.Dataset.from_dict(columns, features=features)
    return datasets.concatenate_datasets([images, table], axis=1), report


def label_names(dataset: datasets.Dataset) -> list[str]:
    """The label set of a dataset from `load_data`, in the order of the class ids."""
    kind = dataset.features["dx"]
    assert isinstance(kind, datasets.ClassLabel)
    return list(kind.names)


def align_labels(dataset: datasets.Dataset, labels: Sequence[str]) -> datasets.Dataset:
    """Numbers the labels of a dataset as another set does, by their names.

    Args:
        dataset: From `load_data`.
        labels: The set, such as a model's, in the order of its ids; the data need not have all of them.

    Returns:
        The dataset, whose `dx` is an index into `labels`.

    Raises:
        Ham10000Error: For labels of the data that are not in the set.
    """
    names = label_names(dataset)
    if list(labels) == names:
        return dataset
    ids = np.asarray(dataset["dx"][:], dtype=np.int64)
    present = [name for index, name in enumerate(names) if (ids == index).any()]
    if outside := [name for name in present if name not in labels]:
        raise Ham10000Error(
            f"The data have the labels {present}, the model {list(labels)}: {outside} cannot be scored. Say which of "
            f"the model's each is, as in --label_map {outside[0]}={labels[0]}, or leave those rows out of the data."
        )
    position = {label: index for index, label in enumerate(labels)}
    table = np.array([position.get(name, -1) for name in names])
    column = datasets.Dataset.from_dict(
        {"dx": table[ids]}, features=datasets.Features({"dx": datasets.ClassLabel(names=list(labels))})
    )
    return datasets.concatenate_datasets([dataset.remove_columns("dx"), column], axis=1)


def metadata_frame(dataset: datasets.Dataset) -> pd.DataFrame:
    """The columns other than `image` as a table, with `dx` as the label's name.

    Args:
        dataset: A dataset from `load_data`, or a part of one.

    Returns:
        One row per image: image_id, lesion_id, dx, dx_type, age (NaN where missing), sex, localization, dataset.
    """
    frame = dataset.with_format(None).select_columns(list(COLUMNS)).to_pandas()
    assert isinstance(frame, pd.DataFrame)
    frame["dx"] = np.array(label_names(dataset), dtype=object)[frame["dx"].to_numpy()]
    return frame


def _unreadable(images: datasets.Dataset, missing: np.ndarray) -> np.ndarray:
    """Finds the images that cannot be decoded, with a progress bar.

    Pillow's `verify` passes JPEG files that were cut off in the middle, so every file is decoded; at an eighth of its
    size that reads all of the data for a fraction of the time.
    """
    stored = images.cast_column("image", datasets.Image(decode=False))

    def fails(index: int) -> bool:
        if missing[index]:
            return False
        image = stored[index]["image"]
        try:
            source = io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"]
            with Image.open(source, formats=IMAGE_FORMATS) as picture:
                picture.draft("L", (picture.width // 8, picture.height // 8))
                picture.load()
        # Pillow raises OSError, SyntaxError, ValueError or struct.error, by format and kind of damage.
        except Exception:
            return True
        return False

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        results = pool.map(fails, range(len(stored)))
        bar = progress_bar(iterable=results, total=len(stored), desc="Checking images", unit="image")
        return np.array(list(bar), dtype=bool)
