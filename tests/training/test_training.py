import hashlib
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from run_checks import history
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score
from transformers import AutoModel, get_cosine_schedule_with_warmup

from ham10000.modeling import Ham10000Error, Ham10000ForImageClassification, Ham10000Processor
from ham10000.training.config import TrainConfig, parse_arguments
from ham10000.training.data.loader import EvalLoader, Samples, open_images
from ham10000.training.data.sources import load_data
from ham10000.training.data.split import load_split
from ham10000.training.engine import Engine, build_optimizer, learning_rate_factor
from ham10000.training.evaluation.__main__ import main as evaluate
from ham10000.training.evaluation.report import read_predictions
from ham10000.training.inference.prediction import predict_logits
from ham10000.training.run_folder import save_model, training_states
from ham10000.training.train import main as train

TINY = ["--backbone", "test_efficientnet", "--pretrained", "none", "--backbone_kwargs", "{}", "--image_size", "32"]
TINY += ["--mixed_precision", "no", "--trackers", "none", "--batch_size", "20"]


def places(folder: Path, data: Path) -> list[str]:
    return ["--data", str(data), "--cache_dir", str(folder.parent / "cache")]


def run_training(folder: Path, data: Path, *options: str) -> int:
    return train([*TINY, *places(folder, data), "--output_dir", str(folder), *options])


def run_evaluation(folder: Path, data: Path, *options: str) -> int:
    return evaluate(["--checkpoint", str(folder), *places(folder, data), "--n_resamples", "20", *options])


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "train_config.json").read_text())


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory, synthetic_folder: Path) -> Path:
    """Two epochs of the fusion variant with everything random switched on."""
    folder = tmp_path_factory.mktemp("runs") / "fusion"
    assert run_training(folder, synthetic_folder, "--epochs", "2", "--modality", "fusion") == 0
    return folder


def test_a_run_leaves_a_complete_folder(finished_run: Path) -> None:
    names = {path.name for path in finished_run.iterdir()}
    assert names >= {"config.json", "processor_config.json", "model.safetensors", "modeling_ham10000.py", "split.csv"}
    assert names >= {"split.json", "train_config.json", "history.json", "training_state-00000016.safetensors"}
    assert not [name for name in names if name.startswith(".") or name.endswith(".bin")]
    # safetensors alone would write files that only their owner can read.
    assert len({path.stat().st_mode for path in finished_run.iterdir() if path.is_file()}) == 1
    summary = summary_of(finished_run)
    assert summary["finished"] is True
    assert summary["config"]["image_size"] == [32]
    assert summary["best"] == history(finished_run)[-1]  # the last is kept
    assert summary["split"]["leakage"]["test"]["all"] == 0
    assert summary["environment"]["peak_rss_mib"] > 100
    # Square-root weights leave the square root of the class shares in the probabilities.
    settings = summary["config"]
    assert (settings["class_weights"], settings["sampling"], settings["logit_adjustment"]) == ("sqrt", "natural", 0)
    shares = np.sqrt(list(summary["split"]["class_counts"]["train"].values()))
    prior = json.loads((finished_run / "config.json").read_text())["class_prior"]
    np.testing.assert_allclose(prior, shares / shares.sum())


