"""The study: does metadata improve on the image, and which shortcuts does it learn?

accelerate launch -m ham10000.training.study --data DIR --protocol lesion-grouped --seeds 5 --output_dir runs/study

trains every variant on the same splits and seeds, and writes study.json, study.md and figures. Interrupt it when you
like: the same command goes on where it stopped. Options it does not know are those of `ham10000-train`.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ham10000.modeling import MODALITIES, Ham10000Error
from ham10000.training.config import TrainConfig, parse_arguments, read_config_file
from ham10000.training.data.split import PROTOCOLS
from ham10000.training.evaluation.report import CONFIDENCE
from ham10000.training.inference.prediction import VIEWS
from ham10000.training.run_folder import only_writer, portable_training
from ham10000.training.study.analysis import StudyAnalysis
from ham10000.training.study.figures import plot_study
from ham10000.training.study.report import STUDY_FORMAT, study_markdown
from ham10000.training.study.runs import IMAGE_RUN, VARIANTS, StudyRun, finish_run, plan_runs, release_runs
from ham10000.training.train import build_accelerator, quiet_libraries, read_data
from ham10000.training.utils.cli import Interrupted, run_cli
from ham10000.training.utils.files import atomic_write_json, atomic_write_text
from ham10000.training.utils.hardware import environment

# What a study decides for each run; its own options say it for all.
_OWN_OPTIONS = ("modality", "fusion", "seed", "fold", "split_file", "trackers", "resume", "overwrite")


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the options of `ham10000-study` that `ham10000-train` does not have."""
    parser = argparse.ArgumentParser(
        prog="ham10000-study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--protocol", action="append", choices=PROTOCOLS, help="may be given twice; lesion-grouped")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["metadata", "image", "fusion-concat"])
    parser.add_argument(
        "--variant_config",
        action="append",
        default=[],
        metavar="MODALITY=FILE",
        help="settings of one modality's runs, over those that all share; repeatable. For fusion, `pretrained: image` "
        "in the file starts from the image run of the same seed",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[5],
        help="training seeds 0, 1, … of every variant: one number, or one for each --protocol, in their order",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="RUN",
        help="do these runs of the study and no more, such as lesion-grouped/image-seed1: several machines or "
        "processes can share a study, and the command without --only then finishes it",
    )
    parser.add_argument(
        "--release",
        action="store_true",
        help="then train each variant once more for publication, under the first protocol, on train and validation "
        "together, with the study's settings and temperature, into OUTPUT_DIR/release",
    )
    parser.add_argument("--folds", type=int, help="cross-validation: every image is scored out of fold")
    parser.add_argument(
        "--views", type=int, choices=VIEWS, default=4, help="test-time augmentation to compare; 1: none"
    )
    parser.add_argument("--n_resamples", type=int, default=2000, help="bootstrap resamples")
    parser.add_argument("--output_dir", default="runs/study", help="folder of the study")
    return parser


def parse_study(argv: Sequence[str]) -> tuple[argparse.Namespace, TrainConfig]:
    """The study's own options, and the settings that all its runs share.

    Raises:
        Ham10000Error: For an option that the study sets itself, or a number out of range.
    """
    options, rest = build_parser().parse_known_args(list(argv))
    for name in _OWN_OPTIONS:
        if any(argument.split("=")[0] == f"--{name}" for argument in rest):
            raise Ham10000Error(f"--{name} is set by the study for each of its runs; see `ham10000-study --help`.")
    given = " ".join(map(str, options.seeds))
    if min(options.seeds) < 1 or options.n_resamples < 2:
        raise Ham10000Error(f"--seeds {given} and --n_resamples {options.n_resamples} must be at least 1 and 2.")
    config = parse_arguments([*rest, "--output_dir", options.output_dir])
    protocols = list(dict.fromkeys(options.protocol or [PROTOCOLS[0]]))
    if len(options.seeds) not in (1, len(protocols)):
        raise Ham10000Error(
            f"--seeds {given} gives {len(options.seeds)} numbers for {len(protocols)} protocol(s); give "
            "one for all, or one for each --protocol."
        )
    counts = options.seeds * len(protocols) if len(options.seeds) == 1 else options.seeds
    options.protocol = sorted(protocols, key=PROTOCOLS.index)
    options.seeds = {name: list(range(counts[protocols.index(name)])) for name in options.protocol}
    options.variants = sorted(set(options.variants), key=VARIANTS.index)
    if options.release and options.folds:
        raise Ham10000Error("--release trains on all but one test set, but --folds makes every image a test image.")
    options.variant_config = dict(_read_variant_config(text, options.variants) for text in options.variant_config)
    return options, config


