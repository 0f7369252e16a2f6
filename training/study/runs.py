"""The runs of a study: which there are, and how each is trained, calibrated and scored, once."""

import dataclasses
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from accelerate import Accelerator

from ham10000.modeling import FUSIONS, Ham10000Error
from ham10000.training.config import TrainConfig
from ham10000.training.data.checks import DataReport
from ham10000.training.data.loader import EvalLoader, Samples, open_images
from ham10000.training.data.split import apply_split, load_split
from ham10000.training.evaluation.calibration import fit_temperature, save_temperature
from ham10000.training.evaluation.evaluator import evaluate_checkpoint
from ham10000.training.evaluation.report import read_predictions
from ham10000.training.inference.prediction import load_checkpoint
from ham10000.training.run_folder import RunFile, training_states
from ham10000.training.study.shortcuts import perturbed_probabilities
from ham10000.training.train import FREE_TO_CHANGE, train
from ham10000.training.utils.files import atomic_path, atomic_write_json, read_json
from ham10000.training.utils.hardware import release_freed_memory, reset_peak_memory

VARIANTS = ("metadata", "image", *(f"fusion-{kind}" for kind in FUSIONS))
# As `pretrained` of a fusion run: the backbone of the image run beside it.
IMAGE_RUN = "image"
TTA_FOLDER = "evaluation_tta"
RELEASE_FOLDER = "release"
# A killed run loses at most so many steps, where the configuration does not say another number.
_SAVE_EVERY_STEPS = 200


