import json
import re
import shutil
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from bad_pictures import JPEG

from ham10000.modeling.configuration_ham10000 import LABELS, Ham10000Error
from ham10000.training.data.__main__ import main
from ham10000.training.data.readers import image_dataset
from ham10000.training.data.sources import FEATURES, load_data, metadata_frame


def test_official_layout(synthetic_folder: Path) -> None:
    data, report = load_data(str(synthetic_folder))
    assert data.features == FEATURES
    raw = pd.read_csv(synthetic_folder / "HAM10000_metadata.csv")
    frame = metadata_frame(data)
    assert frame["image_id"].tolist() == raw["image_id"].tolist()
    assert frame["dx"].tolist() == raw["dx"].tolist()
    np.testing.assert_array_equal(frame["age"].to_numpy(), raw["age"].to_numpy())
    assert report.class_counts == {dx: int((raw.dx == dx).sum()) for dx in LABELS}
    assert report.missing["age"] == raw.age.isna().sum() >= 1
    assert data[3]["image"].size == (200, 150)
    assert "unreadable images    not checked" in str(report)


def with_bytes(data: datasets.Dataset) -> datasets.Dataset:
    """As push_to_hub stores them; to_parquet alone stores paths of this machine, which are refused."""
    return data.with_format("arrow").map(datasets.table.embed_table_storage, batched=True).with_format(None)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "hub"])