def _read_variant_config(text: str, variants: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Parses `MODALITY=FILE`: the modality, and the file's name and values."""
    modality, separator, path = text.partition("=")
    if not separator or modality not in MODALITIES:
        raise Ham10000Error(f"--variant_config takes MODALITY=FILE with one of {', '.join(MODALITIES)}, got {text!r}.")
    values = read_config_file(path)
    # A file for `ham10000-train` names its modality; here that is known, and another one is refused below.
    if values.get("modality") == modality:
        del values["modality"]
    if forbidden := sorted({*_OWN_OPTIONS, "protocol", "folds", "data", "output_dir"} & set(values)):
        raise Ham10000Error(f"{path}: {', '.join(forbidden)} cannot differ between the variants of a study.")
    if values.get("pretrained") == IMAGE_RUN and (modality != "fusion" or "image" not in variants):
        raise Ham10000Error(
            f"{path}: pretrained {IMAGE_RUN!r} is the image run of the study, which only fusion can start from, and "
            "which --variants must name."
        )
    return modality, {"file": Path(path).name, "values": values}


def write_study(
    study_dir: Path, options: argparse.Namespace, config: TrainConfig, runs: Sequence[StudyRun], dataset: Any
) -> dict[str, Any]:
    """Computes and writes study.json from finished runs, and renders study.md and the figures from it.

    Returns:
        The content of study.json.
    """
    study: dict[str, Any] = {
        "format": STUDY_FORMAT,
        "settings": {
            "config": portable_training({"config": config.to_dict()})["config"],
            "protocols": options.protocol,
            "variants": options.variants,
            "variant_config": options.variant_config,
            "seeds": options.seeds,
            "folds": options.folds,
            "views": options.views,
            "n_resamples": options.n_resamples,
            "confidence": CONFIDENCE,
            "data": Path(config.data).name,
            "environment": environment(),
        },
        "protocols": {},
    }
    for protocol in options.protocol:
        print(f"Analysing {protocol}", flush=True)
        analysis = StudyAnalysis(
            study_dir,
            [run for run in runs if run.protocol == protocol],
            dataset,
            views=options.views,
            n_resamples=options.n_resamples,
        )
        study["protocols"][protocol] = analysis.results()
    # First what took minutes; the rest is rendered from it.
    atomic_write_json(study_dir / "study.json", study)
    plot_study(study, study_dir / "figures")
    atomic_write_text(study_dir / "study.md", study_markdown(study))
    return study


@run_cli
def main(argv: Sequence[str]) -> None:
    """Command line of `ham10000-study`."""
    options, config = parse_study(argv)
    quiet_libraries()
    study_dir = Path(options.output_dir)
    accelerator = build_accelerator(config)
    with contextlib.ExitStack() as stack:
        # Runs that are named are held one by one, by `train`.
        if accelerator.is_main_process and not options.only:
            stack.enter_context(only_writer(study_dir))
        run_study(study_dir, options, config, accelerator)


def run_study(study_dir: Path, options: argparse.Namespace, config: TrainConfig, accelerator: Accelerator) -> None:
    """Does whatever of a study is not done, and writes its report.

    Args:
        study_dir: The study's folder, held for this process.
        options: The study's own options.
        config: The settings all runs share.
        accelerator: Serves all runs.

    Raises:
        Ham10000Error: As the runs do.
        Interrupted: After SIGTERM or SIGINT in training, with the state saved.
    """
    study_runs = runs = plan_runs(options.seeds, options.variants, options.folds)
    if options.release:
        runs = [*runs, *release_runs(options.protocol[0], options.variants)]
    if options.only:
        names = [run.name for run in runs]
        if unknown := sorted(set(options.only) - set(names)):
            raise Ham10000Error(f"--only {' '.join(unknown)}: no such run in this study; it has {', '.join(names)}.")
        runs = [run for run in runs if run.name in options.only]
    data = read_data(config)
    overrides = {modality: entry["values"] for modality, entry in options.variant_config.items()}
    start = time.perf_counter()
    for number, run in enumerate(runs, 1):
        accelerator.print(f"--- run {number} of {len(runs)}: {run.name}", flush=True)
        run_config = run.config(config, study_dir, options.folds, overrides)
        same = [other for other in study_runs if (other.protocol, other.variant) == (run.protocol, run.variant)]
        try:
            done = finish_run(
                run,
                run_config,
                accelerator,
                data,
                views=options.views,
                n_resamples=options.n_resamples,
                siblings=[study_dir / other.name for other in same],
            )
        except Interrupted as error:
            # What continues the run alone would not continue the study.
            text = str(error) and f"{str(error).partition(' Continue')[0]} Continue the study with the same command"
            raise Interrupted(text, error.signum) from error
        accelerator.print(f"--- {run.name}: {done}; {(time.perf_counter() - start) / 60:.1f} min so far", flush=True)
    is_main = accelerator.is_main_process
    accelerator.end_training()
    if is_main and not options.only:
        study = write_study(study_dir, options, config, study_runs, data[0])
        for protocol in study["protocols"].values():
            for comparison in protocol["comparisons"]:
                print(comparison["sentence"])
        print(f"Saved     {study_dir / 'study.md'}, study.json and figures/")


if __name__ == "__main__":
    sys.exit(main())
