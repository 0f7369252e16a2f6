"""The checks of the OpenVINO backend, which `test_inference.py` runs in a process of their own."""

import numpy as np
import pytest
import torch
from test_inference import make_model

from ham10000.modeling import Ham10000Config
from ham10000.modeling import create_processor as make_processor
from ham10000.training.inference.fast import optimize_for_inference
from ham10000.training.inference.prediction import predict


@pytest.mark.parametrize(("modality", "backbone"), [("image", "test_resnet"), ("fusion", "test_efficientnet")])
@torch.no_grad()
def test_openvino_computes_the_same(modality: str, backbone: str) -> None:
    model = make_model(modality, backbone)
    fast = optimize_for_inference(model, "fp32", backend="openvino")
    rough = optimize_for_inference(model, "bf16", backend="openvino")
    for batch, height, width in ((1, 64, 64), (5, 64, 96)):  # it is traced with another batch and size
        inputs = {"pixel_values": torch.randn(batch, 3, height, width)}
        if modality == "fusion":
            inputs["metadata"] = torch.tensor([[60.0, 1.0, float("nan")]] * batch)
        expected = model(**inputs).logits
        torch.testing.assert_close(fast(**inputs).logits, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(rough(**inputs).logits.softmax(-1), expected.softmax(-1), rtol=0, atol=0.03)


def test_openvino_predicts_pictures() -> None:
    model, processor = make_model(), make_processor(Ham10000Config(backbone="test_efficientnet"), image_size=64)
    pictures = [np.random.default_rng(k).integers(0, 256, (50, 70, 3), dtype=np.uint8) for k in range(5)]
    fast = optimize_for_inference(model, "fp32", backend="openvino")
    expected = predict(model, processor, pictures, batch_size=2)
    np.testing.assert_allclose(predict(fast, processor, pictures, batch_size=2), expected, atol=1e-5)
