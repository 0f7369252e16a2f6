"""Calibration: a temperature, alone or with class biases, fitted to images that the model was not trained on."""

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax

from ham10000.modeling.configuration_ham10000 import Ham10000Error
from ham10000.training.evaluation.metrics import validate_labels, validate_probabilities

# Trained networks need about 0.5 to 5; a minimum outside this range says that the validation set cannot decide.
TEMPERATURE_RANGE = (0.05, 20.0)


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The temperature that minimises the negative log-likelihood of validation predictions.

    Guo, Pleiss, Sun & Weinberger, "On calibration of modern neural networks", ICML 2017, arXiv:1706.04599, section
    4.2. The likelihood is log-concave in 1 / T, so there is one minimum.

    Args:
        labels: Class ids (N,) of the validation images.
        probabilities: Their probabilities (N, K), of the model at temperature 1. Of a model that has a temperature
            already, the result is a factor on it.

    Returns:
        T inside `TEMPERATURE_RANGE`: above 1 for a model that is too sure, below 1 for one that is not sure enough.

    Raises:
        Ham10000Error: For bad labels or probabilities, or where no T in the range is best: every prediction right,
            predictions no better than chance, or every row uniform.
    """
    logits = np.log(np.maximum(validate_probabilities(probabilities, len(labels)), np.finfo(np.float32).tiny))
    if np.ptp(logits, axis=1).max() == 0:
        raise Ham10000Error("Every row of the probabilities is uniform, so a temperature changes nothing.")
    return _fit(logits, validate_labels(labels, logits.shape[1]), biases=False)[0]


def fit_vector_scaling(logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """The temperature T and class biases b (K,), of sum 0, that minimise the loss of `softmax(z / T + b)`.

    Guo et al. 2017, section 4.2, vector scaling with one scale for all classes: it also corrects the class shares,
    which class weights shift. Takes logits (N, K) of images that the model was not trained on, and their class ids,
    every class among them; anything else is a `Ham10000Error`.
    """
    logits = np.asarray(logits, dtype=np.float64)
    counts = np.bincount(labels, minlength=logits.shape[1])
    if len(counts) != logits.shape[1] or not counts.all():
        raise Ham10000Error(f"Class biases need images of each of {logits.shape[1]} classes, got {counts} by class.")
    return _fit(logits, labels, biases=True)


def _fit(logits: np.ndarray, labels: np.ndarray, *, biases: bool) -> tuple[float, np.ndarray]:
    """T and the biases, 0 unless asked for; the likelihood is convex in (1 / T, b)."""
    n_rows, n_classes = logits.shape
    true = np.eye(n_classes)[labels]

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        scaled = parameters[0] * logits + parameters[1:]
        excess = softmax(scaled, axis=1) - true  # gradient of each row's loss by its scaled logits
        value = (logsumexp(scaled, axis=1) - (scaled * true).sum(axis=1)).mean()
        return value, np.append((excess * logits).sum() / n_rows, excess.sum(axis=0) / n_rows)

    low, high = 1 / TEMPERATURE_RANGE[1], 1 / TEMPERATURE_RANGE[0]
    bounds = [(low, high), *[(None, None) if biases else (0.0, 0.0)] * n_classes]
    options = {"maxiter": 1000, "ftol": 1e-14, "gtol": 1e-8}
    found = minimize(loss, np.append(1.0, np.zeros(n_classes)), jac=True, bounds=bounds, options=options)
    scale, shifts = float(found.x[0]), found.x[1:]
    right = (scale * logits + shifts).argmax(axis=1) == labels
    # Where every one is right the likelihood has no maximum.
    if right.all() or not low < scale < high:
        raise Ham10000Error(
            f"No temperature in {TEMPERATURE_RANGE[0]:g}..{TEMPERATURE_RANGE[1]:g} is best for these {n_rows} "
            f"validation images (accuracy {right.mean():.3f}): either every one is right, or the predictions say "
            "nothing about the labels. Use more validation images, or leave the temperature at 1."
        )
    return 1 / scale, shifts - shifts.mean()
