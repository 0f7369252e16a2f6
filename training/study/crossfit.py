"""What is fitted for one fold from the others: heads, calibration and prediction sets."""

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
    heads: tuple[dict[int, Head], ...] = ()  # for each seed, fold to the head fitted on the others; not of the image
    image_logits: np.ndarray | None = None  # (S, N, K) what the heads read; None for the image variant

    def calibrated(self, logits: np.ndarray, seed: int) -> np.ndarray:
        """(…, N, K) logits of a seed's models to probabilities, by each image's fold."""
        _, fold = np.unique(self.folds, return_inverse=True)
        return softmax(logits / self.temperatures[seed, fold][:, None] + self.biases[seed, fold])

    def answers(self, logits: np.ndarray, seed: int, rule: str) -> np.ndarray:
        """(…, N, K) logits of a seed's models to class ids (…, N), by a rule of `STUDY_RULES`."""
        if rule == TRAINED:
            return logits.argmax(axis=-1)
        return decide(self.calibrated(logits, seed), list(self.prior), rule)

    @property
    def probabilities(self) -> np.ndarray:
        """(S, N, K), calibrated."""
        return np.stack([self.calibrated(rows, s) for s, rows in enumerate(self.predictions.logits)])

    def all_answers(self, rule: str) -> np.ndarray:
        """(S, N) class ids by a rule."""
        return np.stack([self.answers(rows, s, rule) for s, rows in enumerate(self.predictions.logits)])

    def head_logits(self, metadata: torch.Tensor, seed: int) -> np.ndarray:
        """(N, K) logits of a seed's heads for other metadata (N, fields), each image by its own fold's head."""
        if self.image_logits is None:
            raise Ham10000Error("The image variant has no heads, so it reads no metadata.")
        logits = np.empty(self.predictions.logits.shape[1:], dtype=np.float32)
        for fold, head in self.heads[seed].items():
            rows = self.predictions.folds == fold
            logits[rows] = head.predict(self.image_logits[seed, rows], metadata[torch.from_numpy(rows)])
        return logits


def calibration_of(logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Temperature and biases; 1 and 0 with a note where nothing can be fitted, as on a few images all told right."""
    try:
        return fit_vector_scaling(logits, labels)
    except Ham10000Error as error:
        print(f"note: not calibrated: {error}")
        return 1.0, np.zeros(logits.shape[1])


def cross_calibrate(
    predictions: Predictions, heads: Sequence[dict[int, Head]] = (), image_logits: np.ndarray | None = None
) -> CrossFitted:
    """Calibrates each fold by the other folds' logits, temperature and class biases together; see `CrossFitted`."""
    folds = predictions.folds
    if len(np.unique(folds)) == 1:
        folds = np.unique(predictions.groups, return_inverse=True)[1] % _PARTS_WITHOUT_FOLDS
    labels, n_classes = predictions.labels, len(predictions.classes)
    fitted = [
        [calibration_of(logits[folds != fold], labels[folds != fold]) for fold in np.unique(folds)]
        for logits in predictions.logits
    ]
    return CrossFitted(
        predictions,
        folds,
        np.array([[temperature for temperature, _ in of_seed] for of_seed in fitted]),
        np.array([[biases for _, biases in of_seed] for of_seed in fitted]),
        np.bincount(labels, minlength=n_classes) / len(labels),
        tuple(heads),
        image_logits,
    )


def cross_fit_heads(
    image: Predictions, metadata: torch.Tensor, config: Ham10000Config, settings: HeadSettings
) -> dict[str, CrossFitted]:
    """Fits every head on the other folds and applies it to its own, for every seed of the image runs.

    Args:
        image: The image variant's out-of-fold logits, under a protocol with folds.
        metadata: (N, fields) raw metadata of its images, NaN where missing.
        config: Metadata schema, encoder and dropout.
        settings: How heads are fitted; the image run's seed is the head's.

    Returns:
        Each of `HEAD_VARIANTS` to its calibrated out-of-fold logits.

    Raises:
        Ham10000Error: Without folds, or if the other folds lack a class.
    """
    folds = [int(fold) for fold in np.unique(image.folds)]
    if len(folds) < 2:
        raise Ham10000Error("Heads are fitted on other folds, but these predictions have one fold only; give folds.")
    logits = {variant: np.empty_like(image.logits) for variant in HEAD_VARIANTS}
    heads: dict[str, list[dict[int, Head]]] = {variant: [{} for _ in image.seeds] for variant in HEAD_VARIANTS}
    plan = list(itertools.product(HEAD_VARIANTS, enumerate(image.seeds), folds))
    for variant, (s, seed), fold in tqdm(plan, desc="Fitting heads", unit="head", leave=False):
        test, rows = image.folds == fold, image.logits[s]
        mask = torch.from_numpy(test)
        others = (rows[~test], metadata[~mask], image.labels[~test])
        head = fit_variant(variant, *others, config, settings=settings, seed=seed)
        hidden = torch.full_like(metadata[mask], float("nan"))
        logits[variant][s, test] = head.predict(rows[test], hidden if variant == "control" else metadata[mask])
        heads[variant][s][fold] = head
    return {
        name: cross_calibrate(image.with_logits(logits[name]), heads[name], image.logits) for name in HEAD_VARIANTS
    }


def cross_conformal(fitted: CrossFitted, coverage: float) -> np.ndarray:
    """(S, N, K) bool prediction sets, each fold's thresholds from the other folds' calibrated probabilities."""
    labels, probabilities = fitted.predictions.labels, fitted.probabilities
    sets = np.empty(probabilities.shape, dtype=bool)
    for s, of_seed in enumerate(probabilities):
        for fold in np.unique(fitted.folds):
            test = fitted.folds == fold
            sets[s, test] = prediction_sets(of_seed[test], fit_thresholds(labels[~test], of_seed[~test], coverage))
    return sets
