"""Evaluates a checkpoint: `python -m ham10000.training.evaluation --checkpoint runs/fusion --data DIR`."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from ham10000.training.config import DATA_FIXES
from ham10000.training.data.tables import DataOptions, add_data_arguments
from ham10000.training.utils.cli import add_debug_argument, run_cli

# Written out: importing them would import torch, and --help would take seconds. A test compares them.
_SPLITS = ("train", "validation", "test", "all")
_VIEWS = (1, 2, 4)


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of `ham10000-evaluate`."""
    parser = argparse.ArgumentParser(prog="ham10000-evaluate", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="checkpoint folder of a run")
    parser.add_argument("--data", required=True, help="the source it was trained on, as in training")
    parser.add_argument("--split", choices=_SPLITS, default="test", help="part to score; all needs no split")
    parser.add_argument("--split_file", help="split.csv to use (default: the checkpoint's own)")
    parser.add_argument("--output_dir", help="default: the checkpoint for test, its evaluation_<split> for others")
    parser.add_argument("--views", type=int, choices=_VIEWS, default=1, help="flips to average at test time")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--n_resamples", type=int, default=2000, help="bootstrap resamples of the intervals")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")
    parser.add_argument("--cache_dir", help="folder of the uint8 image cache (default: ~/.cache/ham10000)")
    parser.add_argument("--isic_submission", metavar="FILE", help="also write the table that ISIC 2018, task 3, takes")
    parser.add_argument("--tables", metavar="DIR", help="also csv and LaTeX tables, PDF and SVG figures, a checklist")
    fixes = f"any of {', '.join(DATA_FIXES)}"
    parser.add_argument("--data_fixes", nargs="*", choices=DATA_FIXES, default=[], metavar="FIX", help=fixes)
    add_data_arguments(parser)
    parser.add_argument("--positive", metavar="LABEL", help="class of the sensitivity row (default: mel)")
    add_debug_argument(parser)
    return parser


@run_cli
def main(argv: Sequence[str]) -> None:
    """Command line of `ham10000-evaluate`."""
    arguments = build_parser().parse_args(argv)
    # Late: torch and the others take seconds to import, which --help and a mistyped option need not wait for.
    from transformers.utils import logging

    from ham10000.training.data.sources import load_data
    from ham10000.training.data.split import leakage_text
    from ham10000.training.evaluation.decision import balanced_probabilities
    from ham10000.training.evaluation.evaluator import evaluate_checkpoint, images_trained_on
    from ham10000.training.evaluation.metrics import choose_positive
    from ham10000.training.evaluation.paper import write_paper
    from ham10000.training.evaluation.report import format_results, read_predictions
    from ham10000.training.inference.output import check_submission_ids, check_submission_labels, format_submission
    from ham10000.training.inference.prediction import choose_device, load_checkpoint
    from ham10000.training.run_folder import RunFile
    from ham10000.training.utils.files import atomic_write_text, read_json

    logging.disable_progress_bar()
    checkpoint, device = Path(arguments.checkpoint), choose_device(arguments.device)
    model, _ = load_checkpoint(checkpoint)  # what is wrong with it is said before the data are read
    labels = model.config.label_names
    options = DataOptions.from_texts(arguments.columns, arguments.labels, arguments.label_map, arguments.group_by)
    choose_positive(labels, arguments.positive)
    if arguments.isic_submission:
        check_submission_labels(labels)
    options = dataclasses.replace(options, labels=options.labels or labels)
    dataset, report = load_data(arguments.data, options, **dict.fromkeys(arguments.data_fixes, True))
    for warning in report.warnings:
        print(f"warning: {warning}")
    for note in report.notes:
        print(f"note: {note}")
    if arguments.isic_submission:
        check_submission_ids(dataset["image_id"][:])
    same = ("views", "batch_size", "precision", "n_resamples", "seed", "cache_dir", "positive", "data", "split_file")
    output_dir, results = evaluate_checkpoint(
        checkpoint,
        dataset,
        part=arguments.split,
        output_dir=Path(arguments.output_dir) if arguments.output_dir else None,
        device=device,
        **{name: getattr(arguments, name) for name in same},
    )
    predictions = output_dir / RunFile.PREDICTIONS
    table, _, probabilities = read_predictions(predictions)
    if arguments.isic_submission:
        if model.config.class_prior is None:
            print("note: config.json has no class_prior, so the submission is not adjusted to balanced accuracy")
        else:
            probabilities = balanced_probabilities(probabilities, model.config.class_prior)
        ids = table["image_id"].tolist()
        atomic_write_text(arguments.isic_submission, format_submission(ids, probabilities, labels))
    training = read_json(checkpoint / RunFile.TRAINING, optional=True)
    if arguments.tables:
        write_paper(arguments.tables, results, predictions, model.config.malignant_labels or [], training)
    split = results["split"]
    if known := images_trained_on(checkpoint, table["image_id"]):
        print(f"warning: the checkpoint was trained on {known:,} of these images; the scores are too good")
    base = (training or {}).get("base_model")
    if base and base.get("data") != "synthetic":
        print(f"warning: it was fine-tuned from {base['name']}, which may have been trained on these images")
    print(f"{checkpoint} on {arguments.data}: {split.get('protocol', 'all rows')}, {arguments.split} split")
    if "leakage" in split and arguments.split != "train" and not known:
        print(leakage_text(split["leakage"][arguments.split]["all"], arguments.split))
    print(format_results(results))
    print(
        f"Cost      {results['prediction_seconds']:.1f} s, {results['images_per_second']:,.1f} images/s, "
        f"peak resident memory {results['environment']['peak_rss_mib']:,.0f} MiB"
    )
    print(f"Saved     {output_dir / RunFile.EVALUATION}, {RunFile.PREDICTIONS} and figures/")
    if arguments.tables:
        print(f"Saved     tables, figures and checklist.md for a paper in {arguments.tables}")


if __name__ == "__main__":
    sys.exit(main())
