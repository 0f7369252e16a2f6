"""Keeps the results of real runs in the repository and renders them: tables are never typed.

python examples/benchmarks/results.py collect runs/study --to examples/results
python examples/benchmarks/results.py render --results examples/results --readme README.md
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmark_report import render_benchmark

from ham10000.modeling import Ham10000Error
from ham10000.training.study.figures import plot_study
from ham10000.training.study.report import check_study, results_table, short_answer, study_markdown
from ham10000.training.utils.cli import add_debug_argument, run_cli
from ham10000.training.utils.files import atomic_write_json, atomic_write_text, read_json

# In place of the tables while there is no study of this version.
NO_STUDY = (
    "**The results are being replaced.** Those of earlier versions came from training images that were resampled "
    "twice and from one test fold; they are gone from here, and the cross-validated study on all 10,015 images "
    "follows."
)
NO_ANSWER = "The study that answers it has not run yet; see [Results](#results)."


def collect(study_dir: Path, to: Path) -> Path:
    """Copies what a finished study found: its predictions, numbers, report and figures; no weights.

    Args:
        study_dir: The `output_dir` of `ham10000-study`.
        to: Folder of the results.

    Returns:
        The path of the copied study.json.

    Raises:
        Ham10000Error: If the study is not finished, or of another format.
    """
    source = study_dir / "study.json"
    if not source.is_file():
        raise Ham10000Error(f"{str(source)!r} does not exist; run or continue the study first.")
    study = read_json(source)
    check_study(study)
    plot_study(study, to / "figures")
    shutil.copyfile(study_dir / "predictions.parquet", to / "predictions.parquet")
    atomic_write_text(to / "study.md", study_markdown(study))
    return atomic_write_json(to / "study.json", study)


def render_answer(results: Path) -> str:
    """The collected study's answer with its numbers, as Markdown, or that there is none."""
    path = results / "study.json"
    return "\n\n".join(short_answer(read_json(path))) if path.is_file() else NO_ANSWER


def render_results(results: Path) -> str:
    """The tables of the collected study, as Markdown, or that there is none."""
    path = results / "study.json"
    return results_table(read_json(path)) if path.is_file() else NO_STUDY


def render_speed(results: Path) -> str:
    """The tables of all `benchmark*.json`, as `examples/benchmarks/benchmark.py --output` writes them."""
    paths = sorted(results.glob("benchmark*.json"))
    return "\n\n".join(render_benchmark(read_json(path)) for path in paths)


# What a README has between two markers of these names.
BLOCKS = {"answer": render_answer, "results": render_results, "speed": render_speed}


def markers(name: str) -> tuple[str, str]:
    """The lines before and after a block."""
    return f"<!-- {name}: start, rendered by `make results` -->", f"<!-- {name}: end -->"


def block(text: str, name: str) -> tuple[str, str, str]:
    """A README's text before a block, the block, and the text after it; the markers belong to the block's sides.

    Raises:
        Ham10000Error: If the markers are not there, once each.
    """
    start, end = markers(name)
    if text.count(start) != 1 or text.count(end) != 1:
        raise Ham10000Error(f"The README needs the line {start!r} and, below it, {end!r}, once each.")
    before, _, rest = text.partition(start)
    inside, _, after = rest.partition(end)
    return before + start, inside.strip(), end + after


def update_readme(readme: Path, results: Path) -> None:
    """Renders every block of a README anew.

    Raises:
        Ham10000Error: If a marker is not there; the file stays as it was.
    """
    text = readme.read_text(encoding="utf-8")
    for name, render in BLOCKS.items():
        before, _, after = block(text, name)
        text = f"{before}\n\n{render(results)}\n\n{after}"
    atomic_write_text(readme, text)


@run_cli
def main(argv: Sequence[str]) -> None:
    """Command line: `collect` or `render`."""
    parser = argparse.ArgumentParser(prog="python examples/benchmarks/results.py", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    collecting = commands.add_parser("collect", help="copy what a finished study found")
    collecting.add_argument("study", type=Path)
    collecting.add_argument("--to", default=Path("examples/results"), type=Path)
    rendering = commands.add_parser("render", help="print the answer and the tables, or write them into a README")
    rendering.add_argument("--results", default=Path("examples/results"), type=Path)
    rendering.add_argument("--readme", type=Path)
    for command in (collecting, rendering):
        add_debug_argument(command)
    arguments = parser.parse_args(argv)
    if arguments.command == "collect":
        print(f"Saved     {collect(arguments.study, arguments.to)}, study.md and figures/")
        return
    if arguments.readme:
        update_readme(arguments.readme, arguments.results)
    else:
        print("\n\n".join(render(arguments.results) for render in BLOCKS.values()))


if __name__ == "__main__":
    sys.exit(main())
