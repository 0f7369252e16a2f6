"""What the forbidden columns would have gained: against scikit-learn by hand, planted effects and none."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, f1_score

from ham10000.modeling import LABELS, Ham10000Error
from ham10000.training.data.sources import load_data, metadata_frame
from ham10000.training.evaluation.metrics import softmax
from ham10000.training.study.forbidden_columns import ProbePart, forbidden_columns_probe

METADATA = "age, sex, localization"
FEATURES = [METADATA, f"{METADATA}, dx_type", f"{METADATA}, dataset", f"{METADATA}, dx_type, dataset"]
FEATURES += ["dx_type, dataset", "image", "image, dx_type", "image, dataset", "image, dx_type, dataset"]


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """Synthetic rows, whose dx_type and dataset give the class away as HAM10000's do."""
    return metadata_frame(load_data("synthetic:900")[0])


def predictions(frame: pd.DataFrame, seed: int) -> np.ndarray:
    """An image model that is often right."""
    ids = frame["dx"].map(LABELS.index).to_numpy()
    return softmax(np.random.default_rng(seed).normal(size=(len(frame), 7)) + 2 * np.eye(7)[ids])


def parts_of(frame: pd.DataFrame, folds: int = 1, image: bool = True) -> list[ProbePart]:
    """Thirds of the lesions train, validate and test; with folds, the test third goes round."""
    third = frame["lesion_id"].factorize()[0] % 3
    parts = []
    for fold in range(folds):
        train, validation, test = (frame[third == (fold + k) % 3].reset_index(drop=True) for k in (1, 2, 0))
        images = (predictions(validation, fold), predictions(test, 9)) if image else (None, None)
        parts.append(ProbePart(train, validation, test, *images))
    return parts


def by_features(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["features"]: row for row in results["rows"]}


