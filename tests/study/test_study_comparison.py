"""Comparisons of variants: against other code, counting by hand, and simulated error rates and power.

The simulations need no model: labels and predictions with a known share of discordant lesions, whose photographs are
alike as far as is asked.
"""

import json
import re

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from ham10000.modeling import Ham10000Error
from ham10000.modeling.configuration_ham10000 import LABELS
from ham10000.training.evaluation.comparison import paired_differences
from ham10000.training.evaluation.metrics import compute_metrics, softmax
from ham10000.training.study.comparison import (
    adjust_comparisons,
    class_changes,
    compare_variants,
    moved_images,
)
from ham10000.training.study.seeds import STUDY_METRICS

NAMES = {"model": "fusion-concat", "other": "image", "kind": "metadata"}


def make(n: int = 300, n_seeds: int = 2, seed: int = 0) -> dict:
    """Two models that share what is hard, the first one better, in no order of lesions or ids."""
    generator = np.random.default_rng(seed)
    lesions = generator.integers(0, n // 2, size=n)
    labels = generator.integers(0, 7, size=n // 2)[lesions]
    shared = generator.normal(size=(n, 7))
    shared[np.arange(n), labels] += 1.5
    logits = shared + 0.7 * generator.normal(size=(2, n_seeds, n, 7))
    logits[0][:, np.arange(n), labels] += 0.5
    return {
        "labels": labels,
        "probabilities": softmax(logits[0]),
        "other_probabilities": softmax(logits[1]),
        "lesion_groups": np.array([f"HAM_{lesion:07d}" for lesion in lesions]),
        "image_ids": generator.permutation([f"ISIC_{i:07d}" for i in range(n)]),
    }


def test_one_seed_is_the_paired_lesion_bootstrap() -> None:
    inputs = make(n_seeds=1)
    comparison = compare_variants(**inputs, **NAMES, n_resamples=200, seed=3)
    expected = paired_differences(
        inputs["labels"],
        inputs["probabilities"][0],
        inputs["other_probabilities"][0],
        inputs["lesion_groups"],
        metrics=STUDY_METRICS,
        n_resamples=200,
        seed=3,
    )
    for name, row in comparison["metrics"].items():
        assert {key: row[key] for key in ("estimate", "low", "high")} == {
            key: expected[name][key] for key in ("estimate", "low", "high")
        }
        assert row["smallest_detectable"] == pytest.approx(2.8016 * row["standard_error"], rel=1e-4)
        # Of a bell-shaped distribution, a 95 % interval is 3.92 standard errors wide.
        assert row["high"] - row["low"] == pytest.approx(3.92 * row["standard_error"], rel=0.2)
    assert (comparison["n_images"], comparison["n_lesions"]) == (300, len(set(inputs["lesion_groups"])))
    json.dumps(comparison, allow_nan=False)


def test_differences_are_those_of_the_seeds_and_change_sign_with_the_models() -> None:
    inputs = make(n_seeds=3)
    comparison = compare_variants(**inputs, **NAMES, n_resamples=100)
    assert comparison["name"] == "fusion-concat - image"
    ours, others = (
        [compute_metrics(inputs["labels"], of_seed) for of_seed in inputs[key]]
        for key in ("probabilities", "other_probabilities")
    )
    for name, row in comparison["metrics"].items():
        expected = [mine[name] - theirs[name] for mine, theirs in zip(ours, others, strict=True)]
        assert row["per_seed"] == pytest.approx(expected, abs=1e-12)
        assert row["estimate"] == pytest.approx(np.mean(expected), abs=1e-12)
    exchanged = inputs | {
        "probabilities": inputs["other_probabilities"],
        "other_probabilities": inputs["probabilities"],
    }
    back = compare_variants(**exchanged, model="image", other="fusion-concat", kind="metadata", n_resamples=100)
    for name, row in back["metrics"].items():
        assert row["estimate"] == pytest.approx(-comparison["metrics"][name]["estimate"], abs=1e-12)
        assert row["low"] == pytest.approx(-comparison["metrics"][name]["high"], abs=1e-12)
        assert row["p"] == comparison["metrics"][name]["p"]


def test_pairing_by_seed_cancels_what_seeds_share() -> None:
    """The second seed is far worse for both models: their difference does not vary with the seeds drawn."""
    inputs = make(n_seeds=1)
    for key in ("probabilities", "other_probabilities"):
        inputs[key] = np.concatenate([inputs[key], inputs[key][..., [1, 2, 3, 4, 5, 6, 0]]])
    one = compare_variants(**(inputs | {k: inputs[k][:1] for k in ("probabilities", "other_probabilities")}), **NAMES)
    two = compare_variants(**inputs, **NAMES)
    ours = two["metrics"]["accuracy"]["standard_error"]
    assert ours < 2 * one["metrics"]["accuracy"]["standard_error"]
    assert ours < 0.1 * abs(
        np.diff([compute_metrics(inputs["labels"], p)["accuracy"] for p in inputs["probabilities"]])
    )


def test_mcnemar_counts_images_and_one_photograph_a_lesion() -> None:
    inputs = make()
    result = compare_variants(**inputs, **NAMES, metrics=["macro_f1"], n_resamples=20)["mcnemar"]
    right, other_right = (
        inputs[key].mean(axis=0).argmax(axis=1) == inputs["labels"] for key in ("probabilities", "other_probabilities")
    )
    first: dict[str, int] = {}
    for row in sorted(range(300), key=lambda row: inputs["image_ids"][row]):
        first.setdefault(inputs["lesion_groups"][row], row)
    for name, rows in (("images", range(300)), ("lesions", first.values())):
        table = np.zeros((2, 2), dtype=int)
        for row in rows:
            table[int(right[row]), int(other_right[row])] += 1
        assert result[name]["only_model_right"] == table[1, 0]
        assert result[name]["only_other_right"] == table[0, 1]
        discordant = table[0, 1] + table[1, 0]
        exact = mcnemar(table, exact=True).pvalue
        assert result[name]["p"] == pytest.approx(exact - stats.binom.pmf(table[0, 1], discordant, 0.5))
    single = [inputs[key][0].argmax(axis=1) == inputs["labels"] for key in ("probabilities", "other_probabilities")]
    assert (single[0] & ~single[1]).sum() != result["images"]["only_model_right"]  # averaged is not the first seed


def test_the_order_of_the_rows_does_not_matter() -> None:
    inputs = make()
    order = np.random.default_rng(1).permutation(300)
    shuffled = {key: value[:, order] if value.ndim == 3 else value[order] for key, value in inputs.items()}
    ours = compare_variants(**inputs, **NAMES, metrics=["macro_f1"], n_resamples=50)
    assert compare_variants(**shuffled, **NAMES, metrics=["macro_f1"], n_resamples=50) == ours


def comparison(estimate: float, low: float, high: float, p: float, **changes: object) -> dict:
    error = (high - low) / (2 * 1.959964)
    primary = {"estimate": estimate, "low": low, "high": high, "p": p, "standard_error": error}
    row = {
        "name": "fusion-concat - image",
        **NAMES,
        "n_lesions": 1745,
        "primary": "macro_f1",
        "metrics": {"macro_f1": primary},
        "mcnemar": {"images": {"p": 0.5}, "lesions": {"p": p}},
    }
    return row | changes


def test_a_family_is_corrected_together() -> None:
    family = [comparison(0.044, 0.01, 0.08, p) for p in (0.04, 0.001, 0.02, 0.6)]
    for row, p in zip(family, (0.5, 0.02, 0.03, 0.001), strict=True):
        row["mcnemar"]["lesions"]["p"] = p
    adjusted = adjust_comparisons(family)
    assert [row["p_holm"] for row in adjusted] == pytest.approx(
        multipletests([0.04, 0.001, 0.02, 0.6], method="holm")[1]
    )
    assert [row["mcnemar"]["p_holm"] for row in adjusted] == pytest.approx(
        multipletests([0.5, 0.02, 0.03, 0.001], method="holm")[1]
    )
    assert [row["verdict"] for row in adjusted] == ["cannot be told apart", "helps"] + ["cannot be told apart"] * 2
    assert "p_holm" not in family[0]
    assert "p_holm" not in family[0]["mcnemar"]
    error = family[0]["metrics"]["macro_f1"]["standard_error"]
    expected = error * (stats.norm.ppf(1 - 0.05 / 8) + stats.norm.ppf(0.8))
    assert [row["smallest_detectable"] for row in adjusted] == pytest.approx([expected] * 4)
    assert adjust_comparisons([]) == []


def test_the_sentences() -> None:
    def sentence(*numbers: float, **changes: object) -> str:
        return adjust_comparisons([comparison(*numbers, **changes)])[0]["sentence"]

    assert sentence(0.044, -0.007, 0.096, 0.18) == (
        "fusion-concat against image: macro-F1 +0.044 [-0.007, +0.096], p = 0.18 after Holm: no significant "
        "difference at this size (1,745 lesions); an effect of 0.074 would have been found with 80 % power."
    )
    assert sentence(0.05, 0.01, 0.09, 0.0123) == (
        "fusion-concat against image: macro-F1 +0.050 [+0.010, +0.090], p = 0.012 after Holm: it helps."
    )
    assert sentence(-0.05, -0.09, -0.01, 0.0004).endswith(
        "macro-F1 -0.050 [-0.090, -0.010], p < 0.001 after Holm: it hurts."
    )
    assert sentence(0.05, 0.0, 0.09, 0.05).endswith("80 % power.")  # 0.05 is not below 0.05


def test_equal_models_cannot_be_told_apart() -> None:
    inputs = make()
    inputs["other_probabilities"] = inputs["probabilities"]
    (row,) = adjust_comparisons([compare_variants(**inputs, **NAMES, n_resamples=50)])
    assert all(metric["estimate"] == metric["low"] == metric["high"] == 0 for metric in row["metrics"].values())
    assert (row["p_holm"], row["mcnemar"]["p_holm"]) == (1, 1)
    assert row["verdict"] == "cannot be told apart"
    assert re.search(r"the two give the same answers at this size \(\d+ lesions\)\.$", row["sentence"])
    json.dumps(row, allow_nan=False)


def test_an_undefined_metric_has_no_p_value() -> None:
    inputs = make()
    kept = inputs["labels"] != LABELS.index("mel")
    inputs = {key: value[:, kept] if value.ndim == 3 else value[kept] for key, value in inputs.items()}
    row = compare_variants(**inputs, **NAMES, n_resamples=20)["metrics"]["auroc_macro"]
    assert row == dict.fromkeys(("estimate", "low", "high", "p", "standard_error", "smallest_detectable")) | {
        "per_seed": [None, None]
    }
    broken = comparison(0, 0, 0, 1)
    broken["metrics"]["macro_f1"]["p"] = None
    with pytest.raises(Ham10000Error, match="macro_f1 of 'fusion-concat - image' is undefined"):
        adjust_comparisons([broken])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "image"}, "kind of comparison 'image'"),
        ({"metrics": ["accuracy"]}, "must hold 'macro_f1'"),
        ({"other_probabilities": np.full((3, 300, 7), 1 / 7)}, "has 2 seeds and image 3"),
        ({"other_probabilities": np.full((2, 299, 7), 1 / 7)}, r"\(S, 300, 7\)"),
        ({"image_ids": ["ISIC_0000001"] * 300}, "1 of them different"),
        ({"image_ids": ["ISIC_0000001"]}, "300 image ids"),
        ({"lesion_groups": ["a", "b"]}, "2 clusters"),
    ],
)
def test_bad_input_is_named(changes: dict, message: str) -> None:
    with pytest.raises(Ham10000Error, match=message):
        compare_variants(**(make() | NAMES | {"n_resamples": 5} | changes))


