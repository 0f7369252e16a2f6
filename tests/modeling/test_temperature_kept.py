"""A temperature other than 1, and fusions other than concat, in everything that loads a checkpoint."""

import base64
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from skin import knows_skin, skin_image
from transformers import AutoModel, AutoModelForImageClassification, pipeline

from ham10000.hub_upload.handler import EndpointHandler
from ham10000.modeling import LABELS, PIPELINE_TASK, Ham10000Config, create_model, create_processor
from ham10000.training.inference.prediction import load_checkpoint, predict

ROW = {"age": 60, "sex": "male", "localization": "back"}
IMAGE = skin_image(3)


def in_order(answer: list[dict[str, Any]]) -> list[float]:
    scores = {row["label"]: row["score"] for row in answer}
    return [scores[label] for label in LABELS]


@pytest.mark.parametrize(("fusion", "temperature"), [("film", 1.7), ("metablock", 0.4), ("gated", 0.4)])
@torch.no_grad()
def test_all_loaders_divide_by_the_temperature_once(fusion: str, temperature: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Ham10000Config(backbone="test_efficientnet", fusion=fusion, temperature=temperature)
    model = create_model(config).eval()
    for name, value in model.named_parameters():
        if name.startswith(("fusion", "classifier")):  # FiLM starts as the identity
            value.add_(0.3 * torch.randn_like(value))
    model.save_pretrained(tmp_path)
    processor = knows_skin(create_processor(config, image_size=64))
    processor.save_pretrained(tmp_path)

    # The probabilities: the classifier's own outputs, divided by the temperature here.
    inputs, seen = dict(processor(images=IMAGE, metadata=ROW)), []
    model.classifier.register_forward_hook(lambda module, given, output: seen.append(output[0].double()))
    model(**inputs)
    expected = (seen[0] / temperature).softmax(-1)
    assert (expected - seen[0].softmax(-1)).abs().max() > 0.02  # it matters
    pixels, missing = inputs["pixel_values"], torch.full_like(inputs["metadata"], float("nan"))
    for changed in ({"pixel_values": -pixels}, {"metadata": missing}):  # and so do both inputs
        assert (expected - model(**(inputs | changed)).logits.softmax(-1)[0]).abs().max() > 1e-4

    stream = io.BytesIO()
    IMAGE.save(stream, "PNG")
    request = {"inputs": {"image": base64.b64encode(stream.getvalue()).decode(), **ROW}}
    answers = {
        "pipeline": in_order(pipeline(PIPELINE_TASK, model=str(tmp_path))({"image": IMAGE, **ROW})),
        "handler": in_order(EndpointHandler(tmp_path)(request)),
        "predict": predict(*load_checkpoint(tmp_path), [IMAGE], [ROW])[0].tolist(),
    }
    for auto_class in (AutoModel, AutoModelForImageClassification):
        answers[auto_class.__name__] = auto_class.from_pretrained(tmp_path)(**inputs).logits.softmax(-1)[0].tolist()
    for name, probabilities in answers.items():
        assert probabilities == pytest.approx(expected.tolist(), abs=1e-6), name
