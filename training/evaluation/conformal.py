"""Prediction sets: split conformal thresholds per class, which promise a coverage in every class."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ham10000.modeling.configuration_ham10000 import Ham10000Error

# `ham10000-predict` imports this file: nothing here may import pandas or scikit-learn.

COVERAGES = (0.8, 0.9, 0.95)


def fit_thresholds(labels: np.ndarray, probabilities: np.ndarray, coverage: float) -> np.ndarray:
    """The largest score `1 - p_k` that each class's prediction set accepts.

    Mondrian (class-conditional) split conformal prediction: Vovk 2012, "Conditional validity of inductive conformal
    predictors", arXiv:1209.2673; Angelopoulos & Bates 2021, arXiv:2107.07511, section 4.2. A class's threshold is the
    ceil((n + 1) * coverage)-th smallest score of its n images. Of further images of a class, exchangeable with these,
    at least `coverage` have their class in their set, whatever the model.

    Args:
        labels: Class ids (N,) of images that the model was not trained on.
        probabilities: Their probabilities (N, K).
        coverage: In (0, 1).

    Returns:
        Thresholds (K,); 1, which accepts every image, where a class has too few images to promise less.

    Raises:
        Ham10000Error: For a coverage outside (0, 1).
    """
    if not 0 < coverage < 1:
        raise Ham10000Error(f"`coverage` must be between 0 and 1, got {coverage}.")
    thresholds = np.ones(probabilities.shape[1])
    for k in range(len(thresholds)):
        scores = np.sort(1 - probabilities[labels == k, k])
        # Rounded first: (n + 1) * 0.9 may lie a bit above a whole number, and the rank would be one too high.
        rank = math.ceil(round((len(scores) + 1) * coverage, 9))
        if rank <= len(scores):
            thresholds[k] = scores[rank - 1]
    return thresholds


def prediction_sets(probabilities: np.ndarray, thresholds: np.ndarray | Sequence[float]) -> np.ndarray:
    """Whether each class is in each image's set.

    Args:
        probabilities: Probabilities (N, K), calibrated as those of `fit_thresholds`.
        thresholds: (K,) from `fit_thresholds`.

    Returns:
        (N, K) bool. A row may be empty: the image is unlike every class's images that the thresholds were fitted on.
    """
    return 1 - np.asarray(probabilities, dtype=np.float64) <= np.asarray(thresholds, dtype=np.float64)


def saved_thresholds(saved: Mapping[str, Sequence[float]] | None, coverage: float) -> np.ndarray:
    """The thresholds of a checkpoint for a coverage.

    Args:
        saved: `config.conformal_thresholds`.
        coverage: One of those saved.

    Returns:
        Thresholds (K,).

    Raises:
        Ham10000Error: If the checkpoint has none for this coverage.
    """
    known = {float(key): np.asarray(values, dtype=np.float64) for key, values in (saved or {}).items()}
    if coverage not in known:
        has = f"it has {', '.join(f'{value:g}' for value in sorted(known))}" if known else "it has none at all"
        raise Ham10000Error(f"The checkpoint has no prediction sets for coverage {coverage:g}; {has}.")
    return known[coverage]
