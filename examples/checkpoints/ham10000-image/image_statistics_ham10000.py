"""Whether an image is like those a model was trained on: one distance, one threshold; a warning, never a refusal.

A model knows its classes and nothing else: shown a temple, it still gives a probability to each of them. This distance
says how far an image's colours and textures are from those of the training images. After Lee, Lee, Lee & Shin, "A
simple unified framework for detecting out-of-distribution samples", NeurIPS 2018 (arXiv:1807.03888), but on hand-made
statistics of the image in place of a network's features, so that it needs no forward pass. No warning is not an
approval: an image of something else may have the same colours and textures.
"""

import math
from typing import TypedDict

import numpy as np
from PIL import Image

from .configuration_ham10000 import Ham10000Error

# Width and height in pixels at which the statistics are taken: small enough that an image's own resolution and its
# JPEG artefacts hardly count.
STATISTICS_SIZE = (96, 72)
QUANTILE = 0.99
N_FEATURES = 14
# Differences of a and b below this are not counted: nobody sees them (a just noticeable difference is about 2.3; Mahy,
# Van Eycken & Oosterlinck, Color Research & Application 19:105, 1994), and cameras and JPEG decide about them.
_COLOUR_FLOOR = 1.5
# A covariance needs several images per statistic.
_LEAST_IMAGES = 10 * N_FEATURES
# CIE 1931 XYZ of the sRGB primaries (IEC 61966-2-1), and the white of D65.
_XYZ = np.array(
    ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
)
_WHITE = _XYZ.sum(axis=1)


class ImageStatistics(TypedDict):
    """The colours and textures of training images, as JSON."""

    mean: list[float]  # (14,) in the order of `image_features`
    precision: list[list[float]]  # (14, 14), the inverse of the covariance
    threshold: float  # the distance within which 99 % of the images are


def rgb_to_lab(rgb: np.ndarray) -> np.ndarray:
    """Converts (..., 3) uint8 sRGB to (..., 3) float64 CIE L*a*b* under D65 (CIE 15:2004)."""
    values = np.asarray(rgb, dtype=np.float64) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _XYZ.T / _WHITE
    cubic = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = np.moveaxis(cubic, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def image_features(image: Image.Image) -> np.ndarray:
    """Statistics of colour and texture of an RGB image: (14,) float64, always finite."""
    if image.height > image.width:  # HAM10000 is landscape throughout; a turned camera changes nothing
        image = image.transpose(Image.Transpose.ROTATE_90)
    lab = rgb_to_lab(np.asarray(image.resize(STATISTICS_SIZE, Image.Resampling.BOX)))
    height, width = lab.shape[:2]
    rows, columns = np.mgrid[0:height, 0:width]
    radius = np.hypot((columns + 0.5) / width - 0.5, (rows + 0.5) / height - 0.5)
    centre, border = lab[radius < 0.2], lab[radius > 0.42]
    coarse = lab[..., 0].reshape(height // 8, 8, width // 8, 8).mean(axis=(1, 3))
    fine = _gradient(lab[..., 0])
    return np.array(
        [
            *lab.mean(axis=(0, 1)),  # of L, a and b
            _log(lab[..., 0].std()),
            *_log(lab[..., 1:].std(axis=(0, 1)), _COLOUR_FLOOR),
            *(centre.mean(axis=0) - border.mean(axis=0)),
            _log(border[:, 0].std()),
            _log(fine.mean()),
            _log(_gradient(coarse).mean()),
            _log(_gradient(lab[..., 1]).mean() + _gradient(lab[..., 2]).mean(), _COLOUR_FLOOR / 3),
            (fine < 0.25).mean(),  # the share of almost flat pixels
        ]
    )


def _gradient(channel: np.ndarray) -> np.ndarray:
    return np.hypot(*np.gradient(channel))


def _log(value: np.ndarray, floor: float = 0.1) -> np.ndarray:
    # An image of one colour has no spread at all, so there is always a floor.
    return np.log(np.maximum(value, floor))


def fit_image_statistics(features: np.ndarray) -> ImageStatistics | None:
    """Fits the distance to the features (N, 14) of training images.

    Returns:
        The statistics; None where the images are too few or too similar to tell others from them.
    """
    if len(features) <= _LEAST_IMAGES:
        return None
    covariance = np.cov(features, rowvar=False)
    if np.linalg.cond(covariance) > 1e12:
        return None
    mean, precision = features.mean(axis=0).tolist(), np.linalg.inv(covariance).tolist()
    statistics: ImageStatistics = {"mean": mean, "precision": precision, "threshold": math.inf}
    statistics["threshold"] = float(np.quantile(distances(features, statistics), QUANTILE))
    return statistics


def distances(features: np.ndarray, statistics: ImageStatistics) -> np.ndarray:
    """The Mahalanobis distances (...) of features (..., 14) from the training images."""
    offset = features - np.array(statistics["mean"])
    return np.sqrt(np.einsum("...i,ij,...j->...", offset, np.array(statistics["precision"]), offset))


def check_image_statistics(statistics: ImageStatistics) -> None:
    """Refuses what `fit_image_statistics` has not made: other keys, shapes, or numbers that are not finite."""
    shapes = {"mean": (N_FEATURES,), "precision": (N_FEATURES, N_FEATURES), "threshold": ()}
    try:
        arrays = {name: np.array(value, dtype=np.float64) for name, value in dict(statistics).items()}
        finite = all(np.isfinite(array).all() for array in arrays.values())
        right = finite and {name: array.shape for name, array in arrays.items()} == shapes
    except (TypeError, ValueError):
        right = False
    if not right:
        raise Ham10000Error(
            f"`image_statistics` must have a mean ({N_FEATURES}), a precision ({N_FEATURES} x {N_FEATURES}) and a "
            "threshold, as training writes them; leave it out for no warning of unlike images."
        )


def unlike_warning(image: Image.Image, statistics: ImageStatistics) -> str | None:
    """A warning with distance and threshold for an RGB image unlike the training images, else None.

    One in a hundred of the training images gets it too.
    """
    distance, threshold = float(distances(image_features(image), statistics)), statistics["threshold"]
    if distance <= threshold:
        return None
    return (
        "This image is unlike those the model was trained on: its colours and textures are at distance "
        f"{distance:.1f}, and {QUANTILE:.0%} of the training images are within {threshold:.1f}. What the model says "
        "about it means nothing."
    )
