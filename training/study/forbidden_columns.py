"""What the forbidden columns `dx_type` and `dataset` would have gained: a diagnostic, and never a model.

`dx_type` says how a diagnosis was made and `dataset` where an image came from; both give the class away and exist for
no new patient. How much they give away is measured here with logistic regressions that live inside one function call:
nothing in this file can save, export or push a model, and `Ham10000Config` refuses both columns as inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import OneHotEncoder

from ham10000.modeling.configuration_ham10000 import LABELS, METADATA_FIELDS, Ham10000Error
from ham10000.training.data.split import lesion_groups
from ham10000.training.evaluation.bootstrap import bootstrap_distribution, cluster_weights, percentile_interval
from ham10000.training.evaluation.metrics import validate_probabilities
from ham10000.training.utils.markdown_text import words

_FORBIDDEN = ("dx_type", "dataset")
_METRICS = ("macro_f1", "balanced_accuracy")
# Below this a probability says no more than "not at all"; without a floor one logarithm would outweigh all others.
_LOWEST_PROBABILITY = 1e-6
_AGE_STEP = 5  # years; the ages of HAM10000 are multiples of it


@dataclass(frozen=True)
class ProbePart:
    """One split of the rows; a plain split is one part, cross-validation one part for each fold.

    Attributes:
        train: Rows of `data.metadata_frame` that a model on metadata is trained on.
        validation: Rows that a model on the image's predictions is trained on: those of `train` would not do, because
            the image model knows them by heart.
        test: Rows that are scored. No image may be in the test rows of two parts.
        image_validation: Probabilities (rows of `validation`, 7) of an image model trained on `train`, calibrated or
            not; None where there is none.
        image_test: Its probabilities (rows of `test`, 7).
    """

    train: pd.DataFrame
    validation: pd.DataFrame
    test: pd.DataFrame
    image_validation: np.ndarray | None = None
    image_test: np.ndarray | None = None


def forbidden_columns_probe(
    parts: Sequence[ProbePart], *, n_resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> dict[str, Any]:
    """Scores multinomial logistic regressions with and without `dx_type` and `dataset` on the same test images.

    Columns are one-hot (age in steps of 5 years, a missing value as one of its own); the image enters by its seven
    log-probabilities. Classes are weighted to be equally important, as macro-F1 counts them. Intervals are from a
    bootstrap over lesions, paired for the gain.

    Args:
        parts: One part, or one for each fold, whose test rows are scored together.
        n_resamples: Number of bootstrap resamples.
        confidence: Coverage of the intervals.
        seed: Seed of the bootstrap.

    Returns:
        `rows`, each with `features`, `trained_on` ("train" or "validation"), `n_columns` (inputs of the regression, in
        the part with most), `macro_f1`, `balanced_accuracy` and `gain` (intervals; the gain is the macro-F1 above that
        of the same row without the forbidden columns, None where there is no such row), and a `sentence`. Strict JSON.

    Raises:
        Ham10000Error: For no parts, missing columns, a part without rows or with one class only, image probabilities
            in some parts only, or an image that is tested twice.
    """
    _check(parts)
    test = pd.concat([part.test for part in parts], ignore_index=True)
    groups = lesion_groups(test["lesion_id"].tolist(), test["image_id"].tolist())
    labels, weights = _class_ids(test), cluster_weights(groups, n_resamples, seed)
    metadata = ", ".join(METADATA_FIELDS)
    # The name of what is allowed, its columns, and whether the image is among it.
    bases: list[tuple[str, Sequence[str], bool]] = [(metadata, METADATA_FIELDS, False), ("", (), False)]
    if parts[0].image_test is not None:
        bases.append(("image", (), True))
    rows = []
    for base, columns, use_image in bases:
        allowed: tuple[float, np.ndarray] | None = None
        for extra in ((), ("dx_type",), ("dataset",), _FORBIDDEN) if base else (_FORBIDDEN,):
            predicted, n_columns = _predict(parts, [*columns, *extra], use_image)
            estimates, values = bootstrap_distribution(labels, predicted, weights, _METRICS)
            row: dict[str, Any] = {
                "features": ", ".join(filter(None, [base, *extra])),
                "trained_on": "validation" if use_image else "train",
                "n_columns": n_columns,
            }
            for name in _METRICS:
                row[name] = percentile_interval(estimates[name], values[name], confidence).as_dict()
            row["gain"] = None
            if allowed is not None:
                gain, gains = estimates["macro_f1"] - allowed[0], values["macro_f1"] - allowed[1]
                row["gain"] = percentile_interval(gain, gains, confidence).as_dict()
            elif not extra:
                allowed = estimates["macro_f1"], values["macro_f1"]
            rows.append(row)
    return {"rows": rows, "sentence": _sentence(rows)}


def _predict(parts: Sequence[ProbePart], columns: list[str], use_image: bool) -> tuple[np.ndarray, int]:
    """Class ids (N,) of all parts' test rows, one part after the other, and the largest number of inputs."""
    predicted, n_columns = [], []
    for part in parts:
        rows = part.validation if use_image else part.train
        inputs, test_inputs = [], []
        if use_image:
            inputs.append(_log_probabilities(part.image_validation))
            test_inputs.append(_log_probabilities(part.image_test))
        if columns:
            # A value that the regression was not trained on sets no column at all.
            encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
            inputs.append(encoder.fit_transform(_categories(rows, columns)))
            test_inputs.append(encoder.transform(_categories(part.test, columns)))
        features = np.hstack(inputs)
        regression = LogisticRegression(class_weight="balanced", max_iter=5000)
        regression.fit(features, _class_ids(rows))
        predicted.append(regression.predict(np.hstack(test_inputs)))
        n_columns.append(features.shape[1])
    return np.concatenate(predicted), max(n_columns)