def test_train_and_validation_together_keep_the_last_epoch(tmp_path: Path, synthetic_folder: Path, capsys) -> None:
    folder = tmp_path / "published"
    options = ["--modality", "image", "--train_on_validation", "--epochs", "3", "--patience", "1"]
    assert run_training(folder, synthetic_folder, *options, "--save_dtype", "float16") == 0
    split = load_split(folder)
    steps = (split.sizes["train"] + split.sizes["validation"]) // 20
    assert training_states(folder)[0].name == f"training_state-{3 * steps:08d}.safetensors"
    summary = summary_of(folder)
    assert (summary["finished"], summary["epochs_trained"], summary["best"]["epoch"]) == (True, 3, 3)
    assert not [name for name in summary["best"] if name.startswith("validation")]
    # The last epoch's average, rounded to half precision: what lies in the state, saved at the same moment.
    stored, state = load_file(folder / "model.safetensors"), load_file(training_states(folder)[0])
    for name, value in stored.items():
        expected = state[f"average/{name}"]
        assert value.dtype == (torch.float16 if expected.is_floating_point() else expected.dtype)
        assert torch.equal(value, expected.to(value.dtype)), name
    assert "epoch 3 is kept, the last: no validation" in capsys.readouterr().out
    # What is stored as half computes in float32, whoever reads it, and is evaluated as it is published.
    model = AutoModel.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert torch.equal(model.classifier.weight, stored["classifier.weight"].float())
    assert run_evaluation(folder, synthetic_folder, "--split", "validation") == 0
    assert f"trained on {split.sizes['validation']} of these images" in capsys.readouterr().out
    assert run_evaluation(folder, synthetic_folder) == 0
    assert "warning" not in capsys.readouterr().out


def test_a_weight_too_large_for_half_precision_is_named(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    model = Ham10000ForImageClassification.from_pretrained(tiny_checkpoints["metadata"])
    with torch.no_grad():
        model.classifier.bias[3] = 1e5
    with pytest.raises(Ham10000Error, match=r"'classifier\.bias' is too large for float16"):
        save_model(tmp_path / "half", model, dtype="float16")
    assert not (tmp_path / "half").exists()


def test_evaluation_states_what_predictions_csv_gives(finished_run: Path, synthetic_folder: Path) -> None:
    assert run_evaluation(finished_run, synthetic_folder) == 0
    results = json.loads((finished_run / "eval_results.json").read_text())
    table, labels, probabilities = read_predictions(finished_run / "predictions.csv")
    assert results["metrics"]["accuracy"] == accuracy_score(labels, probabilities.argmax(axis=1))
    split = json.loads((finished_run / "split.json").read_text())
    assert results["split"]["sha256"] == split["sha256"]
    assert len(table) == split["sizes"]["test"]
    figures = {"confusion_matrix", "per_class", "reliability", "subgroups", "training_curves"}
    assert {path.name for path in (finished_run / "figures").iterdir()} == {f"{name}.png" for name in figures}

    # The same rows through model and processor, as a user of the checkpoint would.
    model = Ham10000ForImageClassification.from_pretrained(finished_run)
    processor = Ham10000Processor.from_pretrained(finished_run)
    rows = {row["image_id"]: row for row in load_data(str(synthetic_folder))[0]}
    chosen = [rows[image_id] for image_id in table["image_id"]]
    metadata = [{name: row[name] for name in ("age", "sex", "localization")} for row in chosen]
    inputs = processor(images=[row["image"] for row in chosen], metadata=metadata)
    with torch.inference_mode():
        expected = model(**inputs).logits.softmax(-1).numpy()
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)


def test_flipped_views_average_the_flipped_predictions(finished_run: Path, synthetic_folder: Path) -> None:
    model = Ham10000ForImageClassification.from_pretrained(finished_run)
    processor = Ham10000Processor.from_pretrained(finished_run)
    dataset, cpu = load_data(str(synthetic_folder))[0].select(range(6)), torch.device("cpu")
    images = open_images(dataset, processor, cpu, cache_dir=finished_run.parent / "cache", progress=False)
    (batch,) = loader = EvalLoader(Samples.from_dataset(dataset, processor), images, processor, cpu)
    pixels = [batch.pixel_values.flip(dimensions) for dimensions in ([], [2], [3], [2, 3])]
    with torch.inference_mode():
        views = [model(pixel_values=view, metadata=batch.metadata).logits.softmax(-1) for view in pixels]
    averaged = np.exp(predict_logits(model, loader, views=4))
    np.testing.assert_allclose(averaged, torch.stack(views).mean(0).numpy(), atol=1e-6)
    with pytest.raises(Ham10000Error, match="views"):
        predict_logits(model, loader, views=3)