def test_every_source_gives_the_same_rows(kind: str, synthetic_folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    reference = load_data(str(synthetic_folder))[0].select(range(0, 220, 5))
    target, source = tmp_path / "source", str(tmp_path / "source")
    (target / "data").mkdir(parents=True)
    if kind == "jsonl":
        frame = metadata_frame(reference)
        frame.insert(0, "file_name", [f"data/{name}.jpg" for name in frame.image_id])
        for row in reference.cast_column("image", datasets.Image(decode=False)):
            shutil.copy(row["image"]["path"], target / "data")
        frame.to_json(target / "metadata.jsonl", orient="records", lines=True)
    else:
        stored = with_bytes(reference)
        for name, rows in (("train", range(30)), ("test", range(30, 44))):
            stored.select(rows).to_parquet(target / "data" / f"{name}-00000-of-00001.parquet")
    if kind == "hub":
        # The only way to a Hub id without a network: what load_dataset answers for the same files.
        loaded, source = datasets.load_dataset(source), "user/ham10000"
        monkeypatch.setattr(datasets, "load_dataset", lambda name: loaded if name == source else None)
    data, report = load_data(source)
    assert any("own division is not used" in note for note in report.notes) == (kind != "jsonl")
    assert data.features == FEATURES
    frames = [metadata_frame(rows).sort_values("image_id", ignore_index=True) for rows in (data, reference)]
    assert frames[0].equals(frames[1])
    expected = {row["image_id"]: np.asarray(row["image"]) for row in reference}
    for row in data.select([0, 20, 43]):
        np.testing.assert_array_equal(np.asarray(row["image"]), expected[row["image_id"]])


def test_hub_copies_are_dropped_on_request(synthetic_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`marmal88/skin_cancer` repeats images across its splits and spells the diagnoses out."""
    names = {"mel": "melanoma", "nv": "melanocytic_Nevi", "bkl": "benign_keratosis-like_lesions"}
    data = with_bytes(load_data(str(synthetic_folder))[0])
    frame = metadata_frame(data)
    spelled = data.remove_columns(["dx", "dataset"]).add_column("dx", [names.get(dx, dx) for dx in frame["dx"]])
    splits = datasets.DatasetDict(train=spelled.select(range(220)), test=spelled.select(range(10)))
    monkeypatch.setattr(datasets, "load_dataset", lambda name: splits)
    with pytest.raises(Ham10000Error, match="duplicate image id in 10 row") as error:
        load_data("user/copies")
    assert "user/copies split test, row 1 " in str(error.value)
    kept, report = load_data("user/copies", drop_duplicates=True)
    assert metadata_frame(kept)["dx"].tolist() == frame["dx"].tolist()
    assert len(report.duplicate_image_ids) == 10
    notes = " ".join(report.notes)
    assert "dropped because of drop_duplicates: duplicate image id, image ids 10 " in notes
    assert "dx 'melanocytic nevi' is read as 'nv'" in notes


def test_truncated_image_is_found_only_when_asked(synthetic_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(synthetic_folder, tmp_path / "official"))
    victim = sorted((folder / "HAM10000_images_part_1").iterdir())[7]
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    assert load_data(str(folder))[1].unreadable_images is None
    with pytest.raises(Ham10000Error, match=f"unreadable image file in 1 row(?s:.*){victim.stem}"):
        load_data(str(folder), check_images=True)
    data, report = load_data(str(folder), drop_unreadable=True)
    assert (len(data), report.unreadable_images) == (219, [victim.stem])


def test_command_line(synthetic_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", str(synthetic_folder), "--folds", "5", "--save_split", str(tmp_path), "--json"]
    assert main(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["report"]["rows"] == 220
    assert printed["split"]["leakage"]["test"]["all"] == 0
    assert printed["split"]["sha256"] == json.loads((tmp_path / "split.json").read_text())["sha256"]
    with pytest.raises(Ham10000Error):
        main(["--data", "nowhere", "--debug"])


# Which files of this machine an untrusted table of images may name.


def table(data: bytes | None, path: str | None) -> datasets.Dataset:
    images = [{"bytes": JPEG, "path": "a.jpg"}, {"bytes": data, "path": path}]
    rest = datasets.Dataset.from_dict({"image_id": ["a", "b"], "dx": ["nv", "mel"]})
    return datasets.concatenate_datasets([image_dataset(images), rest], axis=1)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder, a private image next to it, and the working folder that contains the private one."""
    for folder, name in (("private", "mine.jpg"), ("data", "own.jpg")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(JPEG)
    monkeypatch.chdir(tmp_path / "private")
    return tmp_path


REFUSED = "d.parquet, row 2: image is stored as the path 'PATH'"


@pytest.mark.parametrize(
    ("data", "path", "message"),
    [
        *[(None, f"{path}mine.jpg", REFUSED) for path in ("HERE/private/", "../private/", "x/../../private/")],
        (None, "mine.jpg", "no image file"),  # there is one in the working folder
        (b"", "HERE/private/mine.jpg", "unreadable image file"),  # empty bytes do not lead to the path
        *[(None, path, "") for path in ("own.jpg", "./x/../own.jpg", "HERE/data/own.jpg")],
        *[(JPEG, path, "") for path in ("HERE/private/mine.jpg", "../../etc/passwd", None)],  # with bytes a name only
    ],
)
def test_an_image_is_of_the_folder_or_the_table(folders: Path, data: bytes | None, path: str | None, message) -> None:
    path = path and path.replace("HERE", str(folders))
    # As an untrusted source would write it: `to_parquet` itself looks for the files.
    pq.write_table(table(data, path).with_format("arrow")[:], folders / "data" / "d.parquet")
    if message:
        with pytest.raises(Ham10000Error) as caught:
            load_data(str(folders / "data"), check_images=True)
        assert message.replace("PATH", str(path)) in str(caught.value)
    else:
        (folders / "private" / "mine.jpg").unlink()
        loaded, _ = load_data(str(folders / "data"), check_images=True)
        assert [image.size for image in loaded["image"]] == [(40, 30)] * 2


@pytest.mark.parametrize("folder", ["data [1]", "a*b?", "**"])
def test_the_name_of_a_parquet_file_is_no_pattern(folder: str, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / folder).mkdir()
    pq.write_table(table(JPEG, None).with_format("arrow")[:], tmp_path / folder / "d[0].parquet")
    monkeypatch.chdir(tmp_path / folder)
    for source in (".", str(tmp_path / folder)):
        assert metadata_frame(load_data(source)[0])["image_id"].tolist() == ["a", "b"]


def test_a_table_of_the_hub_names_what_was_downloaded_only(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = datasets.DatasetDict({"train": table(None, str(folders / "private" / "mine.jpg"))})
    monkeypatch.setattr(datasets, "load_dataset", lambda name: splits)
    with pytest.raises(Ham10000Error, match="split train, row 2: image is stored as the path"):
        load_data("user/d")


@pytest.mark.shared
def test_real_data(shared_dir: Path) -> None:
    data, report = load_data(str(shared_dir / "ham10000"))
    assert (report.rows, report.lesions) == (10015, 7470)
    assert list(report.class_counts.values()) == [327, 514, 1099, 115, 1113, 6705, 142]
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|[^|]+\| ([\d,]+) \|", readme, re.MULTILINE)
    assert {label: int(count.replace(",", "")) for label, count in rows} == dict(report.class_counts)
    assert report.images_per_lesion == {1: 5514, 2: 1423, 3: 490, 4: 34, 5: 5, 6: 4}
    assert report.missing == {"age": 57, "sex": 57, "localization": 234}
    assert int((metadata_frame(data)["age"] == 0).sum()) == 39
    assert report.notes == []
