"""Predicts pictures, metadata or both: `ham10000-predict image.jpg --age 60 --sex male --localization back`."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers.utils import logging as transformers_logging

from ham10000.modeling import (
    LABELS,
    METADATA_FIELDS,
    Ham10000Error,
    Ham10000ForImageClassification,
    Ham10000Processor,
)
from ham10000.training.cli import add_debug_argument, run_cli
from ham10000.training.metadata_effects import UNKNOWN, describe_metadata
from ham10000.training.prediction import choose_device, load_checkpoint, predict, shipped_checkpoint
from ham10000.training.prediction_inputs import KEY_COLUMNS, Sample, collect_samples
from ham10000.training.prediction_output import DISCLAIMER, format_csv, format_isic, format_json, write_output
from ham10000.training.prediction_table import DEFAULT_WIDTH, format_table

# Nothing here, nor what it imports, may import datasets, pandas, scikit-learn, evaluate or matplotlib: they would
# double the start-up time.


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of `ham10000-predict`."""
    parser = argparse.ArgumentParser(
        prog="ham10000-predict",
        description="Predict pictures, metadata or both with a checkpoint. " + DISCLAIMER,
        epilog="A folder is searched with its sub-folders, sorted, hidden files left out. Exit code 2: nothing was "
        "written, and one line on stderr says why.",
    )
    parser.add_argument(
        "inputs", nargs="*", metavar="IMAGE_OR_FOLDER", help="pictures, or folders of them; none for metadata-only"
    )
    parser.add_argument(
        "--checkpoint", metavar="DIR_OR_HUB_ID", help="default: the fusion model that comes with the source tree"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a Hub id")
    parser.add_argument("--age", help="years, of every picture given; a field left out is unknown")
    parser.add_argument("--sex", help="female or male")
    parser.add_argument("--localization", help="body site, such as back or 'lower extremity'")
    parser.add_argument(
        "--metadata",
        metavar="CSV",
        help=f"one row a picture: {', '.join(KEY_COLUMNS[:-1])} or {KEY_COLUMNS[-1]}, and any of "
        f"{', '.join(METADATA_FIELDS)}; other columns (such as dx) are never used",
    )
    parser.add_argument(
        "--unknown_values",
        choices=["error", "missing"],
        default="error",
        help="missing: a sex or site outside the vocabulary, and a picture without a csv row, count as unknown",
    )
    formats = parser.add_mutually_exclusive_group()
    formats.add_argument(
        "--format",
        choices=["table", "json", "csv", "isic"],
        help="isic: csv as ISIC 2018, task 3, takes it; default: by the suffix of --output, else table",
    )
    formats.add_argument("--json", dest="format", action="store_const", const="json", help="short for --format json")
    formats.add_argument("--csv", dest="format", action="store_const", const="csv", help="short for --format csv")
    parser.add_argument(
        "--output", metavar="FILE", help="write there, whole or not at all, instead of to the terminal"
    )
    parser.add_argument(
        "--top_k", type=int, choices=range(1, len(LABELS) + 1), metavar="N", help="classes shown (not csv)"
    )
    parser.add_argument(
        "--explain",
        metavar="PNG_OR_FOLDER",
        help="also draw the picture with Grad-CAM and what the metadata changes; a folder for several pictures; "
        "needs `pip install ham10000[explain]`",
    )
    parser.add_argument(
        "--explain_class",
        choices=LABELS,
        help="class explained beside the predicted one; default: mel",
    )
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--precision",
        choices=["fp32", "bf16", "auto"],
        help="fast path for many pictures, batch norm folded: auto is bf16 where the hardware computes it, which "
        "rounds probabilities; default: the plain model, to the last bit",
    )
    parser.add_argument(
        "--backend",
        choices=["torch", "openvino"],
        default="torch",
        help="what computes the fast path; openvino is faster on a CPU from some hundred pictures on, and optional",
    )
    add_debug_argument(parser)
    return parser


