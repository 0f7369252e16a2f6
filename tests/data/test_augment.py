import math
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as tvf
from PIL import Image
from scipy import stats
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy

from ham10000.modeling import Ham10000Config, create_processor
from ham10000.training.config import TrainConfig
from ham10000.training.data.augment import Augment, AugmentParameters, _saturation_hue, mix_batch
from ham10000.training.data.loader import open_images
from ham10000.training.data.sources import load_data
from ham10000.training.engine import ClassificationLoss


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(batch: int = 1, height: int = 33, width: int = 33) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=seeded())


def photographs(batch: int, height: int, width: int) -> np.ndarray:
    """(batch, 3, height, width) uint8, noise whose amplitude is 1 over the frequency: what sharpness is of."""
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    falling = 1 / np.maximum(np.hypot(rows, columns), 1 / width)
    noise = np.random.default_rng(0).standard_normal((batch, 3, height, width), dtype=np.float32)
    values = np.fft.irfft2(np.fft.rfft2(noise) * falling, (height, width))
    values -= values.mean((2, 3), keepdims=True)
    return (128 + 40 * values / values.std((2, 3), keepdims=True)).clip(0, 255).astype(np.uint8)


def parameters(
    angle: float = 0.0, scale: Sequence[float] = (1, 1), color: torch.Tensor | None = None, **factors: float
) -> AugmentParameters:
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    affine = torch.tensor([[[scale[0] * cos, -scale[1] * sin, 0.0], [scale[0] * sin, scale[1] * cos, 0.0]]])
    brightness, contrast = (torch.tensor([factors.get(name, 1.0)]) for name in ("brightness", "contrast"))
    return AugmentParameters(affine, brightness, contrast, torch.eye(3)[None] if color is None else color)


@pytest.mark.parametrize(("scale", "sides"), [((1, 1), []), ((-1, 1), [3]), ((1, -1), [2]), ((-1, -1), [2, 3])])
def test_flips_equal_torch_flip(scale: tuple[float, float], sides: list[int]) -> None:
    output = Augment().apply(picture(), parameters(scale=scale))
    torch.testing.assert_close(output, picture().float().flip(sides), atol=1e-3, rtol=0)


@pytest.mark.parametrize("angle", [-15.0, 90.0])
def test_rotation_equals_torchvision(angle: float) -> None:
    output = Augment(padding="zeros").apply(picture(), parameters(angle=angle))
    expected = tvf.rotate(picture().float(), angle, interpolation=tvf.InterpolationMode.BILINEAR)
    # At the border torchvision masks what `grid_sample` blends with zeros.
    torch.testing.assert_close(output[..., 6:-6, 6:-6], expected[..., 6:-6, 6:-6], atol=0.5, rtol=0)


def test_crop_shows_the_middle_of_the_picture_enlarged() -> None:
    ramp = torch.arange(64, dtype=torch.uint8).expand(1, 3, 64, 64)
    output = Augment().apply(ramp, parameters(scale=(0.5, 0.5)))[0, 0, 0]
    assert output[[0, -1]].tolist() == pytest.approx([15.75, 47.25], abs=0.1)


@pytest.mark.parametrize(("brightness", "contrast"), [(1.2, 1.0), (1.0, 0.8), (0.9, 1.15)])
def test_brightness_and_contrast_equal_torchvision(brightness: float, contrast: float) -> None:
    images = picture() // 2 + 40  # stays inside 0..255, where torchvision does not clip in between
    output = Augment(color_jitter=0.2).apply(images, parameters(brightness=brightness, contrast=contrast))
    expected = tvf.adjust_contrast(tvf.adjust_brightness(images.float() / 255, brightness), contrast) * 255
    torch.testing.assert_close(output, expected, atol=0.2, rtol=0)


def test_saturation_equals_torchvision_and_hue_keeps_grey() -> None:
    images = picture() // 2 + 60
    drawn = parameters(color=_saturation_hue(torch.tensor([0.7]), torch.tensor([0.0])))
    expected = tvf.adjust_saturation(images.float() / 255, 0.7) * 255
    torch.testing.assert_close(Augment(color_jitter=0.1).apply(images, drawn), expected, atol=0.2, rtol=0)
    grey = torch.full((3,), 0.5)
    turned = _saturation_hue(torch.tensor([1.3]), torch.tensor([0.4]))[0] @ grey
    torch.testing.assert_close(turned, grey, atol=1e-3, rtol=0)


