"""The steps of the study: its image runs, the report on them, and the checkpoints of its release."""

import argparse
import contextlib
import dataclasses
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
from accelerate import Accelerator

from ham10000.modeling import LABELS, Ham10000Error, create_processor
from ham10000.training.config import TrainConfig
from ham10000.training.data.readers import read_source
from ham10000.training.data.sources import DataReport, check_rows, metadata_frame
from ham10000.training.data.split import lesion_groups
from ham10000.training.run_folder import RunFile, only_writer, origin_of_ids, portable_training
from ham10000.training.study.analysis import Inputs, analyse_protocol
from ham10000.training.study.config import StudyConfig
from ham10000.training.study.crossfit import CrossFitted, cross_calibrate, cross_fit_heads
from ham10000.training.study.figures import plot_study, write_study_tables
from ham10000.training.study.predictions import Predictions, read_logits, write_predictions
from ham10000.training.study.release import train_on_all, write_release
from ham10000.training.study.report import STUDY_FORMAT, Study, comparison_sentence, lead, short_answer, study_markdown
from ham10000.training.study.runs import ImageRun, check_one_recipe, is_trained, locate_runs, out_of_fold
from ham10000.training.train import build_accelerator, load_configured, quiet_libraries, train
from ham10000.training.utils.cli import Interrupted
from ham10000.training.utils.files import JsonObject, atomic_write_json, atomic_write_text, read_json
from ham10000.training.utils.hardware import environment, reset_memory


def train_runs(
    places: Mapping[ImageRun, Path],
    base: TrainConfig,
    accelerator: Accelerator,
    data: tuple[datasets.Dataset, DataReport],
) -> None:
    """Trains what is missing of the image runs and writes their out-of-fold logits; `data` is that of `load_data`.

    Raises:
        Ham10000Error: As `train` does, and for labels other than HAM10000's.
        Interrupted: After SIGTERM or SIGINT in training, with the state saved.
    """
    _require_ham10000_labels(data[1].labels)
    start = time.perf_counter()
    for number, (run, directory) in enumerate(places.items(), 1):
        accelerator.print(f"--- run {number} of {len(places)}: {run.name}", flush=True)
        config, done = run.config(base, directory), "done before"
        if not is_trained(directory, config):
            done = "resumed" if config.resume else "trained"
            reset_memory()
            try:
                train(config, accelerator, data)
            except Interrupted as error:
                # What continues the run alone would not continue the study.
                text = str(error).partition(" Continue")[0]
                raise Interrupted(text and f"{text} Continue the study with the same command", error.signum) from error
            accelerator.free_memory()
        if accelerator.is_main_process:
            out_of_fold(run, directory, data[0], accelerator.device, base.cache_dir)
        accelerator.wait_for_everyone()
        minutes = (time.perf_counter() - start) / 60
        accelerator.print(f"--- {run.name}: {done}; {minutes:.1f} min so far", flush=True)


def _require_ham10000_labels(labels: Sequence[str]) -> None:
    """The study's questions, metrics and figures are about HAM10000's classes."""
    if list(labels) != list(LABELS):
        raise Ham10000Error(
            f"The study is about the labels {list(LABELS)}, but the data's are {list(labels)}: read them as these "
            "with --label_map OLD=NEW, and drop the rest with --data_fixes drop_unknown_labels."
        )


def read_metadata(base: TrainConfig) -> pd.DataFrame:
    """The metadata of the recipe's source, as `metadata_frame` gives them; of a csv file also without its images."""
    if not (Path(base.data).is_file() and Path(base.data).suffix.lower() == ".csv"):
        return metadata_frame(load_configured(base)[0])
    raw = read_source(base.data, base.data_options())
    raw.missing = [False] * len(raw.frame)
    frame, _, _ = check_rows(raw, base.data_options(), unreadable_images=None, fixes=base.data_fixes)
    return frame


def fit_protocol(
    image: Predictions, frame: pd.DataFrame, study: StudyConfig, *, with_heads: bool
) -> tuple[dict[str, CrossFitted], Inputs]:
    """Fits and calibrates the variants of one protocol.

    Args:
        image: The image variant's out-of-fold logits.
        frame: Metadata of all images, from `read_metadata`.
        study: The study.
        with_heads: Whether heads are fitted, which needs folds.

    Returns:
        Variant to calibrated logits, and what their analysis reads.

    Raises:
        Ham10000Error: For labels other than HAM10000's, and as `matching_rows`.
    """
    _require_ham10000_labels(image.classes)
    config = TrainConfig(modality="metadata").model_config()
    processor = create_processor(config)
    rows = matching_rows(frame, image)
    metadata = processor.encode_metadata(rows[processor.metadata_fields].to_dict("records"))  # type: ignore[arg-type]
    variants = {"image": cross_calibrate(image)}
    if with_heads:
        variants |= cross_fit_heads(image, metadata, config, study.heads)
    return variants, Inputs(rows, metadata, lesions_in_training(frame, image), study, config)


