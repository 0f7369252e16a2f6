"""Executes the notebooks of this folder, as `make notebooks` does, and writes them back with their outputs.

    python examples/notebooks.py [NAME.ipynb …] [--output_dir DIR]

Each runs in an empty folder with a copy of `configs/`, on synthetic data and without a network. What is written holds
no execution times, no progress bars, no machine's paths and none of its kernel's details, so that a diff shows what
changed.
"""

import argparse
import base64
import io
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from PIL import Image

from ham10000.modeling import Ham10000Error
from ham10000.training.utils.cli import add_debug_argument, run_cli
from ham10000.training.utils.files import atomic_write_text

FOLDER = Path(__file__).resolve().parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# Paths that begin at the root of some machine; in the source of a notebook nothing looks like them.
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|tmp|usr|opt|var|work|mnt|Users|private)/\S*")
MAX_BYTES = 500_000
MAX_WIDTH = 1000


def execute(path: Path) -> nbformat.NotebookNode:
    """Runs a notebook from its first cell to its last in a fresh kernel.

    Args:
        path: The notebook.

    Returns:
        The notebook with its new outputs, cleaned.

    Raises:
        Ham10000Error: If a cell fails, or the kernel dies.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copytree(FOLDER / "configs", Path(scratch) / "configs")
        client = NotebookClient(
            notebook,
            timeout=None,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": scratch}},
        )
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
        try:
            client.execute(env=environment)
        except CellExecutionError as error:
            raise Ham10000Error(f"{path.name} stopped with {error.ename}: {error.evalue}") from error
        except DeadKernelError as error:
            raise Ham10000Error(f"The kernel of {path.name} died: out of memory, or somebody ended it.") from error
    return clean(notebook)


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Leaves out what differs between machines and says nothing: kernel, widgets, stderr, empty metadata."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.metadata = nbformat.from_dict({name: cell.metadata[name] for name in ("tags",) if name in cell.metadata})
        cell.outputs = joined([output for output in cell.outputs if output.get("name") != "stderr"])
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = small_png(output.data["image/png"])
    return notebook


def joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Joins printed texts that follow each other: in how many pieces they came is chance."""
    kept: list[nbformat.NotebookNode] = []
    for output in outputs:
        if kept and output.output_type == kept[-1].output_type == "stream":
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def small_png(encoded: str) -> str:
    """An image of an output in 256 colours and at most `MAX_WIDTH` pixels wide, a third of the bytes.

    Args:
        encoded: PNG in base64.

    Returns:
        Likewise.
    """
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
        image = image.convert("RGB")
    if image.width > MAX_WIDTH:
        image = image.resize((MAX_WIDTH, round(image.height * MAX_WIDTH / image.width)), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.quantize(256).save(stream, format="PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()


def problems(name: str, text: str) -> list[str]:
    """What a committed notebook must not be.

    Args:
        name: File name, for the sentences.
        text: What the file holds.

    Returns:
        One sentence for each fault: a cell without its output's number, an error, a machine's path, too many bytes.
    """
    notebook = nbformat.reads(text, as_version=4)
    found = []
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append(f"{name} was not executed from its first cell to its last; run `make notebooks`")
    if any(output.output_type == "error" for cell in code for output in cell.outputs):
        found.append(f"{name} holds an error")
    if paths := MACHINE_PATH.findall(re.sub(r'"image/png": "[^"]*"', "", text)):
        found.append(f"{name} names a path of a machine: {paths[0]}")
    if len(text.encode()) >= MAX_BYTES:
        found.append(f"{name} has {len(text.encode()):,} bytes, {MAX_BYTES:,} are allowed")
    if notebook.metadata != METADATA:
        found.append(f"{name} holds metadata of a machine's kernel")
    return found


@run_cli
def main(argv: Sequence[str]) -> None:
    """Executes and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, help="by default all of this folder")
    parser.add_argument("--output_dir", type=Path, help="by default each is written over itself")
    add_debug_argument(parser)
    options = parser.parse_args(argv)
    for path in options.notebooks or sorted(FOLDER.glob("*.ipynb")):
        target = (options.output_dir or path.parent) / path.name
        print(f"{path.name} …", flush=True)
        text = nbformat.writes(execute(path)) + "\n"
        if found := problems(path.name, text):
            raise Ham10000Error("; ".join(found))
        target.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(target, text)
        print(f"{target} ({target.stat().st_size:,} bytes)")


if __name__ == "__main__":
    sys.exit(main())
