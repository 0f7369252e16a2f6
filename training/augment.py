"""Augmentation of whole batches on the device: one affine resampling, then colour, normalisation left to last."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

# Rec. 601 luma, as torchvision's rgb_to_grayscale has it.
_LUMA = (0.2989, 0.587, 0.114)


@dataclass(frozen=True)
class AugmentParameters:
    """What happens to each picture of a batch.

    Attributes:
        affine: (batch, 2, 3) float32, maps output to input coordinates in [-1, 1] as `affine_grid` reads it.
        brightness: (batch,) factor.
        contrast: (batch,) factor about the picture's mean grey.
        color: (batch, 3, 3) float32, the saturation and hue matrix applied to RGB.
    """

    affine: torch.Tensor
    brightness: torch.Tensor
    contrast: torch.Tensor
    color: torch.Tensor

    def select(self, index: slice | torch.Tensor) -> "AugmentParameters":
        """The parameters of some of the pictures."""
        return AugmentParameters(self.affine[index], self.brightness[index], self.contrast[index], self.color[index])

    def to(self, device: torch.device) -> "AugmentParameters":
        """The same on another device."""
        return AugmentParameters(
            *(
                value.to(device, non_blocking=True)
                for value in (self.affine, self.brightness, self.contrast, self.color)
            )
        )


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random flips, rotation, resized crop and colour jitter.

    The ranges are those of torchvision's RandomHorizontalFlip, RandomRotation, RandomResizedCrop (aspect ratio 3/4 to
    4/3) and ColorJitter. Drawing (`sample`) is apart from applying (`apply`), so that any number of processes can draw
    the same parameters for a global batch and each apply its share.

    Args:
        flip: Flip horizontally and vertically, each with probability 0.5.
        rotation: Largest rotation, in degrees.
        min_area: Smallest share of the area a crop keeps; 1 is no crop.
        color_jitter: Brightness, contrast and saturation factors lie in 1 +- this; hue turns by up to a tenth of a
            full turn times this.
        padding: What `grid_sample` sees beyond the border: `reflection`, `zeros` or `border`.
    """

    flip: bool = True
    rotation: float = 0.0
    min_area: float = 1.0
    color_jitter: float = 0.0
    padding: str = "reflection"

    def sample(self, batch_size: int, generator: torch.Generator) -> AugmentParameters:
        """Draws the parameters of a batch on the CPU.

        Args:
            batch_size: Number of pictures.
            generator: Source of randomness; the same state gives the same parameters on every machine.

        Returns:
            The parameters.
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
            [
                torch.stack([width * sign_x * cos, -width * sign_y * sin, center_x], dim=1),
                torch.stack([height * sign_x * sin, height * sign_y * cos, center_y], dim=1),
            ],
            dim=1,
        )  # (B, 2, 3)
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

        Args:
            images: (batch, 3, height, width) uint8.
            parameters: As `sample` gives them, on the same device.
            size: (height, width) of the result, no larger than the images; by default theirs.

        Returns:
            (batch, 3, *size) float32 in 0..255, on the images' device.
        """
        # Another size costs nothing more: the one resampling there is makes it.
        grid = F.affine_grid(parameters.affine, [*images.shape[:2], *(size or images.shape[2:])], align_corners=False)
        output = F.grid_sample(
            images.float(), grid, mode="bilinear", padding_mode=self.padding, align_corners=False
        )  # (B, 3, H, W)
        if not self.color_jitter:
            return output
        # Brightness b, then contrast c about the mean grey m, then the chroma matrix M, which leaves greys alone:
        # M((b x - m) c + m) = (b c M) x + (1 - c) m. One matrix product instead of a pass over memory for each.
        brightness, contrast = parameters.brightness, parameters.contrast
        luma = torch.tensor(_LUMA, device=output.device)
        mean_grey = brightness * (output.mean(dim=(2, 3)) @ luma)  # (B,)
        matrix = (brightness * contrast).view(-1, 1, 1) * parameters.color
        shift = ((1 - contrast) * mean_grey).view(-1, 1, 1)
        return torch.bmm(matrix, output.flatten(2)).add_(shift).clamp_(0, 255).view_as(output)


def _saturation_hue(saturation: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """(batch, 3, 3) matrices that scale the chroma of RGB and turn it by `angle` radians in the YIQ plane."""
    to_yiq = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    cos, sin = saturation * torch.cos(angle), saturation * torch.sin(angle)
    chroma = torch.zeros(len(angle), 3, 3)
    chroma[:, 0, 0] = 1
    chroma[:, 1, 1], chroma[:, 1, 2] = cos, -sin
    chroma[:, 2, 1], chroma[:, 2, 2] = sin, cos
    return torch.linalg.inv(to_yiq) @ chroma @ to_yiq


__all__ = ["Augment", "AugmentParameters"]
