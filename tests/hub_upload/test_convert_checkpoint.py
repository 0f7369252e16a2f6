"""The published baseline, carried over: the same bits out of both networks, and nothing else let in."""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torchvision import models, transforms
from transformers import AutoModel

from ham10000.hub_upload.commands import convert as main
from ham10000.hub_upload.convert_checkpoint import convert_checkpoint, read_weights
from ham10000.modeling import LABELS, Ham10000Error, Ham10000Processor
from ham10000.training.inference.prediction import load_checkpoint

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def baseline() -> nn.Module:
    """The baseline's network, with batch norm as after training: a forgotten or swapped statistic must show.

    The statistics are those of a batch, without which the output hardly depends on the picture, and then disturbed.
    """
    torch.manual_seed(0)
    model = models.efficientnet_v2_s(weights=None, num_classes=7).train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.7, 1.3)
        nn.init.normal_(norm.bias, std=0.1)
        norm.momentum = 1.0
    with torch.no_grad():
        model(pixels(count=4))
    for norm in norms:
        norm.running_mean += 0.1 * torch.randn_like(norm.running_mean) * norm.running_var.sqrt()
        norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.7, 1.3)
    model.eval()
    with torch.inference_mode():
        scale = model(snippet(photograph())).std()
    model.classifier[1].weight.data /= scale  # so that its softmax does not saturate
    return model


@pytest.fixture(scope="module")
def converted(baseline: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conversion of the plain state dict; read-only for tests."""
    folder = tmp_path_factory.mktemp("converted")
    torch.save(baseline.state_dict(), folder / "efficientnetv2s_image_only_state_dict.pt")
    convert_checkpoint(folder / "efficientnetv2s_image_only_state_dict.pt", folder / "ours")
    return folder / "ours"


def light(state_dict: Weights) -> Weights:
    """The same names and shapes in a file of a few kilobytes: every tensor is one stored number."""
    return {name: torch.ones((), dtype=value.dtype).expand(value.shape) for name, value in state_dict.items()}


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def pixels(count: int = 2, side: int = 224) -> torch.Tensor:
    """Smooth pictures: the pooled features of plain noise are nearly the same for any two."""
    noise = torch.randn(count, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(noise, size=(side, side), mode="bicubic")


def photograph() -> Image.Image:
    """Not square, and not of the network's size."""
    smooth = (pixels(count=1, side=457)[0, :, :311] * 57 + 115).permute(1, 2, 0).numpy()
    noise = np.random.default_rng(0).normal(0, 4, smooth.shape)
    return Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))


def snippet(image: Image.Image) -> torch.Tensor:
    """The preprocessing of the baseline card's own example."""
    normalize = transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    transform = transforms.Compose([transforms.Resize((224, 224)), transforms.ToTensor(), normalize])
    return transform(image.convert("RGB")).unsqueeze(0)


def assert_same_logits(folder: Path, model: nn.Module) -> None:
    with torch.inference_mode():
        expected = model(pixels())
        assert torch.equal(AutoModel.from_pretrained(folder)(pixels()).logits, expected)
    assert (expected[0] - expected[1]).abs().max() > 0.05  # logits that say something


def test_a_plain_state_dict_gives_the_same_bits(converted: Path, baseline: nn.Module) -> None:
    assert_same_logits(converted, baseline)
    record = json.loads((converted / "conversion.json").read_text())
    source = converted.parent / "efficientnetv2s_image_only_state_dict.pt"
    assert record.pop("source_sha256") == hashlib.sha256(source.read_bytes()).hexdigest()
    assert record.pop("versions")["torchvision"]
    origin = {"source_file": source.name, "format": "state_dict", "architecture": "torchvision efficientnet_v2_s"}
    assert record == origin | {"max_logit_difference": 0.0}
    (converted.parent / "new").touch()
    assert {path.stat().st_mode for path in converted.iterdir()} == {(converted.parent / "new").stat().st_mode}
    assert str(converted.parent) not in "".join(path.read_text() for path in converted.glob("*.json"))


PRECISIONS = {"model_state_dict": torch.float32, "state_dict": torch.float16, "model": torch.float64}


@pytest.mark.parametrize("wrapper", PRECISIONS)
def test_a_training_checkpoint_gives_the_same_bits(wrapper: str, baseline: nn.Module, tmp_path: Path) -> None:
    """As a training loop leaves it: wrapped and compiled, beside an optimiser, in another order or precision."""
    stored = copy.deepcopy(baseline).to(PRECISIONS[wrapper])
    optimizer = torch.optim.AdamW(stored.classifier.parameters()).state_dict()
    weights = {f"_orig_mod.module.{name}": value for name, value in reversed(list(stored.state_dict().items()))}
    classes = {"class_names": list(LABELS), "class_counts": dict.fromkeys(LABELS, 115)}
    torch.save({"epoch": 12, wrapper: weights, "optimizer_state_dict": optimizer, **classes}, tmp_path / "best.pth")
    record = convert_checkpoint(tmp_path / "best.pth", tmp_path / "new" / "ours")
    assert record["format"] == "training_checkpoint"
    assert_same_logits(tmp_path / "new" / "ours", stored.float())


