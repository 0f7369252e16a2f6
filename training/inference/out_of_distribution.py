"""Whether an image looks like a dermatoscopic image at all: one distance, one threshold; a warning, never a refusal.

The models know seven classes and nothing else: shown a temple, they still answer with seven probabilities. This score
says how far an image's colours and textures lie from those of HAM10000, whatever model reads it afterwards. After
Lee, Lee, Lee & Shin, "A simple unified framework for detecting out-of-distribution samples", NeurIPS 2018
(arXiv:1807.03888), but on hand-made statistics of the image in place of a network's features, so that it needs no
checkpoint and is the same for all of them.

`out_of_distribution.json` contains the fit and what it was tried on;
`python examples/benchmarks/fit_out_of_distribution.py` makes it and prints its table. Two of the images tried pass
though they should not: a close photograph of a cat, brown and hairy, and a stained tissue section. So the absence of a
warning is not an approval.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from ham10000.modeling.configuration_ham10000 import Ham10000Error
from ham10000.modeling.image_processing_ham10000 import load_image
from ham10000.training.utils.files import JsonObject, read_json

# Width and height in pixels at which the statistics are taken: small enough that an image's own resolution and its
# JPEG artefacts hardly count.
PICTURE_SIZE = (96, 72)
# Differences of a and b below this are not counted: nobody sees them (a just noticeable difference is about 2.3; Mahy,
# Van Eycken & Oosterlinck, Color Research & Application 19:105, 1994), and cameras and JPEG decide about them.
COLOUR_FLOOR = 1.5
CONSTANTS = Path(__file__).with_name("out_of_distribution.json")

# CIE 1931 XYZ of the sRGB primaries (IEC 61966-2-1), and the white of D65.
_XYZ = np.array(
    ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
)
_WHITE = _XYZ.sum(axis=1)

FEATURES = (
    "mean L",
    "mean a",
    "mean b",
    "log SD L",
    "log SD a",
    "log SD b",
    "centre minus border L",
    "centre minus border a",
    "centre minus border b",
    "log SD L of the border",
    "log fine gradient of L",
    "log coarse gradient of L",
    "log fine gradient of a and b",
    "share of almost flat pixels",
)


@dataclass(frozen=True)
class Distribution:
    """The statistics of the images of a training set.

    Attributes:
        mean: (features,) float64.
        precision: (features, features) float64, the inverse of the covariance.
        threshold: Distance above which an image counts as out of distribution.
        quantile: Share of the training images that lie below the threshold, in (0, 1).
        provenance: The data, split hash, versions and commit of the fit.
    """

    mean: np.ndarray
    precision: np.ndarray
    threshold: float
    quantile: float
    provenance: JsonObject


def rgb_to_lab(rgb: np.ndarray) -> np.ndarray:
    """Converts (..., 3) uint8 sRGB to (..., 3) float64 CIE L*a*b* under D65 (CIE 15:2004)."""
    values = np.asarray(rgb, dtype=np.float64) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _XYZ.T / _WHITE
    cubic = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = np.moveaxis(cubic, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def picture_features(image: object) -> np.ndarray:
    """Returns the (features,) float64 statistics of colour and texture, in the order of `FEATURES`; always finite.

    Args:
        image: An image in any form `load_image` reads.

    Raises:
        Ham10000Error: If the image cannot be read.
    """
    loaded = load_image(image)
    if loaded.height > loaded.width:  # HAM10000 is landscape throughout; a turned camera changes nothing
        loaded = loaded.transpose(Image.Transpose.ROTATE_90)
    lab = rgb_to_lab(np.asarray(loaded.resize(PICTURE_SIZE, Image.Resampling.BOX)))
    height, width = lab.shape[:2]
    rows, columns = np.mgrid[0:height, 0:width]
    radius = np.hypot((columns + 0.5) / width - 0.5, (rows + 0.5) / height - 0.5)
    centre, border = lab[radius < 0.2], lab[radius > 0.42]
    coarse = lab[..., 0].reshape(height // 8, 8, width // 8, 8).mean(axis=(1, 3))
    fine = _gradient(lab[..., 0])
    return np.array(
        [
            *lab.mean(axis=(0, 1)),
            _log(lab[..., 0].std()),
            *_log(lab[..., 1:].std(axis=(0, 1)), COLOUR_FLOOR),
            *(centre.mean(axis=0) - border.mean(axis=0)),
            _log(border[:, 0].std()),
            _log(fine.mean()),
            _log(_gradient(coarse).mean()),
            _log(_gradient(lab[..., 1]).mean() + _gradient(lab[..., 2]).mean(), COLOUR_FLOOR / 3),
            (fine < 0.25).mean(),
        ]
    )


def _gradient(channel: np.ndarray) -> np.ndarray:
    return np.hypot(*np.gradient(channel))


def _log(value: np.ndarray, floor: float = 0.1) -> np.ndarray:
    # An image of one colour has no spread at all, so there is always a floor.
    return np.log(np.maximum(value, floor))


def mahalanobis(features: np.ndarray, distribution: Distribution) -> np.ndarray:
    """Returns the distances (...) of features (..., features) from a distribution, in units of its own spread."""
    offset = features - distribution.mean
    return np.sqrt(np.einsum("...i,ij,...j->...", offset, distribution.precision, offset))


def from_json(values: JsonObject, name: str = CONSTANTS.name) -> Distribution:
    """Reads the content of `out_of_distribution.json`.

    Args:
        values: The parsed file.
        name: Its name, for messages.

    Raises:
        Ham10000Error: Where it was made for other statistics than this code computes, or is damaged.
    """
    if (values.get("features"), values.get("picture_size")) != (list(FEATURES), list(PICTURE_SIZE)):
        raise Ham10000Error(f"{name} was fitted for other statistics; run fit_out_of_distribution again.")
    try:
        mean = np.array(values["mean"], dtype=np.float64).reshape(len(FEATURES))
        precision = np.array(values["precision"], dtype=np.float64).reshape(len(FEATURES), len(FEATURES))
        return Distribution(
            mean, precision, float(values["threshold"]), float(values["quantile"]), values["provenance"]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Ham10000Error(f"{name} is damaged: {error!r}; run fit_out_of_distribution again.") from error


@cache
def ham10000_distribution() -> Distribution:
    """The distribution of HAM10000's training images, which comes with this package."""
    return from_json(read_json(CONSTANTS), CONSTANTS.name)


def picture_warning(image: object) -> str | None:
    """Warns of an image that is probably not a dermatoscopic image.

    One in a hundred of HAM10000's own images gets the warning too. And no warning is not an approval: a close
    photograph of skin taken without a dermatoscope may pass.

    Args:
        image: An image in any form `load_image` reads.

    Returns:
        The warning with the distance and the threshold, or None for an image like those of HAM10000.

    Raises:
        Ham10000Error: If the image cannot be read.

    Example:
        >>> picture_warning(Image.new("RGB", (600, 450), "white"))
        'This is probably not a dermatoscopic image: ...'
    """
    distribution = ham10000_distribution()
    distance = float(mahalanobis(picture_features(image), distribution))
    if distance <= distribution.threshold:
        return None
    return (
        "This is probably not a dermatoscopic image: its colours and textures are unlike those of HAM10000 "
        f"(distance {distance:.1f}; {distribution.quantile:.0%} of its training images are below "
        f"{distribution.threshold:.1f}). The models know seven kinds of lesion and nothing else, so what they say "
        "about this image means nothing."
    )
