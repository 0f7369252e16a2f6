"""Tables, curves and the checklist for a paper, against scikit-learn and published formulas."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from predicted import predictions, table_of
from sklearn.metrics import confusion_matrix, precision_recall_curve, roc_curve

from ham10000.modeling import LABELS, MALIGNANT
from ham10000.training.evaluation import paper
from ham10000.training.evaluation.bootstrap import cluster_weights
from ham10000.training.evaluation.report import evaluate_predictions

N = 420
TABLE = table_of(*predictions(N))
QUESTIONS = paper.targets(*predictions(N), LABELS, MALIGNANT)
MELANOMA = next(target for target in QUESTIONS if target.name == "mel")


def test_the_curves_are_scikit_learns() -> None:
    false, true, _ = roc_curve(MELANOMA.positive, MELANOMA.scores)
    found = paper.true_positive_rate(MELANOMA)
    for column in (0, 5, 10, 50, 100):
        assert found[column] == true[false <= column / 100 + 1e-9].max()
    precisions, recalls, _ = precision_recall_curve(MELANOMA.positive, MELANOMA.scores)
    found = paper.precision(MELANOMA)
    for column in (1, 50, 100):
        smallest = recalls[recalls >= column / 100 - 1e-9].min()
        assert found[column] in precisions[recalls == smallest]


def test_a_resample_is_the_curve_of_the_lesions_drawn() -> None:
    weights = cluster_weights(TABLE["lesion_group"], 5)
    curves = paper.resampled(paper.true_positive_rate, MELANOMA, weights)
    for found, counts in zip(curves, weights.counts, strict=True):
        rows = np.repeat(np.arange(N), counts[weights.index])  # every lesion drawn, with all its images
        drawn = paper.Target("mel", MELANOMA.positive[rows], MELANOMA.scores[rows])
        np.testing.assert_allclose(found, paper.true_positive_rate(drawn), atol=1e-12)


def test_operating_points_are_those_of_the_metric_and_of_a_confusion_matrix() -> None:
    points = paper.operating_points(QUESTIONS, cluster_weights(TABLE["lesion_group"], 100))
    order = ("malignant", *sorted(LABELS, key=lambda name: name not in MALIGNANT))
    assert points["target"].tolist() == [name for name in order for _ in range(2)]
    assert [one.name for one in paper.targets(*predictions(N), LABELS, ["mel"])][:2] == ["mel", "akiec"]
    row = points[(points["target"] == "mel") & (points["least specificity"] == 0.95)].iloc[0]
    metrics = evaluate_predictions(TABLE, n_resamples=5)["metrics"]
    assert row["sensitivity"] == pytest.approx(metrics["melanoma_sensitivity_at_95_specificity"])
    assert row["low"] <= row["sensitivity"] <= row["high"]
    flagged = MELANOMA.scores >= row["threshold"]
    (_, false), (missed, true) = confusion_matrix(MELANOMA.positive, flagged) * 1000 / N
    counts = ("found per 1,000", "missed per 1,000", "false alarms per 1,000", "flagged per found")
    assert [row[name] for name in counts] == pytest.approx([true, missed, false, (true + false) / true])


def test_ties_do_not_hide_an_operating_point() -> None:
    # Pairs of one image of either kind on a straight line, which scikit-learn leaves out unless asked for all.
    scores = np.repeat([0.9, 0.8, 0.7, 0.1], [2, 2, 2, 20])
    tied = paper.Target("mel", np.arange(26) % 2 * (np.arange(26) < 6) == 1, scores)
    assert paper.true_positive_rate(tied)[10] == pytest.approx(2 / 3)
    row = paper.operating_points([tied], cluster_weights(np.arange(26).astype(str), 20)).iloc[0]
    assert (row["sensitivity"], row["threshold"]) == (pytest.approx(2 / 3), 0.8)


def test_net_benefit_is_the_published_formula() -> None:
    table = paper.net_benefit(MELANOMA)
    for threshold, found in zip(paper.THRESHOLDS, table["model"], strict=True):
        flagged = MELANOMA.scores >= threshold
        true, false = (flagged & MELANOMA.positive).sum(), (flagged & ~MELANOMA.positive).sum()
        assert found == pytest.approx(true / N - false / N * threshold / (1 - threshold))
    everyone = paper.Target("mel", MELANOMA.positive, np.ones(N))
    np.testing.assert_allclose(paper.net_benefit(everyone)["model"], table["all"])


def written(table: pd.DataFrame, malignant: tuple[str, ...], folder: Path) -> dict:
    """The results of a table whose paper is written into the folder."""
    results = evaluate_predictions(table, n_resamples=20) | {"data": "a|b.csv", "split": {"name": "all"}}
    table.to_csv(folder / "predictions.csv", index=False)
    paper.write_paper(folder / "paper", results, folder / "predictions.csv", malignant, n_resamples=20)
    return results


@pytest.mark.parametrize("malignant", [MALIGNANT, ()])
def test_the_files_of_a_paper(malignant: tuple[str, ...], tmp_path: Path) -> None:
    results, folder = written(TABLE, malignant, tmp_path), tmp_path / "paper"
    tables = {f"{name}{kind}" for name in ("results", "per_class", "operating_points") for kind in (".csv", ".tex")}
    figures = {f"{name}{kind}" for name in ("curves", "confusion_matrix", "per_class") for kind in (".pdf", ".svg")}
    assert tables | figures | {"decision_curve.csv", "checklist.md"} <= {path.name for path in folder.iterdir()}
    rows = pd.read_csv(folder / "results.csv", float_precision="round_trip").set_index("metric")
    assert rows.loc["macro-F1", "estimate"] == results["metrics"]["macro_f1"]
    text = (folder / "per_class.tex").read_text()
    assert all(text.count(part) == 1 for part in (r"\toprule", r"\bottomrule", "recall low"))
    assert (folder / "curves.pdf").read_bytes().startswith(b"%PDF")
    text = (folder / "checklist.md").read_text()
    assert "a&#124;b.csv" in text
    assert "not trained by this package" in text
    assert all(line.count("|") == 3 for line in text.splitlines() if line.startswith("|"))


def test_images_of_one_class_have_no_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(TABLE[TABLE["dx"] == "nv"].reset_index(drop=True), MALIGNANT, tmp_path)
    assert "no curves and operating points" in capsys.readouterr().out
    assert not list((tmp_path / "paper").glob("operating_points*"))
    assert "operating_points" not in (tmp_path / "paper" / "checklist.md").read_text()


def test_the_checklist_of_a_trained_model_answers_from_its_files() -> None:
    folder = Path(__file__).parents[2] / "examples" / "checkpoints" / "ham10000-fusion"
    results, training = (json.loads((folder / f"{x}.json").read_text()) for x in ("eval_results", "train_config"))
    text = paper.checklist(results, training)
    assert f"{training['config']['epochs']} epochs, batch {training['config']['batch_size']}" in text
    assert results["split"]["sha256"][:16] in text
    assert "undefined" not in text
    private = {**training, "config": {**training["config"], "pretrained": "/home/me/weights.safetensors"}}
    assert "/home/me" not in paper.checklist(results, private)
