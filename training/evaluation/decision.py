"""From probabilities to an answer: one class by a rule, or a set of classes that promises a coverage."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ham10000.modeling.configuration_ham10000 import Ham10000Error

# `ham10000-predict` imports this file: nothing here may import pandas, scikit-learn or scipy.

RULES = ("probable", "balanced")
COVERAGES = (0.8, 0.9, 0.95)


def balanced_probabilities(probabilities: np.ndarray, prior: Sequence[float] | None) -> np.ndarray:
    """The probabilities (N, K) if every class were equally frequent: `p / prior`, normalised.

    Saerens, Latinne & Decaestecker 2002, 10.1162/089976602753284446, equation 2.4. The prior is the class shares (K,)
    that the probabilities answer for, `config.class_prior`.
    """
    if prior is None:
        raise Ham10000Error(
            "The balanced rule needs the class shares that the probabilities answer for, but the checkpoint's "
            "config.json has no `class_prior` (earlier versions did not save it). Use the rule 'probable'."
        )
    probabilities, shares = np.asarray(probabilities, dtype=np.float64), np.asarray(prior, dtype=np.float64)
    if shares.shape != probabilities.shape[-1:] or not (shares > 0).all():
        raise Ham10000Error(f"Expected {probabilities.shape[-1]} positive class shares, got {shares.tolist()}.")
    ratios = probabilities / shares
    return ratios / ratios.sum(axis=-1, keepdims=True)


def decide(probabilities: np.ndarray, prior: Sequence[float] | None = None, rule: str = "probable") -> np.ndarray:
    """The class ids (N,) of calibrated probabilities (N, K) by one of `RULES`, the first of equal classes.

    The most probable class maximises the expected accuracy; the one with the largest ratio of probability to prior,
    which only `balanced` reads, the expected balanced accuracy.
    """
    if rule not in RULES:
        raise Ham10000Error(f"Unknown decision rule {rule!r}; expected one of {list(RULES)}.")
    scores = probabilities if rule == "probable" else balanced_probabilities(probabilities, prior)
    return np.asarray(scores).argmax(axis=-1)


def fit_thresholds(labels: np.ndarray, probabilities: np.ndarray, coverage: float) -> np.ndarray:
    """The largest score `1 - p_k` that each class's prediction set accepts (K,), from images not trained on.

    Mondrian (class-conditional) split conformal prediction: Vovk 2012, arXiv:1209.2673; Angelopoulos & Bates 2021,
    arXiv:2107.07511, section 4.2. The ceil((n + 1) * coverage)-th smallest score of a class's n images, or 1, which
    accepts every image, where they are too few. Of further images of a class, exchangeable with these, at least
    `coverage` have their class in their set, whatever the model.
    """
    thresholds = np.ones(probabilities.shape[1])
    for k in range(len(thresholds)):
        scores = np.sort(1 - probabilities[labels == k, k])
        # Rounded first: (n + 1) * 0.9 may lie a bit above a whole number, and the rank would be one too high.
        rank = math.ceil(round((len(scores) + 1) * coverage, 9))
        if rank <= len(scores):
            thresholds[k] = scores[rank - 1]
    return thresholds


def prediction_sets(probabilities: np.ndarray, thresholds: np.ndarray | Sequence[float]) -> np.ndarray:
    """Whether each class is in each image's set, (N, K) bool; a row that is unlike all calibration images is empty."""
    return 1 - np.asarray(probabilities, dtype=np.float64) <= np.asarray(thresholds, dtype=np.float64)


def saved_thresholds(saved: Mapping[str, Sequence[float]] | None, coverage: float) -> np.ndarray:
    """The thresholds (K,) of a coverage in a checkpoint's `config.conformal_thresholds`."""
    known = {float(key): np.asarray(values, dtype=np.float64) for key, values in (saved or {}).items()}
    if coverage not in known:
        has = ", ".join(f"{value:g}" for value in sorted(known)) or "none at all"
        raise Ham10000Error(f"The checkpoint has no prediction sets for coverage {coverage:g}; it has {has}.")
    return known[coverage]