def test_a_frozen_backbone_stays_as_it_was(tmp_path: Path, synthetic_folder: Path, finished_run: Path) -> None:
    options = ["--epochs", "1", "--modality", "fusion", "--freeze_backbone", "true", "--head_learning_rate", "0.1"]
    start, frozen = finished_run / "model.safetensors", tmp_path / "frozen"
    options += ["--pretrained", str(start), "--mixup", "0.2", "--train_scales", "0.5", "1"]
    assert run_training(frozen, synthetic_folder, *options) == 0
    assert summary_of(frozen)["weights_sha256"] == hashlib.sha256(start.read_bytes()).hexdigest()
    assert summary_of(finished_run)["weights_sha256"] is None
    before, after = load_file(start), load_file(frozen / "model.safetensors")
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert not any(name.startswith("backbone.") for name in changed)
    assert {name for name in after if name.startswith("classifier.")} <= changed


def test_gradient_accumulation_equals_the_whole_batch(tmp_path: Path, synthetic_folder: Path) -> None:
    # Without batch norm and dropout only the arithmetic is left; the weights of the classes differ between the parts.
    options = ["--modality", "image", "--backbone", "test_vit", "--classifier_dropout", "0", "--image_size", "160"]
    states = []
    for parts in ("1", "4"):
        AcceleratorState._reset_state(True)
        folder = tmp_path / parts
        accumulation = ["--epochs", "1", "--gradient_accumulation_steps", parts]
        assert run_training(folder, synthetic_folder, *options, *accumulation) == 0
        states.append(load_file(training_states(folder)[0]))
    first_moments = [name for name in states[0] if name.endswith("/exp_avg")]
    assert first_moments
    for name in first_moments:  # the running mean of the gradients
        scale = states[0][name].abs().max().item()
        torch.testing.assert_close(states[0][name], states[1][name], atol=0.02 * scale + 1e-7, rtol=0)


def test_early_stopping_keeps_the_epoch_of_the_lowest_validation_loss(tmp_path: Path, synthetic_folder: Path) -> None:
    # A learning rate of nearly 0 never improves on the first epoch, so the run ends after `patience` more.
    options = ["--modality", "metadata", "--epochs", "9", "--patience", "2", "--ema_decay", "0"]
    rates = ["--learning_rate", "1e-12", "--head_learning_rate", "1e-12", "--weight_decay", "0"]
    assert run_training(tmp_path / "run", synthetic_folder, *options, *rates) == 0
    summary = summary_of(tmp_path / "run")
    assert (summary["best"]["epoch"], summary["epochs_trained"], summary["finished"]) == (1, 3, True)

    # A rate this large overfits at once: the loss falls and rises again, whatever macro-F1 does.
    rates = ["--epochs", "12", "--patience", "12", "--head_learning_rate", "0.05", "--label_smoothing", "0"]
    assert run_training(tmp_path / "chosen", synthetic_folder, *options, *rates) == 0
    rows, best = history(tmp_path / "chosen"), summary_of(tmp_path / "chosen")["best"]
    assert rows[-1]["train_loss"] < 0.8 * rows[0]["train_loss"]
    assert best == min(rows, key=lambda row: row["validation_loss"])
    assert best["epoch"] < len(rows) == 12


