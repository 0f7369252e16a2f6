"""Which photographs show one lesion."""

from collections import Counter

import datasets
import pandas as pd

# Photographs of one lesion that HAM10000 gives two lesion ids: Abhishek, Jain, Hamarneh, "Investigating the quality of
# DermaMNIST and Fitzpatrick17k dermatological image datasets", Scientific Data 12:196 (2025).
KNOWN_DUPLICATE_PAIRS = (
    ("ISIC_0033481", "ISIC_0033421"),
    ("ISIC_0033556", "ISIC_0032634"),
    ("ISIC_0029152", "ISIC_0033173"),
    ("ISIC_0029036", "ISIC_0027027"),
    ("ISIC_0027820", "ISIC_0028209"),
    ("ISIC_0027689", "ISIC_0032647"),
    ("ISIC_0030906", "ISIC_0024879"),
    ("ISIC_0033391", "ISIC_0034186"),
    ("ISIC_0025226", "ISIC_0030074"),
    ("ISIC_0026087", "ISIC_0025664"),
    ("ISIC_0024736", "ISIC_0029748"),
    ("ISIC_0024770", "ISIC_0027811"),
    ("ISIC_0027162", "ISIC_0029061"),
    ("ISIC_0024602", "ISIC_0032283"),
    ("ISIC_0029625", "ISIC_0024629"),
    ("ISIC_0030000", "ISIC_0031392"),
    ("ISIC_0024437", "ISIC_0031299"),
    ("ISIC_0033374", "ISIC_0033417"),
)


def lesion_groups(lesion_id: list[str], image_id: list[str]) -> list[str]:
    """Groups photographs that show one lesion: those with one lesion id, and the 18 known duplicate pairs.

    Args:
        lesion_id: Lesion id of every photograph.
        image_id: Image id of every photograph, in the same order.

    Returns:
        For every photograph the name of its group: the smallest lesion id in it.
    """
    lesion_of = dict(zip(image_id, lesion_id, strict=True))
    parent = {lesion: lesion for lesion in lesion_id}

    def root(lesion: str) -> str:
        while parent[lesion] != lesion:
            lesion = parent[lesion]
        return lesion

    for first, second in KNOWN_DUPLICATE_PAIRS:
        if first in lesion_of and second in lesion_of:
            low, high = sorted((root(lesion_of[first]), root(lesion_of[second])))
            parent[high] = low
    return [root(lesion) for lesion in lesion_id]


def lesions_known(rows: pd.DataFrame) -> bool:
    """Whether a table says which images show one lesion; an image without a lesion id has its own id as that."""
    return bool((rows["lesion_id"] != rows["image_id"]).any())


def photographs_per_lesion(dataset: datasets.Dataset, rows: pd.DataFrame) -> list[int]:
    """How many photographs of each row's lesion the whole dataset holds.

    Args:
        dataset: The whole source, with `lesion_id` and `image_id`.
        rows: Some of its rows, with `image_id`.

    Returns:
        One count for each row.
    """
    image_ids = dataset["image_id"][:]
    groups = lesion_groups(dataset["lesion_id"][:], image_ids)
    counts, group_of = Counter(groups), dict(zip(image_ids, groups, strict=True))
    return [counts[group_of[image_id]] for image_id in rows["image_id"]]


__all__ = ["KNOWN_DUPLICATE_PAIRS", "lesion_groups", "lesions_known", "photographs_per_lesion"]
