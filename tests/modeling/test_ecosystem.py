"""What the Auto classes, accelerate, PEFT, torchao, timm and transformers' own scripts do with a model."""

import copy
import functools
import importlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import tiny_models
import torch
from accelerate import infer_auto_device_map
from accelerate.utils import get_balanced_memory
from card_runs import change_json
from command_lines import ROOT, code_blocks
from skin import skin_image
from tiny_models import make_inputs
from torch import nn
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

from ham10000.modeling import (
    LABELS,
    MODALITIES,
    Ham10000Config,
    Ham10000Error,
    Ham10000ForImageClassification,
    Ham10000ImageProcessor,
    Ham10000Model,
    Ham10000Processor,
)
from ham10000.training.evaluation.metrics import HEADLINE_METRICS, trainer_compute_metrics

ROW = {"age": 60, "sex": "male", "localization": None}  # of which the model gets a NaN
PICTURE = skin_image(0)
THREE = ["benign", "mel", "other"]
make_model = functools.partial(tiny_models.make_model, fusion="metablock")


def processed(processor: Ham10000Processor) -> dict[str, torch.Tensor]:
    given = {"pixel_values": {"images": PICTURE}, "metadata": {"metadata": ROW}}
    return dict(processor(**{k: v for name in processor.model_input_names for k, v in given[name].items()}))


