"""Augmentation of whole batches on the device, from the cached frame to the size the network trains on.

A training image should look like the image the same network reads in use: an image that was resampled twice is softer,
and a network trained on softer images is worse on sharp ones (Touvron et al., NeurIPS 2019, arXiv:1906.06423). So the
cache keeps the aspect and about twice the pixels, and `Augment.apply` goes to the training size in one warp, with
antialiasing that fits the scale. `tests/data/test_augment.py` compares sharpness, mean and spread with the
processor's.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from ham10000.modeling import Ham10000Processor
from ham10000.training.config import TrainConfig

# A mixed batch's targets: (labels, share of the loss), the shares summing to 1.
Targets = list[tuple[torch.Tensor, float]]
# Pixels of the shrunk frame to each pixel of the warp, in each direction. Bilinear sampling of fewer softens, of more
# it aliases; with two, warped images of HAM10000 keep the sharpness of one antialiased resize within a tenth at
# every size from 64 to 224 px.
OVERSAMPLING = 2


def working_size(frame: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """The smallest (height, width) of the frame's aspect that covers `size`: where the warp ends before the squash."""
    scale = max(size[0] / frame[0], size[1] / frame[1])
    return (round(frame[0] * scale), round(frame[1] * scale))


def interpolation(processor: Ham10000Processor) -> str:
    """The name of the antialiased filter that a processor resizes with, or its nearest of torch's two."""
    return "bilinear" if processor.image_processor.resample == 2 else "bicubic"


class AugmentParameters(NamedTuple):
    """The changes of each image of a batch."""

    affine: torch.Tensor  # (batch, 2, 3) float32, output to input coordinates in [-1, 1] as `affine_grid` reads it
    brightness: torch.Tensor  # (batch,) factor
    contrast: torch.Tensor  # (batch,) factor about the image's mean grey
    color: torch.Tensor  # (batch, 3, 3) float32, the saturation and hue matrix applied to RGB

    def to(self, device: torch.device, share: slice = slice(None)) -> "AugmentParameters":
        """Those of all images, or of a share of them, on another device."""
        return AugmentParameters(*(value[share].to(device, non_blocking=True) for value in self))


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random flips, rotation, resized crop and colour jitter.

    The ranges are those of torchvision's RandomHorizontalFlip, RandomRotation, RandomResizedCrop (aspect ratio 3/4 to
    4/3, relative to the frame's own) and ColorJitter. Drawing (`sample`) is apart from applying (`apply`), so that any
    number of processes can draw the same parameters for a global batch and each apply its share.

    Args:
        flip: Flip horizontally and vertically, each with probability 0.5.
        rotation: Largest rotation, in degrees.
        min_area: Smallest share of the area a crop keeps; 1 is no crop.
        color_jitter: Brightness, contrast and saturation factors lie in 1 +- this; hue turns by up to a tenth of a
            full turn times this.
        padding: What `grid_sample` sees beyond the border: `reflection`, `zeros` or `border`.
        interpolation: Filter of the antialiased resizing, the processor's: `bicubic` or `bilinear`.
    """

    flip: bool = True
    rotation: float = 0.0
    min_area: float = 1.0
    color_jitter: float = 0.0
    padding: str = "reflection"
    interpolation: str = "bicubic"

    @classmethod
    def from_config(cls, config: TrainConfig, processor: Ham10000Processor, *, color: bool = True) -> "Augment":
        """The augmentation of a run, with its processor's filter; for views at inference without changes of colour."""
        return cls(
            flip=config.augment_flip,
            rotation=config.augment_rotation,
            min_area=config.augment_min_area,
            color_jitter=config.augment_color if color else 0.0,
            padding=config.augment_padding,
            interpolation=interpolation(processor),
        )

    def sample(self, batch_size: int, generator: torch.Generator, aspect: float = 1.0) -> AugmentParameters:
        """Draws the parameters of a batch on the CPU, the same on every machine.

        A rotation is one of the frame, in pixels, of `aspect` (width over height), before it is squashed to the
        network's square: a round lesion stays as round as the network sees it in use.
        """

        def uniform(low: float, high: float) -> torch.Tensor:
            return torch.rand(batch_size, generator=generator) * (high - low) + low

        angle = uniform(-self.rotation, self.rotation) * math.pi / 180
        area = uniform(self.min_area, 1.0)
        ratio = torch.exp(uniform(-1.0, 1.0) * (math.log(4 / 3) if self.min_area < 1 else 0.0))
        width = (area * ratio).sqrt().clamp(max=1)
        height = (area / ratio).sqrt().clamp(max=1)
        center_x = uniform(-1.0, 1.0) * (1 - width)
        center_y = uniform(-1.0, 1.0) * (1 - height)
        sign_x = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0) if self.flip else torch.ones(batch_size)
        sign_y = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0) if self.flip else torch.ones(batch_size)
        cos, sin = torch.cos(angle), torch.sin(angle)
        affine = torch.stack(
            [width * sign_x * cos, -height * sign_y * sin / aspect, center_x]
            + [width * sign_x * sin * aspect, height * sign_y * cos, center_y],
            dim=1,
        ).view(-1, 2, 3)
        jitter = self.color_jitter
        return AugmentParameters(
            affine=affine,
            brightness=uniform(1 - jitter, 1 + jitter),
            contrast=uniform(1 - jitter, 1 + jitter),
            color=_saturation_hue(uniform(1 - jitter, 1 + jitter), uniform(-jitter, jitter) * 0.1 * 2 * math.pi),
        )

    def apply(
        self, images: torch.Tensor, parameters: AugmentParameters, size: tuple[int, int] | None = None
    ) -> torch.Tensor:
        """Augments a batch.

        The frame is shrunk, antialiased, to `OVERSAMPLING` times the pixels that are needed (a level of a mip map,
        Williams, SIGGRAPH 1983, 10.1145/800059.801126), warped bilinearly at its own aspect, and squashed to `size`
        by an antialiased resize. Whole batches, no loop over images: a CPU and a GPU run the same calls.

        Args:
            images: (batch, 3, height, width) uint8, frames of one size.
            parameters: As `sample` gives them, on the same device.
            size: (height, width) of the result; by default the frame's.

        Returns:
            (batch, 3, *size) float32 in 0..255, on the images' device.
        """
        size = size or (images.shape[2], images.shape[3])
        # Where the geometry stays, training images are the processor's.
        warps = self.flip or self.rotation > 0 or self.min_area < 1
        output = self._warp(images, parameters, size) if warps else self._resize(images, size).float()
        if not self.color_jitter:
            return output
        # Brightness b, then contrast c about the mean grey m, then the chroma matrix M, which leaves greys alone:
        # M((b x - m) c + m) = (b c M) x + (1 - c) m. One matrix product instead of a pass over memory for each.
        brightness, contrast = parameters.brightness, parameters.contrast
        luma = torch.tensor([0.2989, 0.587, 0.114], device=output.device)  # torchvision's rgb_to_grayscale, Rec. 601
        mean_grey = brightness * (output.mean(dim=(2, 3)) @ luma)  # (B,)
        matrix = (brightness * contrast).view(-1, 1, 1) * parameters.color
        shift = ((1 - contrast) * mean_grey).view(-1, 1, 1)
        return torch.bmm(matrix, output.flatten(2)).add_(shift).clamp_(0, 255).view_as(output)

    def _warp(self, images: torch.Tensor, parameters: AugmentParameters, size: tuple[int, int]) -> torch.Tensor:
        height, width = images.shape[2:]
        working = working_size((height, width), size)
        level = (OVERSAMPLING * working[0], OVERSAMPLING * working[1])
        if level[0] < height and level[1] < width:
            images = self._resize(images, level)
        grid = F.affine_grid(parameters.affine, [*images.shape[:2], *working], align_corners=False)
        output = F.grid_sample(
            images.float(), grid, mode="bilinear", padding_mode=self.padding, align_corners=False
        )  # (B, 3, *working)
        if working != size:
            output = self._resize(output, size).clamp_(0, 255)  # bicubic overshoots at edges
        return output

    def _resize(self, images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        if images.device.type != "cpu":
            images = images.float()  # only CPUs resize bytes, and that several times faster than floats
        if images.shape[2:] == size:
            return images
        return F.interpolate(images, size, mode=self.interpolation, antialias=True, align_corners=False)


def _saturation_hue(saturation: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """(batch, 3, 3) matrices that scale the chroma of RGB and turn it by `angle` radians in the YIQ plane."""
    to_yiq = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    cos, sin = saturation * torch.cos(angle), saturation * torch.sin(angle)
    one, zero = torch.ones_like(angle), torch.zeros_like(angle)
    chroma = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], dim=1).view(-1, 3, 3)
    return torch.linalg.inv(to_yiq) @ chroma @ to_yiq