def _lead_image(predictions: Mapping[tuple[str, str], Predictions], study: StudyConfig) -> Predictions:
    """The image variant's predictions under the first protocol."""
    first = next(iter(study.protocols))
    if (first, "image") not in predictions:
        raise Ham10000Error(f"There are no image predictions of {first}; train its runs first.")
    return predictions[first, "image"]


def report(
    predictions: Mapping[tuple[str, str], Predictions],
    frame: pd.DataFrame,
    study: StudyConfig,
    recipe: JsonObject | None,
    directory: Path,
    tables: str | None = None,
) -> Study:
    """Fits, calibrates and analyses, and writes predictions.parquet, study.json, study.md and figures/.

    Args:
        predictions: (protocol, variant) to predictions; only the image variant is read, heads are fitted again.
        frame: Metadata of all images, from `read_metadata`.
        study: The study.
        recipe: What `train_config.json` of the image runs says; None where only their predictions are at hand.
        directory: Receives the files.
        tables: Folder for csv, LaTeX, PDF and SVG files of the same, for a paper.

    Returns:
        The content of study.json.

    Raises:
        Ham10000Error: As `fit_protocol`, and without predictions of the first protocol.
    """
    first = _lead_image(predictions, study)
    found: Study = {
        "format": STUDY_FORMAT,
        "study": {**dataclasses.asdict(study), "recipe": Path(study.recipe).name},
        "recipe": None if recipe is None else portable_training(recipe),
        "environment": environment(),
        "origin": origin_of_ids([str(name) for name in first.image_ids]),
        "protocols": {},
    }
    table: dict[tuple[str, str], Predictions] = {}
    fitted_lead: dict[str, CrossFitted] = {}
    for name in study.protocols:
        if (name, "image") not in predictions:
            print(f"note: no predictions of {name}; it is left out")
            continue
        print(f"Analysing {name}", flush=True)
        image = predictions[name, "image"]
        variants, inputs = fit_protocol(image, frame, study, with_heads=image is first)
        table |= {(name, variant): fitted.predictions for variant, fitted in variants.items()}
        found["protocols"][name] = analyse_protocol(variants, inputs)
        fitted_lead = fitted_lead or variants
    # First what took minutes; the rest is rendered from it.
    directory.mkdir(parents=True, exist_ok=True)
    write_predictions(directory / "predictions.parquet", table)
    atomic_write_json(directory / "study.json", found)
    plot_study(found, directory / "figures")
    atomic_write_text(directory / "study.md", study_markdown(found))
    if tables is not None:
        write_study_tables(found, fitted_lead, tables)
    return found


def read_answer(directory: Path) -> list[str]:
    """The statements at the top of a study's report, as plain text.

    Raises:
        Ham10000Error: If the study has not been reported, or by another version.
    """
    path = directory / "study.json"
    if not path.is_file():
        raise Ham10000Error(
            f"{str(path)!r} does not exist, and the cards repeat its answer: run `ham10000-study report` first."
        )
    return [paragraph.replace("**", "") for paragraph in short_answer(read_json(path))]


def matching_rows(frame: pd.DataFrame, image: Predictions) -> pd.DataFrame:
    """The metadata of the predicted images, in their order, with the number of photographs of each lesion.

    Raises:
        Ham10000Error: If an image is not in the data, or has another label there.
    """
    known = frame.set_index("image_id", drop=False)
    if absent := sorted(set(image.image_ids) - set(known.index)):
        raise Ham10000Error(f"{len(absent)} predicted images are not in the data, such as {str(absent[0])!r}.")
    rows = known.loc[image.image_ids].reset_index(drop=True)
    differs = rows["dx"].to_numpy() != np.array(image.classes)[image.labels]
    if differs.any():
        row = int(np.flatnonzero(differs)[0])
        raise Ham10000Error(
            f"Image {str(image.image_ids[row])!r} is {image.classes[image.labels[row]]!r} in the predictions, but "
            f"{rows['dx'][row]!r} in the data ({int(differs.sum())} such images); give the data they were made of."
        )
    groups = _lesion_groups(frame)
    rows["photographs"] = groups.map(groups.value_counts()).loc[image.image_ids].to_numpy()
    return rows


