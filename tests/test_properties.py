"""What must hold for any input, tried on inputs that hypothesis makes up.

`HAM10000_PROPERTIES=long` tries three times as many; `examples/fuzz.py` does so for as long as it is told.
"""

# ruff: noqa: PT017 (an error is one of two right outcomes here, and is looked at where it is caught)

import csv
import itertools
import math
import os
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ham10000.modeling import LABELS, LOCALIZATIONS, SEXES, Ham10000Error, Ham10000Processor, load_image
from ham10000.training.data.readers import COLUMNS, RawSource
from ham10000.training.data.sources import FEATURES, check_rows
from ham10000.training.data.split import make_split
from ham10000.training.data.tables import DataOptions, as_strings, read_table
from ham10000.training.inference.inputs import read_metadata
from ham10000.training.utils.files import escape_cell, restore_cell

_FACTOR = {"fast": 1, "long": 3}[os.environ.get("HAM10000_PROPERTIES", "fast")]


def examples(count: int) -> Any:
    """Fast: always the same inputs, so that a failure is one of the change; long: others every time."""
    unlimited = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}
    return settings(max_examples=count * _FACTOR, derandomize=_FACTOR == 1, **unlimited)


PROCESSOR = Ham10000Processor()
FIELDS = ("age", "sex", "localization")
known = [*SEXES, *LOCALIZATIONS, "unknown", " Male ", "60", np.float32(61), np.bool_(True), 5j]
numbers = st.integers() | st.integers(10**300, 10**400) | st.floats() | st.fractions() | st.decimals()
anything = st.none() | st.booleans() | numbers | st.text(max_size=20) | st.binary(max_size=4) | st.sampled_from(known)
anything |= st.lists(st.integers(), max_size=2)


@examples(400)
@given(st.dictionaries(st.sampled_from([*FIELDS, "dx", "skin"]), anything) | anything)
def test_anything_is_a_row_in_range_or_an_error_that_names_the_row(row: Any) -> None:
    try:
        encoded = PROCESSOR.encode_metadata(row)
    except Ham10000Error as error:
        assert "Metadata row 0" in str(error) or not isinstance(row, dict)
        return
    assert set(row) <= set(FIELDS)
    assert (encoded.shape, encoded.dtype) == ((1, 3), torch.float32)
    for value, size in zip(encoded[0].tolist(), (120, len(SEXES) - 1, len(LOCALIZATIONS) - 1), strict=True):
        assert math.isnan(value) or 0 <= value <= size


DTYPES = st.sampled_from(["uint8", "uint16", "float16", "float32", "float64", "int32", "bool", "int64", ">u2", ">f4"])


@examples(300)
@given(
    DTYPES.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6))),
    st.booleans(),
)
def test_any_array_is_a_picture_or_an_error(array: np.ndarray, as_tensor: bool) -> None:
    assume(array.dtype.isnative or not as_tensor)
    try:
        image = load_image(torch.from_numpy(array) if as_tensor else array)
    except Ham10000Error:
        in_range = np.issubdtype(array.dtype, np.floating) and array.size and array.min() >= 0 and array.max() <= 1
        channels_fit = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
        may_be_read = array.dtype in ("uint8", "uint16") or in_range
        assert not (may_be_read and channels_fit and array.size), f"{array.dtype} {array.shape} should be read"
        return
    assert image.mode == "RGB"
    assert array.size in {image.width * image.height * channels for channels in (1, 3, 4)}
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3:
        np.testing.assert_array_equal(np.asarray(image), array)


cells = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(['"', ",", "\n", '"a', "a;b", "nv", "60"])
tables = st.integers(1, 5).flatmap(lambda n: st.lists(st.lists(cells, min_size=n, max_size=n), max_size=6))


