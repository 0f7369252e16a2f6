"""An evaluation's files: complete, strict, and enough to reproduce every number."""

import copy
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from predicted import predictions, table_of
from sklearn.metrics import balanced_accuracy_score

from ham10000.modeling.configuration_ham10000 import LABELS, Ham10000Error
from ham10000.training.data.sources import load_data, metadata_frame
from ham10000.training.data.split import make_split
from ham10000.training.evaluation import plots
from ham10000.training.evaluation.__main__ import main as evaluate
from ham10000.training.evaluation.metrics import HEADLINE_METRICS
from ham10000.training.evaluation.plots import plot_confusion_matrix, plot_training_curves
from ham10000.training.evaluation.report import (
    evaluate_predictions,
    format_results,
    read_predictions,
    write_evaluation,
)
from ham10000.training.inference.output import ISIC_COLUMNS
from ham10000.training.utils.files import atomic_path, atomic_write_json, atomic_write_text, read_json

LABEL_IDS, PROBABILITIES = predictions(120)
TABLE = table_of(LABEL_IDS, PROBABILITIES)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    results = evaluate_predictions(TABLE, n_resamples=200, seed=1)
    output_dir = tmp_path_factory.mktemp("runs") / "fusion"
    path = write_evaluation(output_dir, results | {"split": {"name": "test"}, "seed": 42}, TABLE)
    assert path == output_dir / "eval_results.json"
    return output_dir, results


def test_files_are_complete_and_strict_and_reproduce_every_number(written: tuple[Path, dict]) -> None:
    output_dir, results = written
    table, labels, probabilities = read_predictions(output_dir / "predictions.csv")
    np.testing.assert_array_equal(probabilities, PROBABILITIES)
    np.testing.assert_array_equal(labels, LABEL_IDS)
    assert evaluate_predictions(table, n_resamples=200, seed=1) == results
    columns = ["image_id", "lesion_id", "lesion_group", "dx", "predicted", "correct"]
    assert table.columns.tolist() == [*columns, *(f"p_{label}" for label in LABELS)]
    assert table["correct"].mean() == results["metrics"]["accuracy"]
    assert (table["predicted"] == np.array(LABELS)[probabilities.argmax(axis=1)]).all()
    saved = json.loads((output_dir / "eval_results.json").read_text(), parse_constant=pytest.fail)
    assert saved == {**results, "split": {"name": "test"}, "seed": 42}
    assert set(saved["intervals"]) == {*HEADLINE_METRICS, "per_class"}
    for name in HEADLINE_METRICS:
        interval = saved["intervals"][name]
        assert interval["estimate"] == pytest.approx(saved["metrics"][name], abs=1e-12)
        assert interval["low"] < interval["high"]
    names = {path.relative_to(output_dir).as_posix() for path in output_dir.rglob("*") if path.is_file()}
    figures = {f"figures/{name}.png" for name in ("confusion_matrix", "reliability", "per_class")}
    assert names == {"eval_results.json", "predictions.csv", *figures}
    for name in figures:
        with Image.open(output_dir / name) as image:
            assert image.width == 1200
            assert np.asarray(image.convert("L")).std() > 5
    again = plot_confusion_matrix(results["metrics"], output_dir.parent / "again.png")
    assert again.read_bytes() == (output_dir / "figures" / "confusion_matrix.png").read_bytes()


def test_results_as_text_also_without_a_class(written: tuple[Path, dict], tmp_path: Path) -> None:
    text, interval = format_results(written[1]), written[1]["intervals"]["macro_f1"]
    assert "120 images of 60 lesions" in text
    assert f"{interval['estimate']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]" in text
    assert all(f"\n  {label} " in text for label in LABELS)
    without = TABLE.query("dx != 'df'").reset_index(drop=True)
    results = evaluate_predictions(without, n_resamples=50)
    write_evaluation(tmp_path, results, without)
    assert re.search("undefined.*no images, or no others, of df", format_results(results))


def test_a_class_of_few_images_is_not_called_the_weakest(written: tuple[Path, dict], tmp_path, monkeypatch) -> None:
    titles: list[str] = []
    monkeypatch.setattr(plots, "set_title", lambda _, title: titles.append(title))
    results = copy.deepcopy(written[1])
    recalls, counts = results["intervals"]["per_class"], results["metrics"]["per_class"]
    for label in LABELS:
        recalls[label]["recall"]["estimate"] = 0.5 if label == "bkl" else 0.9
        counts[label]["support"] = 10
    recalls["vasc"]["recall"]["estimate"] = 0.0
    for counts["vasc"]["support"] in (10, 9):
        plots.plot_per_class(results, tmp_path / "classes.png")
    assert titles[0].startswith("The class missed most is vasc: recall 0.00")
    assert titles[1].startswith("The class missed most, of those with 10 images or more, is bkl: recall 0.50")


