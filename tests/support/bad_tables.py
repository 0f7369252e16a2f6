"""Cases of the bad-input corpus: tables of metadata, as training data and as the csv of a prediction."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from bad_input import Case, written
from bad_pictures import JPEG

from ham10000.training.data.sources import load_data, metadata_frame
from ham10000.training.inference.inputs import read_metadata

COLUMNS = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization", "dataset"]
LABELS = ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
Rows = list[list[str]]
Check = Callable[[Any], None]
NAME = "HAM10000_metadata.csv"


def good_rows() -> Rows:
    """One row a class: line 2 of the file is akiec, line 8 vasc."""
    return [
        [f"HAM_{i}", f"ISIC_{i}", dx, "histo", str(30 + i), "male", "back", "vidir"] for i, dx in enumerate(LABELS)
    ]


def with_value(column: str, value: str, line: int = 4) -> Rows:
    rows = good_rows()
    rows[line - 2][COLUMNS.index(column)] = value
    return rows


def as_text(rows: Rows, header: list[str] = COLUMNS) -> str:
    return "".join(",".join(row) + "\n" for row in [header, *rows])


def write_folder(folder: Path, table: str | bytes) -> Path:
    """The official layout: a table and the images of the seven good rows."""
    (folder / "HAM10000_images_part_1").mkdir()
    for i in range(len(LABELS)):
        (folder / "HAM10000_images_part_1" / f"ISIC_{i}.jpg").write_bytes(JPEG)
    return written(NAME, table)(folder).parent


def load(folder: Path, **options: bool) -> tuple[pd.DataFrame, Any]:
    dataset, report = load_data(str(folder), **options)
    return metadata_frame(dataset), report


def case(name: str, table: Rows | str | bytes, end: tuple[str, ...] | Check, fix: str = "") -> Case:
    """A table that ends in an error with these fragments, or in a result that a function checks."""
    text = as_text(table) if isinstance(table, list) else table
    ends = ((NAME, *end), None) if isinstance(end, tuple) else (None, end)
    run = partial(load, **({fix: True} if fix else {}))
    return Case("table", name, lambda folder: write_folder(folder, text), run, *ends)


def all_rows(changed: dict[str, Any] | None = None) -> Check:
    """Seven rows, in order, with what the good table says but for the changed values of line 4."""

    def check(result: tuple[pd.DataFrame, Any]) -> None:
        frame, report = result
        assert len(frame) == report.rows == 7
        expected = pd.DataFrame(good_rows(), columns=COLUMNS)
        expected["age"] = expected["age"].astype(float)
        for column, value in (changed or {}).items():
            expected.loc[2, column] = value
        for column in ("image_id", "lesion_id", "dx", "age", "sex", "localization"):
            pd.testing.assert_series_equal(frame[column], expected[column], check_dtype=False)

    return check


def bad_value(column: str, value: str) -> Case:
    """A value that is refused with file, row, image id, field and value."""
    image = () if column == "image_id" else ("(ISIC_2)",)
    where = ("row 4", f"{column} = {value.strip()!r}", *image)
    return case(f"{column} {value!r}", with_value(column, value), where)


def read_value(column: str, value: str, meaning: Any) -> Case:
    """A value that is read as another spelling of `meaning`."""
    return case(f"{column} {value!r} is {meaning}", with_value(column, value), all_rows({column: meaning}))


NAN = float("nan")
VALUES = [
    *[bad_value("age", v) for v in ("-5", "400", "121", "sixty", "inf", "-inf", "1e9", "60 years", "6_0", "5;6")],
    *[bad_value("sex", value) for value in ("mm", "diverse", "femalemale", "0", "mаle")],  # the last with a Cyrillic а
    *[bad_value("localization", value) for value in ("elbow", "back2", "../back", "=1+1")],
    *[bad_value("dx", value) for value in ("melanom", "7", "mel bcc", "nv\x00", "NaN", "")],
    *[bad_value("image_id", v) for v in ("../ISIC_2", "a/b", "a\\b", "..", "ISIC\x002", "ISIC\x1b2", "", "nan")],
    *[read_value("lesion_id", value, "ISIC_2") for value in ("", "unknown", "NULL")],
    *[read_value("age", value, NAN) for value in ("", "NaN", "nan", "None", "unknown", "N/A", " ")],
    *[read_value("age", value, float(value)) for value in ("0", " 45.0 ", "120")],
    *[read_value("sex", value, "male") for value in ("Male ", "MALE", "\u00a0male", " mAlE", "m", "M ")],
    *[read_value("sex", value, "unknown") for value in ("", "unknown", "NA", "Unknown ")],
    *[read_value("localization", v, "lower extremity") for v in ("LOWER Extremity", "lower-extremity", "lower limbs")],
    *[read_value("dx", value, meaning) for value, meaning in {" MEL ": "mel", "Basal cell carcinoma": "bcc"}.items()],
]

GOOD = as_text(good_rows())
_RELABELLED = [*good_rows(), ["HAM_2", "ISIC_2", "nv", *good_rows()[2][3:]]]
_TWO_QUOTES = with_value("dataset", '"vidir')[:4] + with_value("dataset", 'vidir"', 6)[4:]


def _counts(rows: int, note: str) -> Check:
    def check(result: tuple[pd.DataFrame, Any]) -> None:
        frame, report = result
        assert len(frame) == report.rows == rows
        assert any(note in text for text in [*report.warnings, *report.notes]), report

    return check


_MORE = as_text([["x", *row[::-1], "y"] for row in good_rows()], ["more", *COLUMNS[::-1], "Unnamed: 0"])
_TWO_WRONG = with_value("age", "sixty")[:5] + with_value("sex", "x", 8)[5:]
_NO_PICTURE = with_value("image_id", "ISIC_9")
_TWO_IDS = written("GroundTruth.csv", "image,isic_id,MEL,NV,BCC,AKIEC,BKL,DF,VASC\na,a,1,0,0,0,0,0,0\n")
FORMS = [
    case("more columns, in another order", _MORE, all_rows()),
    case("spaces and capitals", as_text(good_rows(), [f" {name.upper()} " for name in COLUMNS]), all_rows()),
    case("column twice", as_text([[*row, row[4]] for row in good_rows()], [*COLUMNS, "age"]), ("twice", "age")),
    case("byte order mark", b"\xef\xbb\xbf" + GOOD.encode(), all_rows()),
    case("blank lines", GOOD.replace("\nHAM_3", "\n\n,,,,,,,\nHAM_3"), all_rows()),
    case("Latin-1", GOOD.replace("vidir", "Zürich").encode("latin-1"), ("UTF-8",)),
    case("an empty file", "", ("no column for image_id and dx", "--columns image_id=COLUMN dx=COLUMN")),
    Case("table", "a header only", lambda folder: write_folder(folder, as_text([])), load, ("a header but no rows",)),
    case("a row too short", GOOD.replace(",vidir\nHAM_3", "\nHAM_3"), ("line 4", "7 fields", "8")),
    case("a quote never closed", with_value("dataset", '"vidir'), ("line 4", "quote")),  # the count of fields is right
    case("quotes over two rows", _TWO_QUOTES, ("line 4", "line 6", "quote")),
    case("a quote never closed in the header", '"' + GOOD, ("line 1", "quote")),
    case("text after a closing quote", with_value("dataset", '"vi"dir'), ("line 4", "quote")),
    case("a cell of 200,000 letters", with_value("dataset", "v" * 200_000), ("line 4", "field limit")),
    case("one id of two classes", _RELABELLED, ("different dx", "row 4", "row 9", "'nv'")),
    case("one id of two classes, dropped", _RELABELLED, ("different dx",), "drop_duplicates"),
    case("an age read as missing", with_value("age", "400"), _counts(7, "'400'"), "invalid_to_missing"),
    case("a row without a picture, dropped", _NO_PICTURE, _counts(6, "drop_unreadable"), "drop_unreadable"),
    case("every row wrong", [[*row[:5], "x", *row[6:]] for row in good_rows()], ("7 row(s)", "row 2", "2 more")),
    case("two things wrong", _TWO_WRONG, ("row 4", "'sixty'", "row 8", "'x'")),
    Case("table", "two columns of ids", lambda f: _TWO_IDS(f).parent, load, ("GroundTruth.csv", "no image file")),
]


def _jsonl_case(name: str, text: str | bytes, *fragments: str) -> Case:
    build, run = written("metadata.jsonl", text), lambda path: load(path.parent)
    return Case("table of json lines", name, build, run, ("metadata.jsonl", *fragments))


def _record(**values: Any) -> str:
    record = {"file_name": "a.jpg", "dx": "nv", "age": 40, "sex": "male", "localization": "back"}
    return json.dumps(record | values) + "\n"


JSON_LINES = [
    _jsonl_case("a broken line", _record() + '{"file_name": "a', "line 2", "not JSON"),
    _jsonl_case("a list", _record() + "[1, 2]", "line 2", "JSON object"),
    _jsonl_case("Latin-1", _record().replace("nv", "né").encode("latin-1"), "UTF-8"),
    _jsonl_case("brackets 100,000 deep", "[" * 100_000, "line 1", "not JSON"),
    _jsonl_case("a number of 5,000 digits", '{"age": ' + "9" * 5000 + "}", "line 1", "not JSON"),
    _jsonl_case("a file outside", _record(file_name="../a.jpg"), "line 1", "'../a.jpg'", "'..'"),
    _jsonl_case("an absolute file", _record(file_name="/etc/hostname"), "line 1", "'/etc/hostname'"),
    _jsonl_case("a file outside, other slashes", _record(file_name="x\\..\\..\\a.jpg"), "line 1", "'..'"),
    _jsonl_case("a list as a label", _record(dx=["mel"]), "line 1", "dx", "mel"),
    _jsonl_case("an infinite age", _record(age=float("inf")), "row 1", "'inf'"),
    _jsonl_case("a folder's name too long", _record(file_name="a" * 300 + "/a.jpg"), "row 1", "no image file"),
]


def _read_fields(path: Path) -> Any:
    return read_metadata(path, ["age", "sex", "localization"])


def _to_predict(name: str, text: str | bytes, *fragments: str) -> Case:
    return Case("table to predict", name, written("m.csv", text), _read_fields, ("m.csv", *fragments))


def _sixty_male(table: Any) -> None:
    assert [row.metadata for row in table.rows] == [{"age": "60", "sex": "male"}]


_SPACED = written("m.csv", " AGE \tSex\n 60 \tmale\n\n")
PREDICTION = [
    _to_predict("a header only", "image_id,age\n", "no rows"),
    _to_predict("none of the fields", "image_id,dx\na,nv\n", "'dx'", "none of"),
    _to_predict("column twice", "image_id,age,Age\na,1,2\n", "'age'", "twice"),
    _to_predict("id twice", "image_id,age\na,1\nb,2\na,3\n", "line 4", "'a'", "line 2"),
    _to_predict("a row without an id", "image_id,age\na,1\n,2\n", "line 3", "image_id"),
    _to_predict("a path with NUL", "path,age\na\0.jpg,1\n", "line 2", "path"),
    Case("table to predict", "tabs, spaces and capitals", _SPACED, _read_fields, check=_sixty_male),
    Case("table to predict", "absent", lambda folder: folder / "m.csv", _read_fields, ("m.csv", "No such file")),
]

CASES = [*VALUES, *FORMS, *JSON_LINES, *PREDICTION]
