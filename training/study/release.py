"""The checkpoints to publish: trained on all images, calibrated and described by the cross-validation."""

import dataclasses
import shutil
import time
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from ham10000.modeling import Ham10000ForImageClassification, create_processor
from ham10000.training.config import TrainConfig
from ham10000.training.evaluation.decision import fit_thresholds
from ham10000.training.evaluation.evaluator import score_predictions
from ham10000.training.evaluation.report import write_evaluation
from ham10000.training.inference.prediction import load_checkpoint
from ham10000.training.run_folder import RunFile, save_checkpoint
from ham10000.training.study.analysis import Inputs
from ham10000.training.study.config import StudyConfig
from ham10000.training.study.crossfit import CrossFitted, calibration_of
from ham10000.training.study.heads import absorb_calibration, assemble, fit_variant
from ham10000.training.study.runs import ImageRun, is_trained
from ham10000.training.train import load_configured, train
from ham10000.training.utils.files import JsonObject, atomic_write_json, read_json
from ham10000.training.utils.hardware import environment

ESTIMATED_BY = "cross-validation"


def train_on_all(study: StudyConfig, base: TrainConfig, folder: Path, accelerator: Accelerator) -> Path:
    """Trains the image model on every image by the recipe, once, with the first seed; returns the run's folder."""
    protocol, plan = next(iter(study.protocols.items()))
    directory = folder / "image-run"
    config = ImageRun(protocol, plan.folds, 0, plan.seeds[0]).config(base, directory, train_on_all=True)
    if not is_trained(directory, config):
        train(config, accelerator, load_configured(base))
        accelerator.free_memory()
    return directory


def write_release(
    variants: dict[str, CrossFitted], inputs: Inputs, run: Path, made_by: str, about: JsonObject
) -> list[Path]:
    """Assembles the three checkpoints, each with calibration, prior, prediction sets and its estimated results.

    `variants` and `inputs` are those of the first protocol, `run` is the image model trained on all images. The cards
    name the command `made_by`, and from `about` the data and the study's answer. Returns the folders, beside the run.
    """
    study, image, folders = inputs.study, variants["image"].predictions, []
    image_model, image_processor = load_checkpoint(run)
    for variant in ("metadata", "fusion", "image"):  # the image model last: its calibration must not enter fusion
        model, processor, start = image_model, image_processor, time.perf_counter()
        if variant != "image":
            given = (image.logits[0], inputs.metadata, image.labels, inputs.model)
            head = fit_variant(variant, *given, settings=study.heads, seed=image.seeds[0])
            model = assemble(image_model if variant == "fusion" else None, head, inputs.model)
            processor = create_processor(model.config)
        if variant == "fusion":
            processor.image_processor = image_processor.image_processor
        fitted = variants[variant]
        absorb_calibration(model, *calibration_of(fitted.predictions.logits[0], image.labels))
        model.config.class_prior = fitted.prior.tolist()
        model.config.conformal_thresholds = {
            f"{coverage:g}": fit_thresholds(image.labels, fitted.probabilities()[0], coverage).tolist()
            for coverage in study.coverages
        }
        directory, seconds = run.parent / f"ham10000-{variant}", time.perf_counter() - start
        save_checkpoint(directory, model, processor, dtype="float16")
        _describe(directory, run, model, study, made_by, seconds)
        _write_results(directory, run, fitted, inputs, about | {"temperature": model.config.temperature})
        folders.append(directory)
    return folders


def _describe(
    directory: Path, run: Path, model: Ham10000ForImageClassification, study: StudyConfig, made_by: str, seconds: float
) -> None:
    """Copies what the run on all images says of itself, with what is another model's put right."""
    variant = model.config.modality
    for name in (RunFile.SPLIT, RunFile.SPLIT_RECORD, *([] if variant == "metadata" else [RunFile.HISTORY])):
        shutil.copyfile(run / name, directory / name)
    training = read_json(run / RunFile.TRAINING)
    training["config"] |= {"modality": variant, "fusion": "concat", "save_dtype": "float16"}
    training["parameters"] = model.num_parameters()
    training["made_by"] = made_by
    if variant != "image":
        training["head"] = dataclasses.asdict(study.heads)
        # The image model is a part of fusion, and none of the metadata model.
        training["training_seconds"] = seconds + training["training_seconds"] * (variant == "fusion")
        training["median_images_per_second"] = None
    if variant == "metadata":
        training |= {"weights_sha256": None, "device": "cpu", "processes": 1, "environment": environment()}
    atomic_write_json(directory / RunFile.TRAINING, training)


def _write_results(directory: Path, run: Path, fitted: CrossFitted, inputs: Inputs, told: JsonObject) -> None:
    """Writes the cross-validated evaluation of the recipe: these are no predictions of this model."""
    predictions = fitted.predictions
    scored = (inputs.frame, predictions.labels, fitted.probabilities()[0], predictions.groups)
    results, table = score_predictions(*scored, inputs.model, n_resamples=inputs.study.n_resamples)
    split = read_json(run / RunFile.SPLIT_RECORD)
    results |= {
        "checkpoint": directory.name,
        **told,
        "estimated_by": ESTIMATED_BY,
        "split": {
            "name": ESTIMATED_BY,
            "n_images": len(predictions.labels),
            "n_lesions": len(np.unique(predictions.groups)),
            "folds": len(np.unique(predictions.folds)),
            **{name: split[name] for name in ("protocol", "seed", "sha256")},
            "leakage": {ESTIMATED_BY: {"all": float(inputs.frame["seen"].mean())}},
        },
        "views": 1,
        "precision": "fp32",
        "environment": environment(),
    }
    write_evaluation(directory, results, table)
