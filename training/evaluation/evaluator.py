"""Evaluates a checkpoint on the rows of its own split, and writes what it found."""

import contextlib
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import torch

from ham10000.modeling import Ham10000Config, Ham10000Error
from ham10000.training.data.loader import EvalLoader, Samples, open_images
from ham10000.training.data.sources import align_labels, metadata_frame
from ham10000.training.data.split import SPLITS, apply_split, lesion_groups, load_split
from ham10000.training.evaluation.bootstrap import Bootstrap
from ham10000.training.evaluation.comparison import subgroup_results
from ham10000.training.evaluation.decision import RULES, decide
from ham10000.training.evaluation.metrics import softmax
from ham10000.training.evaluation.report import evaluate_predictions, predictions_table, write_evaluation
from ham10000.training.inference.prediction import load_checkpoint, predict_logits
from ham10000.training.run_folder import RunFile, trained_on_validation
from ham10000.training.utils.files import JsonObject, read_json
from ham10000.training.utils.hardware import environment

# What a decision rule changes.
DECISION_METRICS = ("balanced_accuracy", "accuracy", "macro_f1")


def _rows_to_score(
    dataset: datasets.Dataset, part: str, checkpoint: Path, split_file: str | None
) -> tuple[datasets.Dataset, JsonObject]:
    """The rows of a part by a split, by default the checkpoint's own, and what an evaluation records of the split."""
    if part == "all":
        return dataset, {}
    path = Path(split_file) if split_file else checkpoint / RunFile.SPLIT
    if not path.exists():
        raise Ham10000Error(
            f"{str(path)!r} does not exist, so nobody knows which images the checkpoint was trained on. Give "
            "--split_file, or --split all for data it has never seen."
        )
    split = load_split(path)
    # The leak is that of all parts the checkpoint was trained on.
    record = split.summary() | {"leakage": split.leakage(parts_trained_on(checkpoint))}
    del record["dropped"]
    return apply_split(dataset, split)[part], record


def parts_trained_on(checkpoint: Path) -> tuple[str, ...]:
    """The parts of its split that a checkpoint was trained on, by its settings; train alone without them."""
    training = read_json(checkpoint / RunFile.TRAINING, optional=True)
    if training is not None and training["config"].get("train_on_all"):
        return SPLITS
    return SPLITS[: 1 + trained_on_validation(training)]


def images_trained_on(checkpoint: Path, image_ids: pd.Series) -> int:
    """Counts the images that a checkpoint was trained on, by its split and settings; 0 without them."""
    if not (checkpoint / RunFile.SPLIT).is_file():
        return 0
    table = load_split(checkpoint).table
    return int(image_ids.isin(table.loc[table["split"].isin(parts_trained_on(checkpoint)), "image_id"]).sum())


def evaluate_checkpoint(  # each is an option of the command line
    checkpoint: Path,
    dataset: datasets.Dataset,
    *,
    data: str,
    part: str = "test",
    split_file: str | None = None,
    output_dir: Path | None = None,
    views: int = 1,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    n_resamples: int = 2000,
    seed: int = 0,
    cache_dir: str | None = None,
    positive: str | None = None,
) -> tuple[Path, JsonObject]:
    """Scores a checkpoint on one part of the data by its own split, and writes the evaluation.

    Args:
        checkpoint: Folder of the checkpoint.
        dataset: The whole source, with labels of the model's set (see `align_labels`).
        data: The source's name, for the record.
        part: `train`, `validation`, `test`, or `all`.
        split_file: Used instead of the checkpoint's split.
        output_dir: Destination; by default the checkpoint for `test`, its `evaluation_<part>` for others.
        views: Test-time augmentation: flips whose probabilities are averaged, a key of `VIEWS`.
        batch_size: Images a step.
        device: Where to predict.
        precision: `fp32`, or autocast to `bf16` or `fp16`.
        n_resamples: Bootstrap resamples of the intervals.
        seed: Seed of the bootstrap.
        cache_dir: Folder of the image cache.
        positive: Class of the sensitivity row; by default mel, where the model has it.

    Returns:
        The folder, and the content of its `eval_results.json`.

    Raises:
        Ham10000Error: For a damaged checkpoint, or data that are not those of the split.
    """
    device = torch.device(device)
    model, processor = load_checkpoint(checkpoint, device=device)
    config = model.config
    dataset = align_labels(dataset, config.label_names)
    rows, split = _rows_to_score(dataset, part, checkpoint, split_file)
    images = open_images(rows, processor, device, cache_dir=cache_dir)
    samples = Samples.from_dataset(rows, processor)
    loader = EvalLoader(samples, images, processor, device, batch_size=batch_size, channels_last=True)
    start = time.perf_counter()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    autocast = contextlib.nullcontext if dtype is None else partial(torch.autocast, device.type, dtype)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
    probabilities = softmax(predict_logits(model, loader, autocast=autocast, views=views, progress=True))
    seconds = time.perf_counter() - start

    frame = metadata_frame(rows)
    # Photographs of each image's lesion in the whole source, not in the scored part alone.
    lesions = pd.Series(lesion_groups(dataset["lesion_id"][:], dataset["image_id"][:]), dataset["image_id"][:])
    frame["photographs"] = frame["image_id"].map(lesions.map(lesions.value_counts()))
    labels, groups = np.asarray(samples.labels), lesion_groups(frame["lesion_id"].tolist(), samples.image_ids)
    results, table = score_predictions(
        frame, labels, probabilities, groups, config, positive=positive, n_resamples=n_resamples, seed=seed
    )
    results |= {
        "checkpoint": checkpoint.name,
        "data": Path(data).name,
        "split": {"name": part, "n_images": len(samples), "n_lesions": results["bootstrap"]["n_lesions"], **split},
        "views": views,
        "precision": precision,
        "temperature": float(config.temperature),
        "device": str(device),
        "prediction_seconds": round(seconds, 2),
        "images_per_second": round(len(samples) / seconds, 1),
        "environment": environment(),
    }
    output_dir = output_dir or (checkpoint if part == "test" else checkpoint / f"evaluation_{part}")
    write_evaluation(output_dir, results, table)
    return output_dir, results


def score_predictions(
    frame: pd.DataFrame,
    labels: np.ndarray,
    probabilities: np.ndarray,
    groups: Sequence[str] | np.ndarray,
    config: Ham10000Config,
    *,
    positive: str | None = None,
    n_resamples: int = 2000,
    seed: int = 0,
) -> tuple[JsonObject, pd.DataFrame]:
    """The results of an evaluation, and the table of its predictions; the frame has the metadata with the ids."""
    table = predictions_table(frame, labels, probabilities, groups, config.label_names)
    results = evaluate_predictions(table, positive=positive, n_resamples=n_resamples, seed=seed)
    malignant_ids = [config.label_names.index(label) for label in config.malignant_labels or ()]
    results["subgroups"] = subgroup_results(
        frame, labels, probabilities, groups, malignant_ids=malignant_ids, n_resamples=n_resamples, seed=seed
    )
    if config.class_prior is not None:
        bootstrap = Bootstrap(labels, np.asarray(groups), 1, n_resamples, seed, config.label_names)
        answers = {rule: decide(probabilities, config.class_prior, rule) for rule in RULES}
        results["decisions"] = {rule: bootstrap.intervals(ids, DECISION_METRICS) for rule, ids in answers.items()}
    return results, table
