"""The bad-input corpus: each case ends in the documented result or in one error that says where and what."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import bad_checkpoints
import bad_pictures
import bad_splits
import bad_tables
import pytest
from bad_input import Case, judge, listing, written

from ham10000.training import predict, train
from ham10000.training.data import __main__ as data_report
from ham10000.training.data.tables import read_table
from ham10000.training.evaluation import __main__ as evaluation

CASES = [*bad_checkpoints.CASES, *bad_pictures.CASES, *bad_splits.CASES, *bad_tables.CASES]
assert len({case.id for case in CASES}) == len(CASES), "a case is there twice"

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder and a cache of our own: what is written by mistake must not land in the repository."""
    folder = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(folder)
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.setenv(name, str(folder))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_case(case: Case, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    record_property("bad_input", (case.category, "read" if case.error is None else "refused"))
    judge(case, tmp_path)
    assert not Path("payload-ran").exists(), "code in a pickle ran"


Arguments = Callable[[Path], list[str]]
PROGRAMS = {"predict": predict.main, "data": data_report.main, "train": train.main, "evaluate": evaluation.main}


def _predict(*flags: str, picture: bytes = bad_pictures.JPEG, name: str = "b.jpg", table: str = "") -> Arguments:
    """Predicts a good image and another."""

    def build(folder: Path) -> list[str]:
        checkpoint = bad_checkpoints.write_checkpoint(folder)
        metadata = ["--metadata", str(written("m.csv", table)(folder))] if table else []
        images = [str(written(*image)(folder)) for image in (("good.jpg", bad_pictures.JPEG), (name, picture))]
        return [*images, *flags, *metadata, "--checkpoint", str(checkpoint), "--output", str(folder / "out.csv")]

    return build


def _table(table: str, *options: str) -> Arguments:
    def build(folder: Path) -> list[str]:
        (folder / "data").mkdir()
        data = bad_tables.write_folder(folder / "data", table)
        return ["--data", str(data), *[option.replace("HERE", str(folder)) for option in options]]

    return build


def _evaluate(edit: Callable[[Path], Any] | None = None) -> Arguments:
    """Evaluates a good checkpoint, by an edited split or by none."""

    def build(folder: Path) -> list[str]:
        arguments = ["--checkpoint", str(bad_checkpoints.write_checkpoint(folder)), "--data", "synthetic:220"]
        if edit is None:
            return arguments
        (folder / "split").mkdir()
        for name, text in bad_splits.files().items():
            written(name, text)(folder / "split")
        edit(folder / "split")
        return [*arguments, "--split_file", str(folder / "split" / "split.csv")]

    return build


SIXTY = bad_tables.as_text(bad_tables.with_value("age", "sixty"))
# The program, its arguments as they are made in a folder, and fragments of the message.
COMMANDS: list[tuple[str, Arguments, tuple[str, ...]]] = [
    ("predict", _predict(picture=b"text", name="text.jpg"), ("text.jpg", "Cannot read")),
    ("predict", _predict("--sex", "mm"), ("sex", "'mm'", "female, male", "--unknown_values missing")),
    ("predict", _predict("no.jpg"), ("no.jpg",)),
    ("predict", _predict("a" * 300), ("aaa", "too long")),
    ("predict", _predict("https://example.org/a.jpg"), ("URLs are not fetched",)),
    ("predict", _predict(table="image_id,age\ngood,60\nb,sixty\n"), ("m.csv", "line 3", "age", "'sixty'", "0..120")),
    ("data", _table(SIXTY, "--save_split", "HERE/s"), ("HAM10000_metadata.csv", "row 4", "age = 'sixty'", "ISIC_2")),
    ("data", _table(bad_tables.GOOD, "--save_split", "HERE/s"), ("cannot be split",)),
    ("data", lambda folder: ["--data", "synthetic:many"], ("synthetic:N", "'many'")),
    ("train", _table(SIXTY, "--output_dir", "HERE/run", "--backbone", "test_efficientnet"), ("row 4", "'sixty'")),
    ("train", lambda folder: ["--output_dir", str(folder / "run")], ("--data is missing", "`--data synthetic`")),
    ("evaluate", _evaluate(bad_splits.put("split", "test", 3)), ("split.csv", "edited", "sha256")),
    ("evaluate", _evaluate(), ("split.csv", "--split all")),
]


@pytest.mark.parametrize(
    ("program", "arguments", "fragments"), COMMANDS, ids=[f"{c[0]}-{' '.join(c[2])[:40]}" for c in COMMANDS]
)
def test_the_command_line_ends_with_one_message(
    program: str, arguments: Arguments, fragments: tuple[str, ...], tmp_path: Path, capsys, record_property
) -> None:
    record_property("bad_input", ("command line", "refused"))
    argv = arguments(tmp_path)
    before = listing(tmp_path)
    assert PROGRAMS[program](argv) == 2
    captured = capsys.readouterr()
    assert captured.err.count("error: ") == 1, captured.err
    assert [fragment for fragment in fragments if fragment not in captured.err] == []
    assert "Traceback" not in captured.err + captured.out
    # Training locks its folder before it reads the data, so that nobody else begins there.
    locked = ("run", "run/run.lock") if "--data" in argv else ()
    assert {name: entry for name, entry in listing(tmp_path).items() if name not in locked} == before


def test_a_hundred_thousand_rows_are_read_whole(tmp_path: Path) -> None:
    rows = [f"HAM_{i // 2},ISIC_{i},nv,histo,{i % 100},male,back,vidir".split(",") for i in range(100_000)]
    frame = read_table(written("m.csv", bad_tables.as_text(rows))(tmp_path))
    assert (len(frame), frame.index[0], frame.index[-1]) == (100_000, 2, 100_001)
    assert frame["image_id"].iloc[-1] == "ISIC_99999"
