"""What a study says of shortcuts, against the models' own answers, brute force and scikit-learn."""

import numpy as np
import pandas as pd
import pytest
import torch
from analysed_study import CONFIG, Protocol, analysed
from scipy import special
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.utils.class_weight import compute_sample_weight

from ham10000.modeling import LABELS, MALIGNANT, METADATA_FIELDS, Ham10000Error
from ham10000.training.evaluation.bootstrap import Bootstrap
from ham10000.training.study import shortcuts
from ham10000.training.study.shortcuts import MISSING_SHARES, baseline_rows, changes


@pytest.fixture(scope="module")
def lead() -> Protocol:
    return analysed()["lesion-grouped"]


def macro_f1(labels: np.ndarray, answers: np.ndarray) -> float:
    return f1_score(labels, answers, labels=np.unique(labels), average="macro", zero_division=0)


def same(table: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(table.nan_to_num(-1), other.nan_to_num(-1))


def rows_of(table: torch.Tensor) -> list[list[float]]:
    return sorted(table.nan_to_num(-1).tolist())


def test_every_change_of_the_metadata_is_what_its_name_says(lead: Protocol) -> None:
    metadata, config = lead.inputs.metadata, lead.inputs.model
    found, again = dict(changes(config, metadata)), dict(changes(config, metadata))
    assert all(same(table, again[name]) for name, table in found.items())
    columns = {name: [column] for column, name in enumerate(config.metadata_fields)} | {"all": [0, 1, 2]}
    kinds = {f"{kind}:{field}" for kind in ("shuffled", "unknown") for field in columns}
    assert set(found) == kinds | {f"missing:{share}" for share in MISSING_SHARES} | {"age_sweep", "site_sweep"}
    for field, changed in columns.items():
        kept = [column for column in range(3) if column not in changed]
        shuffled, (unknown,) = found[f"shuffled:{field}"], found[f"unknown:{field}"]
        expected = metadata.clone()
        expected[:, changed] = float("nan")
        assert same(unknown, expected)
        for table in shuffled:  # the values of a row stay together
            assert same(table[:, kept], metadata[:, kept])
            assert rows_of(table[:, changed]) == rows_of(metadata[:, changed])
        assert len({table.numpy().tobytes() for table in (metadata, *shuffled)}) == 1 + len(shuffled)
    for share in MISSING_SHARES:
        for table in found[f"missing:{share}"]:
            hidden = table.isnan()
            assert hidden[~metadata.isnan()].float().mean().item() == pytest.approx(share, abs=0.06)
            assert torch.equal(table[~hidden], metadata[~hidden])
    for name, field, values in (("age_sweep", 0, torch.arange(0, 90, 5)), ("site_sweep", 2, torch.arange(14))):
        expected = metadata.repeat(len(values), 1, 1)
        expected[..., field] = values[:, None]
        assert same(found[name], expected)


@pytest.mark.parametrize("variant", ["metadata", "fusion"])
def test_shortcuts_are_what_the_models_answer_to_changed_metadata(variant: str, lead: Protocol) -> None:
    found, labels = lead.results["variants"][variant]["shortcuts"], lead.image.labels
    fitted, folds = lead.variants[variant], lead.image.folds
    as_is = fitted.predictions.logits.argmax(axis=2)
    base = np.mean([macro_f1(labels, of_seed) for of_seed in as_is])
    # To the metadata as they are; `test_heads.py` compares heads with released checkpoints.
    unchanged = fitted.head_logits(lead.inputs.metadata[None])[:, 0]
    np.testing.assert_allclose(unchanged, fitted.predictions.logits, atol=1e-5)
    malignant = [LABELS.index(name) for name in MALIGNANT]
    for name, tables in changes(lead.inputs.model, lead.inputs.metadata):
        kind, _, field = name.partition(":")
        if kind in ("age_sweep", "site_sweep"):
            logits = fitted.head_logits(tables) / fitted.temperatures[:, None, folds, None]
            p = special.softmax(logits + fitted.biases[:, None, folds], axis=-1)
            expected = {"melanoma": p[..., LABELS.index("mel")], "malignant": p[..., malignant].sum(axis=-1)}
            for key, values in expected.items():
                estimates = [row["estimate"] for row in found[kind][key]]
                np.testing.assert_allclose(estimates, values.mean(axis=(0, 2)), atol=1e-5)
        elif field in ("age", "localization", "all"):
            answers = fitted.head_logits(tables).argmax(axis=-1).swapaxes(0, 1)  # (M, S, N)
            effect = found["fields"][field][kind]
            scores = [macro_f1(labels, of_seed) for of_draw in answers for of_seed in of_draw]
            assert effect["drop"]["estimate"] == pytest.approx(base - np.mean(scores), abs=1e-9)
            assert effect["flips"]["estimate"] == pytest.approx((answers != as_is).mean())
    assert found["fields"]["all"]["unknown"]["flips"]["estimate"] > 0.01


def test_intervals_and_p_values_of_shortcuts_equal_brute_force(lead: Protocol) -> None:
    found, labels = lead.results["variants"]["fusion"]["shortcuts"]["fields"]["all"]["unknown"], lead.image.labels
    fitted, unknown = lead.variants["fusion"], torch.full_like(lead.inputs.metadata[None], float("nan"))
    answers, as_is = fitted.head_logits(unknown)[:, 0].argmax(axis=2), fitted.predictions.logits.argmax(axis=2)
    bootstrap, drops, flips = Bootstrap(labels, lead.image.groups, 2, CONFIG.n_resamples), [], []
    for resample, counts in enumerate(bootstrap.weights.counts):
        rows = np.repeat(np.arange(len(labels)), counts[bootstrap.weights.index])
        seeds = bootstrap.draws[:, resample]
        pairs = [macro_f1(labels[rows], as_is[s, rows]) - macro_f1(labels[rows], answers[s, rows]) for s in seeds]
        drops.append(np.mean(pairs))
        flips.append((answers != as_is)[:, rows].mean())
    for name, values in (("drop", drops), ("flips", flips)):
        ends = np.percentile(values, [2.5, 97.5])
        assert (found[name]["low"], found[name]["high"]) == pytest.approx(tuple(ends), abs=1e-9)
    smaller = min((np.array(drops) <= 0).sum(), (np.array(drops) >= 0).sum())
    assert found["p"] == pytest.approx(2 * (1 + smaller) / (CONFIG.n_resamples + 1))


def regression(lead: Protocol, inputs: np.ndarray) -> np.ndarray:
    answers, labels, folds = np.empty(len(inputs), int), lead.image.labels, lead.image.folds
    for fold in range(3):
        rest = folds != fold
        weights = np.sqrt(compute_sample_weight("balanced", labels[rest]))
        model = LogisticRegression(max_iter=2000).fit(inputs[rest], labels[rest], sample_weight=weights)
        answers[~rest] = model.predict(inputs[~rest])
    return answers


def test_baselines_and_forbidden_columns_score_what_scikit_learn_says(lead: Protocol) -> None:
    names = ["always nv", "logistic regression on metadata", "gradient boosting on metadata"]
    assert [row["name"] for row in lead.results["baselines"]] == names
    always, allowed = (row["scores"] for row in lead.results["baselines"][:2])
    assert always["accuracy"]["estimate"] == pytest.approx((lead.inputs.frame["dx"] == "nv").mean())
    rows = {row["name"]: row for row in lead.results["forbidden"]}
    added = [f"age, sex, site{more}" for more in ("", ", dx_type", ", dataset", ", dx_type, dataset")]
    assert list(rows) == [*added, "dx_type, dataset", "image", "image, dx_type, dataset"]
    assert rows["age, sex, site"]["scores"] == allowed
    assert rows["age, sex, site, dx_type"]["gain"]["estimate"] > 0.02  # it says who was malignant
    for name, row in rows.items():
        base = rows.get("image" if name.startswith("image") else "age, sex, site")
        if row["gain"] is not None:
            scores = [one["scores"]["macro_f1"]["estimate"] for one in (row, base)]
            assert row["gain"]["estimate"] == pytest.approx(scores[0] - scores[1])
    data = lead.inputs.frame
    known = data.assign(age=data["age"].floordiv(5).mul(5).astype(object).fillna("unknown")).astype(str)
    image = special.log_softmax(lead.image.logits[0].astype(float), axis=1).clip(min=np.log(1e-6))
    for name, columns, extra in (
        ("age, sex, site", [*METADATA_FIELDS], []),
        ("age, sex, site, dx_type", [*METADATA_FIELDS, "dx_type"], []),
        ("image, dx_type, dataset", ["dx_type", "dataset"], [image]),
    ):
        answers = regression(lead, np.hstack([*extra, pd.get_dummies(known[columns]).to_numpy(dtype=float)]))
        expected = macro_f1(lead.image.labels, answers)
        # Two solvers of the same problem may turn an image or two.
        assert rows[name]["scores"]["macro_f1"]["estimate"] == pytest.approx(expected, abs=0.01)


def test_a_column_that_is_the_label_gains_everything_and_an_absent_one_is_not_measured(lead, monkeypatch) -> None:
    monkeypatch.setattr(shortcuts, "_boosting", lambda image, *_: image.labels)  # slow, and not asked here
    frame = lead.inputs.frame.assign(dx_type="unknown", dataset=lead.inputs.frame["dx"])  # as a source without it
    bootstrap = Bootstrap(lead.image.labels, lead.image.groups, 1, 20)
    rows = {row["name"]: row for row in baseline_rows(lead.image, frame, bootstrap)[1]}
    assert list(rows) == ["age, sex, site", "age, sex, site, dataset", "dataset", "image", "image, dataset"]
    for name in ("age, sex, site, dataset", "dataset", "image, dataset"):
        assert rows[name]["scores"]["macro_f1"]["estimate"] > 0.95
    assert baseline_rows(lead.image, frame.assign(dataset="unknown"), bootstrap)[1] == []
    with pytest.raises(Ham10000Error, match=r"lack the column\(s\) \['dx_type'\]"):
        baseline_rows(lead.image, frame.drop(columns="dx_type"), bootstrap)