def mix_batch(
    pixel_values: torch.Tensor, labels: torch.Tensor, *, mixup: float, cutmix: float, seed: int
) -> tuple[torch.Tensor, Targets]:
    """Mixes each image with the one opposite in the batch.

    mixup adds the two images (Zhang et al., ICLR 2018, arXiv:1710.09412, equation 1); CutMix pastes a box of one
    into the other (Yun et al., ICCV 2019, arXiv:1905.04899, equations 1 and 2). One share holds for the whole batch,
    drawn from Beta(alpha, alpha) and at least one half, so that an image keeps the larger part of itself: the
    metadata next to it stay its own. `mixup` and `cutmix` are the alphas, 0 for off; with both on, a fair coin
    chooses. The seed, which decides all of it, is the same on every process of a step.

    Returns the mixed images, and the targets of the loss: their labels and their partners', each with its share.
    """
    if not (mixup or cutmix) or len(labels) < 2:
        return pixel_values, [(labels, 1.0)]
    generator = np.random.default_rng(seed)
    cuts = bool(cutmix) and (not mixup or generator.random() < 0.5)
    alpha = cutmix if cuts else mixup
    share = float(generator.beta(alpha, alpha))
    share = max(share, 1 - share)
    partners = pixel_values.flip(0)
    if cuts:
        height, width = pixel_values.shape[2:]
        side = (1 - share) ** 0.5
        top, bottom = _span(height, side, generator)
        left, right = _span(width, side, generator)
        mixed = pixel_values.clone(memory_format=torch.preserve_format)
        mixed[:, :, top:bottom, left:right] = partners[:, :, top:bottom, left:right]
        # What the border cut off the box is not the partner's.
        share = 1 - (bottom - top) * (right - left) / (height * width)
    else:
        mixed = torch.lerp(partners, pixel_values, share)
    return mixed, [(labels, share), (labels.flip(0), 1 - share)]


def _span(length: int, share: float, generator: np.random.Generator) -> tuple[int, int]:
    """A stretch of the given share about a random centre, cut off at the borders."""
    center, half = int(generator.integers(length)), int(length * share) // 2
    return max(0, center - half), min(length, center + half)
