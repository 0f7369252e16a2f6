import csv
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skin import skin_image

from ham10000.modeling import LABELS, Ham10000Config, Ham10000Error, Ham10000ForImageClassification, Ham10000Processor
from ham10000.training.inference.inputs import Sample, find_images
from ham10000.training.inference.output import DISCLAIMER, Predictions, format_table
from ham10000.training.inference.prediction import load_checkpoint, predict
from ham10000.training.predict import main

BACK = {"age": "60", "sex": "male", "localization": "back"}
FLAGS = ["--age", "60", "--sex", "male", "--localization", "back"]


@pytest.fixture(scope="session")
def checkpoints(tiny_checkpoints, tmp_path_factory) -> dict[str, str]:
    """An untrained checkpoint of each variant, the fusion one with a temperature; read-only for tests."""
    fusion = changed(tiny_checkpoints["fusion"], tmp_path_factory.mktemp("checkpoints") / "fusion", temperature=0.25)
    return {modality: str(path) for modality, path in (tiny_checkpoints | {"fusion": fusion}).items()}


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four images, one of them in a sub-folder, next to files that are not images."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "more").mkdir()
    (folder / ".hidden").mkdir()
    for number, name in enumerate(("b.jpg", "a.PNG", "c.tif", "more/d.jpeg")):
        skin_image(number).save(folder / name)
    (folder / "._b.jpg").write_bytes(b"resource fork")
    (folder / ".hidden" / "e.jpg").write_bytes(b"not shown")
    (folder / "notes.txt").write_text("not a picture")
    return folder


