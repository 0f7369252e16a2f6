"""The fast copy of a model predicts what the model predicts, and the fast ways to its inputs give the same inputs."""

import copy
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from skin import skin_image
from torch import nn

from ham10000.modeling import Ham10000Config, Ham10000Error, create_model, create_processor
from ham10000.training.data.loader import read_rows
from ham10000.training.inference.fast import optimize_for_inference
from ham10000.training.inference.prediction import predict

BACKBONES = {name: {} for name in ("test_efficientnet", "test_resnet", "test_convnext")}
BACKBONES["test_vit"] = {"img_size": 64, "dynamic_img_size": False}


def make_model(modality: str = "image", backbone: str = "test_efficientnet") -> nn.Module:
    """A model whose batch-norm statistics are those of data, in evaluation mode."""
    torch.manual_seed(0)
    config = Ham10000Config(modality=modality, backbone=backbone, backbone_kwargs=BACKBONES[backbone], temperature=0.5)
    model = create_model(config)
    nn.init.normal_(model.classifier.weight, std=0.3)
    if modality != "metadata":
        with torch.no_grad():
            for _ in range(5):
                model(torch.randn(8, 3, 64, 64) * 2 + 1)
    return model.eval()


@pytest.mark.parametrize("backbone", BACKBONES)
@torch.no_grad()
def test_folding_changes_rounding_and_nothing_else(backbone: str) -> None:
    model = make_model(backbone=backbone)
    before = copy.deepcopy(model.state_dict())
    fast = optimize_for_inference(model, "fp32")
    assert all("forward" in vars(module) for module in fast.modules() if isinstance(module, nn.BatchNorm2d))
    pixels = torch.randn(5, 3, 64, 64)
    expected = model(pixels).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(fast(pixels).logits, expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())  # it is a copy


def test_openvino_in_a_process_of_its_own() -> None:
    """Where OpenVINO 2026.4 had run, the kernel ended processes minutes later (SIGSEGV with si_code SI_KERNEL)."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "python_functions=openvino_*"]
    result = subprocess.run([*command, __file__], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 passed" in result.stdout


@pytest.mark.parametrize(("modality", "backbone"), [("image", "test_resnet"), ("fusion", "test_efficientnet")])
@torch.no_grad()
def openvino_computes_the_same(modality: str, backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAM10000_CACHE", str(tmp_path))
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


@torch.no_grad()
def openvino_is_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what it is: other weights are another entry, a damaged one is made again."""
    import openvino

    monkeypatch.setenv("HAM10000_CACHE", str(tmp_path))
    model, inputs = make_model(), {"pixel_values": torch.randn(2, 3, 64, 64)}
    fast = optimize_for_inference(model, "fp32", backend="openvino")
    (weights,) = (tmp_path / "openvino").glob("*/model.bin")
    converted, convert = [], openvino.convert_model
    monkeypatch.setattr(openvino, "convert_model", lambda *a, **k: converted.append(1) or convert(*a, **k))
    again = optimize_for_inference(model, "fp32", backend="openvino")
    assert not converted
    assert torch.equal(again(**inputs).logits, fast(**inputs).logits)
    next(model.backbone.parameters()).mul_(2)
    optimize_for_inference(model, "fp32", backend="openvino")
    assert len(converted) == 1
    weights.write_bytes(weights.read_bytes()[:1000])
    next(model.backbone.parameters()).div_(2)
    mended = optimize_for_inference(model, "fp32", backend="openvino")
    assert len(converted) == 2
    assert torch.equal(mended(**inputs).logits, fast(**inputs).logits)


@pytest.mark.parametrize("modality", ["image", "fusion", "metadata"])
@torch.no_grad()
def test_bf16_moves_probabilities_little_and_gives_fp32(modality: str) -> None:
    model = make_model(modality)
    inputs = {}
    if modality != "metadata":
        inputs["pixel_values"] = torch.randn(6, 3, 64, 64)
    if modality != "image":
        inputs["metadata"] = torch.tensor([[60.0, 1.0, 2.0], [0.0, float("nan"), 5.0]] * 3)
    fast = optimize_for_inference(model, "bf16")
    logits = fast(**inputs).logits
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.softmax(-1), model(**inputs).logits.softmax(-1), rtol=0, atol=0.03)
    if modality != "metadata":
        assert {parameter.dtype for parameter in fast.backbone.parameters()} == {torch.bfloat16}


@torch.no_grad()
def test_a_norm_that_must_not_be_folded_is_left_alone() -> None:
    """Two readers of one convolution, and one convolution used twice: folding either would change the output."""

    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pretrained_cfg = {"input_size": (3, 32, 32)}
            self.first, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
            self.second, self.other = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            x = x + self.norm(x)
            x = self.other(self.second(x))
            return self.other(self.second(x)).mean((2, 3))

    model = make_model()
    backbone = Backbone()
    for module in (backbone.norm, backbone.other):
        module.running_mean.uniform_(-1, 1)
        module.running_var.uniform_(0.5, 2)
    model.backbone, model.classifier = backbone.eval(), nn.Linear(8, 7)
    pixels = torch.randn(2, 3, 32, 32)
    expected = model(pixels).logits
    torch.testing.assert_close(optimize_for_inference(model, "fp32")(pixels).logits, expected, rtol=1e-4, atol=1e-5)


def test_wrong_use_is_named() -> None:
    model = make_model().train()
    cases = ({"precision": "fp8"}, "'fp8'"), ({"backend": "tensorrt"}, "backend"), ({}, "training mode")
    for options, message in cases:
        with pytest.raises(Ham10000Error, match=message):
            optimize_for_inference(model, **options)


def test_threads_decode_what_the_processor_decodes(tmp_path: Path) -> None:
    """Several threads, in order, against one image at a time through processor and model."""
    model = make_model()
    processor = create_processor(model.config, image_size=64)
    pictures, sources = [skin_image(number, (40 + number, 48)) for number in range(11)], []
    for number, picture in enumerate(pictures):
        path = tmp_path / f"{number}.png"
        picture.save(path)
        sources.append([picture, path.read_bytes(), path][number % 3])
    with torch.inference_mode():
        rows = [model(**processor(images=picture)).logits.double().softmax(-1) for picture in pictures]
    np.testing.assert_allclose(predict(model, processor, sources, batch_size=4), torch.cat(rows).numpy(), atol=1e-6)


def test_rows_read_from_the_file_are_those_of_the_mapping(tmp_path: Path) -> None:
    images, rows = np.random.default_rng(0).integers(0, 256, (50, 6, 4, 3), dtype=np.uint8), np.array([49, 0, 7, 7])
    np.save(tmp_path / "cache.npy", images)
    mapped = np.load(tmp_path / "cache.npy", mmap_mode="r")
    for array in (mapped, images):
        np.testing.assert_array_equal(read_rows(array, rows), images[rows])
    with (tmp_path / "cache.npy").open("r+b") as stream:
        stream.truncate(stream.seek(0, io.SEEK_END) - 1)
    with pytest.raises(Ham10000Error, match=r"ends early.*delete it"):
        read_rows(mapped, rows)