def test_the_moving_average_reaches_its_decay() -> None:
    """timm's default warm-up never does: after 3,000 steps a decay of 0.998 was 0.9952."""
    config = TrainConfig(modality="metadata", ema_decay=0.99)
    model = Ham10000ForImageClassification(config.model_config())
    loader = SimpleNamespace(steps_per_epoch=1)
    engine = Engine(config, Accelerator(cpu=True), model, None, loader, None, None, {})  # type: ignore[arg-type]
    for step in range(50):
        with torch.no_grad():
            model.classifier.weight.fill_(float(step % 7))
        engine.average.update(model, step=step)
    # The plain mean, of what came after the first.
    mean = np.mean([step % 7 for step in range(50)])
    assert engine.published_model.classifier.weight.mean().item() == pytest.approx(mean, abs=0.1)
    assert engine.average.get_decay(100) == pytest.approx(0.99)
    assert engine.average.get_decay(150) == 0.99


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, synthetic_folder: Path, capsys) -> None:
    options = ["--modality", "metadata", "--head_learning_rate", "1e30", "--warmup_fraction", "0", "--ema_decay", "0"]
    assert run_training(tmp_path / "run", synthetic_folder, *options) == 2
    error = capsys.readouterr().err
    found = re.search(r"The loss is nan in epoch (\d+), step (\d+), on the images ([\w, ]+)\..*learning rate", error)
    assert found, error
    # The order is a permutation by (seed, epoch), and the batch holds 20 rows of it.
    rows = load_split(tmp_path / "run").table.query("split == 'train'")["image_id"].to_numpy()
    order = np.random.default_rng((0, int(found[1]) - 1)).permutation(len(rows))
    step = int(found[2]) - 1
    assert found[3].split(", ") == rows[order[20 * step : 20 * step + 20]].tolist()


def test_learning_rates_follow_transformers_cosine_schedule() -> None:
    config = TrainConfig(warmup_fraction=0.1)
    optimizer = torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=1.0)
    (factor,) = get_cosine_schedule_with_warmup(optimizer, 20, 200).lr_lambdas
    for step in range(20, 200):
        assert learning_rate_factor(step, 200, config) == pytest.approx(factor(step), abs=1e-9)
    # Unlike theirs the warm-up does not waste its first step on a learning rate of 0.
    assert 0 < learning_rate_factor(0, 200, config) < learning_rate_factor(19, 200, config) < 1


def test_optimizer_groups_cover_every_parameter_once() -> None:
    config = TrainConfig(backbone="test_efficientnet", backbone_kwargs="{}", modality="fusion")
    model = Ham10000ForImageClassification(config.model_config())
    optimizer = build_optimizer(model, config)
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(found) == sorted(names.values())
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            in_backbone = names[parameter].startswith("backbone.")
            assert group["peak_lr"] == (config.learning_rate if in_backbone else config.head_learning_rate)
            assert group["weight_decay"] == (config.weight_decay if parameter.ndim > 1 else 0)


def test_command_line_wins_over_file_wins_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("{learning_rate: 1e-3, epochs: 3, backbone_kwargs: {bn_eps: 0.001}, weight_decay: 1}")
    config = parse_arguments(["--config", str(file), "--epochs", "5"])
    assert (config.learning_rate, config.epochs, config.weight_decay) == (1e-3, 5, 1.0)
    assert config.model_config().backbone_kwargs == {"bn_eps": 0.001}
    assert config.batch_size == TrainConfig().batch_size
    # A run's own file says what it trained, and not whether it was resumed.
    file.write_text(json.dumps({"config": TrainConfig(epochs=3, resume=True, overwrite=True).to_dict()}))
    config = parse_arguments(["--config", str(file), "--output_dir", "elsewhere"])
    assert (config.epochs, config.resume, config.overwrite) == (3, False, False)


CONFIGS = {path.stem: path for path in Path(__file__).parents[2].glob("examples/configs/*.yaml")}


# A plan of trials and a study are no config of one run; `test_recipes.py` and `test_study.py` read them.
@pytest.mark.parametrize("name", sorted(CONFIGS.keys() - {"recipes", "study"}))
def test_example_configs_are_valid(name: str) -> None:
    config = parse_arguments(["--config", str(CONFIGS[name])])
    assert config.modality in name or name == "baseline" or name.startswith("recipe_")
