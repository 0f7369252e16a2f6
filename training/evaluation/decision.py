"""From logits to an answer: calibrated probabilities, then one class by a rule, or a set that promises a coverage."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ham10000.modeling.configuration_ham10000 import Ham10000Error

# `ham10000-predict` imports this file: nothing here may import pandas, scikit-learn or scipy at its top.

# Trained networks need about 0.5 to 5; a minimum outside this range says that the validation set cannot decide.
TEMPERATURE_RANGE = (0.05, 20.0)
RULES = ("probable", "balanced")
COVERAGES = (0.8, 0.9, 0.95)


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
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
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    from ham10000.training.evaluation.metrics import validate_labels, validate_probabilities

    given = np.asarray(probabilities)
    smallest = np.finfo(given.dtype if np.issubdtype(given.dtype, np.floating) else np.float64).tiny
    logits = np.log(np.maximum(validate_probabilities(given, len(labels)), float(smallest)))
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


def fit_vector_scaling(logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """The temperature T and class biases b that minimise the negative log-likelihood of `softmax(z / T + b)`.

    Guo et al. 2017, arXiv:1706.04599, section 4.2, vector scaling with one scale for all classes. Unlike a temperature
    alone it also corrects the class shares, which class weights shift. The likelihood is convex in (1 / T, b).

    Args:
        logits: Logits (N, K) of images that the model was not trained on.
        labels: Their class ids (N,), every class among them.

    Returns:
        T inside `TEMPERATURE_RANGE`, and the biases (K,), which sum to zero.

    Raises:
        Ham10000Error: For inputs that do not fit together, a class without images, or where no T in the range is best.
    """
    from scipy.optimize import minimize
    from scipy.special import logsumexp, softmax

    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not np.isfinite(logits).all():
        raise Ham10000Error(f"Expected finite logits (N, K) and labels (N,), got {logits.shape} and {labels.shape}.")
    n_rows, n_classes = logits.shape
    counts = np.bincount(labels, minlength=n_classes)
    if len(counts) != n_classes or not counts.all():
        raise Ham10000Error(f"Class biases need images of each of {n_classes} classes; images per class: {counts}.")
    true = np.eye(n_classes)[labels]

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        scaled = parameters[0] * logits + parameters[1:]
        excess = softmax(scaled, axis=1) - true  # gradient of each row's loss by its scaled logits
        value = (logsumexp(scaled, axis=1) - (scaled * true).sum(axis=1)).mean()
        return value, np.append((excess * logits).sum() / n_rows, excess.sum(axis=0) / n_rows)

    low, high = 1 / TEMPERATURE_RANGE[1], 1 / TEMPERATURE_RANGE[0]
    bounds = [(low, high), *[(None, None)] * n_classes]
    options = {"maxiter": 1000, "ftol": 1e-14, "gtol": 1e-8}
    found = minimize(loss, np.append(1.0, np.zeros(n_classes)), jac=True, bounds=bounds, options=options)
    scale, biases = float(found.x[0]), found.x[1:]
    separated = bool(((scale * logits + biases).argmax(axis=1) == labels).all())  # the likelihood has no maximum then
    if separated or not low < scale < high:
        raise Ham10000Error(
            f"No temperature in {TEMPERATURE_RANGE[0]:g}..{TEMPERATURE_RANGE[1]:g} is best for these {n_rows} images: "
            "either every one is right, or the logits say nothing about the labels."
        )
    return 1 / scale, biases - biases.mean()


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
