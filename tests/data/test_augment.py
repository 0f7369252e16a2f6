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
from ham10000.training.data.augment import Augment, AugmentParameters, _saturation_hue, mix_batch, working_size
from ham10000.training.data.loader import cached_images, open_images
from ham10000.training.data.sources import load_data
from ham10000.training.engine import ClassificationLoss


def picture(batch: int = 2, height: int = 33, width: int = 33) -> torch.Tensor:
    return torch.randint(
        0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def parameters(
    angle: float = 0.0, scale: Sequence[float] = (1, 1), color: torch.Tensor | None = None, **factors: float
) -> AugmentParameters:
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    affine = torch.tensor([[[scale[0] * cos, -scale[1] * sin, 0.0], [scale[0] * sin, scale[1] * cos, 0.0]]])
    brightness, contrast = (torch.tensor([factors.get(name, 1.0)]) for name in ("brightness", "contrast"))
    return AugmentParameters(affine, brightness, contrast, torch.eye(3)[None] if color is None else color)


def test_no_augmentation_is_the_identity() -> None:
    images = picture()
    for augment in (Augment(flip=False), Augment()):
        drawn = Augment(flip=False).sample(len(images), torch.Generator().manual_seed(0))
        torch.testing.assert_close(augment.apply(images, drawn), images.float(), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("scale", "dimensions"), [((-1, 1), [3]), ((1, -1), [2]), ((-1, -1), [2, 3])])
def test_flips_equal_torch_flip(scale: tuple[float, float], dimensions: list[int]) -> None:
    images = picture(batch=1)
    output = Augment().apply(images, parameters(scale=scale))
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
    output = Augment().apply(ramp, parameters(scale=(0.5, 0.5)))[0, 0, 0]
    assert output[[0, -1]].tolist() == pytest.approx([15.75, 47.25], abs=0.1)


@pytest.mark.parametrize(("brightness", "contrast"), [(1.2, 1.0), (1.0, 0.8), (0.9, 1.15)])
def test_brightness_and_contrast_equal_torchvision(brightness: float, contrast: float) -> None:
    images = picture(batch=1) // 2 + 40  # stays inside 0..255, where torchvision does not clip in between
    output = Augment(color_jitter=0.2).apply(images, parameters(brightness=brightness, contrast=contrast))
    expected = tvf.adjust_contrast(tvf.adjust_brightness(images.float() / 255, brightness), contrast) * 255
    torch.testing.assert_close(output, expected, atol=0.2, rtol=0)


def test_saturation_equals_torchvision_and_hue_keeps_grey() -> None:
    images = picture(batch=1) // 2 + 60
    matrix = _saturation_hue(torch.tensor([0.7]), torch.tensor([0.0]))
    drawn = parameters(color=matrix)
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
    area = torch.linalg.det(linear)
    assert ((area.abs() >= 0.5 - 1e-5) & (area.abs() <= 1 + 1e-5)).all()
    assert (area < 0).float().mean().item() == pytest.approx(0.5, abs=0.04)  # one flip of two mirrors, not two or none
    assert ((drawn.brightness >= 0.8) & (drawn.brightness <= 1.2)).all()
    # The middle of every crop lies inside the image, and so does the whole crop when it is not rotated.
    upright = Augment(min_area=0.5).sample(4000, torch.Generator().manual_seed(2)).affine
    reach = upright[:, :, :2].abs().sum(dim=2) + upright[:, :, 2].abs()
    assert reach.max() <= 1 + 1e-5


def test_without_geometry_training_images_are_antialiased_resizes(synthetic_photographs) -> None:
    images = torch.from_numpy(np.stack([np.array(image) for image in synthetic_photographs["image"][:2]]))
    images = images.permute(0, 3, 1, 2)
    augment = Augment(flip=False)
    output = augment.apply(images, augment.sample(2, torch.Generator().manual_seed(0)), (96, 96))
    expected = F.interpolate(images, (96, 96), mode="bicubic", antialias=True)
    assert torch.equal(output, expected.float())


def test_working_size_covers_the_target_at_the_aspect_of_the_frame() -> None:
    assert working_size((450, 600), (192, 192)) == (192, 256)
    assert working_size((600, 450), (192, 192)) == (256, 192)
    assert working_size((450, 600), (96, 192)) == (144, 192)
    assert working_size((384, 512), (150, 200)) == (150, 200)


def test_a_rotation_is_one_of_the_frame_before_it_is_squashed() -> None:
    """A disc stays the ellipse that the squash makes of it, whatever the angle; rotated after it, it would tilt."""
    rows, columns = torch.meshgrid(torch.arange(240) - 119.5, torch.arange(320) - 159.5, indexing="ij")
    disc = (255 * ((rows**2 + columns**2) < 30**2).byte()).expand(1, 3, 240, 320)
    augment = Augment(flip=False, rotation=45)
    for seed in range(5):
        turned = augment.sample(1, torch.Generator().manual_seed(seed), aspect=320 / 240)
        output = augment.apply(disc, turned, (96, 96))[0, 0] > 127
        ys, xs = output.nonzero(as_tuple=True)
        sides = (int(ys.max() - ys.min()) + 1, int(xs.max() - xs.min()) + 1)
        assert sides == pytest.approx((24, 18), abs=1.01)  # 60 of 240 rows, 60 of 320 columns, of 96
        covariance = torch.cov(torch.stack([ys.double(), xs.double()]))
        assert abs(covariance[0, 1]) < 0.02 * covariance[0, 0]


# The sizes that a schedule up to 224 px visits, and those of short trials.
SIZES = (64, 96, 128, 160, 192, 224)
CONFIG = Ham10000Config(modality="image", backbone="tf_efficientnetv2_b0")
# The augmentation and the largest difference that it may make.
AUGMENTATIONS = [(Augment(flip=False), 0.03), (Augment.from_config(TrainConfig(), create_processor(CONFIG)), 0.10)]


def sharpness(pixels: torch.Tensor) -> float:
    """Mean over images of the standard deviation of the Laplacian of the luma."""
    luma = (pixels.float() * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]).view(1, 1, 3, 3)
    return F.conv2d(luma, kernel).flatten(1).std(dim=1).mean().item()


