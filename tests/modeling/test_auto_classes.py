"""What a transformers user does with a saved folder: the Auto classes."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from skin import skin_image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoProcessor

from ham10000.modeling import (
    Ham10000Config,
    Ham10000ForImageClassification,
    Ham10000ImageProcessor,
    Ham10000Model,
    Ham10000Processor,
)

MODALITIES = ["image", "metadata", "fusion"]
ROW = {"age": 60, "sex": "male", "localization": "back"}


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return skin_image(0)


def test_a_checkpoint_may_lie_in_a_subfolder(
    tiny_checkpoints: dict[str, Path], tmp_path: Path, picture: Image.Image
) -> None:
    shutil.copytree(tiny_checkpoints["fusion"], tmp_path / "models" / "fusion")
    logits = []
    for place, where in ((tiny_checkpoints["fusion"], {}), (tmp_path, {"subfolder": "models/fusion"})):
        for auto in (AutoModel, AutoModelForImageClassification, Ham10000ForImageClassification):
            processor = AutoProcessor.from_pretrained(place, **where)
            with torch.no_grad():
                logits.append(auto.from_pretrained(place, **where)(**make_inputs(processor, picture)).logits)
    assert all(torch.equal(one, logits[0]) for one in logits)


def make_inputs(processor: Ham10000Processor, picture: Image.Image) -> dict[str, torch.Tensor]:
    given = {"pixel_values": {"images": picture}, "metadata": {"metadata": ROW}}
    return dict(processor(**{k: v for name in processor.model_input_names for k, v in given[name].items()}))


@pytest.mark.parametrize("modality", MODALITIES)
@torch.no_grad()
def test_auto_classes_give_the_class_with_logits(modality: str, tiny_checkpoints: dict, picture: Image.Image) -> None:
    folder = tiny_checkpoints[modality]
    config = AutoConfig.from_pretrained(folder)
    assert type(config) is Ham10000Config
    assert config.modality == modality
    processor = AutoProcessor.from_pretrained(folder)
    assert type(processor) is Ham10000Processor
    assert processor.modality == modality
    image_processor = AutoImageProcessor.from_pretrained(folder)
    assert type(image_processor) is Ham10000ImageProcessor
    if modality != "metadata":
        assert image_processor.size == {"height": 64, "width": 64}
    inputs = make_inputs(processor, picture)
    expected = Ham10000ForImageClassification.from_pretrained(folder)(**inputs).logits
    assert expected.shape == (1, 7)
    classes = {AutoModel: Ham10000Model, AutoModelForImageClassification: Ham10000ForImageClassification}
    for auto_class, expected_class in classes.items():
        model = auto_class.from_pretrained(folder)
        assert type(model) is expected_class
        assert not model.training
        assert torch.equal(model(**inputs).logits, expected)


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_loading(
    modality: str, dtype: torch.dtype, tiny_checkpoints: dict, picture: Image.Image
) -> None:
    inputs = make_inputs(AutoProcessor.from_pretrained(tiny_checkpoints[modality]), picture)
    assert {value.dtype for value in inputs.values()} == {torch.float32}
    expected = AutoModel.from_pretrained(tiny_checkpoints[modality])(**inputs).logits.softmax(-1)
    model = AutoModel.from_pretrained(tiny_checkpoints[modality], dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    output = model(**inputs, labels=torch.tensor([0]))
    assert (output.logits.dtype, output.loss.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(output.logits.float().softmax(-1), expected, atol=0.05, rtol=0)