def one_hot(*names: str) -> np.ndarray:
    return np.eye(7)[[LABELS.index(name) for name in names]]


def test_changes_and_moves_by_hand() -> None:
    dx = ["nv", "nv", "nv", "mel", "mel", "bkl", "bkl"]
    labels = np.array([LABELS.index(name) for name in dx])
    lesions = np.array(["L2", "L2", "L1", "L3", "L3", "L4", "L5"])
    before = one_hot("mel", "nv", "nv", "nv", "nv", "nv", "bkl")[None]
    after = one_hot("nv", "mel", "nv", "mel", "mel", "df", "bkl")[None]
    changes = class_changes(labels, after, before, lesions)
    assert list(changes) == list(LABELS)
    nothing = {"images": 0, "lesions": 0}
    one = {"images": 1, "lesions": 1}
    assert changes["nv"] == {"n_images": 3, "n_lesions": 2, "right_to_wrong": one, "wrong_to_right": one}
    assert changes["mel"]["wrong_to_right"] == {"images": 2, "lesions": 1}
    assert changes["mel"]["right_to_wrong"] == nothing
    assert changes["bkl"] == {"n_images": 2, "n_lesions": 2, "right_to_wrong": nothing, "wrong_to_right": nothing}
    assert changes["df"]["n_images"] == changes["df"]["n_lesions"] == 0
    moved = moved_images(list("gfedcba"), lesions, labels, after, before)
    assert [
        (row["lesion_id"], row["image_id"], row["dx"], row["before"], row["after"], row["direction"]) for row in moved
    ] == [
        ("L2", "f", "nv", "nv", "mel", "right_to_wrong"),
        ("L2", "g", "nv", "mel", "nv", "wrong_to_right"),
        ("L3", "c", "mel", "nv", "mel", "wrong_to_right"),
        ("L3", "d", "mel", "nv", "mel", "wrong_to_right"),
        ("L4", "b", "bkl", "nv", "df", "wrong_to_wrong"),
    ]
    json.dumps([changes, moved], allow_nan=False)


def test_changes_and_moves_are_of_the_averaged_probabilities() -> None:
    """Two seeds call nv, the third is sure of mel and turns the mean: counted by seed, nothing would move."""
    labels = np.array([LABELS.index("mel"), LABELS.index("nv")])
    mild = 0.6 * one_hot("nv", "nv") + 0.4 * one_hot("mel", "mel")
    after = np.stack([mild, mild, one_hot("mel", "nv")])
    before = np.stack([mild, mild, mild])
    assert class_changes(labels, after, before, ["a", "b"])["mel"]["wrong_to_right"]["images"] == 1
    (row,) = moved_images(["x", "y"], ["a", "b"], labels, after, before)
    assert row["image_id"] == "x"


# --- simulations: n_lesions lesions of `size` photographs, all alike with probability `alike`, else independent ---