def statistics(pixels: torch.Tensor) -> dict[str, float]:
    """What a network sees first: sharpness, and mean and standard deviation of each channel."""
    means, spreads = pixels.mean(dim=(0, 2, 3)).tolist(), pixels.std(dim=(2, 3)).mean(dim=0).tolist()
    names = [f"{kind} {channel}" for kind in ("mean", "std") for channel in "rgb"]
    return {"sharpness": sharpness(pixels), **dict(zip(names, [*means, *spreads], strict=True))}


def compare_with_inference(
    dataset: datasets.Dataset, cache_dir: Path, augment: Augment, size: int
) -> dict[str, float]:
    """Each statistic of training images, over that of the images the checkpoint's processor makes."""
    processor = create_processor(CONFIG, image_size=size, resizer="torch")
    device = torch.device("cpu")
    frames = open_images(dataset, processor, device, train_size=(224, 224), cache_dir=cache_dir, progress=False)
    pixels = frames.batch(np.arange(len(dataset)))
    drawn = augment.sample(len(dataset), torch.Generator().manual_seed(0), frames.aspect)
    training = augment.apply(pixels, drawn, (size, size))
    shown = [processor.image_processor.resize(image) for image in dataset["image"]]
    inference = torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2).float()
    ours, theirs = statistics(training), statistics(inference)
    return {name: ours[name] / theirs[name] for name in ours}


def natural_images(count: int) -> datasets.Dataset:
    """600x450 images with the spectrum of photographs, 1 over the frequency, which is what sharpness depends on."""
    generator = np.random.default_rng(0)
    falling = 1 / np.maximum(np.hypot(np.fft.fftfreq(450)[:, None], np.fft.rfftfreq(600)[None]), 1 / 600)
    images = []
    for _ in range(count):
        noise = np.fft.rfft2(generator.standard_normal((3, 450, 600))) * falling
        values = np.fft.irfft2(noise, (450, 600))
        pixels = 128 + 40 * (values - values.mean((1, 2), keepdims=True)) / values.std((1, 2), keepdims=True)
        images.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)))
    return datasets.Dataset.from_dict(
        {"image": images, "image_id": [f"image{number}" for number in range(count)]},
        features=datasets.Features({"image": datasets.Image(), "image_id": datasets.Value("string")}),
    )


@pytest.fixture(scope="module")
def synthetic_photographs() -> datasets.Dataset:
    return natural_images(32)


@pytest.fixture(scope="module")
def frame_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("frames")


@pytest.mark.parametrize("size", [64, 192])
@pytest.mark.parametrize(("augment", "tolerance"), AUGMENTATIONS)
def test_training_images_look_like_inference_images(
    synthetic_photographs, frame_cache, augment, tolerance, size
) -> None:
    ratios = compare_with_inference(synthetic_photographs, frame_cache, augment, size)
    assert ratios == pytest.approx(dict.fromkeys(ratios, 1.0), abs=tolerance)


@pytest.mark.shared
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("augment", "tolerance"), AUGMENTATIONS)
def test_real_training_images_look_like_inference_images(shared_dir, frame_cache, augment, tolerance, size) -> None:
    dataset, _ = load_data(str(shared_dir / "ham10000"))
    ratios = compare_with_inference(dataset.select(range(0, len(dataset), 100)), frame_cache, augment, size)
    assert ratios == pytest.approx(dict.fromkeys(ratios, 1.0), abs=tolerance)


