"""Images with labels in ISIC's formats become rows (see also `test_layouts.py`), predictions a submission."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import balanced_accuracy_score

from ham10000.modeling import LABELS, Ham10000Config, Ham10000Error, create_model, create_processor
from ham10000.training.data.sources import load_data, metadata_frame
from ham10000.training.evaluation.__main__ import main as evaluate
from ham10000.training.inference.output import ISIC_COLUMNS
from ham10000.training.utils.columns import SITES, DataOptions

# As the official file of the ISIC 2018 test set begins.
HEADER = "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC"


def write_isic(folder: Path, labels: list[str]) -> Path:
    """The layout of the ISIC 2018 archives: a folder of images next to one with the ground truth."""
    pictures, truth = folder / "ISIC2018_Task3_Test_Input", folder / "ISIC2018_Task3_Test_GroundTruth"
    pictures.mkdir(parents=True)
    truth.mkdir()
    names = list(ISIC_COLUMNS)
    lines = [HEADER]
    for number, label in enumerate(labels):
        image_id = f"ISIC_{34524 + number:07d}"
        values = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(values).save(pictures / f"{image_id}.jpg")
        lines.append(",".join([image_id, *(f"{float(ISIC_COLUMNS[name] == label)}" for name in names)]))
    (truth / "ISIC2018_Task3_Test_GroundTruth.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_sites_are_in_our_vocabulary() -> None:
    assert set(SITES.values()) <= set(Ham10000Config().localization_vocabulary)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("ISIC_0034524,0,0,0,0,0,0,0\n", r"line 2: expected a 1 in one of .* got \['0', '0'"),
        ("ISIC_0034524,1,0,0,0,0,0,0\nISIC_0034525,1,1,0,0,0,0,0\n", "line 3"),
        ("ISIC_0034524,yes,0,0,0,0,0,0\n", "'yes'"),
        ("ISIC_0034524,0.4,0.6,0,0,0,0,0\n", "'0.4'"),
    ],
)
def test_a_row_that_names_no_class_is_named(tmp_path: Path, rows: str, message: str) -> None:
    folder = write_isic(tmp_path, ["mel", "nv"])
    next(folder.rglob("*GroundTruth.csv")).write_text(f"{HEADER}\n{rows}")
    with pytest.raises(Ham10000Error, match=message):
        load_data(str(folder))


def test_a_class_we_do_not_have_makes_a_set_of_its_own(tmp_path: Path) -> None:
    """ISIC 2019 has squamous cell carcinoma."""
    folder = write_isic(tmp_path, ["mel", "nv"])
    truth = next(folder.rglob("*GroundTruth.csv"))
    truth.write_text(f"{HEADER},SCC\nISIC_0034524,0,0,0,0,0,0,0,1\nISIC_0034525,0,1,0,0,0,0,0,0\n")
    dataset, report = load_data(str(folder))
    assert report.labels == dataset.features["dx"].names == sorted([*LABELS, "scc"])
    assert metadata_frame(dataset)["dx"].tolist() == ["scc", "nv"]
    dataset, report = load_data(str(folder), drop_unknown_labels=True)
    assert report.labels == list(LABELS)
    assert metadata_frame(dataset)["dx"].tolist() == ["nv"]
    with pytest.raises(
        Ham10000Error, match=r"unknown label in 1 row.*'vasc'\], got 'scc'; --label_map.*drop_unknown_labels"
    ):
        load_data(str(folder), DataOptions(labels=LABELS))
    dataset, report = load_data(str(folder), DataOptions(label_map={"SCC": "akiec"}))
    assert metadata_frame(dataset)["dx"].tolist() == ["akiec", "nv"]
    assert any("'scc' is read as 'akiec'" in note for note in report.notes)


def test_two_ground_truths_must_be_told_apart(tmp_path: Path) -> None:
    folder = write_isic(tmp_path, ["mel", "nv"])
    truth = next(folder.rglob("*GroundTruth.csv"))
    (truth.parent / "Other_GroundTruth.csv").write_text(truth.read_text())
    with pytest.raises(Ham10000Error, match=r"several tables of labels.*Other_GroundTruth\.csv"):
        load_data(str(folder))


def test_it_is_scored_with_one_command_and_submitted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = [*LABELS, *LABELS]
    folder = write_isic(tmp_path / "data", labels)
    config = Ham10000Config(modality="fusion", backbone="test_efficientnet")
    checkpoint = tmp_path / "checkpoint"
    create_model(config).save_pretrained(checkpoint)
    create_processor(config, image_size=32).save_pretrained(checkpoint)
    submission = tmp_path / "submission.csv"
    options = ["--checkpoint", str(checkpoint), "--data", str(folder), "--split", "all", "--n_resamples", "50"]
    options += ["--cache_dir", str(tmp_path / "cache"), "--isic_submission", str(submission)]
    options += ["--tables", str(tmp_path / "paper")]
    assert evaluate(options) == 0, capsys.readouterr().err
    table = pd.read_csv(submission)
    assert ",".join(table.columns) == HEADER
    np.testing.assert_allclose(table[list(ISIC_COLUMNS)].sum(axis=1), 1, atol=1e-6)
    predicted = [ISIC_COLUMNS[name] for name in table[list(ISIC_COLUMNS)].idxmax(axis=1)]
    results = json.loads((checkpoint / "evaluation_all" / "eval_results.json").read_text())
    # The challenge's score is the mean recall over classes.
    expected = balanced_accuracy_score(labels, predicted)
    assert results["metrics"]["balanced_accuracy"] == pytest.approx(expected)
    rows = pd.read_csv(tmp_path / "paper" / "results.csv").set_index("metric")
    assert rows.loc["balanced accuracy", "estimate"] == pytest.approx(expected)
    assert "was trained on" not in capsys.readouterr().out


def test_images_of_the_training_set_are_told(tmp_path: Path, synthetic_folder: Path, capsys) -> None:
    from ham10000.training.data.split import make_split

    config = Ham10000Config(modality="metadata")
    create_model(config).save_pretrained(tmp_path)
    create_processor(config).save_pretrained(tmp_path)
    split = make_split(load_data(str(synthetic_folder))[0])
    split.save(tmp_path)
    options = ["--checkpoint", str(tmp_path), "--data", str(synthetic_folder), "--split", "all", "--n_resamples", "50"]
    assert evaluate(options) == 0
    assert f"was trained on {split.sizes['train']} of these images" in capsys.readouterr().out
