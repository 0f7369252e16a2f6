import math

import pytest
import torch
import torchvision.transforms.v2.functional as tvf

from ham10000.training.augment import Augment, AugmentParameters


def picture(batch: int = 2, height: int = 33, width: int = 33) -> torch.Tensor:
    return torch.randint(
        0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def parameters(
    angle: float = 0.0, flip_x: float = 1.0, flip_y: float = 1.0, **color: torch.Tensor
) -> AugmentParameters:
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    affine = torch.tensor([[[flip_x * cos, -flip_y * sin, 0.0], [flip_x * sin, flip_y * cos, 0.0]]])
    one = torch.ones(1)
    return AugmentParameters(affine, color.get("brightness", one), color.get("contrast", one), torch.eye(3)[None])


def test_no_augmentation_is_the_identity() -> None:
    images = picture()
    augment = Augment(flip=False)
    output = augment.apply(images, augment.sample(len(images), torch.Generator().manual_seed(0)))
    torch.testing.assert_close(output, images.float(), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("flip_x", "flip_y", "dimensions"), [(-1, 1, [3]), (1, -1, [2]), (-1, -1, [2, 3])])
def test_flips_equal_torch_flip(flip_x: float, flip_y: float, dimensions: list[int]) -> None:
    images = picture(batch=1)
    output = Augment().apply(images, parameters(flip_x=flip_x, flip_y=flip_y))
    torch.testing.assert_close(output, images.float().flip(dimensions), atol=1e-3, rtol=0)


@pytest.mark.parametrize("angle", [-15.0, 10.0, 90.0])
def test_rotation_equals_torchvision(angle: float) -> None:
    images = picture(batch=1)
    output = Augment(padding="zeros").apply(images, parameters(angle=angle))
    expected = tvf.rotate(images.float(), angle, interpolation=tvf.InterpolationMode.BILINEAR)
    # At the border torchvision masks what `grid_sample` blends with zeros.
    torch.testing.assert_close(output[..., 6:-6, 6:-6], expected[..., 6:-6, 6:-6], atol=0.5, rtol=0)


def test_crop_shows_the_middle_of_the_picture_enlarged() -> None:
    ramp = torch.arange(64, dtype=torch.uint8).expand(1, 3, 64, 64)
    half = AugmentParameters(
        torch.tensor([[[0.5, 0.0, 0.0], [0.0, 0.5, 0.0]]]), torch.ones(1), torch.ones(1), torch.eye(3)[None]
    )
    output = Augment().apply(ramp, half)[0, 0, 0]
    assert output[0].item() == pytest.approx(15.75, abs=0.1)
    assert output[-1].item() == pytest.approx(47.25, abs=0.1)


@pytest.mark.parametrize(("brightness", "contrast"), [(1.2, 1.0), (1.0, 0.8), (0.9, 1.15)])
def test_brightness_and_contrast_equal_torchvision(brightness: float, contrast: float) -> None:
    images = picture(batch=1) // 2 + 40  # stays inside 0..255, where torchvision does not clip in between
    drawn = parameters(brightness=torch.tensor([brightness]), contrast=torch.tensor([contrast]))
    output = Augment(color_jitter=0.2).apply(images, drawn)
    expected = tvf.adjust_contrast(tvf.adjust_brightness(images.float() / 255, brightness), contrast) * 255
    torch.testing.assert_close(output, expected, atol=0.2, rtol=0)


def test_saturation_equals_torchvision_and_hue_keeps_grey() -> None:
    from ham10000.training.augment import _saturation_hue

    images = picture(batch=1) // 2 + 60
    matrix = _saturation_hue(torch.tensor([0.7]), torch.tensor([0.0]))
    drawn = AugmentParameters(parameters().affine, torch.ones(1), torch.ones(1), matrix)
    expected = tvf.adjust_saturation(images.float() / 255, 0.7) * 255
    torch.testing.assert_close(Augment(color_jitter=0.1).apply(images, drawn), expected, atol=0.2, rtol=0)
    grey = torch.full((3,), 0.5)
    turned = _saturation_hue(torch.tensor([1.3]), torch.tensor([0.4]))[0] @ grey
    torch.testing.assert_close(turned, grey, atol=1e-3, rtol=0)


def test_sampled_ranges_and_determinism() -> None:
    augment = Augment(rotation=20, min_area=0.5, color_jitter=0.2)
    drawn = augment.sample(4000, torch.Generator().manual_seed(1))
    again = augment.sample(4000, torch.Generator().manual_seed(1))
    assert torch.equal(drawn.affine, again.affine)
    assert torch.equal(drawn.color, again.color)
    linear = drawn.affine[:, :, :2]
    area = torch.linalg.det(linear).abs()
    assert area.min() >= 0.5 - 1e-5
    assert area.max() <= 1 + 1e-5
    flipped = (torch.linalg.det(linear) < 0).float().mean()
    assert flipped.item() == pytest.approx(0.5, abs=0.04)  # one flip of two mirrors, two or none do not
    assert drawn.brightness.min() >= 0.8
    assert drawn.brightness.max() <= 1.2
    # The middle of every crop lies inside the picture, and so does the whole crop when it is not rotated.
    upright = Augment(min_area=0.5).sample(4000, torch.Generator().manual_seed(2)).affine
    reach = upright[:, :, :2].abs().sum(dim=2) + upright[:, :, 2].abs()
    assert reach.max() <= 1 + 1e-5


def test_output_stays_in_range() -> None:
    augment = Augment(rotation=45, min_area=0.5, color_jitter=0.4)
    images = picture(batch=16)
    output = augment.apply(images, augment.sample(16, torch.Generator().manual_seed(0)))
    assert output.min() >= 0
    assert output.max() <= 255
    assert output.shape == images.shape
    assert output.dtype == torch.float32


def test_a_smaller_result_equals_torch_interpolate() -> None:
    images = torch.randint(0, 256, (2, 3, 24, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    parameters = Augment(flip=False).sample(2, torch.Generator().manual_seed(0))
    smaller = Augment(flip=False).apply(images, parameters, (12, 16))
    expected = torch.nn.functional.interpolate(images.float(), size=(12, 16), mode="bilinear", align_corners=False)
    torch.testing.assert_close(smaller, expected, atol=1e-3, rtol=0)
