"""Images that pass for skin, and processors that tell them from others."""

import functools
import io

import numpy as np
from PIL import Image

from ham10000.modeling import LABELS, Ham10000Processor
from ham10000.modeling.image_statistics_ham10000 import fit_image_statistics, image_features
from ham10000.training.data.synthetic import Lesion, render


def skin_image(number: int, size: tuple[int, int] = (100, 75)) -> Image.Image:
    """A synthetic lesion, the same one for a number."""
    rng = np.random.default_rng(number)
    return render(Lesion.draw(LABELS[number % len(LABELS)], rng), rng, size)


def _as_jpeg(image: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG")
    return Image.open(stream).convert("RGB")


@functools.cache
def _statistics() -> dict:
    images = [skin_image(number, size) for number in range(60) for size in ((100, 75), (400, 300))]
    images += [_as_jpeg(image) for image in images]
    statistics = fit_image_statistics(np.stack([image_features(image) for image in images]))
    assert statistics is not None
    return statistics


def knows_skin(processor: Ham10000Processor) -> Ham10000Processor:
    """The processor with statistics of such images, JPEG or not."""
    processor.image_processor.image_statistics = _statistics()
    return processor
