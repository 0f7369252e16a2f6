"""What a study's runs predicted, read back from their folders and brought into one order."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ham10000.modeling import Ham10000Error
from ham10000.training.evaluation.calibration import apply_temperature
from ham10000.training.evaluation.report import read_predictions
from ham10000.training.run_folder import RunFile
from ham10000.training.study.runs import StudyRun
from ham10000.training.utils.files import read_json


@dataclass(frozen=True)
class Predictions:
    """What one variant predicts for every evaluated image, of one protocol.

    Attributes:
        table: Rows of `predictions.csv`, sorted by image id; the columns that are not the model's.
        labels: Class ids (N,).
        probabilities: (S, N, 7), calibrated.
        uncalibrated: (S, N, 7), before the temperature.
        temperatures: One for each seed, the mean over its folds.
    """

    table: pd.DataFrame
    labels: np.ndarray
    probabilities: np.ndarray
    uncalibrated: np.ndarray
    temperatures: list[float]

    @property
    def groups(self) -> np.ndarray:
        """Lesion of each image (N,), known duplicates merged."""
        return self.table["lesion_group"].to_numpy()


def read_variant(study_dir: Path, runs_by_seed: Sequence[Sequence[StudyRun]], folder: str = "") -> Predictions:
    """Reads what one variant predicts under one protocol.

    Args:
        study_dir: The study's folder.
        runs_by_seed: For each seed its run, or in cross-validation one for each fold, whose images are joined.
        folder: Folder of the evaluation inside each run; empty for the run's own.

    Returns:
        The predictions, sorted by image id.

    Raises:
        Ham10000Error: If the seeds did not score the same images.
    """
    tables: list[pd.DataFrame] = []
    labels: list[np.ndarray] = []
    calibrated: list[np.ndarray] = []
    uncalibrated: list[np.ndarray] = []
    temperatures: list[float] = []
    for runs in runs_by_seed:
        parts, of_folds = [], []
        for run in runs:
            directory = study_dir / run.name
            temperature = read_json(directory / RunFile.CALIBRATION)["temperature"]
            table, ids, probabilities = read_predictions(directory / folder / RunFile.PREDICTIONS)
            table = table[["image_id", "lesion_id", "lesion_group"]]
            parts.append((table, ids, probabilities, apply_temperature(probabilities, 1 / temperature)))
            of_folds.append(temperature)
        joined = pd.concat([part[0] for part in parts], ignore_index=True)
        order = np.argsort(joined["image_id"].to_numpy(), kind="stable")
        tables.append(joined.iloc[order].reset_index(drop=True))
        labels.append(np.concatenate([part[1] for part in parts])[order])
        calibrated.append(np.concatenate([part[2] for part in parts])[order])
        uncalibrated.append(np.concatenate([part[3] for part in parts])[order])
        temperatures.append(float(np.mean(of_folds)))
    if any(not table["image_id"].equals(tables[0]["image_id"]) for table in tables):
        names = [run.name for runs in runs_by_seed for run in runs]
        raise Ham10000Error(f"Seeds of one study scored different images; delete those that do not belong: {names}.")
    return Predictions(tables[0], labels[0], np.stack(calibrated), np.stack(uncalibrated), temperatures)


__all__ = ["Predictions", "read_variant"]
