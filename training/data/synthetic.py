"""A deterministic stand-in for HAM10000: metadata by its published marginals, pictures by `synthetic_images`.

It exists so that everything can be tried and tested without the data and without a network. Its pictures are learnable
and not trivial; a result on them says that the code works and nothing about skin.
"""

from typing import Any

import numpy as np

from ham10000.modeling.configuration_ham10000 import LABELS, Ham10000Error
from ham10000.training.data.synthetic_images import Lesion, encode_jpeg, render

# Lesions per class and lesions by their number of images, counted on HAM10000 (Tschandl et al. 2018).
_LESIONS = {"akiec": 228, "bcc": 327, "bkl": 727, "df": 73, "mel": 614, "nv": 5403, "vasc": 98}
_IMAGES_PER_LESION = {1: 5514, 2: 1423, 3: 490, 4: 34, 5: 5, 6: 4}
_MEAN_IMAGES = sum(k * n for k, n in _IMAGES_PER_LESION.items()) / sum(_IMAGES_PER_LESION.values())

# With the true shares, 800 images would hold 6 dermatofibromas: too few for a train, validation and test side.
MIN_LESIONS_PER_CLASS = 15

_AGES = dict(
    zip(
        range(0, 90, 5),
        (39, 86, 41, 77, 169, 247, 464, 753, 985, 1299, 1187, 1009, 803, 731, 756, 618, 404, 290),
        strict=True,
    )
)
_SITES = {
    "back": 2192,
    "lower extremity": 2077,
    "trunk": 1404,
    "upper extremity": 1118,
    "abdomen": 1022,
    "face": 745,
    "chest": 407,
    "foot": 319,
    "unknown": 234,
    "neck": 168,
    "scalp": 128,
    "hand": 90,
    "ear": 56,
    "genital": 48,
    "acral": 7,
}
# The mild class signal: log-odds of the age per 20 years, share of men, and factors on the shares of sites.
_AGE_TILT = {"akiec": 1.0, "bcc": 1.0, "bkl": 0.8, "df": 0.1, "mel": 0.6, "nv": -0.3, "vasc": 0.0}
_MALE_SHARE = {"akiec": 0.65, "bcc": 0.62, "bkl": 0.57, "df": 0.48, "mel": 0.60, "nv": 0.52, "vasc": 0.50}
_SITE_TILT = {
    "akiec": {"face": 5.0, "scalp": 3.0, "hand": 3.0, "trunk": 0.2},
    "bcc": {"face": 3.0, "neck": 2.0, "chest": 2.0, "trunk": 0.3},
    "bkl": {"face": 4.0, "scalp": 2.0, "neck": 1.5},
    "df": {"lower extremity": 4.0, "face": 0.1},
    "mel": {"upper extremity": 1.7, "back": 1.3},
    "nv": {"face": 0.3, "trunk": 1.3},
    "vasc": {"trunk": 1.8, "abdomen": 1.8},
}
# Shares of rows without a value: as in HAM10000, never for the other classes.
_MISSING_AGE = {"nv": 45 / 6705, "bkl": 10 / 1099, "mel": 2 / 1113}
_MISSING_SEX = {"nv": 47 / 6705, "bkl": 10 / 1099}
# The columns no model may see, with the shortcuts that the real ones have.
_DX_TYPES = {
    "akiec": {"histo": 327},
    "bcc": {"histo": 514},
    "bkl": {"histo": 766, "consensus": 264, "confocal": 69},
    "df": {"histo": 55, "consensus": 60},
    "mel": {"histo": 1113},
    "nv": {"histo": 2498, "consensus": 503, "follow_up": 3704},
    "vasc": {"histo": 67, "consensus": 75},
}
_COLLECTIONS = ("rosendahl", "vidir_modern", "vidir_molemax", "vienna_dias")
_COLLECTION_COUNTS = {
    "akiec": (295, 32, 0, 0),
    "bcc": (296, 211, 2, 5),
    "bkl": (490, 475, 124, 10),
    "df": (30, 51, 30, 4),
    "mel": (342, 680, 24, 67),
    "nv": (803, 1832, 3720, 350),
    "vasc": (3, 82, 54, 3),
}


