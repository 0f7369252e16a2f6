"""`predict` through OpenVINO, in a process of its own; `test_inference.py` says why."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from skin import skin_image

from ham10000.modeling import Ham10000Config, create_model, create_processor
from ham10000.training.inference.fast import OpenVinoBackbone, optimize_for_inference
from ham10000.training.inference.prediction import predict


@pytest.mark.slow
def test_openvino_predicts_in_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "python_functions=openvino_*"]
    result = subprocess.run([*command, __file__], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2 passed" in result.stdout


@pytest.mark.parametrize("modality", ["image", "fusion"])
def openvino_predicts_images_whose_last_batch_is_short(
    modality: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAM10000_CACHE", str(tmp_path))  # where the converted network is kept
    torch.manual_seed(0)
    model = create_model(Ham10000Config(modality=modality, backbone="test_efficientnet", temperature=0.5)).eval()
    torch.nn.init.normal_(model.classifier.weight, std=0.3)
    processor = create_processor(model.config, image_size=64)
    images = [skin_image(number, (70, 50)) for number in range(5)]
    rows = [{"age": 10 * number, "sex": "male", "localization": "back"} for number in range(5)]
    given = (images, None if modality == "image" else rows)
    fast = optimize_for_inference(model, "fp32", backend="openvino")
    assert isinstance(fast.backbone, OpenVinoBackbone)
    expected = predict(model, processor, *given, batch_size=2)
    assert expected.std(axis=0).max() > 1e-4
    np.testing.assert_allclose(predict(fast, processor, *given, batch_size=2), expected, atol=1e-5)
    assert len(list((tmp_path / "openvino").iterdir())) == 1
