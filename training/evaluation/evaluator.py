"""Evaluates a checkpoint: `python -m ham10000.training.evaluation --checkpoint runs/fusion --data DIR`."""

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers

from ham10000.modeling import Ham10000Error
from ham10000.training.config import DATA_FIXES
from ham10000.training.data.lesions import lesion_groups, photographs_per_lesion
from ham10000.training.data.loader import EvalLoader, Samples, open_images
from ham10000.training.data.sources import align_labels, load_data, metadata_frame
from ham10000.training.data.split import SPLITS, Split, apply_split, load_split
from ham10000.training.evaluation.metrics import choose_positive, softmax
from ham10000.training.evaluation.report import (
    evaluate_predictions,
    format_results,
    predictions_table,
    read_predictions,
    write_evaluation,
)
from ham10000.training.evaluation.subgroups import subgroup_results
from ham10000.training.inference.prediction import VIEWS, choose_device, load_checkpoint, predict_logits
from ham10000.training.run_folder import RunFile, trained_on_validation
from ham10000.training.utils.cli import add_debug_argument, run_cli
from ham10000.training.utils.files import atomic_write_text, read_json
from ham10000.training.utils.hardware import environment
from ham10000.training.utils.isic_submission import check_submission_ids, check_submission_labels, format_submission


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of `ham10000-evaluate`."""
    parser = argparse.ArgumentParser(prog="ham10000-evaluate", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="checkpoint folder of a run")
    parser.add_argument("--data", required=True, help="the source it was trained on, as in training")
    parser.add_argument("--split", choices=[*SPLITS, "all"], default="test", help="part to score; all needs no split")
    parser.add_argument("--split_file", help="split.csv to use (default: the checkpoint's own)")
    parser.add_argument("--output_dir", help="default: the checkpoint for test, its evaluation_<split> for others")
    parser.add_argument("--views", type=int, choices=VIEWS, default=1, help="test-time augmentation: flips to average")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--n_resamples", type=int, default=2000, help="bootstrap resamples of the intervals")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")
    parser.add_argument("--cache_dir", help="folder of the uint8 image cache (default: ~/.cache/ham10000)")
    parser.add_argument("--isic_submission", metavar="FILE", help="also write the table that ISIC 2018, task 3, takes")
    parser.add_argument("--positive", metavar="LABEL", help="class of the sensitivity row (default: mel)")
    parser.add_argument(
        "--label_map", nargs="+", default=[], metavar="OLD=NEW", help="labels of the data to read as the model's"
    )
    parser.add_argument("--data_fixes", nargs="*", choices=DATA_FIXES, default=[], help="as in training")
    add_debug_argument(parser)
    return parser


def read_label_map(texts: Sequence[str]) -> dict[str, str]:
    """Labels of the data to the model's, from texts of the form `old=new`.

    Raises:
        Ham10000Error: For a text of another form.
    """
    pairs = [text.partition("=") for text in texts]
    for old, equals, new in pairs:
        if not (old and equals and new):
            raise Ham10000Error(f"--label_map {old + equals + new!r}: expected old=new.")
    return {old: new for old, _, new in pairs}


def rows_to_score(
    dataset: datasets.Dataset, part: str, checkpoint: Path, split_file: str | None
) -> tuple[datasets.Dataset, Split | None]:
    """The rows of a part by the checkpoint's own split, so that no training image is scored by mistake.

    Args:
        dataset: The whole source.
        part: `train`, `validation`, `test`, or `all`.
        checkpoint: The checkpoint's folder.
        split_file: Used instead of the checkpoint's split.

    Returns:
        The rows, and the split (None for `all`).

    Raises:
        Ham10000Error: If there is no split, or it belongs to other data.
    """
    if part == "all":
        return dataset, None
    path = Path(split_file) if split_file else checkpoint / RunFile.SPLIT
    if not path.exists():
        raise Ham10000Error(
            f"{str(path)!r} does not exist, so nobody knows which images the checkpoint was trained on. Give "
            "--split_file, or --split all for data it has never seen."
        )
    split = load_split(path)
    return apply_split(dataset, split)[part], split


def images_trained_on(checkpoint: Path, dataset: datasets.Dataset) -> int:
    """How many images of a dataset a checkpoint was trained on, as its split and its settings say; 0 without them."""
    if not (checkpoint / RunFile.SPLIT).is_file():
        return 0
    table = load_split(checkpoint).table
    training = read_json(checkpoint / RunFile.TRAINING, optional=True)
    trained = table["split"].isin(["train", "validation"] if trained_on_validation(training) else ["train"])
    return len(set(table.loc[trained, "image_id"]) & set(dataset["image_id"][:]))


def evaluate_checkpoint(
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
) -> tuple[Path, dict[str, Any]]:
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
    model: Any
    model, processor = load_checkpoint(checkpoint, device=device)
    dataset = align_labels(dataset, model.config.label_names)
    rows, split = rows_to_score(dataset, part, checkpoint, split_file)
    images = open_images(rows, processor, device, cache_dir=cache_dir)
    samples = Samples.from_dataset(rows, processor)
    loader = EvalLoader(samples, images, processor, device, batch_size=batch_size, channels_last=True)
    model = model.to(memory_format=torch.channels_last)

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    autocast = contextlib.nullcontext if dtype is None else partial(torch.autocast, device.type, dtype)
    start = time.perf_counter()
    probabilities = softmax(predict_logits(model, loader, autocast=autocast, views=views, progress=True))
    seconds = time.perf_counter() - start

    frame = metadata_frame(rows)
    frame["photographs"] = photographs_per_lesion(dataset, frame)
    lesion_ids = frame["lesion_id"].tolist()
    columns: dict[str, Any] = {
        "image_ids": samples.image_ids,
        "lesion_groups": lesion_groups(lesion_ids, samples.image_ids),
        "labels": np.asarray(samples.labels),
        "probabilities": probabilities,
        "label_names": model.config.label_names,
    }
    bootstrap: dict[str, Any] = {"n_resamples": n_resamples, "seed": seed}
    results = evaluate_predictions(**columns, positive=positive, **bootstrap)
    malignant_ids = [model.config.label2id[label] for label in model.config.malignant_labels]
    results["subgroups"] = subgroup_results(
        frame,
        columns["labels"],
        probabilities,
        columns["lesion_groups"],
        malignant_ids=malignant_ids,
        **bootstrap,
    )
    table = predictions_table(**columns, lesion_ids=lesion_ids, metadata=frame)
    output_dir = output_dir or (checkpoint if part == "test" else checkpoint / f"evaluation_{part}")
    context = {
        "checkpoint": checkpoint.name,
        "data": Path(data).name,
        "split": {"name": part, "n_images": len(samples), "n_lesions": len(set(columns["lesion_groups"]))}
        | ({} if split is None else {key: value for key, value in split.summary().items() if key != "dropped"}),
        "views": views,
        "precision": precision,
        "temperature": float(model.config.temperature),
        "device": str(device),
        "prediction_seconds": round(seconds, 2),
        "images_per_second": round(len(samples) / seconds, 1),
        "environment": environment(),
    }
    write_evaluation(output_dir, results, table, context)
    return output_dir, {**results, **context}


@run_cli
def main(argv: Sequence[str]) -> None:
    """Command line of `ham10000-evaluate`."""
    arguments = build_parser().parse_args(argv)
    transformers.utils.logging.disable_progress_bar()
    checkpoint, device = Path(arguments.checkpoint), choose_device(arguments.device)
    model, _ = load_checkpoint(checkpoint)  # what is wrong with it is said before the data are read
    labels, label_map = model.config.label_names, read_label_map(arguments.label_map)
    choose_positive(labels, arguments.positive)
    if arguments.isic_submission:
        check_submission_labels(labels)
    known = list(dict.fromkeys([*labels, *label_map]))
    dataset, report = load_data(arguments.data, labels=known, **dict.fromkeys(arguments.data_fixes, True))
    dataset = align_labels(dataset, labels, label_map)
    for note in report.notes:
        print(f"note: {note}")
    if arguments.isic_submission:
        check_submission_ids(dataset["image_id"][:])
    output_dir, results = evaluate_checkpoint(
        checkpoint,
        dataset,
        data=arguments.data,
        part=arguments.split,
        split_file=arguments.split_file,
        output_dir=Path(arguments.output_dir) if arguments.output_dir else None,
        views=arguments.views,
        batch_size=arguments.batch_size,
        device=device,
        precision=arguments.precision,
        n_resamples=arguments.n_resamples,
        seed=arguments.seed,
        cache_dir=arguments.cache_dir,
        positive=arguments.positive,
    )
    if arguments.isic_submission:
        table, _, probabilities = read_predictions(output_dir / RunFile.PREDICTIONS)
        atomic_write_text(
            arguments.isic_submission, format_submission(table["image_id"].tolist(), probabilities, labels)
        )
    split = results["split"]
    if arguments.split == "all":
        scored = dataset
    else:
        scored, _ = rows_to_score(dataset, arguments.split, checkpoint, arguments.split_file)
    if seen := images_trained_on(checkpoint, scored):
        print(f"warning: the checkpoint was trained on {seen:,} of these images; the scores are too good for new ones")
    print(f"{checkpoint} on {arguments.data}: {split.get('protocol', 'all rows')}, {arguments.split} split")
    if "leakage" in split and arguments.split != "train":
        print(f"{split['leakage'][arguments.split]['all']:.1%} of these images show a lesion that is in train")
    print(format_results(results))
    print(
        f"Cost      {results['prediction_seconds']:.1f} s, {results['images_per_second']:,.1f} images/s, "
        f"peak resident memory {results['environment']['peak_rss_mib']:,.0f} MiB"
    )
    print(f"Saved     {output_dir / RunFile.EVALUATION}, {RunFile.PREDICTIONS} and figures/")


if __name__ == "__main__":
    sys.exit(main())
