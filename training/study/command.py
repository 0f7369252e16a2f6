"""The study: does metadata improve on the image, and which shortcuts does it learn?

ham10000-study train --config STUDY.yaml --data DIR      trains the image runs that are missing
ham10000-study report --config STUDY.yaml --data DIR     fits heads on their logits, and writes the report
ham10000-study release --config STUDY.yaml --data DIR    trains on all images, and writes the checkpoints to publish
ham10000-study --config STUDY.yaml --data DIR            train, then report

Only `train` and `release` train an image model; the report takes minutes. Interrupt it when you like: the same command
goes on where it stopped. Options it does not know are those of `ham10000-train`, over the recipe of all image runs.
"""

import argparse
import contextlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ham10000.modeling import Ham10000Error
from ham10000.training.config import TrainConfig, parse_arguments
from ham10000.training.run_folder import only_writer
from ham10000.training.study.config import StudyConfig, read_study_config
from ham10000.training.study.predictions import read_logits
from ham10000.training.study.report import comparison_sentence, lead
from ham10000.training.study.runs import ImageRun, locate_runs
from ham10000.training.study.steps import (
    complete_predictions,
    read_answer,
    read_metadata,
    release,
    report,
    train_runs,
)
from ham10000.training.train import build_accelerator, load_configured, quiet_libraries
from ham10000.training.utils.cli import run_cli

STEPS = ("train", "report", "release")
# What the study decides for each of its runs; its file says it for all.
_OWN_OPTIONS = [
    *("modality", "fusion", "seed", "fold", "folds", "protocol", "split_file", "trackers", "resume", "overwrite"),
    *("train_on_validation", "train_on_all", "save_dtype"),
]


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the options of `ham10000-study` that `ham10000-train` does not have."""
    parser = argparse.ArgumentParser(
        prog="ham10000-study",
        usage="ham10000-study [{" + ",".join(STEPS) + "}] --config YAML [options]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="YAML", help="the study: see examples/configs/study.yaml")
    parser.add_argument(
        "--runs",
        nargs="+",
        default=[],
        metavar="DIR",
        help="finished image runs of ham10000-train to take as they are",
    )
    parser.add_argument(
        "--predictions", metavar="FILE", help="report from this predictions.parquet; no run and no image is read"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="RUN",
        help="train these runs and no more, such as lesion-grouped/image-seed0-fold1: several machines or processes "
        "can share a study",
    )
    parser.add_argument(
        "--tables",
        metavar="DIR",
        help="of `report`: also csv, LaTeX, PDF and SVG files, for a paper",
    )
    parser.add_argument("--output_dir", default="runs/study", help="folder of the study")
    return parser


def parse_study(argv: Sequence[str]) -> tuple[argparse.Namespace, StudyConfig, TrainConfig]:
    """The command's own options, the study, and the recipe of its image runs.

    Raises:
        Ham10000Error: For an option that the study sets itself, a file that cannot be read, or options that do not fit
            together.
    """
    # By hand: argparse would take the value of an option it does not know, such as `--data DIR`, for the step.
    words = list(argv)
    step = words.pop(0) if words and not words[0].startswith("-") else None
    if step is not None and step not in STEPS:
        raise Ham10000Error(f"Unknown step {step!r} of ham10000-study; expected one of {', '.join(STEPS)}, or none.")
    options, rest = build_parser().parse_known_args(words)
    options.step = step
    for name in _OWN_OPTIONS:
        if any(argument.split("=")[0] == f"--{name}" for argument in rest):
            raise Ham10000Error(
                f"--{name} is set by the study for each of its runs; its file {options.config} says it."
            )
    if options.predictions and (options.step != "report" or options.runs):
        raise Ham10000Error("--predictions is for `ham10000-study report`, without --runs.")
    if options.tables and (options.only or options.step not in (None, "report")):
        raise Ham10000Error("--tables is for `ham10000-study report`; leave it out of the other steps.")
    if options.only and options.step not in (None, "train"):
        raise Ham10000Error("--only names runs to train; leave it out of `report` and `release`.")
    study = read_study_config(options.config)
    return options, study, parse_arguments(["--config", study.recipe, *rest, "--output_dir", options.output_dir])


@run_cli
def main(argv: Sequence[str]) -> None:
    """Command line of `ham10000-study`."""
    options, study, base = parse_study(argv)
    quiet_libraries()
    directory = Path(options.output_dir)
    accelerator = build_accelerator(base)
    places = locate_runs(study, directory, options.runs)
    with contextlib.ExitStack() as stack:
        # Runs that are named are held one by one, by `train`.
        if accelerator.is_main_process and not options.only:
            stack.enter_context(only_writer(directory))
        if options.step in (None, "train"):
            chosen = _chosen(places, options.only)
            train_runs(chosen, base, accelerator, load_configured(base))
        if options.only or options.step == "train":
            return
        if options.predictions:
            predictions, recipe = read_logits([options.predictions]), None
        else:
            predictions, recipe = complete_predictions(places, base, accelerator)
        frame = read_metadata(base)
        if options.step == "release":
            names = [Path(options.config).name, "--data", Path(base.data).name]
            made_by = shlex.join(["ham10000-study", "release", "--config", *names])
            to, answer = directory / "release", read_answer(directory)
            for folder in release(predictions, frame, study, base, to, accelerator, made_by=made_by, answer=answer):
                print(f"Saved     {folder}")
            return
        if accelerator.is_main_process:
            found = report(predictions, frame, study, recipe, directory, options.tables)
            for comparison in lead(found)["comparisons"]:
                print(comparison_sentence(comparison, found))
            print(f"Saved     {directory / 'study.md'}, study.json, predictions.parquet and figures/")
            if options.tables:
                print(f"Saved     tables and figures for a paper in {options.tables}")


def _chosen(places: Mapping[ImageRun, Path], only: Sequence[str]) -> dict[ImageRun, Path]:
    names = [run.name for run in places]
    if unknown := sorted(set(only) - set(names)):
        raise Ham10000Error(f"--only {' '.join(unknown)}: no such run in this study; it has {', '.join(names)}.")
    return {run: folder for run, folder in places.items() if not only or run.name in only}


if __name__ == "__main__":
    sys.exit(main())