@dataclass(frozen=True)
class StudyRun:
    """One training run of a study.

    Attributes:
        protocol: How the data is split.
        variant: One of `VARIANTS`.
        seed: Training seed.
        fold: Test fold in cross-validation, None without it.
        is_release: Whether it is no part of the study's numbers, but the model to publish with the study's settings:
            trained on train and validation together, stored in half precision.
    """

    protocol: str
    variant: str
    seed: int
    fold: int | None = None
    is_release: bool = False

    @property
    def name(self) -> str:
        """The run's folder below the study's."""
        if self.is_release:
            return f"{RELEASE_FOLDER}/{self.variant}"
        fold = "" if self.fold is None else f"-fold{self.fold}"
        return f"{self.protocol}/{self.variant}{fold}-seed{self.seed}"

    @property
    def modality(self) -> str:
        """`metadata`, `image` or `fusion`."""
        return self.variant.partition("-")[0]

    def config(
        self,
        base: TrainConfig,
        study_dir: Path,
        folds: int | None,
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> TrainConfig:
        """The run's configuration: the study's, with what makes it this run.

        Args:
            base: The settings all runs share.
            study_dir: The study's folder.
            folds: Number of folds, None without cross-validation.
            overrides: For a modality, settings that its runs do not share with the others. `pretrained: image` is the
                backbone of the image run of the same protocol, seed and fold.

        Returns:
            The configuration, which resumes if the folder holds a state to resume from.
        """
        directory = study_dir / self.name
        kind = self.variant.partition("-")[2]
        own = dict((overrides or {}).get(self.modality, {}))
        if own.get("pretrained") == IMAGE_RUN:
            own["pretrained"] = str(study_dir / dataclasses.replace(self, variant="image").name / RunFile.WEIGHTS)
        values: dict[str, Any] = {
            **own,
            "protocol": self.protocol,
            "modality": self.modality,
            "fusion": kind or base.fusion,
            "seed": self.seed,
            "folds": folds,
            "fold": self.fold or 0,
            "output_dir": str(directory),
            "trackers": ["none"],
            "save_every_steps": base.save_every_steps or _SAVE_EVERY_STEPS,
            "resume": bool(training_states(directory)),
            "overwrite": not training_states(directory),
        }
        if self.is_release:
            values |= {"train_on_validation": True, "save_dtype": "float16"}
        return dataclasses.replace(base, **values)


def plan_runs(seeds: Mapping[str, Sequence[int]], variants: Sequence[str], folds: int | None) -> list[StudyRun]:
    """All runs of a study, in an order in which an unfinished one can be compared early: seed by seed.

    Args:
        seeds: The training seeds of each protocol.
        variants: What is trained under each.
        folds: Number of folds, None without cross-validation.

    Returns:
        The runs.
    """
    return [
        StudyRun(protocol, variant, seed, fold)
        for seed in sorted({seed for own in seeds.values() for seed in own})
        for protocol in seeds
        if seed in seeds[protocol]
        for fold in (range(folds) if folds else [None])
        for variant in variants
    ]


def release_runs(protocol: str, variants: Sequence[str]) -> list[StudyRun]:
    """The models to publish: each variant once, with the first seed."""
    return [StudyRun(protocol, variant, seed=0, is_release=True) for variant in variants]


def is_trained(directory: Path, config: TrainConfig) -> bool:
    """Whether a folder holds the finished run of a configuration.

    Raises:
        Ham10000Error: If it holds a run with other settings.
    """
    summary = read_json(directory / RunFile.TRAINING, optional=True)
    if summary is None:
        return False
    wanted = config.to_dict()
    for name, value in summary["config"].items():
        # The fusion block of a model without one, and keys this version does not know, decide nothing.
        irrelevant = name == "fusion" and config.modality != "fusion"
        if name in FREE_TO_CHANGE or name not in wanted or irrelevant:
            continue
        if wanted[name] != value:
            raise Ham10000Error(
                f"{str(directory)!r} holds a run with {name} {value!r}, but the study asks for {wanted[name]!r}. Use "
                "its settings, another --output_dir, or delete the folder."
            )
    return bool(summary["finished"])


def finish_run(
    run: StudyRun,
    config: TrainConfig,
    accelerator: Accelerator,
    data: tuple[datasets.Dataset, DataReport],
    *,
    views: int,
    n_resamples: int,
    siblings: Sequence[Path] = (),
) -> str:
    """Does whatever of a run is not done: training, calibration, evaluation, perturbed metadata.

    Every step is complete on disk before the next begins, and is recognised by what it wrote.

    Args:
        run: The run.
        config: Its configuration.
        accelerator: Serves all runs of the study.
        data: Result of `load_data`.
        views: Views of the evaluation with test-time augmentation; 1 leaves it out.
        n_resamples: Bootstrap resamples of the run's own evaluation.
        siblings: For a release, the folders of the study's runs of its protocol and variant.

    Returns:
        What was done, in words.
    """
    directory, done = Path(config.output_dir), []
    if not is_trained(directory, config):
        done.append("resumed" if config.resume else "trained")
        release_freed_memory()
        reset_peak_memory()
        train(config, accelerator, data)
        accelerator.free_memory()
    if accelerator.is_main_process:
        options = {"data": config.data, "device": accelerator.device, "cache_dir": config.cache_dir}
        if run.is_release:
            # No image was left to fit it to, nor may the test set be.
            if calibrate_from(directory, siblings):
                done.append("calibrated as the study's runs are")
        elif calibrate(directory, data[0], options):
            done.append("calibrated")
        temperature = read_json(directory / RunFile.CONFIG)["temperature"]
        wanted = [(directory, 1)] + ([(directory / TTA_FOLDER, views)] if views > 1 and not run.is_release else [])
        for folder, number in wanted:
            known = read_json(folder / RunFile.EVALUATION, optional=True) or {}
            if (known.get("temperature"), known.get("views")) != (temperature, number):
                evaluate_checkpoint(
                    directory, data[0], output_dir=folder, views=number, n_resamples=n_resamples, **options
                )
                done.append("evaluated" if number == 1 else f"evaluated with {number} views")
        if (
            run.variant != "image"
            and not run.is_release
            and perturb_metadata(directory, data[0], options, temperature)
        ):
            done.append("perturbed")
    accelerator.wait_for_everyone()
    return ", ".join(done) or "done before"


def calibrate(directory: Path, dataset: datasets.Dataset, options: dict[str, Any]) -> bool:
    """Fits the temperature on validation and saves it into the checkpoint's config, then writes `calibration.json`.

    Killed in between, it finds the same temperature again, to the last bit: what the config says by then is taken out
    first.

    Returns:
        Whether there was anything to do.
    """
    record = directory / RunFile.CALIBRATION
    if record.is_file():
        return False
    if read_json(directory / RunFile.CONFIG)["temperature"] != 1:
        save_temperature(directory, 1.0)
    folder, _ = evaluate_checkpoint(directory, dataset, part="validation", n_resamples=200, **options)
    _, labels, uncalibrated = read_predictions(folder / RunFile.PREDICTIONS)
    note = None
    try:
        temperature = fit_temperature(labels, uncalibrated)
    except Ham10000Error as error:
        # A model that is always right, or no better than chance, on a small validation set: nothing to fit to.
        temperature, note = 1.0, str(error)
        print(f"note: {directory.name} keeps temperature 1: {error}")
    save_temperature(directory, temperature)
    facts = {"temperature": temperature, "fitted_on": "validation", "n_images": len(labels), "note": note}
    atomic_write_json(record, facts)
    return True


def calibrate_from(directory: Path, siblings: Sequence[Path]) -> bool:
    """Gives a release the temperature of the study's runs, their geometric mean, and writes `calibration.json`.

    Returns:
        Whether there was anything to do.

    Raises:
        Ham10000Error: If one of the runs is not calibrated yet.
    """
    record = directory / RunFile.CALIBRATION
    if record.is_file():
        return False
    facts = []
    for sibling in siblings:
        path = sibling / RunFile.CALIBRATION
        if not path.is_file():
            raise Ham10000Error(f"{str(path)!r} does not exist: finish the study before its release.")
        facts.append(read_json(path))
    temperatures = [fact["temperature"] for fact in facts]
    temperature = float(np.exp(np.log(temperatures).mean()))
    save_temperature(directory, temperature)
    text = f"geometric mean of {len(facts)} runs that were not trained on validation: {temperatures}"
    atomic_write_json(
        record,
        {"temperature": temperature, "fitted_on": "validation", "n_images": facts[0]["n_images"], "note": text},
    )
    return True


def perturb_metadata(directory: Path, dataset: datasets.Dataset, options: dict[str, Any], temperature: float) -> bool:
    """Writes `shortcuts.npz`: the test predictions under every perturbation of the metadata.

    Returns:
        Whether there was anything to do.
    """
    path = directory / RunFile.SHORTCUTS
    if path.is_file() and float(read_perturbed(path)["temperature"]) == temperature:
        return False
    model, processor = load_checkpoint(directory, device=options["device"])
    rows = apply_split(dataset, load_split(directory))["test"]
    images = open_images(rows, processor, options["device"], cache_dir=options["cache_dir"])
    loader = EvalLoader(Samples.from_dataset(rows, processor), images, processor, options["device"], batch_size=64)
    perturbed = perturbed_probabilities(model, loader, seed=0)
    arrays: dict[str, Any] = {"image_id": np.array(loader.samples.image_ids), "temperature": np.array(temperature)}
    with atomic_path(path) as temporary, Path(temporary).open("wb") as file:
        np.savez(file, **(arrays | perturbed))
    return True


def read_perturbed(path: Path) -> dict[str, np.ndarray]:
    """Reads a `shortcuts.npz`.

    Raises:
        Ham10000Error: If it is damaged.
    """
    try:
        with np.load(path) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise Ham10000Error(f"{str(path)!r} is damaged ({error}); delete it, and the study makes it anew.") from error


__all__ = [
    "FUSIONS",
    "IMAGE_RUN",
    "RELEASE_FOLDER",
    "TTA_FOLDER",
    "VARIANTS",
    "StudyRun",
    "calibrate",
    "calibrate_from",
    "finish_run",
    "is_trained",
    "perturb_metadata",
    "plan_runs",
    "read_perturbed",
    "release_runs",
]
