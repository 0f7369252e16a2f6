"""Images as a dataset stores them, bytes or a path, and which paths a stranger's table may name."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from huggingface_hub import constants

from ham10000.modeling.configuration_ham10000 import Ham10000Error

IMAGE_FEATURES = datasets.Features({"image": datasets.Image()})


def image_dataset(images: list[dict[str, Any]]) -> datasets.Dataset:
    """Images as one column.

    Args:
        images: `bytes` and `path` of each, either or both None.

    Returns:
        Column `image`.
    """
    # Not Dataset.from_dict: it refuses missing images, and prefers a file of the working folder that happens to have
    # the path over the bytes given with it.
    stored = pa.table({"image": pa.array(images, type=IMAGE_FEATURES["image"].pa_type)})
    return datasets.Dataset(stored, info=datasets.DatasetInfo(features=IMAGE_FEATURES))


def downloads() -> tuple[Path, ...]:
    """The folders that hold what was fetched from the Hub."""
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
    if images._indices is not None:  # a selection, whose table still holds all rows
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
        "or put the pictures into the folder and name them by relative paths."
    )


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # such as a name that is too long, or with a null byte
        return False