def make_synthetic(n_images: int, *, seed: int = 0, image_size: tuple[int, int] = (200, 150)) -> list[dict[str, Any]]:
    """Generates photographs with metadata; the same arguments give the same bytes.

    Classes have HAM10000's shares of lesions, except that each has at least `MIN_LESIONS_PER_CLASS` lesions (or a
    seventh of all, in very small sets), and lesions have HAM10000's number of photographs. Metadata is constant within
    a lesion; at least one row has no age.

    Args:
        n_images: Number of photographs, at least 7.
        seed: Seed of everything.
        image_size: Width and height in pixels.

    Returns:
        One dict per photograph: `image` ({"bytes": JPEG, "path": file name}) and the csv's columns, with None where
        the age is missing.

    Raises:
        Ham10000Error: For fewer than 7 photographs.
    """
    if n_images < len(LABELS):
        raise Ham10000Error(f"{n_images} synthetic images cannot hold {len(LABELS)} classes; ask for 7 or more.")
    rng = np.random.default_rng([seed, n_images])
    classes = _draw_classes(n_images, rng)
    repeats = _draw_repeats(len(classes), n_images, rng)
    metadata = [_draw_metadata(dx, rng) for dx in classes]
    metadata[classes.index("nv")]["age"] = None

    rows: list[dict[str, Any]] = []
    for number, (dx, fields, count) in enumerate(zip(classes, metadata, repeats, strict=True)):
        lesion = Lesion.draw(dx, np.random.default_rng([seed, number, 1]))
        for view in range(count):
            image_id = f"SYN_{len(rows):07d}"
            picture = render(lesion, np.random.default_rng([seed, number, 2, view]), image_size)
            image = {"bytes": encode_jpeg(picture), "path": f"{image_id}.jpg"}
            rows.append({"image": image, "lesion_id": f"SYNL_{number:07d}", "image_id": image_id, "dx": dx, **fields})
    return rows


def _draw_classes(n_images: int, rng: np.random.Generator) -> list[str]:
    """The class of every lesion, in random order: ids must not tell the class."""
    n_lesions = max(len(LABELS), round(n_images / _MEAN_IMAGES))
    floor = min(MIN_LESIONS_PER_CLASS, n_lesions // len(LABELS))
    counts = {dx: max(floor, int(n_lesions * _LESIONS[dx] / sum(_LESIONS.values()))) for dx in LABELS}
    # Flooring leaves some over and the minimum takes some away; nevi, two thirds of all, settle the difference.
    counts["nv"] = max(floor, counts["nv"] + n_lesions - sum(counts.values()))
    while sum(counts.values()) > n_lesions:
        counts[max(counts, key=lambda dx: counts[dx])] -= 1
    classes = [dx for dx in LABELS for _ in range(counts[dx])]
    return [classes[index] for index in rng.permutation(len(classes))]


def _draw_repeats(n_lesions: int, n_images: int, rng: np.random.Generator) -> np.ndarray:
    """The number of photographs of every lesion, (n_lesions,), which sum to `n_images`."""
    repeats = _choose(_IMAGES_PER_LESION, rng, n_lesions)
    while repeats.sum() != n_images:
        missing = n_images - int(repeats.sum())
        candidates = np.flatnonzero(repeats <= 2 if missing > 0 else repeats > 1)
        chosen = rng.choice(candidates, size=min(abs(missing), len(candidates)), replace=False)
        repeats[chosen] += 1 if missing > 0 else -1
    return repeats


def _draw_metadata(dx: str, rng: np.random.Generator) -> dict[str, Any]:
    ages = {age: count * np.exp(_AGE_TILT[dx] * (age - 50) / 20) for age, count in _AGES.items()}
    sites = {site: count * _SITE_TILT[dx].get(site, 1.0) for site, count in _SITES.items()}
    age = float(_choose(ages, rng))
    sex = "male" if rng.random() < _MALE_SHARE[dx] else "female"
    # One draw for both: in HAM10000 rows without a sex are mostly those without an age.
    absent = rng.random()
    return {
        "dx_type": str(_choose(_DX_TYPES[dx], rng)),
        "age": None if absent < _MISSING_AGE.get(dx, 0.0) else age,
        "sex": "unknown" if absent < _MISSING_SEX.get(dx, 0.0) else sex,
        "localization": str(_choose(sites, rng)),
        "dataset": str(_choose(dict(zip(_COLLECTIONS, _COLLECTION_COUNTS[dx], strict=True)), rng)),
    }


def _choose(weights: dict[Any, Any], rng: np.random.Generator, size: int | None = None) -> Any:
    values = np.array(list(weights.values()), dtype=np.float64)
    return rng.choice(np.array(list(weights)), size=size, p=values / values.sum())


__all__ = ["MIN_LESIONS_PER_CLASS", "make_synthetic"]
