"""Values of an untrusted table, through every file that shows or contains them."""

import csv
import io
import re
from html.parser import HTMLParser
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
from card_runs import PARSER

from ham10000.modeling import LABELS, Ham10000Config, Ham10000Error
from ham10000.training.data.__main__ import write_official_layout
from ham10000.training.data.sources import load_data, metadata_frame
from ham10000.training.data.split import SPLITS, Split, load_split
from ham10000.training.evaluation.comparison import compare_predictions
from ham10000.training.evaluation.plots import _subgroup_finding
from ham10000.training.evaluation.report import evaluate_predictions, predictions_table, read_predictions
from ham10000.training.inference.inputs import Sample, read_metadata
from ham10000.training.inference.output import Predictions, format_csv, format_submission
from ham10000.training.utils.figures import new_figure, plain
from ham10000.training.utils.files import write_table
from ham10000.training.utils.markdown_text import code, escape, table

# What OWASP lists for csv, markup of Markdown and HTML, and what pandas reads as missing.
FORMULAS = ("=1+1", '=HYPERLINK("http:evil","x")', "+cmd|' C'!A0", "-2+3", "@SUM(1)", "＝1+1", "'=1+1", "''@x")
FORMULAS += ("a;=1+1", 'a";=1+1;"', 'a;""=1+1')
HOSTILE = (*FORMULAS, "-5", "'quoted'", "<img src=x onerror=alert(1)>", "a|b`c`*d*[l](u)", "$x$ $", "<NA>")
FORMULA = re.compile(r"\s*[=+\-@\t\r\n＝]")
NUMBER = re.compile(r"[+-]?\d[\d.e+-]*")


def assert_inert(path: Path) -> None:
    """No cell is a formula, whichever separator the spreadsheet takes."""
    text = path.read_text(encoding="utf-8")
    for delimiter in ",;\t":
        for cell in chain.from_iterable(csv.reader(io.StringIO(text), delimiter=delimiter)):
            assert not FORMULA.match(cell) or NUMBER.fullmatch(cell.split(",")[0]), (delimiter, cell)


@pytest.fixture(scope="module")
def hostile() -> datasets.Dataset:
    """Synthetic photographs whose texts come from an untrusted source."""
    data, _ = load_data("synthetic:30")
    frame = metadata_frame(data)
    for name in ("image_id", "lesion_id", "dx_type", "dataset"):
        values = [*HOSTILE, *frame[name].tolist()[len(HOSTILE) :]]
        data = data.remove_columns(name).add_column(name, values)
    return data


def test_an_export_comes_back_and_is_inert(hostile: datasets.Dataset, tmp_path: Path) -> None:
    folder = write_official_layout(tmp_path / "export", hostile)
    assert_inert(folder / "HAM10000_metadata.csv")
    again, _ = load_data(str(folder), check_images=True)
    pd.testing.assert_frame_equal(metadata_frame(again), metadata_frame(hostile))
    rows = read_metadata(folder / "HAM10000_metadata.csv", ("age",)).rows
    assert [row.name for row in rows] == hostile["image_id"][:]


def test_a_split_comes_back_and_is_inert(hostile: datasets.Dataset, tmp_path: Path) -> None:
    frame = metadata_frame(hostile)[["image_id", "lesion_id"]]
    frame = frame.assign(group=frame["lesion_id"], dx=np.resize(LABELS, len(frame)))
    rows = pd.concat([frame.assign(image_id=frame["image_id"] + part, split=part) for part in SPLITS])
    rows = rows.reset_index(drop=True)
    split = Split("image-stratified", 0, None, 0, rows)
    assert_inert(split.save(tmp_path))
    loaded = load_split(tmp_path)
    assert loaded.sha256 == split.sha256
    pd.testing.assert_frame_equal(loaded.table, split.table, check_dtype=False)


def test_predictions_come_back_and_are_inert(hostile: datasets.Dataset, tmp_path: Path) -> None:
    frame, labels = metadata_frame(hostile), np.asarray(hostile["dx"][:])
    probabilities = np.random.default_rng(0).dirichlet(np.ones(7), len(labels))
    written = predictions_table(frame, labels, probabilities, frame["lesion_id"])
    evaluate_predictions(written, n_resamples=20)
    path = write_table(written, tmp_path / "predictions.csv")
    assert_inert(path)
    read, *found = read_predictions(path)
    for name in ("image_id", "lesion_id", "lesion_group"):
        assert read[name].tolist() == written[name].tolist()
    np.testing.assert_array_equal(found[0], labels)
    np.testing.assert_array_equal(found[1], written[[f"p_{label}" for label in LABELS]])
    assert compare_predictions(path, path, n_resamples=20)["n_images"] == len(hostile)


def test_the_csv_of_a_prediction_is_inert_and_a_submission_refused(tmp_path: Path) -> None:
    samples = [Sample(name) for name in HOSTILE]
    probabilities = np.full((len(samples), 7), 1 / 7)
    config = Ham10000Config(id2label=dict(enumerate(HOSTILE[4:11])))
    text = format_csv(Predictions(samples, probabilities, probabilities.argmax(axis=1), config))
    (tmp_path / "p.csv").write_text(text, encoding="utf-8")
    assert_inert(tmp_path / "p.csv")
    for name in FORMULAS:  # which the format cannot escape
        with pytest.raises(Ham10000Error, match="cannot stand in a submission"):
            format_submission(["ISIC_0024306", name], probabilities[:2])


class _Tags(HTMLParser):
    tags, text = (), ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags += (tag,)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("show", [escape, code])
def test_a_table_of_markdown_shows_them_as_text(show: Any) -> None:
    page = _Tags()
    page.feed(PARSER.render(table(["id"], [[show(name)] for name in HOSTILE])))
    assert set(page.tags) <= {"table", "thead", "tbody", "tr", "th", "td", "code"}
    assert [name for name in HOSTILE if name not in page.text] == []


@pytest.mark.filterwarnings("ignore:Glyph")
def test_figures_take_them_as_text() -> None:
    figure = new_figure(4, 1)
    for name in HOSTILE:
        figure.suptitle(plain(name))
        figure.canvas.draw()
        assert figure.get_suptitle().replace(r"\$", "$") == name
    interval = {"estimate": 0.5}
    rows = [{"group": name, "malignant_sensitivity": interval} for name in ("$x$", "$y")]
    gap = {"lowest": "$x$", "highest": "$y", "difference": interval}
    title = _subgroup_finding({"fields": {"site": rows}, "largest_gaps": {"site": gap}})
    assert title.count(r"\$") == title.count("$") == 3


@pytest.mark.parametrize("field", ["lesion_id", "dx_type", "dataset"])
def test_control_characters_are_refused_and_not_sent_to_the_terminal(field: str, tmp_path: Path) -> None:
    data, _ = load_data("synthetic:20")
    values = ["a\x1b[2Jb", *data[field][1:]]
    names = ["ISIC\x1b[2J", *data["image_id"][1:]]
    data = data.remove_columns([field, "image_id"]).add_column(field, values).add_column("image_id", names)
    data.to_parquet(tmp_path / "d.parquet")
    with pytest.raises(Ham10000Error, match=f"control character in {field}") as caught:
        load_data(str(tmp_path))
    assert "\x1b" not in str(caught.value)