def test_sampled_ranges_and_determinism() -> None:
    augment = Augment(rotation=20, min_area=0.5, color_jitter=0.2)
    drawn = augment.sample(4000, seeded(1))
    assert all(map(torch.equal, drawn, augment.sample(4000, seeded(1))))
    area = torch.linalg.det(drawn.affine[:, :, :2])
    assert ((area.abs() >= 0.5 - 1e-5) & (area.abs() <= 1 + 1e-5)).all()
    assert (area < 0).float().mean().item() == pytest.approx(0.5, abs=0.04)  # one flip of two mirrors, not two or none
    assert ((drawn.brightness >= 0.8) & (drawn.brightness <= 1.2)).all()
    # The middle of every crop lies inside the image, and so does the whole crop when it is not rotated.
    upright = Augment(min_area=0.5).sample(4000, seeded(2)).affine
    reach = upright[:, :, :2].abs().sum(dim=2) + upright[:, :, 2].abs()
    assert reach.max() <= 1 + 1e-5


def test_a_rotation_is_one_of_the_frame_before_it_is_squashed() -> None:
    """A disc stays the ellipse that the squash makes of it, whatever the angle; rotated after it, it would tilt."""
    rows, columns = torch.meshgrid(torch.arange(240) - 119.5, torch.arange(320) - 159.5, indexing="ij")
    disc = (255 * ((rows**2 + columns**2) < 30**2).byte()).expand(1, 3, 240, 320)
    augment = Augment(flip=False, rotation=45)
    for seed in range(5):
        turned = augment.sample(1, seeded(seed), aspect=320 / 240)
        ys, xs = (augment.apply(disc, turned, (96, 96))[0, 0] > 127).nonzero(as_tuple=True)
        sides = (int(ys.max() - ys.min()) + 1, int(xs.max() - xs.min()) + 1)
        assert sides == pytest.approx((24, 18), abs=1.01)  # 60 of 240 rows, 60 of 320 columns, of 96
        covariance = torch.cov(torch.stack([ys.double(), xs.double()]))
        assert abs(covariance[0, 1]) < 0.02 * covariance[0, 0]


@pytest.mark.parametrize("size", [None, (48, 48), (150, 150), (300, 200)], ids=str)
@pytest.mark.parametrize("changes", [{"rotation": 45, "min_area": 0.5}, {"flip": False}, {}], ids=str)
@pytest.mark.parametrize("color_jitter", [0.0, 0.4])
def test_output_stays_in_range(changes: dict, color_jitter: float, size: tuple[int, int] | None) -> None:
    """Of blocks of the darkest and the brightest pixels, at whose edges filters with negative weights overshoot."""
    blocks = torch.randint(0, 2, (8, 3, 15, 20), generator=seeded(), dtype=torch.uint8)
    images = 255 * blocks.repeat_interleave(10, dim=2).repeat_interleave(10, dim=3)
    augment = Augment(**changes, color_jitter=color_jitter)
    output = augment.apply(images, augment.sample(8, seeded(), 4 / 3), size)
    assert (output.shape, output.dtype) == ((8, 3, *(size or (150, 200))), torch.float32)
    # Bilinear sampling rounds; a filter that overshoots does so by dozens.
    assert -1e-3 <= output.min() < 1
    assert 254 < output.max() <= 255 + 1e-3


@pytest.mark.parametrize("size", [(96, 96), (128, 128), (150, 200)], ids=str)
@pytest.mark.parametrize("flipped", [False, True])
def test_a_warped_and_shrunk_image_is_near_one_antialiased_resize_pixel_by_pixel(size, flipped: bool) -> None:
    images = torch.from_numpy(photographs(4, 300, 400))
    drawn = Augment(flip=False).sample(len(images), seeded())
    if flipped:
        drawn.affine.neg_()  # both axes
    output = Augment().apply(images, drawn, size)
    expected = F.interpolate(images.flip([2, 3] if flipped else []).float(), size, mode="bicubic", antialias=True)
    error = (output - expected).abs().mean()
    assert error < 0.1 * expected.std()
    # Not moved either: half a pixel off is much farther away.
    for side in (2, 3):
        halfway = (expected + expected.roll(1, side)) / 2
        assert error < 0.5 * (output - halfway).abs().mean()


CONFIG = Ham10000Config(modality="image", backbone="tf_efficientnetv2_b0")
# The augmentation and the largest difference that it may make.
AUGMENTATIONS = [(Augment(flip=False), 0.03), (Augment.from_config(TrainConfig(), create_processor(CONFIG)), 0.10)]


def statistics(pixels: torch.Tensor) -> torch.Tensor:
    """What a network sees first: sharpness, and mean and standard deviation of each channel."""
    luma = (pixels.float() * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    laplacian = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]).view(1, 1, 3, 3)
    sharpness = F.conv2d(luma, laplacian).flatten(1).std(dim=1).mean(dim=0, keepdim=True)
    return torch.cat([sharpness, pixels.mean(dim=(0, 2, 3)), pixels.std(dim=(2, 3)).mean(dim=0)])


@pytest.fixture(scope="module")
def synthetic() -> datasets.Dataset:
    images = [Image.fromarray(pixels) for pixels in photographs(16, 450, 600).transpose(0, 2, 3, 1)]
    return datasets.Dataset.from_dict({"image": images, "image_id": [str(number) for number in range(16)]})


