"""The study: does metadata improve on the image, and which shortcuts are learned?

ham10000-study train    trains the image runs that are missing
ham10000-study report   fits heads on their logits, and writes the report
ham10000-study release  trains on all images, and writes the checkpoints to
                        publish
ham10000-study          train, then report

Each takes --config STUDY.yaml --data DIR. Only `train` and `release` train an
image model; the report takes minutes. Interrupt it when you like: the same
command goes on where it stopped. Options it does not know are those of
`ham10000-train`, over the recipe of all image runs.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ham10000.training import config as training
from ham10000.training.data.tables import input_error
from ham10000.training.utils.cli import add_debug_argument, run_cli

if TYPE_CHECKING:
    from ham10000.training.study.config import StudyConfig

STEPS = ("train", "report", "release")
# What the study decides for each of its runs; its file says it for all.
_OWN_OPTIONS = [
    *("modality", "fusion", "seed", "fold", "folds", "protocol", "split_file", "trackers", "resume", "overwrite"),
    *("train_on_validation", "train_on_all", "save_dtype"),
]
# What a study's heads and report do not follow, in the recipe or on the command line.
_FIXED = {
    "init_from": "the base model may have been trained on the images that it would score",
    "malignant_labels": "its heads and report are about mel, bcc and akiec",
    "metadata_fields": "its heads read age, sex and site",
    "metadata_dropout": "its heads have their own",
    "metadata_field_dropout": "its heads have their own",
}


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the options of `ham10000-study` that `ham10000-train` does not have."""
    parser = argparse.ArgumentParser(
        prog="ham10000-study",
        usage="ham10000-study [{" + ",".join(STEPS) + "}] --config YAML [options]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", required=True, metavar="YAML", help="the study: see examples/configs/study.yaml")
    add("--runs", nargs="+", default=[], metavar="DIR", help="finished image runs of ham10000-train, used as they are")
    add("--predictions", metavar="FILE", help="report from this predictions.parquet; no run and no image is read")
    add("--only", nargs="+", default=[], metavar="RUN", help="train only these, as lesion-grouped/image-seed0-fold1")
    add("--tables", metavar="DIR", help="of `report`: also csv, LaTeX, PDF and SVG files, for a paper")
    add("--output_dir", default="runs/study", help="folder of the study")
    add_debug_argument(parser)
    return parser


def parse_study(argv: Sequence[str]) -> tuple[argparse.Namespace, "StudyConfig", training.TrainConfig]:
    """The command's own options, the study, and the recipe of its image runs."""
    # By hand: argparse would take the value of an option it does not know, such as `--data DIR`, for the step.
    words = list(argv)
    step = words.pop(0) if words and not words[0].startswith("-") else None
    if step is not None and step not in STEPS:
        raise input_error(f"Unknown step {step!r} of ham10000-study; expected one of {', '.join(STEPS)}, or none.")
    options, rest = build_parser().parse_known_args(words)
    rest = training.with_underscores(rest)
    options.step = step
    for name in _OWN_OPTIONS:
        if any(argument.split("=")[0] == f"--{name}" for argument in rest):
            raise input_error(f"--{name} is set by the study for each of its runs; its file {options.config} says it.")
    if options.predictions and (options.step != "report" or options.runs):
        raise input_error("--predictions is for `ham10000-study report`, without --runs.")
    if options.tables and (options.only or options.step not in (None, "report")):
        raise input_error("--tables is for `ham10000-study report`; leave it out of the other steps.")
    if options.only and options.step not in (None, "train"):
        raise input_error("--only names runs to train; leave it out of `report` and `release`.")
    if unknown := training.build_parser().parse_known_args(rest)[1]:
        build_parser().error(f"unrecognized arguments: {' '.join(unknown)}")
    from ham10000.training.study.config import read_study_config  # torch, for which --help need not wait

    study = read_study_config(options.config)
    arguments = ["--config", study.recipe, *rest, "--output_dir", options.output_dir]
    base, plain = training.parse_arguments(arguments), training.TrainConfig()
    for name, reason in _FIXED.items():
        if getattr(base, name) != getattr(plain, name):
            raise input_error(f"A study does not take --{name}, nor {name} in its recipe: {reason}.")
    return options, study, base


@run_cli
def main(argv: Sequence[str]) -> None:
    """Command line of `ham10000-study`."""
    options, study, base = parse_study(argv)
    from ham10000.training.study.command import run_study

    run_study(options, study, base)


if __name__ == "__main__":
    sys.exit(main())