def one_hot(train: pd.DataFrame, test: pd.DataFrame, columns: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """As pandas does it; the ages of these rows are multiples of 5 already."""
    both = pd.concat([train, test])[columns].astype(object).fillna("unknown").astype(str)
    table = pd.get_dummies(both).astype(float)
    known = table.iloc[: len(train)].any()
    return table.loc[:, known].iloc[: len(train)], table.loc[:, known].iloc[len(train) :]


def test_the_rows_equal_scikit_learn_by_hand(frame: pd.DataFrame) -> None:
    (part,) = parts_of(frame)
    results = forbidden_columns_probe([part], n_resamples=200)
    json.dumps(results, allow_nan=False)
    rows = by_features(results)
    assert list(rows) == FEATURES
    for features in FEATURES:
        columns = [name for name in features.split(", ") if name != "image"]
        trained = part.validation if features.startswith("image") else part.train
        inputs, test_inputs = one_hot(trained, part.test, columns) if columns else (trained[[]], part.test[[]])
        if features.startswith("image"):
            inputs, test_inputs = (
                np.hstack([np.log(probabilities), table])  # type: ignore[arg-type, assignment]
                for probabilities, table in ((part.image_validation, inputs), (part.image_test, test_inputs))
            )
        regression = LogisticRegression(class_weight="balanced", max_iter=5000).fit(np.asarray(inputs), trained["dx"])
        predicted, row = regression.predict(np.asarray(test_inputs)), rows[features]
        expected = f1_score(part.test["dx"], predicted, average="macro")
        # Ties between numerical solvers of the same problem may turn an image or two.
        assert row["macro_f1"]["estimate"] == pytest.approx(expected, abs=0.01)
        assert row["balanced_accuracy"]["estimate"] == pytest.approx(
            balanced_accuracy_score(part.test["dx"], predicted), abs=0.01
        )
        assert row["macro_f1"]["low"] < row["macro_f1"]["estimate"] < row["macro_f1"]["high"]
        assert row["n_columns"] == np.asarray(inputs).shape[1]
        assert row["trained_on"] == ("validation" if features.startswith("image") else "train")


def test_the_gain_is_paired_with_the_row_without(frame: pd.DataFrame) -> None:
    rows = by_features(forbidden_columns_probe(parts_of(frame), n_resamples=300))
    for features, row in rows.items():
        base = "image" if features.startswith("image") else METADATA
        if features in (METADATA, "image", "dx_type, dataset"):
            assert row["gain"] is None
            continue
        difference = row["macro_f1"]["estimate"] - rows[base]["macro_f1"]["estimate"]
        assert row["gain"]["estimate"] == pytest.approx(difference)
    # A column that says nothing makes the same predictions: paired, their difference is 0 in every resample.
    constant = frame.assign(dx_type="histo", dataset="vienna")
    for row in forbidden_columns_probe(parts_of(constant), n_resamples=300)["rows"]:
        if row["gain"]:
            assert [row["gain"][key] for key in ("estimate", "low", "high")] == pytest.approx([0, 0, 0], abs=0.02)
            assert row["macro_f1"]["high"] - row["macro_f1"]["low"] > 0.06


def test_planted_columns_buy_a_lot_and_random_ones_nothing(frame: pd.DataFrame) -> None:
    planted = by_features(forbidden_columns_probe(parts_of(frame, folds=3), n_resamples=300))
    for features in (f"{METADATA}, dx_type, dataset", "image, dx_type, dataset"):
        assert planted[features]["gain"]["low"] > 0.02
    assert planted["dx_type, dataset"]["macro_f1"]["low"] > planted[METADATA]["macro_f1"]["high"]

    generator = np.random.default_rng(0)
    noise = frame.assign(**{name: generator.choice(["a", "b", "c"], len(frame)) for name in ("dx_type", "dataset")})
    results = forbidden_columns_probe(parts_of(noise, folds=3), n_resamples=300)
    for features in (f"{METADATA}, dx_type, dataset", "image, dx_type, dataset"):
        gain = by_features(results)[features]["gain"]
        assert gain["low"] < 0.01
        assert abs(gain["estimate"]) < 0.05
    assert "chance may explain" in results["sentence"]


def test_folds_are_scored_together_and_in_order(frame: pd.DataFrame) -> None:
    """Each fold's regression may only predict its own test rows: a label that is renamed in one fold shows it."""
    parts = parts_of(frame.assign(dataset=frame["dx"]), folds=3)
    renamed = {name: LABELS[(index + 1) % 7] for index, name in enumerate(LABELS)}
    swapped = [
        part
        if fold
        else ProbePart(
            *(rows.assign(dataset=rows["dx"].map(renamed)) for rows in (part.train, part.validation, part.test)),
            part.image_validation,
            part.image_test,
        )
        for fold, part in enumerate(parts)
    ]
    rows = by_features(forbidden_columns_probe(swapped, n_resamples=50))
    assert rows["dx_type, dataset"]["macro_f1"]["estimate"] == 1
    # Every image once, whichever fold tests it.
    assert sum(len(part.test) for part in parts) == len(frame)


def test_without_an_image_model_the_metadata_rows_remain(frame: pd.DataFrame) -> None:
    results = forbidden_columns_probe(parts_of(frame, image=False), n_resamples=50)
    assert list(by_features(results)) == FEATURES[:5]
    assert "image's own" not in results["sentence"]


def test_values_never_trained_on_and_certain_predictions_break_nothing(frame: pd.DataFrame) -> None:
    (part,) = parts_of(frame)
    part.test.loc[:9, "dx_type"] = "oracle"
    certain = np.eye(7)[part.validation["dx"].map(LABELS.index)]
    rows = by_features(
        forbidden_columns_probe(
            [ProbePart(part.train, part.validation, part.test, certain, part.image_test)], n_resamples=50
        )
    )
    assert all(np.isfinite(row["macro_f1"]["estimate"]) for row in rows.values())


def test_bad_parts_are_errors(frame: pd.DataFrame) -> None:
    (part,) = parts_of(frame)
    images = (part.image_validation, part.image_test)
    other = parts_of(frame, folds=2)[1]
    cases = [
        ([], "empty"),
        (
            [ProbePart(part.train.drop(columns="dx_type"), part.validation, part.test, *images)],
            r"train .*\['dx_type'\]",
        ),
        ([ProbePart(part.train, part.validation, part.test, images[0], None)], "some rows only"),
        ([part, ProbePart(other.train, other.validation, other.test)], "some rows only"),
        ([part, part], "is tested twice"),
        ([ProbePart(part.train, part.validation, part.test, *reversed(images))], "Expected probabilities of shape"),
        ([ProbePart(part.train[part.train["dx"] == "nv"], part.validation, part.test)], "train .* two classes"),
        ([ProbePart(part.train.assign(dx="wart"), part.validation, part.test)], r"unknown dx \['wart'\]"),
    ]
    for parts, message in cases:
        with pytest.raises(Ham10000Error, match=message):
            forbidden_columns_probe(parts, n_resamples=10)  # type: ignore[arg-type]
