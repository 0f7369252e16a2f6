"""The warning of images unlike the training data: against scikit-learn, published Lab values, images of both kinds."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skin import skin_image
from sklearn.covariance import EmpiricalCovariance
from sklearn.datasets import load_sample_image
from transformers import pipeline
from unlike_images import main, other_images

from ham10000.modeling import Ham10000Error, Ham10000ImageProcessor, Ham10000Processor
from ham10000.modeling.image_statistics_ham10000 import distances, fit_image_statistics, image_features, rgb_to_lab
from ham10000.training.data.loader import features_of_images
from ham10000.training.data.sources import load_data

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "examples" / "checkpoints" / "ham10000-image"


@pytest.fixture(scope="module")
def fitted() -> Ham10000ImageProcessor:
    statistics = fit_image_statistics(np.stack([image_features(skin_image(k, (200, 150))) for k in range(300)]))
    return Ham10000ImageProcessor(size=32, image_statistics=statistics)


@pytest.mark.parametrize(
    ("rgb", "lab"),  # Bruce Lindbloom's calculator, sRGB under D65
    [((255, 255, 255), (100, 0, 0)), ((255, 0, 0), (53.24, 80.09, 67.20)), ((0, 0, 255), (32.30, 79.19, -107.86))],
)
def test_lab(rgb: tuple[int, int, int], lab: tuple[float, float, float]) -> None:
    np.testing.assert_allclose(rgb_to_lab(np.array(rgb, dtype=np.uint8)), lab, atol=0.02)


def test_distance_is_scikit_learns() -> None:
    """And none where the images are too few or all alike."""
    rows = np.random.default_rng(0).normal(size=(500, 14)) @ np.random.default_rng(1).normal(size=(14, 14))
    found = fit_image_statistics(rows)
    assert found is not None
    reference = EmpiricalCovariance().fit(rows)  # divides by n where np.cov divides by n - 1
    np.testing.assert_allclose(distances(rows, found) ** 2, reference.mahalanobis(rows) * 499 / 500, rtol=1e-9)
    assert (distances(rows, found) <= found["threshold"]).mean() == 0.99
    assert fit_image_statistics(rows[:140]) is fit_image_statistics(np.zeros((200, 14))) is None


def test_other_images_get_the_warning_and_new_ones_of_the_kind_do_not(
    fitted: Ham10000ImageProcessor, tmp_path: Path
) -> None:
    fitted.save_pretrained(tmp_path)
    again = Ham10000ImageProcessor.from_pretrained(tmp_path)
    assert again.image_statistics == fitted.image_statistics
    for name, image in other_images().items():
        assert "unlike those the model was trained on" in (again.unlike_training(image) or ""), name
        assert Ham10000ImageProcessor(size=32).unlike_training(image) is None
    assert np.mean([fitted.unlike_training(skin_image(k, (200, 150))) is None for k in range(300, 370)]) >= 0.9


def test_a_turned_image_scores_as_itself() -> None:
    image = Image.fromarray(load_sample_image("flower.jpg"))
    turned = image_features(image.transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_allclose(turned, image_features(image), rtol=1e-6, atol=1e-6)


def test_the_shipped_ones_are_close_to_those_of_the_measurement() -> None:
    """The measurement holds images out, the shipped models were trained on all."""
    found = json.loads((ROOT / "examples" / "results" / "unlike_images.json").read_text())
    assert found["accepted"]["test"]["share"] > 0.97
    spread = np.sqrt(np.diag(np.linalg.inv(found["statistics"]["precision"])))
    for name in ("image", "fusion"):
        folder = SHIPPED.with_name(f"ham10000-{name}")
        shipped = Ham10000Processor.from_pretrained(folder).image_processor.image_statistics
        difference = np.subtract(shipped["mean"], found["statistics"]["mean"])
        assert np.abs(difference / spread).max() < 0.1
        assert shipped["threshold"] == pytest.approx(found["statistics"]["threshold"], rel=0.1)


@pytest.mark.parametrize(
    "damage", [{"mean": [0.0]}, {"precision": [[1.0]]}, {"threshold": float("nan")}, {"other": 1}, {"mean": "x"}]
)
def test_damaged_ones_are_refused(damage: dict, fitted: Ham10000ImageProcessor) -> None:
    with pytest.raises(Ham10000Error, match="image_statistics"):
        Ham10000ImageProcessor(size=32, image_statistics={**fitted.image_statistics, **damage})


def test_the_images_of_a_dataset_are_read_as_they_are_stored() -> None:
    dataset, _ = load_data("synthetic:40")
    expected = [image_features(dataset[row]["image"].convert("RGB")) for row in (0, 19, 39)]
    np.testing.assert_array_equal(features_of_images(dataset, most=3), expected)


def test_the_pipeline_logs_it(said_by_transformers: list[str]) -> None:
    classify = pipeline("image-metadata-classification", model=str(SHIPPED))
    images = [Image.fromarray(load_sample_image("flower.jpg")), Image.new("RGB", (60, 45), "red")]
    assert len(classify([{"image": image} for image in images])) == 2
    said = [text.partition(":")[0] for text in said_by_transformers if "unlike those" in text]
    assert said == ["Input 0", "Input 1"]


def test_the_benchmark_is_printed_and_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", "synthetic:240", "--output", str(tmp_path / "found.json")]) == 0
    assert "| plain white |" in capsys.readouterr().out
    assert main(["--data", "synthetic:120"]) == 2
    assert "too few" in capsys.readouterr().err