def write_csv(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def changed(checkpoint: str, folder: Path, **settings: Any) -> str:
    """A copy of a checkpoint with other settings."""
    config = json.loads((shutil.copytree(checkpoint, folder) / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    return str(folder)


def direct(checkpoint: str, **inputs: Any) -> np.ndarray:
    """What the model and the processor give without our code in between."""
    model: Any = Ham10000ForImageClassification.from_pretrained(checkpoint)
    processor = Ham10000Processor.from_pretrained(checkpoint)
    with torch.inference_mode():
        logits = model.eval()(**processor(**inputs)).logits
    return logits.double().softmax(-1).numpy()


def run_json(capsys: pytest.CaptureFixture[str], *argv: str) -> list[dict[str, Any]]:
    return json.loads(printed(capsys, *argv, "--format", "json"))


def shares(records: list[dict[str, Any]]) -> np.ndarray:
    return np.array([[record["probabilities"][label] for label in LABELS] for record in records])


def class_rows(table: str) -> list[list[str]]:
    """The words of each line of a table that begins with a label."""
    return [words for line in table.splitlines() if (words := line.split()) and words[0] in LABELS]


def fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(list(argv)) == 2
    return capsys.readouterr().err


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(list(argv)) == 0
    return capsys.readouterr().out


def test_predict_batches_and_modes(checkpoints, pictures: Path) -> None:
    model, processor = load_checkpoint(checkpoints["fusion"])
    images = find_images([pictures])
    whole = predict(model, processor, images, [BACK] * 4)
    np.testing.assert_allclose(predict(model, processor, images, [BACK] * 4, batch_size=3), whole, rtol=1e-4)
    # A model in training mode would drop features and metadata at random.
    model.train()
    np.testing.assert_array_equal(predict(model, processor, images, [BACK] * 4), whole)
    assert model.training
    assert np.abs(predict(model, processor, images) - whole).max() > 1e-4
    for arguments, message in (
        ([], "Nothing to predict"),
        ([None, []], "Nothing to predict"),
        ([images, [BACK]], "Got 4 images but 1 rows"),
        ([None, [BACK]], "needs `pixel_values`"),
        ([images, None, 0], "`batch_size` must be at least 1"),
    ):
        with pytest.raises(Ham10000Error, match=message):
            predict(model, processor, *arguments)


def test_the_fast_path_decodes_once_and_gives_the_same(checkpoints, pictures: Path, capsys, monkeypatch) -> None:
    argv = [str(pictures), "--checkpoint", checkpoints["fusion"], *FLAGS]
    plain = shares(run_json(capsys, *argv))
    opened, open_image = [], Image.open
    monkeypatch.setattr(Image, "open", lambda path, **options: opened.append(path) or open_image(path, **options))
    np.testing.assert_allclose(shares(run_json(capsys, *argv, "--precision", "fp32")), plain, rtol=1e-3, atol=1e-5)
    assert sorted(opened) == find_images([pictures])


def test_table_of_one_picture(checkpoints, pictures: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    picture = pictures / "b.jpg"
    out = printed(capsys, str(picture), "--checkpoint", checkpoints["fusion"], *FLAGS[:2], "--sex", "Male")
    lines = out.splitlines()
    expected = direct(checkpoints["fusion"], images=[picture], metadata=[{"age": 60, "sex": "male"}])[0]
    best = LABELS[expected.argmax()]
    assert "age 60, sex male, localization unknown" in lines
    assert f"Predicted: {best}, {Ham10000Config().label_descriptions[best]}" in lines
    malignant = sum(expected[LABELS.index(label)] for label in ("mel", "bcc", "akiec"))
    assert any("malignant total (mel + bcc + akiec)" in line and f"{malignant:.1%}" in line for line in lines)
    assert " ".join(lines).endswith(DISCLAIMER)
    # The metadata is what changed: the columns on the right are the same image without it.
    without = direct(checkpoints["fusion"], images=[picture])[0]
    for row, index in zip(class_rows(out), np.argsort(-expected), strict=True):
        change = 100 * (expected[index] - without[index])
        assert row[0] == LABELS[index]
        assert f"{expected[index]:.1%}" in row
        assert row[-2:] == [f"{without[index]:.1%}", f"{change:+.1f}" if abs(change) >= 0.05 else "0"]
    would = "With its metadata unknown the prediction would "
    assert any(line.startswith(would) and f"be {LABELS[without.argmax()]}" in line for line in lines)
    assert "Probabilities: temperature-scaled (T = 0.25); calibration error not measured." in lines

    out = printed(capsys, str(picture), "--checkpoint", checkpoints["image"], "--top_k", "2")
    first, _ = class_rows(out)
    # The longest bar belongs to the first class, and its length is its share of 30 blocks.
    assert abs(first[-1].count("█") - 30 * direct(checkpoints["image"], images=[picture]).max()) <= 1
    assert "Probabilities: not temperature-scaled; calibration error not measured." in out
    assert "unknown" not in out


def test_the_answer_without_metadata_follows_the_same_decision_rule(checkpoints, pictures, tmp_path, capsys) -> None:
    picture = pictures / "b.jpg"
    rare = int(direct(checkpoints["fusion"], images=[picture])[0].argmin())
    prior = [1e-9 if index == rare else (1 - 1e-9) / 6 for index in range(7)]
    checkpoint = changed(checkpoints["fusion"], tmp_path / "fusion", class_prior=prior)
    out = printed(capsys, str(picture), "--checkpoint", checkpoint, *FLAGS, "--decision", "balanced")
    assert f"Predicted: {LABELS[rare]}," in out
    assert f"With its metadata unknown the prediction would also be {LABELS[rare]}." in out


@pytest.mark.parametrize("columns", [80, 120])
def test_table_fits_the_terminal_also_in_ascii(columns: int, checkpoints, pictures: Path, monkeypatch) -> None:
    """Bars without block characters keep the columns behind them in place."""
    monkeypatch.setenv("COLUMNS", str(columns))
    for inputs in ([str(pictures / "b.jpg"), *FLAGS], [str(pictures)]):
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", write_through=True))
        assert main([*inputs, "--checkpoint", checkpoints["fusion"]]) == 0
        text = written.getvalue().decode("ascii")
        assert "#" in text
        assert "\\u" not in text
        numbers = [len(line) for line in text.splitlines() if "%" in line]
        assert len(numbers) >= 4
        assert max(numbers) < columns
        assert len({len(line) for line in text.splitlines() if class_rows(line)}) <= 1


def test_explain(checkpoints, pictures: Path, tmp_path: Path, capsys) -> None:
    picture, figure = pictures / "b.jpg", tmp_path / "new" / "out.png"
    argv = [str(picture), "--checkpoint", checkpoints["fusion"], *FLAGS]
    expected = run_json(capsys, *argv)
    assert main([*argv, "--json", "--explain", str(figure), "--explain_class", "df"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == expected
    assert f"wrote {figure}" in captured.err
    assert figure.is_file()

    image = ["--checkpoint", checkpoints["image"]]
    several = [str(pictures / "a.PNG"), str(pictures / "more"), *image]
    printed(capsys, *several, "--explain", str(tmp_path / "figures"))
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["a.png", "d.png"]
    own = shutil.copy(picture, tmp_path / "b.png")
    assert "would overwrite the image" in fails(capsys, str(own), *image, "--explain", str(tmp_path))


def test_explain_names_are_safe_and_distinct(tmp_path: Path) -> None:
    from ham10000.training.inference.explanation_figure import explanation_paths

    names = ["x/a.jpg", "a_4.jpg", "z/../ev il$.jpg", "y/A.jpg"]
    samples = [Sample(name, Path(name)) for name in names] + [Sample("../../etc/cron"), Sample(None)]
    expected = ["a.png", "a_4.png", "ev_il.png", "A_4_4.png", "etc_cron.png", "row_6.png"]
    assert [path.name for path in explanation_paths(samples, str(tmp_path / "new"))] == expected


def test_table_of_a_folder(checkpoints, pictures: Path, capsys) -> None:
    out = printed(capsys, str(pictures), "--checkpoint", checkpoints["image"], "--top_k", "2", "--batch_size", "2")
    expected = direct(checkpoints["image"], images=find_images([pictures]))
    rows = out.splitlines()[1:5]
    for row, probabilities, name in zip(rows, expected, ("a.PNG", "b.jpg", "c.tif", "d.jpeg"), strict=True):
        first, second = np.argsort(-probabilities)[:2]
        assert re.search(rf"{name}  {LABELS[first]} ", row)
        assert f"then {LABELS[second]} {probabilities[second]:.1%}" in row
    assert " ".join(out.split()).endswith(DISCLAIMER)


def test_names_cannot_disturb_the_terminal() -> None:
    samples = [Sample("=cmd|' /C calc'!A0\x1b[2J.jpg"), Sample("x" * 90 + ".jpg")]
    table = format_table(Predictions(samples, np.full((2, 7), 1 / 7), np.zeros(2, dtype=int)))
    assert "\x1b" not in table
    assert max(len(line) for line in table.splitlines()) < 130


def test_json_and_csv_files(checkpoints, pictures: Path, tmp_path: Path, capsys) -> None:
    paths = [pictures / name for name in ("c.tif", "a.PNG", "b.jpg", "more/d.jpeg")]  # as given, sorted, each once
    argv = [str(paths[0]), str(pictures), "--checkpoint", checkpoints["fusion"], *FLAGS]
    records = run_json(capsys, *argv)
    assert [record["image"] for record in records] == [str(path) for path in paths]
    expected = direct(checkpoints["fusion"], images=paths, metadata=[BACK] * 4)
    np.testing.assert_array_equal(shares(records), expected)
    for record in records:
        assert record["label"] == next(iter(record["probabilities"]))
        assert list(record["probabilities"].values()) == sorted(record["probabilities"].values(), reverse=True)
        assert record["calibration"] == {"temperature": 0.25, "ece": None, "part": None, "of_another_run": False}
        assert record["warning"] is None

    # The suffix decides the format, and missing folders are made.
    output = tmp_path / "new" / "predictions.csv"
    assert main([*argv, "--output", str(output)]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert DISCLAIMER in captured.err
    rows = list(csv.DictReader(io.StringIO(output.read_text(encoding="utf-8"))))
    assert list(rows[0]) == ["image", "label", *(f"p_{label}" for label in LABELS), "warning"]
    assert [row["label"] for row in rows] == [record["label"] for record in records]
    np.testing.assert_array_equal([[float(row[f"p_{label}"]) for label in LABELS] for row in rows], expected)
    assert list(output.parent.iterdir()) == [output]

    # The short flags are the same formats.
    for name in ("json", "csv"):
        assert printed(capsys, *argv, f"--{name}") == printed(capsys, *argv, "--format", name)
    rows = list(csv.DictReader(io.StringIO(printed(capsys, *argv, "--format", "isic"))))
    assert list(rows[0]) == ["image", "MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
    assert [row["image"] for row in rows] == ["c", "a", "b", "d"]
    np.testing.assert_array_equal([[float(row[label.upper()]) for label in LABELS] for row in rows], expected)
    twice = [str(pictures / "b.jpg"), str(shutil.copy(pictures / "a.PNG", tmp_path / "b.png"))]
    twice += ["--checkpoint", checkpoints["image"]]
    assert "the id 'b' (row 2) is duplicated" in fails(capsys, *twice, "--format", "isic")
    assert [len(record["probabilities"]) for record in run_json(capsys, *argv, "--top_k", "3")] == [3] * 4


@pytest.mark.parametrize(("column", "delimiter"), [("image_id", ","), ("file", "\t"), ("path", ";")])
def test_csv_metadata_equals_flags(column: str, delimiter: str, checkpoints, pictures, tmp_path, capsys) -> None:
    paths = find_images([pictures])
    names = {"image_id": [path.stem for path in paths], "file": [path.name for path in paths], "path": map(str, paths)}
    lines = [["lesion_id", column, "DX", "Age", "sex", "localization"]]
    lines += [["L1", name, "mel", "60", "male", "back"] for name in reversed([*names[column]])]
    # As spreadsheets save it: with a byte order mark and Windows line ends.
    table = write_csv(tmp_path / "table.csv", "\ufeff" + "\r\n".join(delimiter.join(line) for line in lines))
    argv = [str(pictures), "--checkpoint", checkpoints["fusion"]]
    by_flags = run_json(capsys, *argv, *FLAGS)
    assert main([*argv, "--metadata", table, "--format", "json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == by_flags
    assert captured.err.count("lesion_id, DX ignored") == 1


def test_a_path_in_a_table_is_found_however_it_is_typed(checkpoints, pictures, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(pictures)
    table = write_csv(tmp_path / "t.csv", "path,age\nmore/d.jpeg,60\n")
    for typed in ("more/d.jpeg", str(pictures / "more" / "d.jpeg"), "more/../more/d.jpeg"):
        found = run_json(capsys, typed, "--checkpoint", checkpoints["fusion"], "--metadata", table)
        np.testing.assert_array_equal(shares(found), direct(checkpoints["fusion"], images=typed, metadata={"age": 60}))


def test_a_row_is_of_one_picture(checkpoints, tmp_path: Path, capsys) -> None:
    first, second = (tmp_path / folder / "lesion.jpg" for folder in ("p1", "p2"))
    for number, path in enumerate((first, second)):
        path.parent.mkdir()
        skin_image(number).save(path)
    argv = [str(first), str(second), "--checkpoint", checkpoints["fusion"], "--metadata"]
    by_id = write_csv(tmp_path / "t.csv", "image_id,age\nlesion,60\n")
    assert f"line 2: 'lesion' may be {str(first)!r} or {str(second)!r}, which" in fails(capsys, *argv, by_id)
    by_path = write_csv(tmp_path / "p.csv", "path,age\np1/lesion.jpg,60\np2/lesion.jpg,30\n")
    assert len(run_json(capsys, *argv, by_path)) == 2
    shutil.copy(first, second)
    assert len(run_json(capsys, *argv, by_id)) == 2


def test_csv_with_missing_values(checkpoints, pictures: Path, tmp_path: Path, capsys) -> None:
    table = write_csv(tmp_path / "t.csv", "image_id,age,sex\na,0,female\nb,,unknown\nc,55,male\n\n")
    argv = [str(pictures), "--checkpoint", checkpoints["fusion"], "--metadata", table]
    assert re.search("no row for 1 of 4 images.*--unknown_values missing", fails(capsys, *argv))
    assert main([*argv, "--unknown_values", "missing", "--format", "json"]) == 0
    captured = capsys.readouterr()
    assert "no column for localization, which counts as missing; the columns are ['image_id'" in captured.err
    metadata = [{"age": 0, "sex": "female"}, {}, {"age": 55, "sex": "male"}, {}]
    expected = direct(checkpoints["fusion"], images=find_images([pictures]), metadata=metadata)
    np.testing.assert_array_equal(shares(json.loads(captured.out)), expected)


def test_metadata_only(checkpoints, tmp_path: Path, capsys) -> None:
    checkpoint = ["--checkpoint", checkpoints["metadata"]]
    (record,) = run_json(capsys, *checkpoint, *FLAGS)
    assert record["image"] is None
    np.testing.assert_array_equal(shares([record]), direct(checkpoints["metadata"], metadata=[BACK]))
    assert printed(capsys, *checkpoint, *FLAGS).startswith("age 60, sex male, localization back\n")

    table = write_csv(tmp_path / "t.csv", "age,sex,localization\n60,male,back\n,,\n0,female,face\n")
    records = run_json(capsys, *checkpoint, "--metadata", table)
    assert [record["image"] for record in records] == ["line 2", "line 4"]  # a row of empty cells is no row
    metadata = [BACK, {"age": 0, "sex": "female", "localization": "face"}]
    np.testing.assert_allclose(shares(records), direct(checkpoints["metadata"], metadata=metadata), rtol=1e-12)

    table = write_csv(tmp_path / "t.csv", "image,age\npart_1/ISIC_1.jpg,60\nISIC_2.v1,30\n")
    rows = csv.DictReader(io.StringIO(printed(capsys, *checkpoint, "--metadata", table, "--format", "isic")))
    assert [row["image"] for row in rows] == ["ISIC_1", "ISIC_2.v1"]


@pytest.mark.parametrize(
    ("modality", "inputs", "message"),
    [
        ("fusion", "", "give at least one file or folder"),
        ("fusion", "EMPTY", "contains no image (.jpg"),
        ("image", "B --age 60", "image-only and reads no metadata; drop --age"),
        ("image", "B --metadata t.csv", "reads no metadata; drop --metadata"),
        ("fusion", "B --age 60 --metadata t.csv", "give one or the other"),
        ("fusion", "B --device tpu", "Device 'tpu'"),
        ("image", "B --output EMPTY", "is a folder"),
        ("image", "B --top_k 8", "from 1 to 7"),
        ("image", "B --explain out.jpg", "expected .png, .pdf, .svg"),
        ("image", "B CONFIG --explain out.png", "2 samples; give a folder"),
        ("image", "B --explain_class mel", "give --explain out.png too"),
        ("metadata", "", "metadata-only; give --metadata table.csv"),
        ("metadata", "x.jpg --age 60", "reads no image; drop 'x.jpg'"),
        # What is wrong within a checkpoint is in `bad_checkpoints.py`.
        ("image", "B --checkpoint absent", "There is no folder"),
        ("image", "B --checkpoint ./absent", "There is no folder"),
        ("image", "B --checkpoint a/b/c", "There is no folder"),
        ("image", "B --checkpoint CONFIG", "There is no folder"),
        ("image", "B --revision main", "`revision` is for Hub ids"),
    ],
)
def test_input_errors(modality: str, inputs: str, message: str, checkpoints, pictures, tmp_path, capsys) -> None:
    names = {"B": str(pictures / "b.jpg"), "EMPTY": str(tmp_path), "CONFIG": f"{checkpoints[modality]}/config.json"}
    argv = [names.get(word, word) for word in inputs.split()]
    assert main(["--checkpoint", checkpoints[modality], *argv]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("call", "absent"),
    [
        ("build_parser().format_help()", {"torch", "transformers"}),
        ("main(sys.argv[1:])", {"captum", "datasets", "evaluate", "matplotlib", "pandas", "sklearn"}),
    ],
)
def test_starts_without_what_it_does_not_need(call: str, absent: set[str], checkpoints) -> None:
    code = f"import sys\nfrom ham10000.training.predict import *\n{call}\nsys.exit({absent} & set(sys.modules) or 0)"
    command = [sys.executable, "-c", code, "--checkpoint", checkpoints["metadata"], *FLAGS, "--json"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_an_image_unlike_the_training_data_gets_no_answer(checkpoints, pictures, tmp_path, capsys) -> None:
    white, skin = str(tmp_path / "white.png"), str(pictures / "b.jpg")
    Image.new("RGB", (60, 40), "white").save(white)
    fusion = ["--checkpoint", checkpoints["fusion"]]
    out = " ".join(printed(capsys, white, *fusion, *FLAGS).split())
    assert "WARNING: This image is unlike those the model was trained on" in out
    assert not re.search("Predicted:|the prediction would", out)
    rows = printed(capsys, white, skin, *fusion).splitlines()[1:3]
    assert "WARNING" in rows[0]
    assert not set(rows[0].split()) & set(LABELS)
    assert "WARNING" not in rows[1]
    first, second = run_json(capsys, white, skin, *fusion)
    assert first["warning"].startswith("This image is unlike those the model was trained on")
    assert second["warning"] is None


def test_calibration_is_claimed_only_as_measured(checkpoints, pictures: Path, tmp_path: Path, capsys) -> None:
    checkpoint = Path(shutil.copytree(checkpoints["fusion"], tmp_path / "measured"))
    evaluation = {"temperature": 0.25, "metrics": {"ece": 0.0518}, "split": {"name": "test"}}
    (checkpoint / "eval_results.json").write_text(json.dumps(evaluation))
    argv = [str(pictures / "b.jpg"), "--checkpoint", str(checkpoint)]
    assert "Probabilities: temperature-scaled (T = 0.25); ECE 0.052 on test." in printed(capsys, *argv)
    (checkpoint / "train_config.json").write_text(json.dumps({"config": {"train_on_validation": True}}))
    assert "temperature-scaled (T = 0.25, of another run); ECE 0.052 on test." in printed(capsys, *argv)
    # Measured at another temperature, it says nothing about this one.
    (checkpoint / "eval_results.json").write_text(json.dumps(evaluation | {"temperature": 1.0}))
    assert run_json(capsys, *argv)[0]["calibration"]["ece"] is None