@run_cli
def main(argv: Sequence[str]) -> None:
    """Command line of `ham10000-predict`."""
    options = build_parser().parse_args(argv)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    output_format = options.format or {".json": "json", ".csv": "csv"}.get(Path(options.output or "").suffix, "table")
    if options.output and Path(options.output).is_dir():
        raise Ham10000Error(f"--output {options.output!r} is a folder; give a file.")
    if options.checkpoint is None:
        options.checkpoint = str(shipped_checkpoint())
        if options.revision is not None:
            raise Ham10000Error("`--revision` is for Hub ids; give --checkpoint user/name with it.")
        print(f"note: with {Path(options.checkpoint).name}, the model that comes with this package", file=sys.stderr)
    model, processor = load_checkpoint(options.checkpoint, options.revision, choose_device(options.device))
    samples = collect_samples(
        processor,
        options.inputs,
        {name: getattr(options, name) for name in METADATA_FIELDS},
        options.metadata,
        checkpoint=options.checkpoint,
        unknown_values=options.unknown_values,
    )
    if options.explain is None and options.explain_class:
        raise Ham10000Error("--explain_class says which class --explain draws; give --explain out.png too.")
    if options.explain is not None:
        # Late, as these import matplotlib and captum; before the work, so that a mistake is told at once.
        from ham10000.training.explanation_files import explanation_paths, write_explanations

        paths = explanation_paths(samples, options.explain)
    fast = model
    if options.precision is None and options.backend != "torch":
        options.precision = "auto"
    if options.precision is not None:
        from ham10000.training.hardware import keep_freed_memory
        from ham10000.training.inference import optimize_for_inference

        if model.device.type == "cpu":
            keep_freed_memory()
        fast = optimize_for_inference(model, options.precision, backend=options.backend)
    probabilities = _predict(fast, processor, samples, options)
    if output_format == "table":
        text = format_table(
            samples,
            probabilities,
            model,
            processor,
            metadata_unknown=_predict_without_metadata(fast, processor, samples, options),
            top_k=options.top_k,
            unknown_values=options.unknown_values,
            width=DEFAULT_WIDTH if options.output else shutil.get_terminal_size((DEFAULT_WIDTH, 24)).columns,
        )
    elif output_format == "json":
        text = format_json(samples, probabilities, temperature=model.config.temperature, top_k=options.top_k)
    else:
        text = {"csv": format_csv, "isic": format_isic}[output_format](samples, probabilities)
    if options.explain is not None:
        # By the model as loaded: a folded copy, or one in bf16, would round the gradients.
        label = options.explain_class or "mel"
        write_explanations(model, processor, samples, paths, label=label, unknown_values=options.unknown_values)
    write_output(text, options.output)
    if output_format != "table" or options.output:
        print(f"note: {DISCLAIMER}", file=sys.stderr)


def _predict(
    model: Ham10000ForImageClassification,
    processor: Ham10000Processor,
    samples: list[Sample],
    options: argparse.Namespace,
) -> np.ndarray:
    """(samples, 7) probabilities."""
    pictures = [sample.picture for sample in samples if sample.picture is not None]
    knows_metadata = any(sample.metadata is not None for sample in samples)
    return predict(
        model,
        processor,
        pictures or None,
        [sample.metadata or {} for sample in samples] if knows_metadata else None,
        options.batch_size,
        unknown_values=options.unknown_values,
        progress=True,
    )


def _predict_without_metadata(
    model: Ham10000ForImageClassification,
    processor: Ham10000Processor,
    samples: list[Sample],
    options: argparse.Namespace,
) -> np.ndarray | None:
    """(1, 7) probabilities of one picture whose metadata is taken away; None where there is nothing to compare."""
    if len(samples) != 1 or model.config.modality != "fusion":
        return None
    shown = describe_metadata(processor, samples[0].metadata, unknown_values=options.unknown_values)
    if set(shown.values()) == {UNKNOWN}:
        return None
    return predict(model, processor, [samples[0].picture])


__all__ = ["build_parser", "main"]


if __name__ == "__main__":
    sys.exit(main())
