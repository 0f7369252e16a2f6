"""Which files of this machine an untrusted table of images may name."""

import io
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ham10000.modeling import Ham10000Error
from ham10000.training.data import tables as data_images
from ham10000.training.data.readers import from_splits
from ham10000.training.data.sources import load_data


def jpeg() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(stream, "JPEG")
    return stream.getvalue()


def table(image: dict[str, Any]) -> datasets.Dataset:
    images = [{"bytes": jpeg(), "path": "a.jpg"}, image]
    text = {"image_id": ["a", "b"], "dx": ["nv", "mel"], "age": [50.0, 60.0], "sex": ["male"] * 2}
    rest = datasets.Dataset.from_dict({**text, "localization": ["back"] * 2})
    return datasets.concatenate_datasets([data_images.image_dataset(images), rest], axis=1)


def write(dataset: datasets.Dataset, path: Path) -> None:
    """As an untrusted source would: `to_parquet` itself looks for the files."""
    pq.write_table(dataset.with_format("arrow")[:], path)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder, a private image next to it, and the working folder that contains the private one."""
    (tmp_path / "private").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "private" / "mine.jpg").write_bytes(jpeg())
    (tmp_path / "data" / "own.jpg").write_bytes(jpeg())
    monkeypatch.chdir(tmp_path / "private")
    return tmp_path


@pytest.mark.parametrize("path", ["HERE/private/mine.jpg", "../private/mine.jpg", "x/../../private/mine.jpg"])
def test_a_path_out_of_the_folder_is_refused(folders: Path, path: str) -> None:
    path = path.replace("HERE", str(folders))
    write(table({"bytes": None, "path": path}), folders / "data" / "d.parquet")
    with pytest.raises(Ham10000Error, match=r"d\.parquet, row 2: image is stored as the path") as caught:
        load_data(str(folders / "data"))
    assert repr(path) in str(caught.value)


def test_a_path_is_never_one_of_the_working_folder(folders: Path) -> None:
    write(table({"bytes": None, "path": "mine.jpg"}), folders / "data" / "d.parquet")
    with pytest.raises(Ham10000Error, match="no image file"):
        load_data(str(folders / "data"))


@pytest.mark.parametrize("path", ["own.jpg", "./x/../own.jpg", "HERE/data/own.jpg"])
def test_a_path_in_the_folder_is_read(folders: Path, path: str) -> None:
    path = path.replace("HERE", str(folders))
    write(table({"bytes": None, "path": path}), folders / "data" / "d.parquet")
    data, _ = load_data(str(folders / "data"), check_images=True)
    assert [image.size for image in data["image"]] == [(8, 8)] * 2


@pytest.mark.parametrize("path", ["HERE/private/mine.jpg", "../../etc/passwd", None])
def test_with_bytes_the_path_is_a_name_only(folders: Path, path: str | None) -> None:
    name = path and path.replace("HERE", str(folders))
    write(table({"bytes": jpeg(), "path": name}), folders / "data" / "d.parquet")
    (folders / "private" / "mine.jpg").unlink()
    assert len(load_data(str(folders / "data"), check_images=True)[0]) == 2


def test_empty_bytes_do_not_lead_to_the_path(folders: Path) -> None:
    image = {"bytes": b"", "path": str(folders / "private" / "mine.jpg")}
    write(table(image), folders / "data" / "d.parquet")
    with pytest.raises(Ham10000Error, match="unreadable image file"):
        load_data(str(folders / "data"), check_images=True)


def test_a_table_of_the_hub_names_what_was_downloaded_only(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = datasets.DatasetDict({"train": table({"bytes": None, "path": str(folders / "private" / "mine.jpg")})})
    with pytest.raises(Ham10000Error, match="split train, row 2"):
        from_splits("user/d", splits, roots=data_images.downloads())
    assert from_splits("mine", splits).missing == [False, False]
