"""The image runs of a study: which there are, where they lie, and their out-of-fold logits."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator

from ham10000.modeling import Ham10000Error
from ham10000.training.config import TrainConfig
from ham10000.training.data.loader import EvalLoader, Samples, open_images
from ham10000.training.data.split import apply_split, load_split
from ham10000.training.inference.prediction import load_checkpoint, predict_logits
from ham10000.training.run_folder import RunFile, training_states
from ham10000.training.study.config import StudyConfig
from ham10000.training.study.predictions import LOGIT, Predictions, read_logits, write_predictions
from ham10000.training.train import FREE_TO_CHANGE, load_configured
from ham10000.training.utils.files import JsonObject, read_json

# A killed run loses at most so many steps, where the configuration does not say another number.
_SAVE_EVERY_STEPS = 200
# What makes a run this run; all else is the recipe, which the runs of a study share.
_IDENTITY = ("protocol", "folds", "fold", "seed")


@dataclass(frozen=True)
class ImageRun:
    """One image run; `folds` is None for a protocol's single split, whose `fold` is 0."""

    protocol: str
    folds: int | None
    fold: int
    seed: int

    @property
    def name(self) -> str:
        """The run's folder below the study's."""
        return f"{self.protocol}/image-seed{self.seed}" + ("" if self.folds is None else f"-fold{self.fold}")

    def config(self, base: TrainConfig, directory: Path, *, train_on_all: bool = False) -> TrainConfig:
        """The recipe as this run's configuration, which resumes if the folder has a state to resume from."""
        return dataclasses.replace(
            base,
            **dataclasses.asdict(self),
            modality="image",
            train_on_validation=True,
            train_on_all=train_on_all,  # a recipe may be the train_config.json of a run that saw its test images
            split_file=None,
            save_dtype="float32",
            output_dir=str(directory),
            trackers=["none"],
            save_every_steps=base.save_every_steps or _SAVE_EVERY_STEPS,
            resume=bool(training_states(directory)),
            overwrite=not training_states(directory),
        )


def plan_runs(study: StudyConfig) -> list[ImageRun]:
    """All image runs of a study, seed by seed, so that an unfinished one can be reported early."""
    return [
        ImageRun(protocol, plan.folds, fold, seed)
        for seed in sorted({seed for plan in study.protocols.values() for seed in plan.seeds})
        for protocol, plan in study.protocols.items()
        if seed in plan.seeds
        for fold in range(plan.folds or 1)
    ]


def locate_runs(
    study: StudyConfig, study_dir: Path, folders: Sequence[str | Path] = (), only: Sequence[str] = ()
) -> dict[ImageRun, Path]:
    """Every run of the plan, or those named in `only`, to its folder: one of `folders`, or its place in the study."""
    places: dict[ImageRun, Path] = {}
    plan = plan_runs(study)
    for folder in map(Path, folders):
        settings = read_json(folder / RunFile.TRAINING)["config"]
        run = ImageRun(**{name: settings[name] for name in _IDENTITY})
        if settings["modality"] != "image" or run not in plan:
            raise Ham10000Error(
                f"{str(folder)!r} is a run of modality {settings['modality']!r} with {dataclasses.asdict(run)}, which "
                "this study does not have. Leave it out of --runs, or add its seed and folds to the study's file."
            )
        if run in places:
            raise Ham10000Error(f"{str(folder)!r} and {str(places[run])!r} are the same run; give one of them.")
        for name, value in (("train_on_validation", True), ("train_on_all", False)):
            if settings.get(name, False) != value:
                raise Ham10000Error(f"{str(folder)!r} was not trained with {name} {value}, as a study's runs are.")
        places[run] = folder
    names = [run.name for run in plan]
    if unknown := sorted(set(only) - set(names)):
        raise Ham10000Error(f"--only {' '.join(unknown)}: no such run in this study; it has {', '.join(names)}.")
    return {run: places.get(run, study_dir / run.name) for run in plan if not only or run.name in only}


def is_trained(directory: Path, config: TrainConfig) -> bool:
    """Whether a folder has the finished run of a configuration.

    Raises:
        Ham10000Error: If it has a run with other settings.
    """
    summary = read_json(directory / RunFile.TRAINING, optional=True)
    if summary is None:
        return False
    # Keys this version does not know, and the fusion block of a model without one, decide nothing.
    wanted = config.to_dict()
    if config.modality != "fusion":
        del wanted["fusion"]
    for name, value in summary["config"].items():
        if name in wanted and name not in FREE_TO_CHANGE and wanted[name] != value:
            raise Ham10000Error(
                f"{str(directory)!r} has a run with {name} {value!r}, but the study asks for {wanted[name]!r}. Use "
                "its settings, another --output_dir, or delete the folder."
            )
    return bool(summary["finished"])


def out_of_fold(
    run: ImageRun, directory: Path, dataset: datasets.Dataset, device: torch.device, cache_dir: str | None
) -> None:
    """Writes a finished run's logits for its own test images of the whole source, once, into `out_of_fold.parquet`."""
    path = directory / RunFile.OUT_OF_FOLD
    if path.is_file():
        return
    model, processor = load_checkpoint(directory, device=device)
    rows = apply_split(dataset, load_split(directory))["test"]
    samples = Samples.from_dataset(rows, processor)
    images = open_images(rows, processor, device, cache_dir=cache_dir)
    loader = EvalLoader(samples, images, processor, device, batch_size=64, channels_last=True)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
    logits = predict_logits(model, loader, progress=True)
    classes = model.config.label_names
    table = pd.DataFrame({"image_id": samples.image_ids, "lesion_id": rows["lesion_id"][:]})
    table = table.assign(protocol=run.protocol, variant="image", seed=run.seed, fold=run.fold)
    table["label"] = np.array(classes)[samples.labels.numpy()]
    write_predictions(path, table.join(pd.DataFrame(logits, columns=[f"{LOGIT}{name}" for name in classes])))


def complete_predictions(
    places: Mapping[ImageRun, Path], base: TrainConfig, accelerator: Accelerator
) -> tuple[dict[str, Predictions], JsonObject]:
    """The image logits of every protocol, of the seeds whose runs are all finished, and the runs' recipe."""
    summaries = {run: read_json(folder / RunFile.TRAINING, optional=True) or {} for run, folder in places.items()}
    missing = [run for run, summary in summaries.items() if not summary.get("finished")]
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
    reference = next(iter(chosen))
    for run, folder in chosen.items():
        for name, value in summaries[reference]["config"].items():
            theirs = summaries[run]["config"].get(name)
            if theirs != value and name not in {*FREE_TO_CHANGE, *_IDENTITY}:
                raise Ham10000Error(
                    f"{str(folder)!r} was trained with {name} {theirs!r}, but {str(chosen[reference])!r} with "
                    f"{value!r}; the runs of a study share one recipe."
                )
    data: datasets.Dataset | None = None
    for run, folder in chosen.items():
        if not (folder / RunFile.OUT_OF_FOLD).is_file():
            data = data or load_configured(base)[0]
            out_of_fold(run, folder, data, accelerator.device, base.cache_dir)
    return read_logits([folder / RunFile.OUT_OF_FOLD for folder in chosen.values()]), summaries[reference]
