"""For the tests of the evaluation: labels with HAM10000's imbalance, probabilities, lesions and metadata."""

import numpy as np
import pandas as pd

from ham10000.modeling import LOCALIZATIONS
from ham10000.training.evaluation.metrics import softmax
from ham10000.training.evaluation.report import predictions_table

PREVALENCE = np.array([327, 514, 1099, 115, 1113, 6705, 142]) / 10015


def predictions(n: int = 600, seed: int = 0, signal: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N,), every class twice, and the probabilities (N, 7) of a middling model."""
    draws = np.random.default_rng(seed)
    labels = draws.choice(7, size=n, p=PREVALENCE)
    labels[:14] = np.tile(np.arange(7), 2)
    logits = 1.5 * draws.normal(size=(n, 7)) + np.log(PREVALENCE) / 2 + signal * np.eye(7)[labels]
    return labels, softmax(logits)


def table_of(labels: np.ndarray, probabilities: np.ndarray, metadata: pd.DataFrame | None = None) -> pd.DataFrame:
    """Their table, two images per lesion."""
    ids, lesions = ([f"{name}_{k // per:07d}" for k in range(len(labels))] for name, per in (("ISIC", 1), ("HAM", 2)))
    names = pd.concat([pd.DataFrame({"image_id": ids, "lesion_id": lesions}), metadata], axis=1)
    return predictions_table(names, labels, probabilities, lesions)


def calibrated(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from the probabilities themselves, which are so calibrated."""
    draws = np.random.default_rng(seed)
    probabilities = softmax(draws.normal(size=(n, 7)) * 1.5 + np.log(PREVALENCE))
    return (draws.random((n, 1)) > probabilities.cumsum(axis=1)).sum(axis=1).clip(max=6), probabilities


def with_metadata(n: int = 700, seed: int = 0, signal: float = 2.0) -> dict:
    """Arguments of `subgroup_results`: evenly distributed classes, two images per lesion."""
    draws = np.random.default_rng(seed)
    labels = np.repeat(draws.integers(0, 7, n // 2), 2)
    logits = draws.normal(size=(n, 7)) + signal * np.eye(7)[labels]
    columns = {
        "age": draws.choice([np.nan, 0, 25, 29, 30, 44, 45, 59, 60, 85], n // 2),
        "sex": draws.choice(["female", "male", "unknown"], n // 2, p=[0.5, 0.45, 0.05]),
        "localization": draws.choice([*LOCALIZATIONS, "unknown"], n // 2),
        "photographs": draws.integers(1, 5, n // 2),
    }
    metadata = pd.DataFrame({name: np.repeat(values, 2) for name, values in columns.items()})
    groups = [f"HAM_{k // 2:07d}" for k in range(n)]
    return {"metadata": metadata, "labels": labels, "probabilities": softmax(logits), "lesion_groups": groups}