@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_vit", "test_resnet"])
def test_a_network_of_timm_gives_the_same_bits(backbone: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model(backbone, num_classes=7).eval()
    torch.save({"state_dict": {f"model.{name}": value for name, value in model.state_dict().items()}}, tmp_path / "w")
    record = convert_checkpoint(tmp_path / "w", tmp_path / "ours", backbone=backbone)
    assert (record["architecture"], record["max_logit_difference"]) == (f"timm {backbone}", 0.0)
    ours, processor = load_checkpoint(tmp_path / "ours")
    height, width = processor.image_processor.size["height"], processor.image_processor.size["width"]
    assert (3, height, width) == model.pretrained_cfg["input_size"]
    with torch.inference_mode():
        assert torch.equal(ours(pixels(side=height)).logits, model(pixels(side=height)))


def test_the_cards_snippet_gives_the_same_bits(converted: Path, baseline: nn.Module, tmp_path: Path) -> None:
    """Also the pixel values are equal in every bit: both divide by 255, subtract the mean and divide by the std."""
    photograph().save(tmp_path / "lesion.jpg")
    theirs = snippet(Image.open(tmp_path / "lesion.jpg"))
    model, processor = load_checkpoint(converted)
    ours = processor(images=str(tmp_path / "lesion.jpg"))["pixel_values"]
    assert torch.equal(ours, theirs)
    with torch.inference_mode():
        expected = baseline(theirs).softmax(-1)
        assert torch.equal(model(ours).logits.softmax(-1), expected)
    assert 0.2 < expected.max() < 0.99


def test_weights_that_do_not_fit_are_refused(baseline: nn.Module, tmp_path: Path) -> None:
    good = light(baseline.state_dict())
    stem, norm, head = "features.0.0.weight", "features.7.1.running_var", "classifier.1.weight"
    imagenet = {**good, head: torch.ones(1000, 1280), "classifier.1.bias": torch.ones(1000)}
    cases: list[tuple[Weights, str]] = [
        ({"conv_stem.weight": torch.ones(3)}, 'Missing key.*"features.0.0.weight".*--backbone for a network of timm'),
        (imagenet, r"size mismatch for classifier.1.weight: .*\[1000, 1280\].*\[7, 1280\]"),
        ({name: value for name, value in good.items() if name != norm}, f'Missing key.*"{norm}"'),
        ({**good, "extra.bias": torch.ones(1)}, 'Unexpected key.*"extra.bias"'),
        ({**good, stem: torch.ones(24, 1, 3, 3)}, f"size mismatch for {stem}"),
        ({("module." if name == stem else "") + name: good[name] for name in good}, f'"{stem}"'),
        ({**good, norm: torch.full((1280,), torch.nan)}, "by nan. NaN means weights that are not finite"),
        ({**good, head: torch.ones(7, 1280).to_sparse()}, f"does not fit.*{head}"),
        ({**good, head: torch.ones(7, 1280, device="meta")}, f"does not fit.*{head}"),
    ]
    for content, match in cases:
        torch.save(content, tmp_path / "weights.pt")
        with pytest.raises(Ham10000Error, match=match) as caught:
            convert_checkpoint(tmp_path / "weights.pt", tmp_path / "out")
        assert "weights.pt" in str(caught.value)
        assert len(str(caught.value)) < 1000
        assert listing(tmp_path) == ["weights.pt"]


SWAPPED = ["akiec", "bcc", "bkl", "df", "nv", "mel", "vasc"]


@pytest.mark.parametrize(
    ("entries", "accepted"),
    [
        ({"class_names": tuple(LABELS[:6])}, False),
        ({"class_to_idx": {label: index for index, label in enumerate(SWAPPED)}}, False),
        ({"id2label": {str(index): label for index, label in enumerate(SWAPPED)}}, False),
        ({"class_names": tuple(LABELS), "classes": 7, "id2label": dict(enumerate(LABELS))}, True),
        ({"id2label": {str(index): label for index, label in enumerate(LABELS)}, "class_names": None}, True),
        ({"label2id": {label: index for index, label in reversed(list(enumerate(LABELS)))}}, True),
        ({"per_class": {label: {"f1": 0.5} for label in SWAPPED}, "malignant": ["mel", "bcc"]}, True),
    ],
)
def test_another_order_of_the_classes_is_refused(entries: dict[str, Any], accepted: bool, tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(1)}, **entries}, tmp_path / "weights.pt")
    if accepted:
        assert read_weights(tmp_path / "weights.pt")[1] == "training_checkpoint"
    else:
        with pytest.raises(Ham10000Error, match=f"`{next(iter(entries))}` gives the classes as"):
            read_weights(tmp_path / "weights.pt")


def test_the_command_line_protects_what_is_there(baseline: nn.Module, tmp_path: Path, capsys, monkeypatch) -> None:
    file, out = tmp_path / "weights.pt", tmp_path / "ours"
    torch.save({f"module.{name}": value for name, value in baseline.state_dict().items()}, file)
    arguments = ["--checkpoint", str(file), "--output_dir", str(out)]

    # A full disk, while the second half of the files is written.
    full = OSError(28, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(Ham10000Processor, "save_pretrained", mock.Mock(side_effect=full))
        assert main(arguments) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert listing(tmp_path) == ["weights.pt"]

    out.mkdir()  # an empty folder is as good as none
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "differ from torchvision efficientnet_v2_s by at most 0\n" in printed.out
    assert printed.err == ""
    assert listing(tmp_path) == ["ours", "weights.pt"]
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for existing in (out, file):
        assert main([*arguments[:3], str(existing)]) == 2
        assert "exists and is not an empty folder; choose another --output_dir" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
