"""A temperature other than 1, and fusions other than concat, in everything that loads a checkpoint."""

import base64
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from skin import knows_skin, skin_image
from transformers import AutoModel, AutoModelForImageClassification, pipeline

from ham10000.hub_upload.bundle import verify_checkpoint
from ham10000.hub_upload.handler import EndpointHandler
from ham10000.modeling import (
    LABELS,
    PIPELINE_TASK,
    Ham10000Config,
    Ham10000ForImageClassification,
    Ham10000Processor,
    create_model,
    create_processor,
)
from ham10000.training.inference.prediction import load_checkpoint, predict

ROW = {"age": 60, "sex": "male", "localization": "back"}
IMAGE = skin_image(3)


@pytest.fixture(scope="module", params=[("film", 1.7), ("metablock", 0.4), ("gated", 0.4)], ids=str)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A folder of random weights, all of which matter, and its temperature."""
    fusion, temperature = request.param
    torch.manual_seed(0)
    config = Ham10000Config(backbone="test_efficientnet", fusion=fusion, temperature=temperature)
    model, folder = create_model(config), tmp_path_factory.mktemp(fusion)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.startswith(("fusion", "classifier")):  # FiLM starts as the identity
                value.add_(0.3 * torch.randn_like(value))
    model.save_pretrained(folder)
    knows_skin(create_processor(config, image_size=64)).save_pretrained(folder)
    return folder, temperature


@pytest.fixture(scope="module")
def inputs(checkpoint: tuple[Path, float]) -> dict[str, torch.Tensor]:
    return dict(Ham10000Processor.from_pretrained(checkpoint[0])(images=IMAGE, metadata=ROW))


@pytest.fixture(scope="module")
def expected(checkpoint: tuple[Path, float], inputs: dict[str, torch.Tensor]) -> list[float]:
    """The probabilities: the classifier's own outputs, divided by the temperature here."""
    folder, temperature = checkpoint
    seen: list[torch.Tensor] = []
    model = Ham10000ForImageClassification.from_pretrained(folder)
    model.classifier.register_forward_hook(lambda module, given, output: seen.append(output))
    with torch.no_grad():
        model(**inputs)
        probabilities = (seen[0].double() / temperature).softmax(-1)[0]
        assert (probabilities - seen[0].double().softmax(-1)[0]).abs().max() > 0.02  # it matters
        pixels, missing = inputs["pixel_values"], torch.full_like(inputs["metadata"], float("nan"))
        for changed in ({"pixel_values": -pixels}, {"metadata": missing}):  # and so do both inputs
            other = model(**(inputs | changed)).logits.softmax(-1)[0]
            assert (probabilities - other).abs().max() > 1e-4
    return probabilities.tolist()


def of_pipeline(folder: Path) -> list[dict[str, Any]]:
    return pipeline(PIPELINE_TASK, model=str(folder))({"image": IMAGE, **ROW})  # type: ignore[call-overload]


def of_handler(folder: Path) -> list[dict[str, Any]]:
    stream = io.BytesIO()
    IMAGE.save(stream, "PNG")
    encoded = base64.b64encode(stream.getvalue()).decode()
    return EndpointHandler(folder)({"inputs": {"image": encoded, **ROW}})


@pytest.mark.parametrize("answer", [of_pipeline, of_handler])
def test_pipeline_and_handler_divide_by_the_temperature_once(answer, checkpoint, expected) -> None:
    scores = {row["label"]: row["score"] for row in answer(checkpoint[0])}
    assert [scores[label] for label in LABELS] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForImageClassification])
def test_auto_classes_divide_by_the_temperature_once(auto_class: Any, checkpoint, inputs, expected) -> None:
    model = auto_class.from_pretrained(checkpoint[0])
    with torch.no_grad():
        assert model(**inputs).logits.softmax(-1)[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_prediction_divides_by_the_temperature_once(checkpoint, expected) -> None:
    model, processor = load_checkpoint(checkpoint[0])
    assert predict(model, processor, [IMAGE], [ROW])[0].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_the_code_in_the_folder_does_the_same_without_this_package(checkpoint) -> None:
    assert verify_checkpoint(checkpoint[0]) == 42  # 3 inputs, 7 classes, 2 Auto classes
