"""What a transformers user does with a saved folder: the Auto classes, the pipeline and the Trainer."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoProcessor,
    Trainer,
    TrainingArguments,
    pipeline,
)
from transformers.utils import logging as transformers_logging

from ham10000.modeling import (
    LABELS,
    Ham10000Config,
    Ham10000ForImageClassification,
    Ham10000ImageProcessor,
    Ham10000Model,
    Ham10000Processor,
)
from ham10000.training.data.synthetic import make_synthetic
from ham10000.training.evaluation.metrics import HEADLINE_METRICS, trainer_compute_metrics

MODALITIES = ["image", "metadata", "fusion"]
ROW = {"age": 60, "sex": "male", "localization": "back"}


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 60, 3), dtype=np.uint8))


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
def test_loading_and_using_it_says_nothing(
    modality: str, tiny_checkpoints: dict, picture: Image.Image, said_by_transformers: list[str]
) -> None:
    folder = tiny_checkpoints[modality]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inputs = make_inputs(AutoProcessor.from_pretrained(folder), picture)
        AutoImageProcessor.from_pretrained(folder)
        AutoModel.from_pretrained(folder)(**inputs)
        transformers_logging.get_logger("transformers").warning("a canary")
    assert said_by_transformers == ["a canary"]


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_folder_is_flat_code_json_and_safetensors(modality: str, tiny_checkpoints: dict) -> None:
    code = ["configuration", "fusion", "image_processing", "image_statistics", "modeling", "pipeline", "processing"]
    assert sorted(path.name for path in tiny_checkpoints[modality].iterdir()) == sorted(
        ["config.json", "processor_config.json", "model.safetensors", *(f"{name}_ham10000.py" for name in code)]
    )


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_loading(
    modality: str, dtype: torch.dtype, tiny_checkpoints: dict, picture: Image.Image
) -> None:
    inputs = make_inputs(AutoProcessor.from_pretrained(tiny_checkpoints[modality]), picture)
    expected = AutoModel.from_pretrained(tiny_checkpoints[modality])(**inputs).logits.softmax(-1)
    model = AutoModel.from_pretrained(tiny_checkpoints[modality], dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    output = model(**inputs, labels=torch.tensor([0]))
    assert (output.logits.dtype, output.loss.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(output.logits.float().softmax(-1), expected, atol=0.05, rtol=0)


@pytest.mark.parametrize("modality", ["image", "fusion"])
@pytest.mark.parametrize("top_k", [1, 7])
def test_the_image_classification_pipeline(
    modality: str, top_k: int, tiny_checkpoints: dict, picture: Image.Image, tmp_path: Path
) -> None:
    classify = pipeline("image-classification", model=str(tiny_checkpoints[modality]))
    model = Ham10000ForImageClassification.from_pretrained(tiny_checkpoints[modality])
    with torch.no_grad():
        pixels = Ham10000Processor.from_pretrained(tiny_checkpoints[modality])(images=picture)["pixel_values"]
        probabilities = dict(zip(LABELS, model(pixels).logits.softmax(-1)[0].tolist(), strict=True))
    ranked = sorted(probabilities, key=lambda label: -probabilities[label])[:top_k]
    picture.save(tmp_path / "picture.png")
    for form in (picture, str(tmp_path / "picture.png")):
        answer = classify(form, top_k=top_k)
        assert [row["label"] for row in answer] == ranked
        assert [row["score"] for row in answer] == pytest.approx([probabilities[label] for label in ranked], abs=1e-6)
    assert len(classify([picture, picture], top_k=top_k)) == 2


class Photographs(torch.utils.data.Dataset):
    """Rows as `Trainer` wants them: one dict of tensors each."""

    def __init__(self, processor: Ham10000Processor, count: int):
        rows = make_synthetic(count, seed=1, image_size=(48, 36))
        given = {
            "images": [row["image"]["bytes"] for row in rows],
            "metadata": [{key: row[key] for key in ROW} for row in rows],
        }
        wanted = {"pixel_values": "images", "metadata": "metadata"}
        self.inputs = processor(**{wanted[name]: given[wanted[name]] for name in processor.model_input_names})
        self.labels = [LABELS.index(row["dx"]) for row in rows]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        return {**{name: value[index] for name, value in self.inputs.items()}, "labels": self.labels[index]}


@pytest.mark.parametrize("modality", ["metadata", "fusion"])
def test_transformers_trainer(modality: str, tiny_checkpoints: dict, tmp_path: Path) -> None:
    model = AutoModelForImageClassification.from_pretrained(tiny_checkpoints[modality])
    before = {name: value.clone() for name, value in model.named_parameters()}
    processor = AutoProcessor.from_pretrained(tiny_checkpoints[modality])
    data = Photographs(processor, 28)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=8,
        learning_rate=1e-3,
        report_to=[],
        save_steps=2,
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    # No `processing_class`: transformers 5.23's Trainer asks every ProcessorMixin for a tokenizer, and ours has none.
    trainer = Trainer(
        model=model, args=arguments, train_dataset=data, eval_dataset=data, compute_metrics=trainer_compute_metrics
    )
    result = trainer.train()
    assert result.global_step == 2
    assert np.isfinite(result.training_loss)
    unchanged = [name for name, value in model.named_parameters() if torch.equal(value, before[name])]
    assert [name for name in unchanged if not name.endswith((".scale.0.bias", ".shift.0.bias"))] == []
    metrics = trainer.evaluate()
    assert {f"eval_{name}" for name in HEADLINE_METRICS} <= set(metrics)
    # the same numbers from one pass over the data by hand
    labels = torch.tensor(data.labels)
    with torch.no_grad():
        output = model.eval()(**data.inputs, labels=labels)
    assert metrics["eval_accuracy"] == pytest.approx((output.logits.argmax(1) == labels).double().mean().item())
    assert metrics["eval_loss"] == pytest.approx(output.loss.item(), rel=1e-4)
    # what the Trainer saved loads as any checkpoint does
    saved = AutoModel.from_pretrained(tmp_path / "checkpoint-2")
    for name, value in model.state_dict().items():
        assert torch.equal(saved.state_dict()[name], value), name
    assert saved.config.modality == modality