@examples(200)
@example([["", "\r"]], ",", "\n")
@given(tables, st.sampled_from(",;\t"), st.sampled_from(["\n", "\r\n"]))
def test_every_row_comes_back_or_an_error_names_a_line(rows: list[list[str]], delimiter: str, end: str) -> None:
    width = len(rows[0]) if rows else 3
    header = [f"column {i}" for i in range(width)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        with path.open("w", encoding="utf-8", newline="") as stream:
            # Python before 3.13 leaves a carriage return unquoted, which before "\n" is half of a line's end.
            quoting = csv.QUOTE_ALL if any("\r" in cell for row in rows for cell in row) else csv.QUOTE_MINIMAL
            writer = csv.writer(stream, delimiter=delimiter, lineterminator=end, quoting=quoting)
            writer.writerows([header, *rows])
        try:
            frame = read_table(path)
        except Ham10000Error as error:
            assert "t.csv" in str(error)
            assert "line " in str(error)
            assert width == 1 or any("\n" in c or "\r" in c for row in rows for c in row), error
            return
        if width == 1:
            return  # without a delimiter in the header nobody can know it
        # What looks as if `escape_cell` had written it is read as it was before.
        read = [[restore_cell(cell) for cell in row] for row in rows if any(row)]
        assert frame.to_numpy().tolist() == read
        written = path.read_bytes().decode().split("\n")
        for row, line in zip((row for row in rows if any(row)), frame.index, strict=True):
            assert next(csv.reader([written[line - 1]], delimiter=delimiter)) == row


@examples(300)
@given(st.text(st.sampled_from("'=+-@\t\r\n ;,\"1e.a＝"), max_size=6) | st.text(max_size=6))
def test_a_cell_comes_back_and_no_written_one_is_a_formula(text: str) -> None:
    assert restore_cell(escape_cell(text)) == text
    for cell in re.split(r"[;\t\r\n]", escape_cell(text)):
        assert not cell.lstrip('" ').startswith(tuple("=+-@＝")) or escape_cell(text) == text == cell


@examples(200)
@given(st.binary(max_size=60) | st.text(st.sampled_from('ab,;\t"\n\r\0é{}[]:'), max_size=40).map(str.encode))
def test_any_file_is_a_table_or_an_error_that_names_it(data: bytes) -> None:
    texts = (b"image_id,dx,age,sex,localization\n" + data, data)
    reads = (read_table, lambda path: read_metadata(path, FIELDS))
    with tempfile.TemporaryDirectory() as folder:
        for name, text, read in itertools.product(("t.csv", "t.jsonl"), texts, reads):
            (Path(folder) / name).write_bytes(text)
            try:
                read(Path(folder) / name)
            except Ham10000Error as error:
                assert name in str(error)


values = st.sampled_from(["male", "back", "60", "nv", "MEL", "", "unknown", "-5", "9" * 400, "1e999"])
values |= st.text(max_size=6)
records = st.fixed_dictionaries(dict.fromkeys(COLUMNS, values) | {"image_id": st.sampled_from("abcde") | values})


@examples(150)
@given(st.lists(records, min_size=1, max_size=6), st.booleans())
def test_no_row_is_dropped_unless_asked_and_every_problem_has_a_row(rows: list[dict[str, str]], lenient: bool) -> None:
    frame = as_strings(pd.DataFrame(rows, dtype=object)[list(COLUMNS)])
    frame["file"], frame["row"] = "t.csv", range(2, len(rows) + 2)
    fixes = ("drop_duplicates", "drop_unknown_labels", "invalid_to_missing") if lenient else ()
    raw = RawSource("t", frame, missing=[False] * len(rows), ours=True)
    try:
        kept, keep, report = check_rows(raw, DataOptions(), unreadable_images=None, fixes=fixes)
    except Ham10000Error as error:
        assert "t.csv, row" in str(error) or "no row is left" in str(error)
        return
    assert report.rows == len(kept) == keep.sum()
    assert keep.all() or (lenient and report.notes)
    assert set(kept["dx"]) <= set(LABELS)
    assert kept["age"].dropna().between(0, 120).all()
    assert set(kept["sex"]) <= {*SEXES, "unknown"}
    assert set(kept["localization"]) <= {*LOCALIZATIONS, "unknown"}
    assert not kept["image_id"].str.contains(r"[/\\]|\.\.").any()
    assert kept["image_id"].is_unique


_NO_IMAGES = datasets.Features({name: FEATURES[name] for name in COLUMNS})


@examples(25)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 9)), min_size=1, max_size=60), st.data())
def test_no_lesion_is_on_two_sides_whatever_the_sizes(lesions: list[tuple[int, int]], data: st.DataObject) -> None:
    folds = data.draw(st.integers(3, 6))
    fold, seed = data.draw(st.integers(0, folds - 1)), data.draw(st.integers(0, 99))
    lesions = lesions + [(label, 2) for label in range(7) for _ in range(data.draw(st.sampled_from([0, 4, 8])))]
    rows = [{"lesion_id": f"L{i}", "dx": label} for i, (label, size) in enumerate(lesions) for _ in range(size)]
    rows = [dict.fromkeys(COLUMNS, "x") | {"image_id": f"I{i}", "age": 50.0} | row for i, row in enumerate(rows)]
    dataset = datasets.Dataset.from_list(rows, features=_NO_IMAGES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            split = make_split(dataset, folds=folds, fold=fold, seed=seed)
        except Ham10000Error as error:
            assert any(text in str(error) for text in ("without an image", "cannot be split", "needs lesion ids"))
            return
    assert sorted(split.table["image_id"]) == sorted(row["image_id"] for row in rows)
    assert (split.table.groupby("lesion_id")["split"].nunique() == 1).all()
    for part in ("train", "validation", "test"):
        assert set(split.table.loc[split.table["split"] == part, "dx"]) == set(LABELS)
