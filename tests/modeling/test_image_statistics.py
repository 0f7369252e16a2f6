"""The out-of-distribution score against scikit-learn, published Lab values, and pictures of both kinds."""

import json
from pathlib import Path

import numpy as np
import pytest
from fit_out_of_distribution import fit_distribution, main, other_pictures, report, to_json
from PIL import Image
from sklearn.covariance import EmpiricalCovariance
from sklearn.datasets import load_sample_image

from ham10000.modeling import LABELS, Ham10000Error
from ham10000.training.data.synthetic import Lesion, render
from ham10000.training.inference.out_of_distribution import (
    CONSTANTS,
    FEATURES,
    from_json,
    ham10000_distribution,
    mahalanobis,
    picture_features,
    picture_warning,
    rgb_to_lab,
)


@pytest.mark.parametrize(
    ("rgb", "lab"),  # Bruce Lindbloom's calculator, sRGB under D65
    [((255, 255, 255), (100, 0, 0)), ((255, 0, 0), (53.24, 80.09, 67.20)), ((0, 0, 255), (32.30, 79.19, -107.86))],
)
def test_lab(rgb: tuple[int, int, int], lab: tuple[float, float, float]) -> None:
    np.testing.assert_allclose(rgb_to_lab(np.array(rgb, dtype=np.uint8)), lab, atol=0.02)


def test_distance_is_scikit_learns() -> None:
    rows = np.random.default_rng(0).normal(size=(500, 4)) @ np.random.default_rng(1).normal(size=(4, 4))
    fitted = fit_distribution(rows, 0.9, {})
    reference = EmpiricalCovariance().fit(rows)  # divides by n where np.cov divides by n - 1
    np.testing.assert_allclose(mahalanobis(rows, fitted) ** 2, reference.mahalanobis(rows) * 499 / 500, rtol=1e-9)
    assert (mahalanobis(rows, fitted) <= fitted.threshold).mean() == 0.9


def test_no_other_picture_of_ours_passes_and_the_warning_says_why() -> None:
    for name, picture in other_pictures().items():
        warning = picture_warning(picture)
        assert warning is not None, name
        assert "probably not a dermatoscopic image" in warning


def test_synthetic_lesions_pass() -> None:
    rng = np.random.default_rng(0)
    pictures = [render(Lesion.draw(label, rng), rng, (400, 300)) for label in LABELS for _ in range(6)]
    assert np.mean([picture_warning(picture) is None for picture in pictures]) >= 0.85


def test_a_turned_picture_scores_as_itself() -> None:
    picture = Image.fromarray(load_sample_image("flower.jpg"))
    turned = picture_features(picture.transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_allclose(turned, picture_features(picture), rtol=1e-6, atol=1e-6)


def test_constants_are_read_to_the_last_bit_and_damage_is_said() -> None:
    values = json.loads(CONSTANTS.read_text())
    assert to_json(ham10000_distribution())["precision"] == values["precision"]
    assert len(values["features"]) == len(FEATURES)
    assert values["evaluation"]["accepted"]["validation"]["accepted"] > 0.97
    assert "98.9%" in report(values)
    with pytest.raises(Ham10000Error, match="other statistics"):
        from_json({**values, "features": ["mean L"]})
    with pytest.raises(Ham10000Error, match="damaged"):
        from_json({**values, "mean": [1.0]})


def test_too_few_or_equal_pictures_are_refused() -> None:
    with pytest.raises(Ham10000Error, match="too few"):
        fit_distribution(np.zeros((20, 4)), 0.9, {})
    with pytest.raises(Ham10000Error, match="too similar"):
        fit_distribution(np.zeros((200, 4)), 0.9, {})


def test_report_without_constants_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--constants", str(tmp_path / "none.json")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
