"""Predicts pictures, metadata or both: `ham10000-predict image.jpg --checkpoint runs/fusion --age 60 --sex male`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers.utils import logging as transformers_logging

from ham10000.modeling import LABELS, METADATA_FIELDS, Ham10000Error
from ham10000.training.cli import add_debug_argument, run_cli
from ham10000.training.prediction import choose_device, load_checkpoint, predict
from ham10000.training.prediction_inputs import KEY_COLUMNS, collect_samples
from ham10000.training.prediction_output import DISCLAIMER, format_csv, format_json, format_table, write_output

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
    parser.add_argument("--checkpoint", required=True, metavar="DIR_OR_HUB_ID")
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
    parser.add_argument(
        "--format", choices=["table", "json", "csv"], help="default: by the suffix of --output, else table"
    )
    parser.add_argument(
        "--output", metavar="FILE", help="write there, whole or not at all, instead of to the terminal"
    )
    parser.add_argument(
        "--top_k", type=int, choices=range(1, len(LABELS) + 1), metavar="N", help="classes shown (not csv)"
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
    model, processor = load_checkpoint(options.checkpoint, options.revision, choose_device(options.device))
    samples = collect_samples(
        processor,
        options.inputs,
        {name: getattr(options, name) for name in METADATA_FIELDS},
        options.metadata,
        checkpoint=options.checkpoint,
        unknown_values=options.unknown_values,
    )
    pictures = [sample.picture for sample in samples if sample.picture is not None]
    if options.precision is None and options.backend != "torch":
        options.precision = "auto"
    if options.precision is not None:
        from ham10000.training.allocator import keep_freed_memory
        from ham10000.training.inference import optimize_for_inference

        if model.device.type == "cpu":
            keep_freed_memory()
        model = optimize_for_inference(model, options.precision, backend=options.backend)
    knows_metadata = any(sample.metadata is not None for sample in samples)
    probabilities = predict(
        model,
        processor,
        pictures or None,
        [sample.metadata or {} for sample in samples] if knows_metadata else None,
        options.batch_size,
        unknown_values=options.unknown_values,
        progress=True,
    )
    if output_format == "json":
        text = format_json(samples, probabilities, top_k=options.top_k)
    elif output_format == "csv":
        text = format_csv(samples, probabilities)
    else:
        arguments = {"top_k": options.top_k, "unknown_values": options.unknown_values}
        text = format_table(samples, probabilities, model, processor, **arguments)
    write_output(text, options.output)
    if output_format != "table" or options.output:
        print(f"note: {DISCLAIMER}", file=sys.stderr)


__all__ = ["build_parser", "main"]


if __name__ == "__main__":
    sys.exit(main())