@pytest.mark.parametrize("modality", MODALITIES)
@torch.no_grad()
def test_auto_classes_give_the_class_with_logits(modality: str, tiny_checkpoints: dict) -> None:
    """From the checkpoint's folder, and from the one around it, of which that is a subfolder."""
    folder = tiny_checkpoints[modality]
    config = AutoConfig.from_pretrained(folder)
    assert (type(config), config.modality) == (Ham10000Config, modality)
    image_processor = AutoImageProcessor.from_pretrained(folder)
    assert type(image_processor) is Ham10000ImageProcessor
    if modality != "metadata":
        assert image_processor.size == {"height": 64, "width": 64}
    inputs = processed(Ham10000Processor.from_pretrained(folder))
    expected = Ham10000ForImageClassification.from_pretrained(folder)(**inputs).logits
    assert expected.shape == (1, 7)
    classes = {AutoModel: Ham10000Model, AutoModelForImageClassification: Ham10000ForImageClassification}
    for place, where in ((folder, {}), (folder.parent, {"subfolder": modality})):
        processor = AutoProcessor.from_pretrained(place, **where)
        assert (type(processor), processor.modality) == (Ham10000Processor, modality)
        for auto_class, expected_class in classes.items():
            model = auto_class.from_pretrained(place, **where)
            assert type(model) is expected_class
            assert not model.training
            assert torch.equal(model(**processed(processor)).logits, expected)


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_loading(modality: str, dtype: torch.dtype, tiny_checkpoints: dict) -> None:
    inputs = processed(AutoProcessor.from_pretrained(tiny_checkpoints[modality]))
    assert {value.dtype for value in inputs.values()} == {torch.float32}
    expected = AutoModel.from_pretrained(tiny_checkpoints[modality])(**inputs).logits.softmax(-1)
    model = AutoModel.from_pretrained(tiny_checkpoints[modality], dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    output = model(**inputs, labels=torch.tensor([0]))
    assert (output.logits.dtype, output.loss.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(output.logits.float().softmax(-1), expected, atol=0.05, rtol=0)


# --- labels of a checkpoint and of those who load it


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_new_classifier_on_the_trained_body(modality: str, tiny_checkpoints: dict, tmp_path: Path) -> None:
    """Three classes, two, and seven others, whose classifier has the shape of the saved one.

    With ids that are text and by way of a config too, as transformers' run_image_classification.py passes them.
    """
    folder, inputs = shutil.copytree(tiny_checkpoints[modality], tmp_path / "fitted"), make_inputs(modality)
    change_json(folder / "config.json", class_prior=[1 / 7] * 7, conformal_thresholds={"0.9": [0.5] * 7})
    trained = Ham10000ForImageClassification.from_pretrained(folder)
    for names in (list(LABELS), THREE, ["mel", "not mel"], list("abcdefg")):
        labels: dict[str, Any] = {"num_labels": len(names), "id2label": dict(enumerate(names))}
        same, ours = names == list(LABELS), AutoModelForImageClassification
        if not same:
            with pytest.raises((Ham10000Error, RuntimeError), match=r"ignore_mismatched_sizes"):
                ours.from_pretrained(folder, **labels)
        labels["label2id"] = {name: str(index) for index, name in enumerate(names)}
        config = AutoConfig.from_pretrained(folder, **labels, finetuning_task="image-classification")
        for given in (labels, {"config": config}):
            model = ours.from_pretrained(folder, **given, ignore_mismatched_sizes=not same)
            for name, value in trained.state_dict().items():
                changed = not same and name.startswith("classifier.")
                assert torch.equal(model.state_dict()[name], value) != changed, name
        assert model.classifier.weight.std() > 0.01  # not what the memory happened to hold
        assert (model.config.class_prior, model.config.conformal_thresholds) == (None, None) or same
        output = model(**inputs, labels=torch.tensor([0, 1, 1, 0]))
        assert output.logits.shape == (4, len(names))
        output.loss.backward()
        model.save_pretrained(tmp_path)
        again = ours.from_pretrained(tmp_path)
        assert torch.equal(again(**inputs).logits, output.logits)
        assert again.config.label_names == model.config.label_names == names


def test_a_body_that_does_not_fit_stays_an_error(tiny_checkpoints: dict[str, Path]) -> None:
    asked = {"metadata_hidden_sizes": [3, 64], "num_labels": 3, "ignore_mismatched_sizes": True}
    with pytest.raises(Ham10000Error, match=r"lacks .* metadata_encoder\.mlp"):
        Ham10000ForImageClassification.from_pretrained(tiny_checkpoints["fusion"], **asked)


def test_labels_changed_under_a_built_model_are_refused_at_saving(tmp_path: Path) -> None:
    model = make_model("metadata")
    model.config.num_labels = 3
    with pytest.raises(Ham10000Error, match=r"LABEL_2.*has 7 outputs"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


# --- Trainer


def samples(modality: str) -> list[dict[str, Any]]:
    inputs = make_inputs(modality, batch=8)
    return [{**{name: rows[k] for name, rows in inputs.items()}, "labels": k % 7} for k in range(8)]


def training_arguments(folder: Path, **kwargs) -> TrainingArguments:
    kwargs = {"max_steps": 1, "per_device_train_batch_size": 8, "report_to": [], "use_cpu": True, **kwargs}
    return TrainingArguments(output_dir=str(folder), disable_tqdm=True, dataloader_pin_memory=False, **kwargs)


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForImageClassification])
def test_trainer_trains_evaluates_and_saves(auto_class, modality: str, tiny_checkpoints: dict, tmp_path: Path) -> None:
    model, data = auto_class.from_pretrained(tiny_checkpoints[modality]), samples(modality)
    before = {name: value.clone() for name, value in model.named_parameters()}
    arguments = training_arguments(tmp_path, max_steps=2, save_steps=2, learning_rate=1e-3)
    # Not the processor: transformers 5.23's Trainer asks every ProcessorMixin for a tokenizer, and ours has none.
    image_processor = AutoImageProcessor.from_pretrained(tiny_checkpoints[modality])
    trainer = Trainer(model, arguments, None, data, data, image_processor, compute_metrics=trainer_compute_metrics)
    result = trainer.train()
    assert result.global_step == 2
    assert np.isfinite(result.training_loss)
    assert [name for name, value in model.named_parameters() if torch.equal(value, before[name])] == []
    metrics = trainer.evaluate()
    assert {f"eval_{name}" for name in HEADLINE_METRICS} <= set(metrics)
    # the same numbers from one pass over the data by hand
    labels = torch.arange(8) % 7
    with torch.no_grad():
        output = model.eval()(**make_inputs(modality, batch=8), labels=labels)
    assert metrics["eval_accuracy"] == pytest.approx((output.logits.argmax(1) == labels).double().mean().item())
    assert metrics["eval_loss"] == pytest.approx(output.loss.item(), rel=1e-4)
    # The logits alone: transformers' documentation computes metrics of `np.argmax(p.predictions, axis=1)`.
    np.testing.assert_allclose(trainer.predict(data).predictions, output.logits.numpy(), atol=1e-5)
    assert AutoImageProcessor.from_pretrained(tmp_path / "checkpoint-2").size == image_processor.size
    for either in (AutoModel, AutoModelForImageClassification):
        saved = either.from_pretrained(tmp_path / "checkpoint-2").state_dict()
        torch.testing.assert_close(saved, model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("modality", MODALITIES)
@torch.no_grad()
def test_a_replica_of_data_parallel_answers_as_the_model(
    modality: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the Trainer makes in one process with several GPUs; only the copying to them is taken out."""
    module = importlib.import_module("torch.nn.parallel.replicate")
    monkeypatch.setattr(module, "_broadcast_coalesced_reshape", lambda ts, *_, **__: [[t.clone() for t in ts]])
    model, inputs = make_model(modality).to(dtype), make_inputs(modality)
    (replica,) = module.replicate(model, [0])
    assert not list(replica.parameters())
    assert torch.equal(replica(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_device_map_keeps_backbone_and_fusion_whole(modality: str) -> None:
    """Accelerate moves what goes into a module to its device, and nothing that the module adds up inside."""
    model = make_model(modality, fusion="gated")
    size, whole = sum(value.nbytes for value in model.state_dict().values()), list(model._no_split_modules)
    auto = get_balanced_memory(model, {0: size, 1: size}, whole)
    for memory in (auto, *({0: int(share * size), 1: size} for share in (0.2, 0.6, 0.9))):
        device_map = infer_auto_device_map(model, memory, whole)
        assert not [name for name in device_map if name.startswith(("backbone.", "fusion."))]


@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_vit", "test_convnext"])
def test_gradient_checkpointing_gives_the_same_gradients_and_timms_running_statistics(backbone: str) -> None:
    """The statistics change twice a step, as the second forward pass of a block is a training pass too."""
    # The two runs must not differ by what is dropped.
    rates = ("metadata_dropout", "metadata_field_dropout", "metadata_hidden_dropout", "classifier_dropout")
    inputs, gradients = make_inputs("fusion", size=160 if backbone == "test_vit" else 64), []
    for enabled in (False, True):
        model = make_model("fusion", backbone=backbone, fusion="concat", **dict.fromkeys(rates, 0)).train()
        bare = timm.create_model(backbone, num_classes=0).train()
        bare.load_state_dict(model.backbone.state_dict())
        if enabled:
            model.gradient_checkpointing_enable()
            bare.set_grad_checkpointing()
        assert model.is_gradient_checkpointing == enabled
        model(**inputs, labels=torch.arange(4)).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        bare(inputs["pixel_values"]).sum().backward()
        own = dict(model.backbone.named_buffers())
        torch.testing.assert_close(own, dict(bare.named_buffers()), rtol=0, atol=0)
        if backbone == "test_efficientnet":
            steps = {int(value) for name, value in own.items() if name.endswith("num_batches_tracked")}
            assert steps == ({1, 2} if enabled else {1})  # the stem is not recomputed
    torch.testing.assert_close(gradients[1], gradients[0])
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing


def test_the_trainer_checkpoints_gradients(tmp_path: Path) -> None:
    calls = []
    model = make_model("fusion")
    original = model.backbone.set_grad_checkpointing
    model.backbone.set_grad_checkpointing = lambda enable=True: [calls.append(enable), original(enable)]
    arguments = training_arguments(tmp_path, gradient_checkpointing=True)
    assert Trainer(model, arguments, train_dataset=samples("fusion")).train().global_step == 1
    assert calls[0] is True
    with pytest.raises(ValueError, match=r"does not support \w+ checkpointing"):
        make_model("metadata").gradient_checkpointing_enable()
    for option in ({"every_n_layers": 2}, {"offload": True}):
        with pytest.raises(Ham10000Error, match="`every_n_layers` must be 1 and `offload` False"):
            model.activation_checkpointing_enable(**option)


# --- what a config or a call may ask for


@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_vit", "test_resnet", "test_convnext", "test_byobnet"])
@torch.no_grad()
def test_hidden_states_are_timms(backbone: str) -> None:
    model, inputs = make_model("fusion", backbone=backbone), make_inputs("fusion", size=160)
    output = model(**inputs, output_hidden_states=True)
    _, expected = model.backbone.forward_intermediates(inputs["pixel_values"])
    assert len(output.hidden_states) == len(expected) > 1
    for ours, theirs in zip(output.hidden_states, expected, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(output.logits, model(**inputs).logits)
    model.config.output_hidden_states = True
    assert len(model(**inputs).hidden_states) == len(expected)


def test_hidden_states_of_metadata_and_what_timm_does_not_return() -> None:
    model = make_model("metadata", metadata_hidden_sizes=[9, 5])
    output = model(**make_inputs("metadata"), output_hidden_states=True)
    assert [state.shape for state in output.hidden_states] == [(4, 9), (4, 5)]
    assert torch.equal(output.hidden_states[-1], output.metadata_embedding)
    model = make_model("image")
    model.backbone = nn.Sequential(model.backbone)  # has no `forward_intermediates`
    with pytest.raises(Ham10000Error, match="output_hidden_states"):
        model(**make_inputs("image"), output_hidden_states=True)
    with pytest.raises(Ham10000Error, match="output_attentions"):
        make_model("image", output_attentions=True)(**make_inputs("image"))


@torch.no_grad()
def test_attention_implementations(tmp_path: Path) -> None:
    inputs = make_inputs("image", size=160)
    make_model("image", backbone="test_vit").save_pretrained(tmp_path)
    plain = AutoModel.from_pretrained(tmp_path)
    fused = AutoModel.from_pretrained(tmp_path, attn_implementation="sdpa")
    eager = AutoModel.from_pretrained(tmp_path, attn_implementation="eager")
    attention = [model.backbone.blocks[0].attn.fused_attn for model in (plain, fused, eager)]
    assert attention == [timm.layers.use_fused_attn(), True, False]
    assert torch.equal(fused(**inputs).logits, plain(**inputs).logits)
    torch.testing.assert_close(eager(**inputs).logits, plain(**inputs).logits)
    with pytest.raises((ImportError, ValueError), match=r"[Ff]lash"):
        AutoModel.from_pretrained(tmp_path, attn_implementation="flash_attention_2")


# --- pipelines, timm, deferred initialisation


@pytest.mark.parametrize("modality", ["image", "fusion"])
@pytest.mark.parametrize("pool", [False, True])
@torch.no_grad()
def test_feature_extraction_gives_features(modality: str, pool: bool, tiny_checkpoints: dict) -> None:
    extract = pipeline("image-feature-extraction", model=str(tiny_checkpoints[modality]))
    features = torch.tensor(extract(PICTURE, pool=pool))
    model = Ham10000ForImageClassification.from_pretrained(tiny_checkpoints[modality])
    pixels = Ham10000Processor.from_pretrained(tiny_checkpoints[modality])(images=PICTURE)["pixel_values"]
    received = []
    model.classifier.register_forward_pre_hook(lambda _, inputs: received.append(inputs[0]))
    model(pixels)
    torch.testing.assert_close(features, received[0])
    half = pipeline("image-feature-extraction", model=str(tiny_checkpoints[modality]), dtype=torch.float16)
    torch.testing.assert_close(torch.tensor(half(PICTURE, pool=pool)), features, atol=0.02, rtol=0.02)
    assert features.shape == (1, model.classifier.in_features)


@pytest.mark.parametrize("modality", ["image", "fusion"])
def test_the_bare_backbone_for_timm(
    modality: str, tiny_checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guide's lines, word for word; the checkpoint's name is a link to a random one."""
    guide = (ROOT / "examples" / "guides" / "publishing.md").read_text(encoding="utf-8")
    (lines,) = (block for block in code_blocks(guide, "python") if "timm" in block)
    monkeypatch.chdir(tmp_path)
    Path("examples/checkpoints").mkdir(parents=True)
    Path("examples/checkpoints/ham10000-image").symlink_to(tiny_checkpoints[modality])
    names: dict[str, Any] = {}
    exec(compile(lines, "publishing.md", "exec"), names)
    pixels = make_inputs("image")["pixel_values"]
    with torch.no_grad():
        assert torch.equal(names["backbone"].eval()(pixels), names["model"].backbone(pixels))
    assert type(names["backbone"]) is type(timm.create_model("test_efficientnet"))


@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_vit", "swin_tiny_patch4_window7_224"])
@pytest.mark.parametrize("modality", ["image", "fusion"])
def test_a_model_built_on_meta_gets_timms_initialisation(backbone: str, modality: str, tiny_checkpoints: dict) -> None:
    """As FSDP builds it; `to_empty` leaves what the memory held, which `init_weights` must replace everywhere."""
    config = Ham10000Config(modality=modality, backbone=backbone, fusion="film")
    with torch.device("meta"):
        model = Ham10000ForImageClassification(config)
    model.to_empty(device="cpu")
    for value in (*model.parameters(), *model.buffers()):
        value.data.fill_(7)
    torch.manual_seed(3)
    model.init_weights()
    torch.manual_seed(3)
    bare = timm.create_model(backbone, num_classes=0)
    own = dict((*model.backbone.named_parameters(), *model.backbone.named_buffers()))
    torch.testing.assert_close(own, dict((*bare.named_parameters(), *bare.named_buffers())), rtol=0, atol=0)
    for name, value in model.state_dict().items():
        assert not (value == 7).all(), name
    for done in (model, AutoModel.from_pretrained(tiny_checkpoints["fusion"])):  # initialised once, or loaded
        before = copy.deepcopy(done.state_dict())
        done.init_weights()
        torch.testing.assert_close(done.state_dict(), before, rtol=0, atol=0)


# --- optional libraries: they are no dependency of this package, and quantised or adapted models are theirs


@torch.no_grad()
def test_torchao_quantises_saves_and_loads(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="torchao is optional: pip install torchao")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    inputs = make_inputs("fusion")
    expected = AutoModel.from_pretrained(tiny_checkpoints["fusion"])(**inputs).logits
    recipe = {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig()), "dtype": torch.float32}
    model = AutoModelForImageClassification.from_pretrained(tiny_checkpoints["fusion"], **recipe)
    assert "metadata_encoder.mlp.0.weight" in dict(model.named_parameters())
    assert type(model.metadata_encoder.mlp[0].weight) is not nn.Parameter  # it was quantised
    logits = model(**inputs).logits
    torch.testing.assert_close(logits, expected, atol=0.1, rtol=0.1)
    model.save_pretrained(tmp_path)
    assert "quantization_config" in json.loads((tmp_path / "config.json").read_text())
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(again(**inputs).logits, logits)


@pytest.mark.parametrize("modality", MODALITIES)
def test_peft_trains_merges_and_saves(modality: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="PEFT is optional: pip install peft")
    # An image model of convolutions alone has no linear layer that PEFT could adapt.
    backbone = "test_vit" if modality == "image" else "test_efficientnet"
    inputs, labels = make_inputs(modality, size=160), torch.arange(4)
    model = make_model(modality, backbone=backbone)
    original = copy.deepcopy(model.state_dict())
    lora = peft.LoraConfig(target_modules="all-linear", modules_to_save=["classifier"])
    adapted = peft.get_peft_model(model, lora)
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert any("classifier.modules_to_save" in name for name in trained)
    assert all("lora_" in name or "modules_to_save" in name for name in trained)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        adapted(**inputs, labels=labels).loss.backward()
        optimizer.step()
    adapted.eval()
    with torch.no_grad():
        expected = adapted(**inputs).logits
        adapted.merge_and_unload().save_pretrained(tmp_path)
        loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
        torch.testing.assert_close(loaded(**inputs).logits, expected, atol=1e-4, rtol=1e-4)
    assert list(loaded.state_dict()) == list(original)
    assert not torch.equal(loaded.classifier.weight, original["classifier.weight"])


# `evaluate.load("accuracy")` downloads this, unless a folder of that name is at hand.
ACCURACY = """
import datasets
import evaluate
from sklearn.metrics import accuracy_score

class Accuracy(evaluate.Metric):
    def _info(self):
        features = datasets.Features({name: datasets.Value("int32") for name in ("predictions", "references")})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        return {"accuracy": accuracy_score(references, predictions)}
"""


@pytest.mark.slow
@pytest.mark.parametrize("script", ["run_image_classification.py", "run_image_classification_no_trainer.py"])
def test_transformers_example_scripts_run_unchanged(script: str, tiny_checkpoints: dict, tmp_path: Path) -> None:
    """With three classes, in processes that do not import this package."""
    if not (folder := os.environ.get("TRANSFORMERS_EXAMPLES")):
        pytest.skip("set TRANSFORMERS_EXAMPLES to examples/pytorch/image-classification of transformers' repository")
    for number, (split, name) in enumerate(itertools.product(("train", "validation"), THREE)):
        (tmp_path / "data" / split / name).mkdir(parents=True)
        for index in range(2):
            skin_image(2 * number + index).save(tmp_path / "data" / split / name / f"{index}.png")
    (tmp_path / "accuracy").mkdir()
    (tmp_path / "accuracy" / "accuracy.py").write_text(ACCURACY)
    options = ["--trust_remote_code", "--ignore_mismatched_sizes", "--num_train_epochs", "1", "--output_dir", "out"]
    if "no_trainer" in script:
        options += ["--dataset_name", str(tmp_path / "data")]  # with its default, cifar10, it reads no folder
    else:
        options += ["--train_dir", "data/train", "--validation_dir", "data/validation", "--do_train", "--do_eval"]
        options += ["--remove_unused_columns", "False", "--use_cpu", "--report_to", "none"]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, Path(folder, script), "--model_name_or_path", tiny_checkpoints["image"], *options]
    subprocess.run(command, cwd=tmp_path, env=env, check=True)
    assert 0 <= json.loads((tmp_path / "out" / "all_results.json").read_text())["eval_accuracy"] <= 1
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert model.config.label_names == THREE
    before = AutoModel.from_pretrained(tiny_checkpoints["image"]).backbone.conv_stem.weight
    assert 0 < (model.backbone.conv_stem.weight - before).abs().max() < 0.01  # trained, from those weights
    answer = pipeline("image-classification", model=str(tmp_path / "out"))
    assert {row["label"] for row in answer(str(tmp_path / "data" / "train" / "mel" / "0.png"))} == set(THREE)
