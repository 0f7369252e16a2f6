"""A deterministic stand-in for HAM10000: metadata by its published marginals, and images drawn for it.

It exists so that everything can be tried and tested without the data and without a network. Its images are learnable
and not trivial; a result on them says that the code works and nothing about skin.
"""

import io
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ham10000.modeling.configuration_ham10000 import LABELS, Ham10000Error
from ham10000.training.utils.files import JsonObject

# Lesions by their number of images, counted on HAM10000 (Tschandl et al. 2018).
_IMAGES_PER_LESION = {1: 5514, 2: 1423, 3: 490, 4: 34, 5: 5, 6: 4}
_MEAN_IMAGES = sum(k * n for k, n in _IMAGES_PER_LESION.items()) / sum(_IMAGES_PER_LESION.values())

# With the true shares, 800 images would contain 6 dermatofibromas: too few for a train, validation and test side.
MIN_LESIONS_PER_CLASS = 15

_AGE_COUNTS = (39, 86, 41, 77, 169, 247, 464, 753, 985, 1299, 1187, 1009, 803, 731, 756, 618, 404, 290)
_AGES = dict(zip(range(0, 90, 5), _AGE_COUNTS, strict=True))
_SITES = {"back": 2192, "lower extremity": 2077, "trunk": 1404, "upper extremity": 1118, "abdomen": 1022}
_SITES |= {"face": 745, "chest": 407, "foot": 319, "unknown": 234, "neck": 168, "scalp": 128}
_SITES |= {"hand": 90, "ear": 56, "genital": 48, "acral": 7}
# Per class its lesions, counted on HAM10000, and the mild signal: log-odds of the age per 20 years, share of men, and
# factors on the shares of sites.
_PATIENTS: dict[str, tuple[int, float, float, dict[str, float]]] = {
    "akiec": (228, 1.0, 0.65, {"face": 5.0, "scalp": 3.0, "hand": 3.0, "trunk": 0.2}),
    "bcc": (327, 1.0, 0.62, {"face": 3.0, "neck": 2.0, "chest": 2.0, "trunk": 0.3}),
    "bkl": (727, 0.8, 0.57, {"face": 4.0, "scalp": 2.0, "neck": 1.5}),
    "df": (73, 0.1, 0.48, {"lower extremity": 4.0, "face": 0.1}),
    "mel": (614, 0.6, 0.60, {"upper extremity": 1.7, "back": 1.3}),
    "nv": (5403, -0.3, 0.52, {"face": 0.3, "trunk": 1.3}),
    "vasc": (98, 0.0, 0.50, {"trunk": 1.8, "abdomen": 1.8}),
}
# Shares of rows without a value: as in HAM10000, never for the other classes.
_MISSING_AGE = {"nv": 45 / 6705, "bkl": 10 / 1099, "mel": 2 / 1113}
_MISSING_SEX = {"nv": 47 / 6705, "bkl": 10 / 1099}
# The columns no model may see, with the shortcuts that the real ones have: images of each value, per class.
_DX_TYPES = ("histo", "consensus", "confocal", "follow_up")
_COLLECTIONS = ("rosendahl", "vidir_modern", "vidir_molemax", "vienna_dias")
_HIDDEN = {
    "akiec": ((327, 0, 0, 0), (295, 32, 0, 0)),
    "bcc": ((514, 0, 0, 0), (296, 211, 2, 5)),
    "bkl": ((766, 264, 69, 0), (490, 475, 124, 10)),
    "df": ((55, 60, 0, 0), (30, 51, 30, 4)),
    "mel": ((1113, 0, 0, 0), (342, 680, 24, 67)),
    "nv": ((2498, 503, 0, 3704), (803, 1832, 3720, 350)),
    "vasc": ((67, 75, 0, 0), (3, 82, 54, 3)),
}


