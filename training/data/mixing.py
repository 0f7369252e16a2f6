"""Mixup and CutMix: pictures of a batch mixed in pairs, and their labels with them."""

import numpy as np
import torch

# A mixed batch's targets: (labels, share of the loss), the shares summing to 1.
Targets = list[tuple[torch.Tensor, float]]


def mix_batch(
    pixel_values: torch.Tensor, labels: torch.Tensor, *, mixup: float, cutmix: float, seed: int
) -> tuple[torch.Tensor, Targets]:
    """Mixes each picture with the one opposite in the batch.

    mixup adds the two pictures (Zhang et al., ICLR 2018, arXiv:1710.09412, equation 1); CutMix pastes a box of one
    into the other (Yun et al., ICCV 2019, arXiv:1905.04899, equations 1 and 2). One share holds for the whole batch,
    drawn from Beta(alpha, alpha) and at least one half, so that a picture keeps the larger part of itself: the
    metadata beside it stay its own. With both kinds on, a fair coin chooses.

    Args:
        pixel_values: (batch, 3, height, width) float, normalised.
        labels: (batch,) int64.
        mixup: alpha of mixup; 0 is off.
        cutmix: alpha of CutMix; 0 is off.
        seed: Decides the kind, the share and the box; the same on every process of a step.

    Returns:
        The mixed pictures, and the targets of the loss: the own labels and the partners', each with its share.
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


__all__ = ["Targets", "mix_batch"]
