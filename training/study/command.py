"""The steps of the study: its image runs, the report on them, and the checkpoints of its release."""

import argparse
import contextlib
import dataclasses
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from accelerate import Accelerator

from ham10000.modeling import LABELS, Ham10000Error, create_processor
from ham10000.training.config import TrainConfig
from ham10000.training.data.readers import read_source
from ham10000.training.data.sources import check_rows, metadata_frame
from ham10000.training.data.split import lesion_groups
from ham10000.training.run_folder import only_writer, origin_of_ids, portable_training
from ham10000.training.study.analysis import Inputs, analyse_protocol
from ham10000.training.study.config import StudyConfig
from ham10000.training.study.crossfit import CrossFitted, cross_calibrate, cross_fit_heads
from ham10000.training.study.figures import plot_study, write_study_tables
from ham10000.training.study.predictions import Predictions, read_logits, write_predictions
from ham10000.training.study.release import train_on_all, write_release
from ham10000.training.study.report import STUDY_FORMAT, Study, comparison_sentence, lead, short_answer, study_markdown
from ham10000.training.study.runs import ImageRun, complete_predictions, is_trained, locate_runs, out_of_fold
from ham10000.training.train import build_accelerator, load_configured, quiet_libraries, train
from ham10000.training.utils.cli import Interrupted
from ham10000.training.utils.files import JsonObject, atomic_write_json, atomic_write_text, read_json
from ham10000.training.utils.hardware import environment, reset_memory


def train_runs(places: Mapping[ImageRun, Path], base: TrainConfig, accelerator: Accelerator) -> None:
    """Trains what is missing of the image runs and writes their out-of-fold logits."""
    data = load_configured(base)
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
    """The variants of one protocol, fitted and calibrated, and what their analysis reads, with its metadata."""
    _require_ham10000_labels(image.classes)
    config = TrainConfig(modality="metadata").model_config()
    processor = create_processor(config)
    rows = matching_rows(frame, image)
    metadata = processor.encode_metadata(rows[processor.metadata_fields].to_dict("records"))  # type: ignore[arg-type]
    variants = {"image": cross_calibrate(image, image)}
    if with_heads:
        variants |= cross_fit_heads(image, metadata, config, study.heads)
    return variants, Inputs(rows, metadata, study, config)


def report(
    predictions: Mapping[str, Predictions],
    frame: pd.DataFrame,
    study: StudyConfig,
    recipe: JsonObject | None,
    directory: Path,
    tables: str | None = None,
) -> Study:
    """Fits, calibrates and analyses, and writes predictions.parquet, study.json, study.md and figures/.

    `predictions` are the image variant's by protocol, `frame` is from `read_metadata`, `recipe` an image run's
    `train_config.json`, and `tables` a folder for files for a paper. Returns the content of study.json.
    """
    first = next(iter(study.protocols))
    if first not in predictions:
        raise Ham10000Error(f"There are no image predictions of {first}; train its runs first.")
    found: Study = {
        "format": STUDY_FORMAT,
        "study": {**dataclasses.asdict(study), "recipe": Path(study.recipe).name},
        "recipe": None if recipe is None else portable_training(recipe),
        "environment": environment(),
        "origin": origin_of_ids([str(name) for name in predictions[first].image_ids]),
        "protocols": {},
    }
    fitted: dict[str, dict[str, CrossFitted]] = {}
    for name in study.protocols:
        if name not in predictions:
            print(f"note: no predictions of {name}; it is left out")
            continue
        print(f"Analysing {name}", flush=True)
        fitted[name], inputs = fit_protocol(predictions[name], frame, study, with_heads=name == first)
        found["protocols"][name] = analyse_protocol(fitted[name], inputs)
    rows = [one.predictions.frame(name, key) for name, variants in fitted.items() for key, one in variants.items()]
    # First what took minutes; the rest is rendered from it.
    directory.mkdir(parents=True, exist_ok=True)
    write_predictions(directory / "predictions.parquet", pd.concat(rows, ignore_index=True))
    atomic_write_json(directory / "study.json", found)
    plot_study(found, directory / "figures")
    atomic_write_text(directory / "study.md", study_markdown(found))
    if tables is not None:
        write_study_tables(found, fitted[first], tables)
    return found


def read_answer(directory: Path) -> list[str]:
    """The statements at the top of a study's report, as plain text."""
    if not (path := directory / "study.json").is_file():
        raise Ham10000Error(f"{str(path)!r}, whose answer the cards repeat, is missing: run `ham10000-study report`.")
    return [paragraph.replace("**", "") for paragraph in short_answer(read_json(path))]


def matching_rows(frame: pd.DataFrame, image: Predictions) -> pd.DataFrame:
    """The metadata of the predicted images, in their order, with two columns more that are about other photographs.

    `photographs` is how many the data have of the lesion. `seen` is whether the model that scored the image was
    trained on another one: a fold's training images are all others, and image-stratified leaves rows without an age
    out, unless all are. Raises a `Ham10000Error` if an image is not in the data, or has another label there.
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
    groups = pd.Series(lesion_groups(frame["lesion_id"].tolist(), frame["image_id"].tolist()), frame["image_id"])
    rows["photographs"] = groups.map(groups.value_counts()).loc[image.image_ids].to_numpy()
    fold_of = pd.Series(image.folds, image.image_ids).reindex(groups.index)  # NaN where an image is not scored
    folds, has_age = np.unique(image.folds), frame["age"].notna().to_numpy()
    usable = has_age | ~has_age.any() if len(folds) == 1 else fold_of.notna()
    rows["seen"] = False
    for fold in folds:
        names = image.image_ids[image.folds == fold]
        rows.loc[image.folds == fold, "seen"] = groups[names].isin(groups[usable & (fold_of != fold)]).to_numpy()
    return rows


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
    places = locate_runs(study, directory, options.runs, options.only)
    # Runs that are named are held one by one, by `train`.
    held = accelerator.is_main_process and not options.only
    with only_writer(directory) if held else contextlib.nullcontext():
        if options.step in (None, "train"):
            train_runs(places, base, accelerator)
        if options.only or options.step == "train":
            return
        if options.predictions:
            predictions, recipe = read_logits([options.predictions]), None
        else:
            predictions, recipe = complete_predictions(places, base, accelerator)
        frame = read_metadata(base)
        if options.step == "release":
            config, data = (Path(name).name for name in (options.config, base.data))
            about = {"data": data, "study": {"answer": read_answer(directory)}}
            run = train_on_all(study, base, directory / "release", accelerator)
            if accelerator.is_main_process:
                made_by = shlex.join(["ham10000-study", "release", "--config", config, "--data", data])
                fitted = fit_protocol(predictions[first], frame, study, with_heads=True)
                for folder in write_release(*fitted, run, made_by, about):
                    print(f"Saved     {folder}")
        elif accelerator.is_main_process:
            found = report(predictions, frame, study, recipe, directory, options.tables)
            for comparison in lead(found)["comparisons"]:
                print(comparison_sentence(comparison, found))
            print(f"Saved     {directory / 'study.md'}, study.json, predictions.parquet and figures/")
            if options.tables:
                print(f"Saved     tables and figures for a paper in {options.tables}")