def make_synthetic(n_images: int, *, seed: int = 0, image_size: tuple[int, int] = (200, 150)) -> list[JsonObject]:
    """Generates photographs of (width, height) pixels with metadata; the same arguments give the same bytes.

    Classes have HAM10000's shares of lesions, except that each has at least `MIN_LESIONS_PER_CLASS` lesions (or a
    seventh of all, in very small sets), and lesions have HAM10000's number of photographs. Metadata is constant within
    a lesion; at least one row has no age. A photograph is a dict of `image` ({"bytes": JPEG, "path": file name}) and
    the csv's columns. Fewer than 7 photographs are a Ham10000Error.
    """
    if n_images < len(LABELS):
        raise Ham10000Error(f"{n_images} synthetic images cannot contain {len(LABELS)} classes; ask for 7 or more.")
    rng = np.random.default_rng([seed, n_images])
    classes = _draw_classes(n_images, rng)
    repeats = _draw_repeats(len(classes), n_images, rng)
    metadata = [_draw_metadata(dx, rng) for dx in classes]
    metadata[classes.index("nv")]["age"] = None

    rows: list[JsonObject] = []
    for number, (dx, fields, count) in enumerate(zip(classes, metadata, repeats, strict=True)):
        lesion = Lesion.draw(dx, np.random.default_rng([seed, number, 1]))
        for view in range(count):
            image_id = f"SYN_{len(rows):07d}"
            stream = io.BytesIO()
            picture = render(lesion, np.random.default_rng([seed, number, 2, view]), image_size)
            picture.save(stream, format="JPEG", quality=85)
            image = {"bytes": stream.getvalue(), "path": f"{image_id}.jpg"}
            rows.append({"image": image, "lesion_id": f"SYNL_{number:07d}", "image_id": image_id, "dx": dx, **fields})
    return rows


