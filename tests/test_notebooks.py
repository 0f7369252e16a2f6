"""The committed notebooks: sound as they stand, and still running from their first cell to their last."""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

import notebooks  # noqa: E402

NAMES = sorted(path.name for path in EXAMPLES.glob("*.ipynb"))


def outputs(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """What each code cell shows, by kind: numbers may differ between machines, the kinds may not."""
    shown = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    return [sorted({kind for output in cell for kind in output.get("data", {"stream": 0})}) for cell in shown]


@pytest.mark.parametrize("name", NAMES)
def test_a_committed_notebook_is_clean_and_complete(name: str) -> None:
    assert notebooks.problems(name, (EXAMPLES / name).read_text(encoding="utf-8")) == []
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    nbformat.validate(notebook)
    text = "\n".join(cell.source for cell in notebook.cells)
    assert 'DATA = "synthetic"' in text
    assert "never for diagnosis" in text
    assert sum("image/png" in kinds for kinds in outputs(notebook)) >= 4


ERROR = nbformat.v4.new_output("error", ename="E", evalue="")
PATH = nbformat.v4.new_output("stream", text="saved /home/me/x.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda code: code[0].update(execution_count=None), "was not executed"),
        (lambda code: code.reverse(), "was not executed"),
        (lambda code: code[0]["outputs"].append(ERROR), "an error"),
        (lambda code: code[0]["outputs"].append(PATH), "a path of a machine: /home/me/x.png"),
        (lambda code: code[0].update(source="#" * notebooks.MAX_BYTES), "bytes"),
    ],
)
def test_what_a_notebook_must_not_be_is_found(change, message: str) -> None:
    cells = [nbformat.v4.new_code_cell(f"{number}", execution_count=number) for number in (1, 2)]
    change(cells)
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=notebooks.METADATA)
    (found,) = notebooks.problems("bad.ipynb", nbformat.writes(notebook))
    assert message in found


def test_a_cell_that_fails_is_one_message(tmp_path: Path) -> None:
    cells, bad = [nbformat.v4.new_code_cell("raise ValueError('no such picture')")], tmp_path / "bad.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=notebooks.METADATA), bad)
    before = bad.read_bytes()
    # In a process of its own, as `make notebooks` runs it: beside what other tests loaded, a kernel ended the worker.
    command = [sys.executable, str(EXAMPLES / "notebooks.py"), str(bad)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 2
    assert "bad.ipynb stopped with ValueError: no such picture" in result.stderr
    assert "Traceback" not in result.stderr
    assert bad.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_shows_what_the_committed_one_shows(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "notebooks.py"), str(EXAMPLES / name), "--output_dir", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    committed, executed = (nbformat.read(folder / name, as_version=4) for folder in (EXAMPLES, tmp_path))
    assert [cell.source for cell in executed.cells] == [cell.source for cell in committed.cells]
    assert outputs(executed) == outputs(committed)
    assert json.loads((tmp_path / name).read_text())["metadata"] == notebooks.METADATA
