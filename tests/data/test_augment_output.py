"""What augmentation gives back: pixels in 0..255 of the size asked for, and in their places."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ham10000.training.data.augment import Augment


def black_and_white(batch: int = 8) -> torch.Tensor:
    """Blocks of the darkest and the brightest pixels: every filter with negative weights overshoots at their edges."""
    blocks = torch.randint(0, 2, (batch, 3, 15, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return 255 * blocks.repeat_interleave(10, dim=2).repeat_interleave(10, dim=3)


@pytest.mark.parametrize("size", [None, (48, 48), (150, 150), (300, 200)], ids=str)
@pytest.mark.parametrize(
    "changes", [{"rotation": 45, "min_area": 0.5}, {"flip": False}, {}], ids=["warped", "resized", "flipped"]
)
@pytest.mark.parametrize("color_jitter", [0.0, 0.4])
def test_output_stays_in_range(changes: dict, color_jitter: float, size: tuple[int, int] | None) -> None:
    images = black_and_white()
    augment = Augment(**changes, color_jitter=color_jitter)
    output = augment.apply(images, augment.sample(8, torch.Generator().manual_seed(0), 4 / 3), size)
    assert output.shape == (8, 3, *(size or (150, 200)))
    assert output.dtype == torch.float32
    # Bilinear sampling rounds; a filter that overshoots does so by dozens.
    assert -1e-3 <= output.min() < 1
    assert 254 < output.max() <= 255 + 1e-3


def smooth_noise(batch: int = 4, height: int = 300, width: int = 400) -> torch.Tensor:
    """Images whose amplitude falls as 1 over the frequency, as that of photographs does."""
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    falling = 1 / np.maximum(np.hypot(rows, columns), 1 / width)
    noise = np.fft.rfft2(np.random.default_rng(0).standard_normal((batch, 3, height, width)))
    values = np.fft.irfft2(noise * falling, (height, width))
    return torch.from_numpy((128 + 40 * values / values.std()).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("size", [(96, 96), (128, 128), (150, 200)], ids=str)
@pytest.mark.parametrize("flipped", [False, True])
def test_a_warped_and_shrunk_image_is_near_one_antialiased_resize_pixel_by_pixel(
    size: tuple[int, int], flipped: bool
) -> None:
    images, sides = smooth_noise(), [2, 3] if flipped else []
    parameters = Augment(flip=False).sample(len(images), torch.Generator().manual_seed(0))
    if flipped:
        parameters.affine.neg_()  # both axes
    output = Augment().apply(images, parameters, size)
    expected = F.interpolate(images.flip(sides).float(), size, mode="bicubic", antialias=True)
    error = (output - expected).abs().mean()
    assert error < 0.1 * expected.std()
    # Not moved either: half a pixel off is much farther away.
    for side in (2, 3):
        halfway = (expected + expected.roll(1, side)) / 2
        assert error < 0.5 * (output - halfway).abs().mean()
