"""Answers to beat, and answers nobody may give: regressions and trees on metadata, with and without forbidden columns.

`dx_type` says how a diagnosis was made and `dataset` where an image came from; both give the class away and exist for
no new patient. How much they give away is measured with logistic regressions that live inside one function call:
nothing here can save a model, and `Ham10000Config` refuses both columns as inputs.
"""

from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np
import pandas as pd
from sklearn.base import ClassifierMixin
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import OneHotEncoder
from sklearn.utils.class_weight import compute_sample_weight

from ham10000.modeling import METADATA_FIELDS, Ham10000Error
from ham10000.training.evaluation.bootstrap import Bootstrap, Estimate
from ham10000.training.evaluation.metrics import softmax
from ham10000.training.study.predictions import Predictions

FORBIDDEN = ("dx_type", "dataset")
_METRICS = ("macro_f1", "balanced_accuracy", "accuracy")
# Below this a probability says no more than "not at all"; without a floor one logarithm would outweigh all others.
_LOWEST_PROBABILITY = 1e-6
_AGE_STEP = 5  # years; the ages of HAM10000 are multiples of it


class Baseline(TypedDict):
    """One row: what was fitted on what, its scores, and the macro-F1 gained over the allowed inputs alone."""

    name: str
    scores: dict[str, Estimate]
    gain: Estimate | None


def baseline_rows(
    image: Predictions, frame: pd.DataFrame, bootstrap: Bootstrap
) -> tuple[list[Baseline], list[Baseline]]:
    """Fits every baseline on the other folds, like the heads with square-root class weights, and scores it.

    Args:
        image: The image variant's out-of-fold logits; its folds are those of the baselines.
        frame: Its images' metadata, in the same order, with the forbidden columns.
        bootstrap: Resampled lesions of the same images.

    Returns:
        The baselines that anyone may use, and the regressions with forbidden columns.

    Raises:
        Ham10000Error: For a missing column.
    """
    needed = [*METADATA_FIELDS, *FORBIDDEN]
    if missing := sorted(set(needed) - set(frame.columns)):
        raise Ham10000Error(f"The data lack the column(s) {missing}; baselines need {needed}.")
    metadata = list(METADATA_FIELDS)
    seen = np.log(np.maximum(softmax(image.logits[0]), _LOWEST_PROBABILITY))
    majority = np.bincount(image.labels).argmax()
    answers = {
        f"always {image.classes[majority]}": np.full(len(image.labels), majority),
        "logistic regression on metadata": _regression(image, frame, metadata),
        "gradient boosting on metadata": _boosting(image, frame, metadata),
    }
    allowed = [_row(name, ids, bootstrap) for name, ids in answers.items()]
    forbidden = []
    for base, columns, extra, added in (
        ("age, sex, site", metadata, None, ((), ("dx_type",), ("dataset",), FORBIDDEN)),
        ("", [], None, (FORBIDDEN,)),
        ("image", [], seen, ((), FORBIDDEN)),
    ):
        reference: np.ndarray | None = None
        for more in added:
            ids = _regression(image, frame, [*columns, *more], extra)
            forbidden.append(_row(", ".join(filter(None, [base, *more])), ids, bootstrap, reference))
            reference = ids if not more else reference
    return allowed, forbidden


def _row(name: str, ids: np.ndarray, bootstrap: Bootstrap, reference: np.ndarray | None = None) -> Baseline:
    scores = bootstrap.scores(ids[None], _METRICS)
    gain = None
    if reference is not None:
        gain = (scores["macro_f1"] - bootstrap.scores(reference[None], ["macro_f1"])["macro_f1"]).summary()
    return {"name": name, "scores": {key: value.summary() for key, value in scores.items()}, "gain": gain}


def _out_of_fold(image: Predictions, features: np.ndarray, make: Callable[[], ClassifierMixin]) -> np.ndarray:
    """(N,) class ids, each fold's from a model fitted on the others."""
    ids = np.empty(len(image.labels), dtype=np.int64)
    for fold in np.unique(image.folds):
        test = image.folds == fold
        labels = image.labels[~test]
        weights = np.sqrt(compute_sample_weight("balanced", labels))
        model = make().fit(features[~test], labels, sample_weight=weights)
        ids[test] = model.predict(features[test])
    return ids


def _regression(
    image: Predictions, frame: pd.DataFrame, columns: Sequence[str], extra: np.ndarray | None = None
) -> np.ndarray:
    """Multinomial logistic regression on one-hot columns (age in steps, missing a value of its own) and more."""
    parts = [] if extra is None else [extra]
    if columns:
        table = frame[list(columns)].copy()
        if "age" in table:
            steps = table["age"].astype(float) // _AGE_STEP * _AGE_STEP
            table["age"] = [f"{age:g}" if age == age else "unknown" for age in steps]
        encoder = OneHotEncoder(sparse_output=False)
        parts.append(encoder.fit_transform(table.fillna("unknown").astype(str).to_numpy(dtype=object)))
    return _out_of_fold(image, np.hstack(parts), lambda: LogisticRegression(max_iter=2000))


def _boosting(image: Predictions, frame: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """scikit-learn's histogram gradient boosting with its defaults; sex and site categorical, age as a number."""
    categorical = [name != "age" for name in columns]
    table = [
        pd.factorize(frame[name].fillna("unknown"))[0] if is_category else frame[name].astype(float)
        for name, is_category in zip(columns, categorical, strict=True)
    ]
    settings = {"categorical_features": categorical, "random_state": 0}
    return _out_of_fold(image, np.column_stack(table), lambda: HistGradientBoostingClassifier(**settings))