def _draw_classes(n_images: int, rng: np.random.Generator) -> list[str]:
    """The class of every lesion, in random order: ids must not tell the class."""
    n_lesions = max(len(LABELS), round(n_images / _MEAN_IMAGES))
    floor = min(MIN_LESIONS_PER_CLASS, n_lesions // len(LABELS))
    total = sum(lesions for lesions, *_ in _PATIENTS.values())
    counts = {dx: max(floor, int(n_lesions * _PATIENTS[dx][0] / total)) for dx in LABELS}
    # Flooring leaves some over and the minimum takes some away; nevi, two thirds of all, settle the difference.
    counts["nv"] = max(floor, counts["nv"] + n_lesions - sum(counts.values()))
    while sum(counts.values()) > n_lesions:
        counts[max(counts, key=lambda dx: counts[dx])] -= 1
    classes = [dx for dx in LABELS for _ in range(counts[dx])]
    return [classes[index] for index in rng.permutation(len(classes))]


def _draw_repeats(n_lesions: int, n_images: int, rng: np.random.Generator) -> np.ndarray:
    """The number of photographs of every lesion, (n_lesions,), which sum to `n_images`."""
    repeats = _choose(_IMAGES_PER_LESION, _IMAGES_PER_LESION.values(), rng, n_lesions)
    while repeats.sum() != n_images:
        missing = n_images - int(repeats.sum())
        candidates = np.flatnonzero(repeats <= 2 if missing > 0 else repeats > 1)
        chosen = rng.choice(candidates, size=min(abs(missing), len(candidates)), replace=False)
        repeats[chosen] += 1 if missing > 0 else -1
    return repeats


def _draw_metadata(dx: str, rng: np.random.Generator) -> dict[str, str | float | None]:
    _, age_tilt, male_share, site_tilt = _PATIENTS[dx]
    dx_types, collections = _HIDDEN[dx]
    ages = [count * np.exp(age_tilt * (age - 50) / 20) for age, count in _AGES.items()]
    sites = [count * site_tilt.get(site, 1.0) for site, count in _SITES.items()]
    age = float(_choose(_AGES, ages, rng))
    sex = "male" if rng.random() < male_share else "female"
    # One draw for both: in HAM10000 rows without a sex are mostly those without an age.
    absent = rng.random()
    return {
        "dx_type": str(_choose(_DX_TYPES, dx_types, rng)),
        "age": None if absent < _MISSING_AGE.get(dx, 0.0) else age,
        "sex": "unknown" if absent < _MISSING_SEX.get(dx, 0.0) else sex,
        "localization": str(_choose(_SITES, sites, rng)),
        "dataset": str(_choose(_COLLECTIONS, collections, rng)),
    }


def _choose(
    values: Iterable[str] | Iterable[int], weights: Iterable[float], rng: np.random.Generator, size: int | None = None
) -> np.ndarray:
    shares = np.array(list(weights), dtype=np.float64)
    return rng.choice(np.array(list(values)), size=size, p=shares / shares.sum())


# Resolution of a lesion's own texture; a photograph samples it at its own angle and zoom.
_TEXTURE = 128
# Half the width of the texture in units of half the image's height.
_REACH = 1.7

# Per class the mean RGB of the body of the lesion, of its second colour and of its spots; then the amplitude of the
# outline's irregularity, softness of its edge, mean radius, unevenness of colour, and the mean number and radius of
# the spots: scales, nests, milia, a scar, a veil, a network and lacunae in the broadest of strokes.
_LOOKS = {
    "akiec": (((196, 116, 104), (176, 92, 86), (232, 214, 190)), (0.16, 0.16, 0.62, 0.8, 18, 0.05)),
    "bcc": (((206, 142, 138), (178, 112, 116), (86, 84, 112)), (0.14, 0.10, 0.56, 0.7, 5, 0.10)),
    "bkl": (((158, 118, 86), (128, 96, 78), (226, 202, 172)), (0.14, 0.04, 0.60, 0.6, 14, 0.04)),
    "df": (((168, 112, 88), (190, 140, 120), (228, 198, 184)), (0.06, 0.16, 0.46, 0.4, 1, 0.18)),
    "mel": (((98, 62, 48), (52, 40, 46), (124, 118, 138)), (0.24, 0.06, 0.66, 1.0, 3, 0.20)),
    "nv": (((132, 82, 58), (104, 62, 46), (84, 50, 40)), (0.07, 0.09, 0.52, 0.5, 30, 0.03)),
    "vasc": (((150, 34, 62), (104, 24, 62), (84, 18, 48)), (0.10, 0.04, 0.44, 0.6, 12, 0.09)),
}
_GENERIC = ((146, 92, 70), (118, 74, 58), (150, 110, 96))
_SKINS = ((226, 182, 164), (214, 158, 146), (196, 148, 124), (204, 176, 168), (236, 208, 196), (208, 136, 140))


@dataclass
class Lesion:
    """One lesion as all of its photographs show it."""

    surface: Image.Image  # 128x128 RGBA, the lesion seen from straight above; alpha is how much of the skin it covers
    skin: np.ndarray  # RGB around it
    hairiness: float  # mean number of hairs in a photograph

    @classmethod
    def draw(cls, dx: str, rng: np.random.Generator) -> "Lesion":
        """Draws a lesion of a class, more or less typical, so that the classes overlap: blended with a brown spot."""
        typical = rng.uniform(0.35, 1.0)
        colours, (irregularity, softness, radius, unevenness, n_spots, spot_radius) = _LOOKS[dx]
        body, second, detail = (
            (typical * np.array(own) + (1 - typical) * np.array(generic) + _jitter(rng)).astype(np.float32)
            for own, generic in zip(colours, _GENERIC, strict=True)
        )
        axis = np.linspace(-_REACH, _REACH, _TEXTURE, dtype=np.float32)
        u, v = np.meshgrid(axis, axis)
        angle, distance = np.arctan2(v, u), np.hypot(u, v * rng.uniform(1.0, 1.5))
        turn = np.linspace(-np.pi, np.pi, 181)
        ring = np.full_like(turn, radius * rng.lognormal(0, 0.22))
        for waves in range(2, 8):
            amplitude = irregularity * rng.normal(0, 1.6 / waves) * ring.mean()
            ring += amplitude * np.cos(waves * turn + rng.uniform(0, 2 * np.pi))
        outline = np.interp(angle, turn, ring).astype(np.float32)
        outline += irregularity * 0.5 * _noise(rng, 14)
        depth = (outline - distance) / max(radius, 0.1)
        opacity = _sigmoid(depth / softness) * rng.uniform(0.75, 0.97)

        share = _sigmoid(unevenness * 3.5 * _noise(rng, 6))[..., None]
        colour = body + share * (second - body)
        spots = _spots(rng, u, v, depth > 0.1, rng.poisson(n_spots), spot_radius)
        colour += (typical * spots)[..., None] * (detail - colour)
        colour += 7 * _noise(rng, 70)[..., None]
        skin = np.array(_SKINS[rng.integers(len(_SKINS))]) + _jitter(rng)
        hairiness = 14.0 if rng.random() < 0.12 else 3.0 if rng.random() < 0.35 else 0.0
        rgba = np.concatenate([np.clip(colour, 0, 255), 255 * np.clip(opacity, 0, 1)[..., None]], axis=2)
        return cls(Image.fromarray(rgba.astype(np.uint8), "RGBA"), skin.astype(np.float32), hairiness)


def render(lesion: Lesion, rng: np.random.Generator, image_size: tuple[int, int] = (200, 150)) -> Image.Image:
    """An RGB photograph of (width, height) pixels: angle, zoom, place, light, skin, hairs and rim vary by `rng`."""
    width, height = image_size
    mottling = 5 * _noise(rng, 9, image_size) + 4 * _noise(rng, 60, image_size)
    skin = lesion.skin + mottling[..., None]
    image = Image.fromarray(np.clip(skin, 0, 255).astype(np.uint8))
    turn, zoom = rng.uniform(0, 2 * math.pi), rng.uniform(0.85, 1.25)
    center_x, center_y = width / 2 + rng.normal(0, 0.06) * height, height / 2 + rng.normal(0, 0.06) * height
    scale = _TEXTURE / (_REACH * zoom * height)
    cos, sin = scale * math.cos(turn), scale * math.sin(turn)
    x0 = _TEXTURE / 2 - cos * center_x + sin * center_y
    y0 = _TEXTURE / 2 - sin * center_x - cos * center_y
    view = (cos, -sin, x0, sin, cos, y0)  # from pixels of the photograph to pixels of the surface
    seen = lesion.surface.transform(image_size, Image.Transform.AFFINE, view, Image.Resampling.BILINEAR)
    image.paste(seen, mask=seen)

    x = (np.arange(width, dtype=np.float32)[None, :] - width / 2) / (height / 2)
    y = (np.arange(height, dtype=np.float32)[:, None] - height / 2) / (height / 2)
    light = rng.uniform(0.86, 1.1) * (1 + x * rng.normal(0, 0.05) + y * rng.normal(0, 0.05))
    if rng.random() < 0.7:
        # A rim that darkens the corners; strong ones are the circular field of a contact dermatoscope.
        rim = rng.uniform(1.15, 1.6)
        light = light * np.clip(1 - rng.uniform(0.3, 1.6) * np.maximum(np.hypot(x, y) - rim, 0), 0.05, 1)
    tint = (1 + rng.normal(0, 0.025, 3)).astype(np.float32)
    picture = np.asarray(image) * (light[..., None] * tint)
    image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    _draw_hairs(image, rng.poisson(lesion.hairiness), rng)
    return image.filter(ImageFilter.BoxBlur(rng.uniform(0.2, 0.7)))


def _jitter(rng: np.random.Generator) -> np.ndarray:
    """A change of colour, (3,): mostly of brightness, because no skin is green."""
    return rng.normal(0, 10) + rng.normal(0, 4, 3)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _noise(rng: np.random.Generator, cells: int, size: tuple[int, int] = (_TEXTURE, _TEXTURE)) -> np.ndarray:
    """Smooth noise of unit scale with about `cells` bumps across, (height, width) float32."""
    rows = max(2, round(cells * size[1] / size[0]))
    coarse = Image.fromarray(rng.standard_normal((rows, cells), dtype=np.float32))
    return np.asarray(coarse.resize(size, Image.Resampling.BILINEAR))


def _draw_hairs(image: Image.Image, count: int, rng: np.random.Generator) -> None:
    draw = ImageDraw.Draw(image)
    size = np.array(image.size)
    tone = rng.uniform(25, 90)
    colour = (int(tone * 1.1), int(tone * 0.85), int(tone * 0.75))
    for _ in range(count):
        start, length = rng.uniform(0, 1, 2) * size, rng.uniform(0.3, 0.9) * size[1]
        heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.08) + rng.normal(0, 0.12, 9))
        steps = np.stack([np.cos(heading), np.sin(heading)], axis=1) * length / 9
        points = start + np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
        draw.line([(float(x), float(y)) for x, y in points], fill=colour, width=1 if rng.random() < 0.8 else 2)


def _spots(
    rng: np.random.Generator, u: np.ndarray, v: np.ndarray, within: np.ndarray, count: int, radius: float
) -> np.ndarray:
    """Soft round spots at random places of the mask `within`, (128, 128) in 0..1; u and v are the coordinates."""
    cover = np.zeros_like(u)
    places = np.flatnonzero(within)
    reach = int(1.4 * radius / _REACH * _TEXTURE) + 1
    for place in rng.choice(places, count) if len(places) else ():
        row, column = divmod(int(place), _TEXTURE)
        # Only the neighbourhood: full-size arithmetic for every spot made generation three times slower.
        window = np.s_[max(row - reach, 0) : row + reach + 1, max(column - reach, 0) : column + reach + 1]
        size = radius * rng.uniform(0.6, 1.4)
        distance = np.hypot(u[window] - u[row, column], v[window] - v[row, column])
        cover[window] = np.maximum(cover[window], _sigmoid((size - distance) / (0.15 * size)))
    return cover
