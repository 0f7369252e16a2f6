"""From probabilities to one class: the rule that tables, `ham10000-predict`, app and submission share."""

from collections.abc import Sequence

import numpy as np

from ham10000.modeling.configuration_ham10000 import Ham10000Error

# `ham10000-predict` imports this file: nothing here may import pandas or scikit-learn.

RULES = ("probable", "balanced")


def balanced_probabilities(probabilities: np.ndarray, prior: Sequence[float] | None) -> np.ndarray:
    """The probabilities if every class were equally frequent: `p / prior`, normalised.

    Saerens, Latinne & Decaestecker 2002, "Adjusting the outputs of a classifier to new a priori probabilities",
    10.1162/089976602753284446, equation 2.4.

    Args:
        probabilities: Probabilities (N, K).
        prior: Class shares that they answer for (K,), `config.class_prior`.

    Returns:
        Probabilities (N, K), float64.

    Raises:
        Ham10000Error: If there is no prior, or it does not fit.
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
    """The class of each row by a decision rule.

    The most probable class maximises the expected accuracy; the class with the largest ratio of probability to prior,
    `argmax(log p - log prior)`, maximises the expected balanced accuracy.

    Args:
        probabilities: Calibrated probabilities (N, K).
        prior: Class shares that they answer for (K,), `config.class_prior`; only `balanced` reads it.
        rule: One of `RULES`.

    Returns:
        Class ids (N,), the first of equal ones.

    Raises:
        Ham10000Error: For an unknown rule, or `balanced` without a fitting prior.

    Example:
        >>> decide(np.array([[0.2, 0.8]]), [0.1, 0.9], "balanced")
        array([0])
    """
    if rule not in RULES:
        raise Ham10000Error(f"Unknown decision rule {rule!r}; expected one of {list(RULES)}.")
    scores = probabilities if rule == "probable" else balanced_probabilities(probabilities, prior)
    return np.asarray(scores).argmax(axis=-1)
