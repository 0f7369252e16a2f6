"""What is fitted for one fold from the others: heads, calibration and prediction sets."""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm.auto import tqdm

from ham10000.modeling import Ham10000Config, Ham10000Error
from ham10000.training.evaluation.calibration import fit_vector_scaling
from ham10000.training.evaluation.decision import decide, fit_thresholds, prediction_sets
from ham10000.training.evaluation.metrics import softmax
from ham10000.training.study.config import TRAINED
from ham10000.training.study.heads import HEAD_VARIANTS, Head, HeadSettings, fit_variant
from ham10000.training.study.predictions import Predictions

# Parts of the lesions that calibrate one another where a protocol has no folds.
_PARTS_WITHOUT_FOLDS = 5


@dataclass(frozen=True)
class CrossFitted:
    """One variant's out-of-fold logits, calibrated by the other folds."""

    predictions: Predictions
    folds: np.ndarray  # (N,) the parts that calibrate one another: the folds, or parts of the lesions
    temperatures: np.ndarray  # (S, F) of each seed and fold
    biases: np.ndarray  # (S, F, K) of each seed and fold
    prior: np.ndarray  # (K,) class shares
    image: Predictions  # what the heads read
    heads: Sequence[dict[int, Head]]  # for each seed, fold to the head fitted on the others; none of the image variant

    def probabilities(self, logits: np.ndarray | None = None) -> np.ndarray:
        """Each image's logits (S, …, N, K), by default the out-of-fold ones, calibrated as its fold is."""
        logits = self.predictions.logits if logits is None else logits
        _, fold = np.unique(self.folds, return_inverse=True)
        between = tuple(range(1, logits.ndim - 2))
        temperatures, biases = self.temperatures[:, fold, None], self.biases[:, fold]
        return softmax(logits / np.expand_dims(temperatures, between) + np.expand_dims(biases, between))

    def answers(self, rule: str, logits: np.ndarray | None = None) -> np.ndarray:
        """Class ids (S, …, N) by a rule of `STUDY_RULES`, of logits as `probabilities` takes them."""
        if rule == TRAINED:
            return (self.predictions.logits if logits is None else logits).argmax(axis=-1)
        return decide(self.probabilities(logits), list(self.prior), rule)

    def head_logits(self, tables: torch.Tensor) -> np.ndarray:
        """(S, M, N, K) logits of the heads for M other metadata (M, N, fields), each image by its own fold's head."""
        return np.stack([_head_logits(self.image, self.heads, table) for table in tables], axis=1)


def _head_logits(image: Predictions, heads: Sequence[dict[int, Head]], metadata: torch.Tensor) -> np.ndarray:
    """(S, N, K) logits for metadata (N, fields)."""
    logits = np.empty_like(image.logits)
    for s, of_seed in enumerate(heads):
        for fold, head in of_seed.items():
            rows = image.folds == fold
            logits[s, rows] = head.predict(image.logits[s, rows], metadata[torch.from_numpy(rows)])
    return logits


def calibration_of(logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Temperature and biases; 1 and 0 with a note where nothing can be fitted, as on a few images all told right."""
    try:
        return fit_vector_scaling(logits, labels)
    except Ham10000Error as error:
        print(f"note: not calibrated: {error}")
        return 1.0, np.zeros(logits.shape[1])


def cross_calibrate(
    predictions: Predictions, image: Predictions, heads: Sequence[dict[int, Head]] = ()
) -> CrossFitted:
    """Calibrates each fold by the other folds' logits, temperature and class biases together; see `CrossFitted`."""
    folds = predictions.folds
    if len(np.unique(folds)) == 1:
        folds = np.unique(predictions.groups, return_inverse=True)[1] % _PARTS_WITHOUT_FOLDS
    labels, others = predictions.labels, [folds != fold for fold in np.unique(folds)]
    fitted = [[calibration_of(logits[rows], labels[rows]) for rows in others] for logits in predictions.logits]
    temperatures, biases = (np.array([[pair[k] for pair in of_seed] for of_seed in fitted]) for k in (0, 1))
    prior = np.bincount(labels, minlength=len(predictions.classes)) / len(labels)
    return CrossFitted(predictions, folds, temperatures, biases, prior, image, heads)


def cross_fit_heads(
    image: Predictions, metadata: torch.Tensor, config: Ham10000Config, settings: HeadSettings
) -> dict[str, CrossFitted]:
    """Each of `HEAD_VARIANTS` fitted to raw metadata (N, fields) of the other folds, with the image run's seed."""
    folds = [int(fold) for fold in np.unique(image.folds)]
    if len(folds) < 2:
        raise Ham10000Error("Heads are fitted on other folds, but these predictions have one fold only; give folds.")
    heads: dict[str, list[dict[int, Head]]] = {variant: [{} for _ in image.seeds] for variant in HEAD_VARIANTS}
    plan = list(itertools.product(HEAD_VARIANTS, enumerate(image.seeds), folds))
    for variant, (s, seed), fold in tqdm(plan, desc="Fitting heads", unit="head", leave=False):
        others = image.folds != fold
        data = (image.logits[s, others], metadata[torch.from_numpy(others)], image.labels[others])
        heads[variant][s][fold] = fit_variant(variant, *data, config, settings=settings, seed=seed)
    found = {}
    for variant, fitted in heads.items():
        shown = torch.full_like(metadata, float("nan")) if variant == "control" else metadata
        logits = _head_logits(image, fitted, shown)
        found[variant] = cross_calibrate(dataclasses.replace(image, logits=logits), image, fitted)
    return found


def cross_conformal(fitted: CrossFitted, coverage: float) -> np.ndarray:
    """(S, N, K) bool prediction sets, each fold's thresholds from the other folds' calibrated probabilities."""
    labels, probabilities = fitted.predictions.labels, fitted.probabilities()
    sets = np.empty(probabilities.shape, dtype=bool)
    for s, of_seed in enumerate(probabilities):
        for fold in np.unique(fitted.folds):
            test = fitted.folds == fold
            sets[s, test] = prediction_sets(of_seed[test], fit_thresholds(labels[~test], of_seed[~test], coverage))
    return sets
