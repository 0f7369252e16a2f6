"""Predicts images, metadata or both: `ham10000-predict image.jpg --age 60 --sex male --localization back`."""

import argparse
import itertools
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ham10000.training.utils.cli import DISCLAIMER, add_debug_argument, progress_bar, run_cli

if TYPE_CHECKING:
    from PIL.Image import Image

    from ham10000.modeling import Ham10000ForImageClassification, Ham10000Processor
    from ham10000.training.inference.inputs import Sample
    from ham10000.training.inference.output import Predictions


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of `ham10000-predict`."""
    parser = argparse.ArgumentParser(
        prog="ham10000-predict",
        description="Predict images, metadata or both with a checkpoint. " + DISCLAIMER,
        epilog="A folder is searched with its sub-folders, sorted, hidden files left out. Exit code 2: no "
        "prediction was written, and one line on stderr says why.",
    )
    add = parser.add_argument
    add("inputs", nargs="*", metavar="IMAGE_OR_FOLDER", help="images, or folders of them; none for metadata-only")
    add("--checkpoint", metavar="DIR_OR_HUB_ID", help="default: the fusion model that comes with the source tree")
    add("--revision", help="branch, tag or commit of a Hub id")
    add("--age", help="years, for every image given; a field left out is unknown")
    add("--sex", help="female or male")
    add("--localization", help="body site, such as back or 'lower extremity'")
    metadata = "one row per image; columns as for training: image_id (image, …) and any of age, sex, localization"
    add("--metadata", metavar="CSV", help=metadata)
    add("--columns", nargs="+", default=[], metavar="OURS=THEIRS", help="columns of --metadata not recognised")
    unknown = "missing: a sex or site outside the vocabulary, and an image without a csv row, count as unknown"
    add("--unknown_values", choices=["error", "missing"], default="error", help=unknown)
    formats = parser.add_mutually_exclusive_group()
    form = "isic: csv as ISIC 2018, task 3, takes it; default: by the suffix of --output, else table"
    formats.add_argument("--format", choices=["table", "json", "csv", "isic"], help=form)
    formats.add_argument("--json", dest="format", action="store_const", const="json", help="short for --format json")
    formats.add_argument("--csv", dest="format", action="store_const", const="csv", help="short for --format csv")
    add("--output", metavar="FILE", help="write there, complete or not at all, instead of to the terminal")
    decision = "balanced: the largest ratio of probability to class share (default for isic, else the most probable)"
    add("--decision", choices=["probable", "balanced"], help=decision)
    coverage = "also list the classes that contain the true one in this share of each class's images: 0.8, 0.9 or 0.95"
    add("--coverage", type=float, help=coverage)
    add("--top_k", type=int, metavar="N", help="classes shown (not csv)")
    explain = "also draw Grad-CAM and the effects of the metadata; needs `pip install ham10000[explain]`"
    add("--explain", metavar="PNG_OR_FOLDER", help=explain)
    add("--explain_class", metavar="LABEL", help="class explained next to the most probable one; default: mel")
    add("--batch_size", type=int, default=32)
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    precision = "fast path for many images; auto is bf16, which rounds, on hardware for it (default: the plain model)"
    add("--precision", choices=["fp32", "bf16", "auto"], help=precision)
    backend = "what computes the fast path; openvino is faster on a CPU from some hundred images on, and optional"
    add("--backend", choices=["torch", "openvino"], default="torch", help=backend)
    add_debug_argument(parser)
    return parser


@run_cli
def main(argv: Sequence[str]) -> None:
    """Command line of `ham10000-predict`."""
    options = build_parser().parse_args(argv)
    # Late: torch and transformers take seconds to import, which --help and a mistyped option need not wait for. None
    # of these imports datasets, pandas, scikit-learn or matplotlib, which would double the start-up time.
    from transformers.utils import logging

    from ham10000.training.inference import inputs, output

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    model, processor = _load(options)
    samples = inputs.collect_samples(processor, options)
    if options.explain is not None:
        # Late, as it imports matplotlib; before the prediction, so that a mistake is reported at once.
        from ham10000.training.inference import explanation, explanation_figure

        paths = explanation_figure.explanation_paths(samples, options.explain)
    text = _format(_predict(model, processor, samples, options), options)
    if options.explain is not None:
        # By the model as loaded: a folded copy, or one in bf16, would round the gradients.
        drawn = list(zip(samples, paths, strict=True))
        for sample, path in progress_bar(iterable=drawn, desc="Explaining", unit="image", disable=len(drawn) == 1):
            name = sample.name if sample.image is None else sample.image.name
            asked = {"label": options.explain_class, "name": name, "unknown_values": options.unknown_values}
            explained = explanation.explain(model, processor, sample.image, sample.metadata, **asked)
            explanation_figure.plot_explanation(explained, path)
        print(f"wrote {path if len(drawn) == 1 else f'{len(drawn)} figures to {path.parent}'}", file=sys.stderr)
    output.write_output(text, options.output)
    if options.format != "table" or options.output:
        print(f"note: {DISCLAIMER}", file=sys.stderr)


def _load(options: argparse.Namespace) -> "tuple[Ham10000ForImageClassification, Ham10000Processor]":
    """Loads the checkpoint of the options, or the one that comes with the source tree, whose name goes to stderr.

    Options that do not fit are refused, before anything else is read; format and decision rule filled in.
    """
    from ham10000.modeling import Ham10000Error
    from ham10000.training.evaluation.decision import saved_thresholds
    from ham10000.training.inference import output, prediction

    suffix = Path(options.output or "").suffix
    options.format = options.format or {".json": "json", ".csv": "csv"}.get(suffix, "table")
    if options.output and Path(options.output).is_dir():
        raise Ham10000Error(f"--output {options.output!r} is a folder; give a file.")
    if options.explain is None and options.explain_class:
        raise Ham10000Error("--explain_class says which class --explain draws; give --explain out.png too.")
    if options.checkpoint is None:
        options.checkpoint = str(prediction.shipped_checkpoint())
        print(f"note: with {Path(options.checkpoint).name}, the model that comes with this package", file=sys.stderr)
    device = prediction.choose_device(options.device)
    model, processor = prediction.load_checkpoint(options.checkpoint, options.revision, device)
    labels, prior = model.config.label_names, model.config.class_prior
    if options.top_k is not None and not 1 <= options.top_k <= len(labels):
        raise Ham10000Error(f"--top_k {options.top_k}: expected a number from 1 to {len(labels)}, of classes.")
    if options.explain_class not in (None, *labels):
        raise Ham10000Error(f"--explain_class {options.explain_class!r}: expected one of {labels}.")
    if options.format == "isic":
        output.check_submission_labels(labels)
    if options.decision is None:
        options.decision = "balanced" if options.format == "isic" and prior is not None else "probable"
    if options.decision == "balanced" and prior is None:
        raise Ham10000Error(f"--decision balanced: {options.checkpoint} has no `class_prior`; use probable.")
    if options.coverage is not None:
        saved_thresholds(model.config.conformal_thresholds, options.coverage)  # raises where there are none
    return model, processor


def _predict(
    model: "Ham10000ForImageClassification",
    processor: "Ham10000Processor",
    samples: "Sequence[Sample]",
    options: argparse.Namespace,
) -> "Predictions":
    """Predicts with the plain model or its fast copy; each image is decoded once, for the model and the warning."""
    from ham10000.modeling import load_image
    from ham10000.training.evaluation.decision import decide, prediction_sets, saved_thresholds
    from ham10000.training.inference import explanation, prediction
    from ham10000.training.inference.output import Predictions

    fast = model
    if options.precision is not None or options.backend != "torch":
        from ham10000.training.inference.fast import optimize_for_inference
        from ham10000.training.utils.hardware import keep_freed_memory

        if model.device.type == "cpu":
            keep_freed_memory()
        fast = optimize_for_inference(model, options.precision or "auto", backend=options.backend)

    def opened(sample: "Sample") -> "Image":
        image = load_image(sample.image)
        sample.warning = processor.image_processor.unlike_training(image)
        return image

    config, unknown_values = model.config, options.unknown_values
    images = samples if config.uses_image else None
    rows = [sample.metadata for sample in samples] if config.uses_metadata else None
    probabilities = prediction.predict(
        fast, processor, images, rows, options.batch_size, unknown_values=unknown_values, progress=True, decode=opened
    )
    effects, unknown_answer = None, None
    if len(samples) == 1 and config.uses_metadata and options.format == "table":
        given = samples[0].image, samples[0].metadata
        effects = explanation.metadata_effects(fast, processor, *given, unknown_values=unknown_values)
        if config.uses_image and (unknown := effects.unknown()) is not None:
            unknown_answer = int(decide(unknown, config.class_prior, options.decision))
    answers, sets = decide(probabilities, config.class_prior, options.decision), None
    if options.coverage is not None:
        inside = prediction_sets(probabilities, saved_thresholds(config.conformal_thresholds, options.coverage))
        sets = [list(itertools.compress(config.label_names, row)) for row in inside]
    calibration, coverage = prediction.calibration_of(model), options.coverage
    return Predictions(samples, probabilities, answers, config, calibration, sets, coverage, effects, unknown_answer)


def _format(predictions: "Predictions", options: argparse.Namespace) -> str:
    """The predictions in the format of the options."""
    from ham10000.training.evaluation.decision import balanced_probabilities
    from ham10000.training.inference import output
    from ham10000.training.utils.files import without_suffix

    if options.format == "json":
        return output.format_json(predictions, options.top_k)
    if options.format == "csv":
        return output.format_csv(predictions)
    if options.format == "isic":
        probabilities, config = predictions.probabilities, predictions.config
        if options.decision == "balanced":
            probabilities = balanced_probabilities(probabilities, config.class_prior)
        # The ids are file names without folder and suffix; an image's suffix may be any, an id may have another dot.
        paths = [(Path(sample.name or ""), sample.image) for sample in predictions.samples]
        ids = [path.stem if image else without_suffix(path.name) for path, image in paths]
        return output.format_submission(ids, probabilities, config.label_names)
    width = 100 if options.output else shutil.get_terminal_size((100, 24)).columns
    return output.format_table(predictions, options.top_k, width)


if __name__ == "__main__":
    sys.exit(main())