def _lesion_groups(frame: pd.DataFrame) -> pd.Series:
    """Image id to the image's lesion, known duplicates merged."""
    return pd.Series(lesion_groups(frame["lesion_id"].tolist(), frame["image_id"].tolist()), frame["image_id"])


def lesions_in_training(frame: pd.DataFrame, image: Predictions) -> np.ndarray:
    """(N,) bool, whether the model that scored an image was trained on another photograph of its lesion.

    A fold's training images are all others; image-stratified leaves rows without an age out, unless all are.
    """
    groups = _lesion_groups(frame)
    fold_of = pd.Series(image.folds, image.image_ids).reindex(groups.index)  # NaN where an image is not scored
    folds = np.unique(image.folds)
    has_age = frame["age"].notna().to_numpy()
    usable = has_age | ~has_age.any() if len(folds) == 1 else fold_of.notna()
    seen = np.zeros(len(image.folds), dtype=bool)
    for fold in folds:
        rows = image.folds == fold
        seen[rows] = groups[image.image_ids[rows]].isin(groups[usable & (fold_of != fold)])
    return seen


def complete_predictions(
    places: Mapping[ImageRun, Path], base: TrainConfig, accelerator: Accelerator
) -> tuple[dict[tuple[str, str], Predictions], JsonObject]:
    """The out-of-fold logits of every protocol and seed whose runs are finished, and the runs' recipe.

    Raises:
        Ham10000Error: If no seed of the first protocol is complete.
    """
    summaries = {run: read_json(folder / RunFile.TRAINING, optional=True) for run, folder in places.items()}
    missing = [run for run, summary in summaries.items() if not (summary or {}).get("finished")]
    incomplete = {(run.protocol, run.seed) for run in missing}
    chosen = {run: folder for run, folder in places.items() if (run.protocol, run.seed) not in incomplete}
    if missing:
        names = ", ".join(run.name for run in missing)
        print(f"note: left out, as these runs are not finished: {names} (and the other folds of their seeds)")
    first = next(iter(places)).protocol
    if not any(run.protocol == first for run in chosen):
        raise Ham10000Error(
            f"No seed of {first} is complete; finish it with `ham10000-study train`, or name finished run folders "
            "with --runs."
        )
    recipe = check_one_recipe(list(chosen.values()))
    data: datasets.Dataset | None = None
    for run, folder in chosen.items():
        if not (folder / RunFile.OUT_OF_FOLD).is_file():
            data = data or load_configured(base)[0]
            out_of_fold(run, folder, data, accelerator.device, base.cache_dir)
    return read_logits([folder / RunFile.OUT_OF_FOLD for folder in chosen.values()]), recipe


def _chosen(places: Mapping[ImageRun, Path], only: Sequence[str]) -> dict[ImageRun, Path]:
    names = [run.name for run in places]
    if unknown := sorted(set(only) - set(names)):
        raise Ham10000Error(f"--only {' '.join(unknown)}: no such run in this study; it has {', '.join(names)}.")
    return {run: folder for run, folder in places.items() if not only or run.name in only}


def run_study(options: argparse.Namespace, study: StudyConfig, base: TrainConfig) -> None:
    """What `ham10000-study` does, with the arguments from `parse_study`."""
    quiet_libraries()
    directory = Path(options.output_dir)
    first, plan = next(iter(study.protocols.items()))
    if plan.folds is None and not options.only and options.step != "train":
        raise Ham10000Error(
            f"{options.config}: the report fits heads on the folds of {first}, the first protocol, which has none. "
            "Give it `folds`, or run the step `train` alone."
        )
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
            answer, image, to = read_answer(directory), _lead_image(predictions, study), directory / "release"
            run = train_on_all(study, base, to, accelerator)
            if accelerator.is_main_process:
                names = [Path(options.config).name, "--data", Path(base.data).name]
                made_by = shlex.join(["ham10000-study", "release", "--config", *names])
                variants, inputs = fit_protocol(image, frame, study, with_heads=True)
                for folder in write_release(variants, inputs, run, to, data=base.data, made_by=made_by, answer=answer):
                    print(f"Saved     {folder}")
            return
        if accelerator.is_main_process:
            found = report(predictions, frame, study, recipe, directory, options.tables)
            for comparison in lead(found)["comparisons"]:
                print(comparison_sentence(comparison, found))
            print(f"Saved     {directory / 'study.md'}, study.json, predictions.parquet and figures/")
            if options.tables:
                print(f"Saved     tables and figures for a paper in {options.tables}")