def test_bad_input_is_named(written: tuple[Path, dict], tmp_path: Path) -> None:
    with pytest.raises(Ham10000Error, match="'ISIC_0000000' is duplicated"):
        evaluate_predictions(TABLE.assign(image_id="ISIC_0000000"), n_resamples=5)
    with pytest.raises(ValueError, match="JSON compliant"):
        write_evaluation(tmp_path / "run", written[1] | {"seconds": float("nan")}, TABLE)
    assert not (tmp_path / "run").exists()
    for wrong, message in (
        (TABLE.drop(columns="lesion_group"), r"lacks the column\(s\) \['lesion_group'\]"),
        (TABLE.replace({"dx": {"mel": "melanoma"}}), r"unknown dx \['melanoma'\]"),
    ):
        wrong.to_csv(tmp_path / "other.csv", index=False)
        with pytest.raises(Ham10000Error, match=message):
            read_predictions(tmp_path / "other.csv")
    with pytest.raises(Ham10000Error, match="no epochs"):
        plot_training_curves([], tmp_path / "curves.png")


def test_json_is_read_or_refused_and_atomic_files_are_whole_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.json"
    assert read_json(target, optional=True) is None
    assert atomic_write_text(target, '["é"]').read_bytes() == '["é"]'.encode()
    with pytest.raises(RuntimeError, match="in the middle"), atomic_path(target) as temporary:  # noqa: PT012
        assert temporary.suffix == ".json"
        temporary.write_text("half")
        raise RuntimeError("in the middle")
    with pytest.raises(ValueError, match="JSON compliant"):
        atomic_write_json(target, {"loss": float("inf")})
    assert read_json(target, list) == ["é"]
    assert [path.name for path in target.parent.iterdir()] == ["file.json"]
    for content, message in (
        (b"\xff", "cannot be read as JSON: 'utf-8' codec"),
        (b"[" * 100_000, "cannot be read as JSON: maximum recursion"),
        (b"[]", "must contain a JSON dict, got list"),
    ):
        target.write_bytes(content)
        with pytest.raises(Ham10000Error, match=rf"file\.json' {message}"):
            read_json(target, optional=True)


def test_a_source_is_scored_and_submitted(synthetic_folder: Path, tiny_checkpoints, tmp_path: Path, capsys) -> None:
    submission = tmp_path / "submission.csv"
    checkpoint = shutil.copytree(tiny_checkpoints["metadata"], tmp_path / "checkpoint")
    options = ["--checkpoint", str(checkpoint), "--data", str(synthetic_folder), "--split", "all"]
    options += ["--n_resamples", "50", "--isic_submission", str(submission), "--tables", str(tmp_path / "paper")]
    assert evaluate(options) == 0, capsys.readouterr().err
    assert "was trained on" not in capsys.readouterr().out
    # As the official file of the ISIC 2018 test set begins.
    assert submission.read_text().startswith("image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\n")
    table, columns = pd.read_csv(submission), list(ISIC_COLUMNS)
    np.testing.assert_allclose(table[columns].sum(axis=1), 1, atol=1e-6)
    predicted = [ISIC_COLUMNS[name] for name in table[columns].idxmax(axis=1)]
    dataset, _ = load_data(str(synthetic_folder))
    assert table["image"].tolist() == dataset["image_id"][:]
    results = json.loads((checkpoint / "evaluation_all" / "eval_results.json").read_text())
    # The challenge's score is the mean recall over classes.
    expected = balanced_accuracy_score(metadata_frame(dataset)["dx"], predicted)
    assert results["metrics"]["balanced_accuracy"] == pytest.approx(expected)
    rows = pd.read_csv(tmp_path / "paper" / "results.csv").set_index("metric")
    assert rows.loc["balanced accuracy", "estimate"] == pytest.approx(expected)

    split = make_split(dataset)
    split.save(checkpoint)
    assert evaluate(options[:-2]) == 0
    assert f"was trained on {split.sizes['train']} of these images" in capsys.readouterr().out


def test_a_leak_counts_every_part_that_was_trained_on(synthetic_folder: Path, tiny_checkpoints, tmp_path) -> None:
    checkpoint = shutil.copytree(tiny_checkpoints["metadata"], tmp_path / "checkpoint")
    dataset = load_data(str(synthetic_folder))[0]
    splits = (make_split(dataset, protocol="image-stratified", seed=seed) for seed in range(50))
    both = ("train", "validation")
    split = next(one for one in splits if one.leakage(both)["test"]["all"] > one.leakage()["test"]["all"])
    split.save(checkpoint)
    atomic_write_json(checkpoint / "train_config.json", {"config": {"train_on_validation": True}})
    options = ["--checkpoint", str(checkpoint), "--data", str(synthetic_folder), "--n_resamples", "5"]
    assert evaluate(options) == 0
    leaks = read_json(checkpoint / "eval_results.json")["split"]["leakage"]
    trained = split.table["split"] != "test"
    seen = split.table["lesion_id"].isin(split.table["lesion_id"][trained])
    assert leaks["test"]["all"] == pytest.approx(seen[~trained].mean())
    assert leaks["validation"]["all"] == 1.0