def test_the_comparison_fails_for_images_that_were_resampled_twice(synthetic_photographs, tmp_path) -> None:
    """What training did until 2026: a cache of the network's size, and a bilinear warp of it."""
    processor = create_processor(CONFIG, image_size=192)
    images = cached_images(synthetic_photographs, processor.image_processor, cache_dir=tmp_path, progress=False)
    pixels = torch.from_numpy(np.array(images))
    augment, _ = AUGMENTATIONS[1]
    drawn = augment.sample(len(pixels), torch.Generator().manual_seed(0))
    twice = augment.apply(pixels, drawn, (192, 192))
    assert statistics(twice)["sharpness"] / statistics(pixels.float())["sharpness"] < 0.75


@pytest.mark.gpu
def test_a_gpu_warps_as_a_cpu_does() -> None:
    images = picture(batch=4, height=240, width=320)
    augment = Augment(rotation=45, min_area=0.5, color_jitter=0.2)
    drawn = augment.sample(4, torch.Generator().manual_seed(0), 4 / 3)
    expected = augment.apply(images, drawn, (96, 96))
    device = torch.device("cuda")
    output = augment.apply(images.to(device), drawn.to(device), (96, 96)).cpu()
    assert (output - expected).abs().mean() < 0.5  # a CPU rounds the shrunk frame to whole levels


LABELS = torch.tensor([0, 5, 4, 1, 5, 6])


@pytest.fixture
def pictures() -> torch.Tensor:
    return torch.randn(6, 3, 20, 28, generator=torch.Generator().manual_seed(0))


def share_of(targets) -> float:
    assert len(targets) == 2
    assert targets[0][1] + targets[1][1] == pytest.approx(1)
    return targets[0][1]


def test_mixup_is_the_published_formula(pictures) -> None:
    assert mix_batch(pictures, LABELS, mixup=0, cutmix=0, seed=0) == (pictures, [(LABELS, 1.0)])
    for seed in range(5):
        mixed, targets = mix_batch(pictures, LABELS, mixup=0.4, cutmix=0, seed=seed)
        share = share_of(targets)
        assert 0.5 <= share <= 1
        torch.testing.assert_close(mixed, share * pictures + (1 - share) * pictures.flip(0))


@pytest.mark.parametrize("seed", range(20))
def test_cutmix_pastes_one_box_and_its_share_is_the_area_kept(pictures, seed: int) -> None:
    mixed, targets = mix_batch(pictures, LABELS, mixup=0, cutmix=1.0, seed=seed)
    kept = (mixed == pictures).all(dim=(0, 1))  # (20, 28)
    assert torch.equal(mixed[:, :, ~kept], pictures.flip(0)[:, :, ~kept])
    assert share_of(targets) == pytest.approx(kept.float().mean().item())
    if not kept.all():
        rows, columns = np.nonzero(~kept.numpy())
        assert (~kept).sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1), "not a box"


def test_shares_follow_the_beta_distribution(pictures) -> None:
    alpha = 0.4
    shares = [share_of(mix_batch(pictures, LABELS, mixup=alpha, cutmix=0, seed=seed)[1]) for seed in range(2000)]
    # max(s, 1 - s) of s ~ Beta(a, a) lies above x with twice the upper tail.
    expected = stats.beta(alpha, alpha)
    assert stats.kstest(shares, lambda share: 2 * expected.cdf(share) - 1).pvalue > 0.01


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_loss_of_mixed_targets_equals_timms_soft_target_loss(pictures, label_smoothing: float) -> None:
    _, targets = mix_batch(pictures, LABELS, mixup=0.4, cutmix=0, seed=3)
    logits = torch.randn(6, 7, generator=torch.Generator().manual_seed(1))
    loss = ClassificationLoss(torch.ones(7), label_smoothing=label_smoothing)
    ours = sum(share * loss(logits, labels) for labels, share in targets) / len(LABELS)
    theirs = SoftTargetCrossEntropy()(logits, mixup_target(LABELS, 7, share_of(targets), label_smoothing))
    torch.testing.assert_close(ours, theirs)


def test_both_take_turns_and_the_seed_decides(pictures) -> None:
    kinds = []
    for seed in range(200):
        mixed, _ = mix_batch(pictures, LABELS, mixup=1.0, cutmix=1.0, seed=seed)
        again, _ = mix_batch(pictures, LABELS, mixup=1.0, cutmix=1.0, seed=seed)
        assert torch.equal(mixed, again)
        kinds.append(bool((mixed == pictures).any()))
    assert 70 < sum(kinds) < 130
