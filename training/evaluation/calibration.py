"""Temperature scaling: one number, fitted on the validation set, that makes probabilities honest."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax

from ham10000.modeling.configuration_ham10000 import Ham10000Config, Ham10000Error
from ham10000.training.evaluation.metrics import validate_labels, validate_probabilities
from ham10000.training.utils.files import atomic_write_json, read_json

# Trained networks need about 0.5 to 5; a minimum outside this range says that the validation set cannot decide.
TEMPERATURE_RANGE = (0.05, 20.0)


def fit_temperature(labels: Any, probabilities: Any) -> float:
    """The temperature that minimises the negative log-likelihood of validation predictions.

    Guo, Pleiss, Sun & Weinberger, "On calibration of modern neural networks", ICML 2017, arXiv:1706.04599, section
    4.2. The likelihood is log-concave in 1 / T, so there is one minimum; it is sought over log T.

    Args:
        labels: Class ids (N,) of the validation images.
        probabilities: Their probabilities (N, K), of the model at temperature 1. Of a model that has a temperature
            already, the result is a factor on it.

    Returns:
        T inside `TEMPERATURE_RANGE`: above 1 for a model that is too sure, below 1 for one that is not sure enough.

    Raises:
        Ham10000Error: For bad labels or probabilities, or where no T in the range is best: every prediction right
            (ever lower), predictions no better than chance (ever higher), or every row uniform (none matters).
    """
    logits = _log_probabilities(probabilities, len(labels))
    labels = validate_labels(labels, logits.shape[1])
    rows = np.arange(len(labels))
    if np.ptp(logits, axis=1).max() == 0:
        raise Ham10000Error("Every row of the probabilities is uniform, so a temperature changes nothing.")

    def negative_log_likelihood(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        return float((logsumexp(scaled, axis=1) - scaled[rows, labels]).mean())

    low, high = (math.log(bound) for bound in TEMPERATURE_RANGE)
    result = minimize_scalar(negative_log_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-7})
    # By value, not by distance to the bound: where every prediction is right the curve is flat at 0 long before it.
    if min(negative_log_likelihood(low), negative_log_likelihood(high)) <= result.fun:
        accuracy = float((logits.argmax(axis=1) == labels).mean())
        raise Ham10000Error(
            f"No temperature in {TEMPERATURE_RANGE[0]:g}..{TEMPERATURE_RANGE[1]:g} is best for these {len(labels)} "
            f"validation images (accuracy {accuracy:.3f}): either every one is right, or the predictions say nothing "
            "about the labels. Use more validation images, or leave the temperature at 1."
        )
    return math.exp(result.x)


def apply_temperature(probabilities: Any, temperature: float) -> np.ndarray:
    """What the probabilities are with the logits divided by a temperature: `softmax(log(p) / T)`.

    Args:
        probabilities: Probabilities (N, K), of the model at temperature 1. A 0 is an underflow and is read as the
            smallest normal number of the array's type.
        temperature: T, positive.

    Returns:
        Probabilities (N, K), float64. The order within each row stays, so every decision does; with more than two
        classes the order of one class's probability over the rows, and with it the AUROC, may move a little.

    Raises:
        Ham10000Error: For bad probabilities, or a temperature that is not a positive number.
    """
    _check_temperature(temperature)
    return softmax(_log_probabilities(probabilities, len(probabilities)) / temperature, axis=1)


def save_temperature(checkpoint: str | os.PathLike[str], temperature: float) -> None:
    """Writes a temperature into a checkpoint's `config.json`, atomically; every other key stays as and where it is.

    Args:
        checkpoint: Folder of the checkpoint.
        temperature: The new `temperature`; it replaces the old one, it does not multiply it.

    Raises:
        Ham10000Error: For a folder without a readable `config.json` of this package, or a temperature that is not a
            positive number.
    """
    _check_temperature(temperature)
    path = Path(checkpoint) / "config.json"
    if not path.is_file():
        raise Ham10000Error(f"The folder {str(checkpoint)!r} holds no config.json; expected a checkpoint.")
    config = read_json(path)
    if config.get("model_type") != Ham10000Config.model_type:
        raise Ham10000Error(f"{str(path)!r} is not the configuration of a {Ham10000Config.model_type!r} model.")
    atomic_write_json(path, {**config, "temperature": float(temperature)})


def _log_probabilities(probabilities: Any, n_rows: int) -> np.ndarray:
    given = np.asarray(probabilities)
    smallest = np.finfo(given.dtype if np.issubdtype(given.dtype, np.floating) else np.float64).tiny
    return np.log(np.maximum(validate_probabilities(given, n_rows), float(smallest)))


def _check_temperature(temperature: Any) -> None:
    number = isinstance(temperature, (int, float, np.floating)) and not isinstance(temperature, bool)
    if not (number and math.isfinite(temperature) and temperature > 0):
        raise Ham10000Error(f"A temperature must be a positive number, got {temperature!r}.")


__all__ = ["TEMPERATURE_RANGE", "apply_temperature", "fit_temperature", "save_temperature"]