@pytest.fixture(scope="module")
def real(shared_dir: Path) -> datasets.Dataset:
    dataset, _ = load_data(str(shared_dir / "ham10000"))
    return dataset.select(range(0, len(dataset), 100))


SOURCES = [("synthetic", 64), ("synthetic", 192)]
# The sizes of a schedule, and those of short trials.
SOURCES += [pytest.param("real", size, marks=pytest.mark.shared) for size in (64, 96, 128, 160, 192, 224)]


@pytest.mark.parametrize(("augment", "tolerance"), AUGMENTATIONS)
@pytest.mark.parametrize(("source", "size"), SOURCES)
def test_training_images_look_like_inference_images(
    source, size, augment, tolerance, request, tmp_path_factory
) -> None:
    """Training images have each statistic of the images the checkpoint's processor makes."""
    dataset, cache_dir = request.getfixturevalue(source), tmp_path_factory.getbasetemp() / "frames"
    processor, cpu = create_processor(CONFIG, image_size=size, resizer="torch"), torch.device("cpu")
    frames = open_images(dataset, processor, cpu, train_size=(224, 224), cache_dir=cache_dir, progress=False)
    drawn = augment.sample(len(dataset), seeded(), frames.aspect)
    ours = statistics(augment.apply(frames.batch(np.arange(len(dataset))), drawn, (size, size)))
    shown = [processor.image_processor.resize(image) for image in dataset["image"]]
    theirs = statistics(torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2).float())
    torch.testing.assert_close(ours / theirs, torch.ones(7), atol=tolerance, rtol=0)


@pytest.mark.gpu
def test_a_gpu_warps_as_a_cpu_does() -> None:
    images, device = picture(4, 240, 320), torch.device("cuda")
    augment = Augment(rotation=45, min_area=0.5, color_jitter=0.2)
    drawn = augment.sample(4, seeded(), 4 / 3)
    expected = augment.apply(images, drawn, (96, 96))
    output = augment.apply(images.to(device), drawn.to(device), (96, 96)).cpu()
    assert (output - expected).abs().mean() < 0.5  # a CPU rounds the shrunk frame to whole levels


LABELS = torch.tensor([0, 5, 4, 1, 5, 6])
PICTURES = torch.randn(6, 3, 20, 28, generator=seeded())


def share_of(targets) -> float:
    assert len(targets) == 2
    assert targets[0][1] + targets[1][1] == pytest.approx(1)
    return targets[0][1]


def test_mixup_is_the_published_formula() -> None:
    assert mix_batch(PICTURES, LABELS, mixup=0, cutmix=0, seed=0) == (PICTURES, [(LABELS, 1.0)])
    shares = []
    for seed in range(2000):
        mixed, targets = mix_batch(PICTURES, LABELS, mixup=0.4, cutmix=0, seed=seed)
        shares.append(share := share_of(targets))
        torch.testing.assert_close(mixed, share * PICTURES + (1 - share) * PICTURES.flip(0))
    assert min(shares) >= 0.5
    # max(s, 1 - s) of s ~ Beta(a, a) lies above x with twice the upper tail.
    assert stats.kstest(shares, lambda share: 2 * stats.beta(0.4, 0.4).cdf(share) - 1).pvalue > 0.01


@pytest.mark.parametrize("seed", range(20))
def test_cutmix_pastes_one_box_and_its_share_is_the_area_kept(seed: int) -> None:
    mixed, targets = mix_batch(PICTURES, LABELS, mixup=0, cutmix=1.0, seed=seed)
    kept = (mixed == PICTURES).all(dim=(0, 1))  # (20, 28)
    assert torch.equal(mixed[:, :, ~kept], PICTURES.flip(0)[:, :, ~kept])
    assert share_of(targets) == pytest.approx(kept.float().mean().item())
    if not kept.all():
        rows, columns = np.nonzero(~kept.numpy())
        assert (~kept).sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1), "not a box"


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_loss_of_mixed_targets_equals_timms_soft_target_loss(label_smoothing: float) -> None:
    _, targets = mix_batch(PICTURES, LABELS, mixup=0.4, cutmix=0, seed=3)
    logits = torch.randn(6, 7, generator=seeded(1))
    loss = ClassificationLoss(torch.ones(7), label_smoothing=label_smoothing)
    ours = sum(share * loss(logits, labels) for labels, share in targets) / len(LABELS)
    theirs = SoftTargetCrossEntropy()(logits, mixup_target(LABELS, 7, share_of(targets), label_smoothing))
    torch.testing.assert_close(ours, theirs)


def test_both_take_turns_and_the_seed_decides() -> None:
    first, again = ([mix_batch(PICTURES, LABELS, mixup=1.0, cutmix=1.0, seed=n)[0] for n in range(200)] for _ in "12")
    assert all(map(torch.equal, first, again))
    assert 70 < sum(bool((mixed == PICTURES).any()) for mixed in first) < 130