def _categories(frame: pd.DataFrame, columns: list[str]) -> np.ndarray:
    """(rows, columns) strings, `unknown` where a value is missing."""
    table = frame[columns].copy()
    if "age" in table:
        steps = table["age"].astype(float) // _AGE_STEP * _AGE_STEP
        table["age"] = [f"{age:g}" if age == age else "unknown" for age in steps]
    return table.fillna("unknown").astype(str).to_numpy(dtype=object)


def _log_probabilities(probabilities: Any) -> np.ndarray:
    return np.log(np.maximum(probabilities, _LOWEST_PROBABILITY))


def _class_ids(frame: pd.DataFrame) -> np.ndarray:
    return frame["dx"].map({label: index for index, label in enumerate(LABELS)}).to_numpy(dtype=np.int64)


def _check(parts: Sequence[ProbePart]) -> None:
    if not parts:
        raise Ham10000Error("`parts` is empty; expected one ProbePart, or one for each fold.")
    given = {probabilities is not None for part in parts for probabilities in (part.image_validation, part.image_test)}
    if len(given) > 1:
        raise Ham10000Error("Image probabilities are there for some rows only; give them for all parts or for none.")
    needed = {"image_id", "lesion_id", "dx", *METADATA_FIELDS, *_FORBIDDEN}
    for number, part in enumerate(parts):
        for name in ("train", "validation", "test"):
            frame: pd.DataFrame = getattr(part, name)
            where = f"The {name} rows of part {number}"
            if missing := sorted(needed - set(frame.columns)):
                raise Ham10000Error(f"{where} lack the column(s) {missing}; expected those of `metadata_frame`.")
            if unknown := sorted(set(frame["dx"]) - set(LABELS)):
                raise Ham10000Error(f"{where} hold unknown dx {unknown}; expected some of {list(LABELS)}.")
            if name != "test" and frame["dx"].nunique() < 2:
                raise Ham10000Error(f"{where} hold fewer than two classes, which nothing can be learnt from.")
        if part.image_validation is not None:
            validate_probabilities(part.image_validation, len(part.validation))
            validate_probabilities(part.image_test, len(part.test))
    tested = pd.concat([part.test["image_id"] for part in parts], ignore_index=True)
    if tested.duplicated().any():
        raise Ham10000Error(
            f"Image {tested[tested.duplicated()].iloc[0]!r} is tested twice; expected once over all parts."
        )


def _sentence(rows: Sequence[dict[str, Any]]) -> str:
    gains = []
    for base, title in ((", ".join(METADATA_FIELDS), "age, sex and site"), ("image", "the image's own predictions")):
        gain = next((row["gain"] for row in rows if row["features"] == ", ".join([base, *_FORBIDDEN])), None)
        if gain:
            size = f"{gain['estimate']:+.2f} macro-F1 [{gain['low']:+.2f}, {gain['high']:+.2f}]"
            gains.append(f"{size} above {title}" + ("" if gain["low"] > 0 else ", which chance may explain"))
    return (
        f"Reading {words(_FORBIDDEN)} as well would have gained {'; '.join(gains)}. They say how a diagnosis was made "
        "and where an image came from, not what it shows, so no model here can read them."
    )


__all__ = ["ProbePart", "forbidden_columns_probe"]
