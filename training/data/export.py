"""Writes a dataset in the layout of the official archive."""

import shutil
from pathlib import Path

import datasets

from ham10000.modeling.configuration_ham10000 import Ham10000Error
from ham10000.training.data.sources import metadata_frame
from ham10000.training.utils.files import write_table
from ham10000.training.utils.image_files import IMAGE_SUFFIXES

_CSV_COLUMNS = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization", "dataset"]


def write_official_layout(directory: str | Path, dataset: datasets.Dataset) -> Path:
    """Writes a dataset as HAM10000 is distributed; the images are copied as they are stored.

        directory/
            HAM10000_metadata.csv
            HAM10000_images_part_1/<image_id>.jpg      the first half
            HAM10000_images_part_2/<image_id>.jpg      the rest

    Args:
        directory: A new or empty folder.
        dataset: From `load_data`.

    Returns:
        The folder.

    Raises:
        Ham10000Error: Where the folder is not empty.
    """
    folder = Path(directory)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Ham10000Error(f"{folder} exists and is not an empty folder; export into a new one.")
    parts = [folder / f"HAM10000_images_part_{number}" for number in (1, 2)]
    for part in parts:
        part.mkdir(parents=True)
    for index, row in enumerate(dataset.cast_column("image", datasets.Image(decode=False))):
        image = row["image"]
        # The name stored beside bytes is anybody's; the folder's reader finds pictures by these suffixes only.
        suffix = Path(image["path"] or "").suffix
        suffix = suffix if suffix.lower() in IMAGE_SUFFIXES else ".jpg"
        target = parts[2 * index >= len(dataset)] / f"{row['image_id']}{suffix}"
        if image["bytes"] is None:
            shutil.copyfile(image["path"], target)
        else:
            target.write_bytes(image["bytes"])
    # The table comes last: a folder with one is complete.
    write_table(metadata_frame(dataset)[_CSV_COLUMNS], folder / "HAM10000_metadata.csv")
    return folder


__all__ = ["write_official_layout"]
