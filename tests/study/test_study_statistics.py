"""Comparisons, prediction sets and the leak of a study, found again with scikit-learn, scipy and statsmodels."""

import math

import numpy as np
import pandas as pd
import pytest
from analysed_study import CONFIG, Protocol, analysed
from scipy import special, stats
from sklearn.metrics import accuracy_score, f1_score, recall_score
from statsmodels.stats.multitest import multipletests

from ham10000.modeling import LABELS


@pytest.fixture(scope="module")
def lead() -> Protocol:
    return analysed()["lesion-grouped"]


def test_mcnemar_takes_one_image_per_lesion_and_the_answer_of_most_seeds(lead: Protocol) -> None:
    labels, first, differs = lead.image.labels, ~pd.Series(lead.image.groups).duplicated().to_numpy(), []
    for row in lead.results["comparisons"]:
        # Of answers that are equally frequent, scipy takes the smallest.
        answers = [lead.variants[row[name]].predictions.logits.argmax(axis=2) for name in ("model", "other")]
        ours, theirs = (stats.mode(of_seeds, axis=0).mode == labels for of_seeds in answers)
        only, only_other = (ours & ~theirs)[first].sum(), (theirs & ~ours)[first].sum()
        found, total = row["mcnemar"], only + only_other
        assert (found["only_model_right"], found["only_other_right"]) == (only, only_other)
        exact, observed = stats.binomtest(only, total).pvalue, stats.binom.pmf(only, total, 0.5)
        assert found["p"] == pytest.approx(exact - observed / (1 + (only == only_other)))
        differs.append((ours & ~theirs).sum() != only)
    assert any(differs), "all images would give the same counts"


def test_verdicts_follow_holms_correction_of_the_whole_family(lead: Protocol) -> None:
    rows, variants = lead.results["comparisons"], lead.results["variants"]
    assert [(row["model"], row["other"]) for row in rows] == list(CONFIG.comparisons)
    raw = [row["metrics"]["macro_f1"]["p"] for row in rows]
    assert [row["p_holm"] for row in rows] == pytest.approx(multipletests(raw, method="holm")[1].tolist())
    alone, of_three = (stats.norm.ppf(1 - 0.025 / m) + stats.norm.ppf(0.8) for m in (1, 3))
    for row in rows:
        for name, found in row["metrics"].items():
            means = [variants[row[side]]["metrics"][name]["estimate"] for side in ("model", "other")]
            assert found["estimate"]["estimate"] == pytest.approx(means[0] - means[1])
        primary = row["metrics"]["macro_f1"]
        assert row["smallest_detectable"] == pytest.approx(primary["smallest_detectable"] / alone * of_three)
        better = "helps" if primary["estimate"]["estimate"] > 0 else "hurts"
        assert row["verdict"] == (better if row["p_holm"] < 0.05 else "no significant difference")
    assert rows[0]["verdict"] == "helps"


def test_sets_of_every_variant_cover_what_a_split_conformal_predictor_does(lead: Protocol) -> None:
    labels, folds = lead.image.labels, lead.image.folds
    for name, fitted in lead.variants.items():
        for row in lead.results["variants"][name]["sets"]:
            hits = np.zeros((2, len(labels)))
            for s, logits in enumerate(fitted.predictions.logits):
                # Every image by the calibration of its own fold.
                p = special.softmax(logits / fitted.temperatures[s, folds][:, None] + fitted.biases[s, folds], axis=1)
                for f in range(3):
                    for k in range(7):
                        scores = np.sort(1 - p[(folds != f) & (labels == k), k])
                        rank = math.ceil(round((len(scores) + 1) * row["coverage"], 9))
                        test = (folds == f) & (labels == k)
                        hits[s, test] = rank > len(scores) or 1 - p[test, k] <= scores[rank - 1]
            for k, label in enumerate(LABELS):
                assert row["per_class"][label]["estimate"] == pytest.approx(hits[:, labels == k].mean())
            assert row["per_class"]["nv"]["estimate"] > row["coverage"] - 0.1, name


def test_the_leak_is_the_difference_between_lesions_seen_and_not_seen() -> None:
    protocol = analysed()["image-stratified"]
    found, seen, labels = protocol.results["leakage"], protocol.inputs.frame["seen"].to_numpy(), protocol.image.labels
    common = sorted(set(labels[seen]) & set(labels[~seen]))
    assert found["classes"] == [LABELS[k] for k in common]
    options = {"labels": common, "average": "macro", "zero_division": 0}
    means = {}
    for part, rows in (("seen", seen), ("unseen", ~seen)):
        lesions = set(protocol.image.groups[rows])
        assert (found[part]["n_images"], found[part]["n_lesions"]) == (rows.sum(), len(lesions))
        for name, function in (
            ("accuracy", accuracy_score),
            ("macro_f1", lambda truth, answers: f1_score(truth, answers, **options)),
            ("balanced_accuracy", lambda truth, answers: recall_score(truth, answers, **options)),
        ):
            expected = [function(labels[rows], logits[rows].argmax(axis=1)) for logits in protocol.image.logits]
            assert found[part]["metrics"][name]["per_seed"] == pytest.approx(expected)
            means[part, name] = np.mean(expected)
    for name, row in found["difference"].items():
        assert row["estimate"] == pytest.approx(means["seen", name] - means["unseen", name])
    # Of other lesions, so their variances add up.
    parts = (found["seen"]["metrics"], found["unseen"]["metrics"], found["difference"])
    seen_width, unseen_width, width = (one["accuracy"]["high"] - one["accuracy"]["low"] for one in parts)
    assert width == pytest.approx(np.hypot(seen_width, unseen_width), rel=0.3)
