"""Turns an image in any of the usual forms into the backbone's pixel values."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

from .configuration_ham10000 import Ham10000Error, find_misspelt
from .image_statistics_ham10000 import ImageStatistics, check_image_statistics, unlike_warning

# What torch resizes as Pillow does, by the number of Pillow's filter.
_TORCH_MODES = {2: "bilinear", 3: "bicubic"}
_SETTINGS = ("size", "resample", "image_mean", "image_std", "resizer", "image_statistics")
_RESAMPLES = {int(method): method for method in Image.Resampling}
# Raster formats only: Pillow hands EPS files, whatever their name, to Ghostscript, which runs the program in them.
Image.init()  # loads the plugins, of which a build of Pillow may lack some
IMAGE_FORMATS = tuple({"BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"} & Image.OPEN.keys())
# Far above any backbone's; a saved size beyond it is a mistake, or an attempt to exhaust the memory.
MAX_SIDE = 4096


def load_image(image: Any) -> Image.Image:
    """Opens an image and brings it to 8-bit RGB, upright as its EXIF orientation says.

    Args:
        image: A PIL image of any mode (the first frame of an animated one), a path, encoded bytes, or an array or
            tensor of shape (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels: uint8, uint16, or floating point
            in [0, 1]. Transparent pixels are shown on white. URLs are not fetched.

    Returns:
        An RGB image.

    Raises:
        Ham10000Error: If the image cannot be read, naming the file or the offending values.
    """
    if isinstance(image, (str, Path)):
        if str(image).startswith(("http://", "https://")):
            raise Ham10000Error(f"URLs are not fetched, got {str(image)!r}: download the image and pass its path.")
        return _to_rgb(image, f"image file {str(image)!r}")
    if isinstance(image, (bytes, bytearray)):
        return _to_rgb(io.BytesIO(image), f"image of {len(image)} bytes")
    if isinstance(image, Image.Image):
        return _to_rgb(image, f"PIL image of mode {image.mode}")
    if isinstance(image, torch.Tensor):
        try:
            image = image.detach().cpu()
            image = (image.float() if image.dtype == torch.bfloat16 else image).numpy()  # numpy has no bfloat16
        except (NotImplementedError, RuntimeError, TypeError) as error:  # sparse, quantised, on the meta device
            raise Ham10000Error(f"Cannot read an image tensor of {image.dtype}, {image.layout}: {error}.") from error
    if isinstance(image, np.ndarray):
        return _to_rgb(_array_to_pil(image), "array")
    raise Ham10000Error(
        f"Cannot read an image of type {type(image).__name__}; expected a path, bytes, PIL image, array or tensor."
    )


def _to_rgb(source: Any, name: str) -> Image.Image:
    """An opened image, or a path or stream of an encoded one, as RGB; the name is for messages."""
    try:
        if isinstance(source, Image.Image):
            return _convert(source)
        with Image.open(source, formats=IMAGE_FORMATS) as image:
            return _convert(image)
    except Ham10000Error as error:
        raise Ham10000Error(f"The {name} cannot be used: {error}") from error
    except Exception as error:  # by format and damage, Pillow raises a dozen types: struct.error, IndexError, ...
        reason = str(error) or type(error).__name__
        raise Ham10000Error(
            f"Cannot read {name}: {reason}. Expected a complete JPEG, PNG or similar image."
        ) from error


def _convert(image: Image.Image) -> Image.Image:
    if 0 in image.size:
        raise Ham10000Error(f"it is empty: {image.width} x {image.height} pixels.")
    if getattr(image, "n_frames", 1) > 1:
        image.seek(0)
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        return image if image.info.get("transparency") is None else _flatten(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow clips 16-bit grey values at 255 instead of scaling them.
        values = np.asarray(image).astype(np.int64)
        if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise Ham10000Error("it holds values outside 0..65535; convert it to 8 or 16 bits.")
        return Image.fromarray((values // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        return _array_to_pil(np.asarray(image)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _flatten(image)
    return image.convert("RGB")


def _flatten(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _array_to_pil(array: np.ndarray) -> Image.Image:
    shape = array.shape
    if array.ndim == 3 and shape[2] not in (1, 3, 4) and shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        raise Ham10000Error(f"An image array must be (H, W), (H, W, C) or (C, H, W) with C of 1, 3 or 4, got {shape}.")
    if array.dtype == np.uint16:
        array = (array // 257).astype(np.uint8)
    elif np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):  # also catches NaN
            raise Ham10000Error(f"A floating-point image must lie in [0, 1] without NaN, got {low:g} to {high:g}.")
        array = np.rint(array * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise Ham10000Error(f"An image array must be uint8, uint16 or floating point in [0, 1], got {array.dtype}.")
    return Image.fromarray(np.ascontiguousarray(array))


class Ham10000ImageProcessor(BaseImageProcessor):
    """Decodes, resizes to a fixed size (the aspect ratio is not kept) and normalises.

    The numbers belong to the backbone and are saved with the checkpoint. One PIL path serves training, evaluation and
    prediction: `resize` is what the training cache stores, `normalize_pixels` what both apply last.

    Args:
        size: `{"height": h, "width": w}` in pixels, or one int for a square.
        resample: PIL resampling filter: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic, 4 box, 5 Hamming.
        image_mean: Mean of each RGB channel, for values in [0, 1].
        image_std: Standard deviation of each RGB channel, likewise.
        resizer: `"pillow"`, or `"torch"`, which takes a sixth of the time and differs from it by at most two of 255
            levels; for the bilinear and bicubic filters only.
        image_statistics: Colours and textures of the training images, from `fit_image_statistics`, which
            `unlike_training` compares with; None for no such warning.
        **kwargs: Keys that a library has saved, kept as they are; none where the processor is not read from a file.

    Raises:
        Ham10000Error: For an unknown setting, such as transformers' `do_normalize`, or a value out of range.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        size: dict[str, int] | int | None = None,
        resample: int = 3,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        resizer: str = "pillow",
        image_statistics: ImageStatistics | None = None,
        **kwargs: Any,
    ):
        unknown = sorted(kwargs)
        if "image_processor_type" in kwargs:
            # transformers writes it into whatever it saves. What else it saves, in this release or the next, is kept,
            # unless it would have to change the pixels or looks like a misspelled setting.
            others = [key for key in self.valid_kwargs.__annotations__ if kwargs.get(key) is not None]
            unknown = [key for key in unknown if key in others or find_misspelt([key], _SETTINGS)]
        if unknown:
            raise Ham10000Error(f"Unknown image processor setting(s) {unknown}; expected {', '.join(_SETTINGS)}.")
        super().__init__(**kwargs)
        self.size = _checked_size(224 if size is None else size)
        if not isinstance(resample, int) or resample not in _RESAMPLES:
            raise Ham10000Error(f"`resample` must be one of {sorted(_RESAMPLES)}, got {resample!r}.")
        self.resample = int(resample)
        self.image_mean = _three_numbers("image_mean", [0.485, 0.456, 0.406] if image_mean is None else image_mean)
        self.image_std = _three_numbers("image_std", [0.229, 0.224, 0.225] if image_std is None else image_std, 0)
        self.resizer = resizer
        if resizer not in ("pillow", "torch") or (resizer == "torch" and self.resample not in _TORCH_MODES):
            raise Ham10000Error(
                f"`resizer` must be 'pillow', or 'torch' with a resample of {sorted(_TORCH_MODES)}, got {resizer!r} "
                f"with resample {resample}."
            )
        if image_statistics is not None:
            check_image_statistics(image_statistics)
        self.image_statistics = image_statistics

    def unlike_training(self, image: Any) -> str | None:
        """A warning for an image that is unlike the training images, else None; None too without `image_statistics`.

        Args:
            image: One image in a form `load_image` reads.

        Raises:
            Ham10000Error: If the image cannot be read.
        """
        return None if self.image_statistics is None else unlike_warning(load_image(image), self.image_statistics)

    def resize(self, image: Any) -> np.ndarray:
        """Any image `load_image` reads to (height, width, 3) uint8."""
        return np.ascontiguousarray(self.resize_planes(image).transpose(1, 2, 0))

    def resize_planes(self, image: Any) -> np.ndarray:
        """The same as (3, height, width) uint8, which is what torch's resizer makes."""
        rgb = load_image(image)
        size = (self.size["width"], self.size["height"])
        if rgb.size == size or self.resizer == "pillow":
            resized = rgb if rgb.size == size else rgb.resize(size, _RESAMPLES[self.resample])
            return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))
        pixels = torch.from_numpy(np.array(rgb)).permute(2, 0, 1)[None]  # (1, 3, H, W) uint8
        mode = _TORCH_MODES[self.resample]
        return F.interpolate(pixels, size[::-1], mode=mode, antialias=True)[0].contiguous().numpy()

    def normalize_pixels(self, images: torch.Tensor) -> torch.Tensor:
        """(..., 3, H, W) uint8 in 0..255, or floating point in 0..255, to float32 pixel values of the same shape."""
        mean = torch.tensor(self.image_mean, dtype=torch.float32, device=images.device).view(3, 1, 1)
        std = torch.tensor(self.image_std, dtype=torch.float32, device=images.device).view(3, 1, 1)
        return images.float().div(255).sub_(mean).div_(std)

    def preprocess(self, images: Any, return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        """Prepares one image or a list of them.

        Args:
            images: One image or a list, each in a form `load_image` reads; also a 4-D array or tensor.
            return_tensors: `"pt"` or None for a float32 tensor, `"np"` for an array.
            **kwargs: None are accepted; settings are the processor's own.

        Returns:
            `pixel_values` of shape (batch, 3, height, width).

        Raises:
            Ham10000Error: If an image cannot be read, or for an unknown argument.
        """
        if kwargs:
            raise Ham10000Error(f"Unknown argument(s) {sorted(kwargs)}; change the processor's attributes instead.")
        if return_tensors not in (None, "pt", "np"):
            raise Ham10000Error(f"`return_tensors` must be 'pt' or 'np', got {return_tensors!r}.")
        if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
            images = list(images)
        if not isinstance(images, (list, tuple)):
            images = [images]
        if not images:
            raise Ham10000Error("`images` is empty; expected at least one image.")
        resized = np.stack([self.resize_planes(image) for image in images])  # (B, 3, H, W) uint8
        pixel_values = self.normalize_pixels(torch.from_numpy(resized))
        return BatchFeature({"pixel_values": pixel_values.numpy() if return_tensors == "np" else pixel_values})


def _checked_size(size: Any) -> dict[str, int]:
    try:
        sides = {"height": size, "width": size} if isinstance(size, int) else dict(size)
    except (TypeError, ValueError):
        sides = {}
    if set(sides) != {"height", "width"} or not all(type(s) is int and 1 <= s <= MAX_SIDE for s in sides.values()):
        raise Ham10000Error(
            f"`size` must be a positive int or {{'height': h, 'width': w}}, at most {MAX_SIDE}, got {size!r}."
        )
    return sides


def _three_numbers(name: str, values: Any, above: float = -math.inf) -> list[float]:
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != 3 or not all(above < number < math.inf for number in numbers):
        raise Ham10000Error(f"`{name}`: expected 3 means and 3 positive standard deviations, got {values!r}.")
    return numbers
