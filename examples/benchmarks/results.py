"""Keeps the results of real runs in the repository and renders them: tables are never typed.

python examples/benchmarks/results.py collect runs/study --to examples/results
python examples/benchmarks/results.py render --readme README.md examples/results/README.md
"""

import argparse
import functools
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark_report import render_benchmark, render_latency, render_prediction, render_quality

from ham10000.modeling import Ham10000Error
from ham10000.training.run_folder import RunFile
from ham10000.training.study.analysis import VariantResult
from ham10000.training.study.figures import plot_study
from ham10000.training.study.report import TITLES, Study, check_study, results_table, short_answer, study_markdown
from ham10000.training.utils.cli import add_debug_argument, run_cli
from ham10000.training.utils.files import JsonObject, atomic_write_json, atomic_write_text, read_json
from ham10000.training.utils.markdown_text import decimal, escape, interval, table


@dataclass(frozen=True)
class Target:
    """A bound for a metric under a protocol, set before the models were trained, and where it comes from."""

    protocol: str
    metric: str
    value: float
    because: str
    above_floor: bool = False  # whether the metric is an ECE above its floor, which should be at most the bound
    rule: str | None = None  # decision rule, None for the study's own

    def found(self, variant: VariantResult) -> float | None:
        """The measured figure of a variant."""
        metrics = variant["metrics"] if self.rule is None else variant["rules"][self.rule]
        value = metrics[self.metric]["estimate"]
        return value - variant["ece_floor"] if self.above_floor and value is not None else value

    def gap(self, found: float) -> str:
        """`reached`, or by how much it is missed."""
        short = found - self.value if self.above_floor else self.value - found
        return "reached" if short <= 0 else f"{decimal(short)} {'too high' if self.above_floor else 'short'}"


TARGETS = (
    Target("lesion-grouped", "macro_f1", 0.76, "above 0.746, the best single CNN of the most careful public study"),
    Target("lesion-grouped", "balanced_accuracy", 0.80, "by the balanced rule", rule="balanced"),
    Target("lesion-grouped", "melanoma_sensitivity_at_95_specificity", 0.60, "0.46 in an earlier version"),
    Target("lesion-grouped", "ece", 0.02, "above its floor", above_floor=True),
    Target("image-stratified", "macro_f1", 0.82, "above the published baseline's 0.8042"),
    Target("image-stratified", "accuracy", 0.88, "above the published baseline's 0.8665"),
)


def targets_table(study: Study) -> str:
    """Every target of a protocol that was run, with what the image and fusion variants reached, as Markdown."""
    rows = []
    for target in TARGETS:
        variants = study["protocols"].get(target.protocol, {"variants": {}})["variants"]
        for name in ("image", "fusion"):
            if name in variants and (found := target.found(variants[name])) is not None:
                bound = f"{'≤' if target.above_floor else '≥'} {target.value:g}, {escape(target.because)}"
                title = f"{escape(target.protocol)}, {TITLES[target.metric]}"
                rows.append([title, bound, name, decimal(found), target.gap(found)])
    return table(["target", "bound", "model", "measured", "gap"], rows, align="lllrl")


# In place of a block while there is no study of this version.
NO_STUDY = "The study has not run yet."


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


def _study(results: Path) -> Any:
    path = results / "study.json"
    return read_json(path) if path.is_file() else None


def render_answer(results: Path) -> str:
    """The first paragraph of the collected study's answer, as Markdown, or that there is none."""
    study = _study(results)
    return short_answer(study)[0] if study else NO_STUDY


def render_results(results: Path) -> str:
    """The rest of the answer and the table of the collected study, as Markdown, or that there is none."""
    study = _study(results)
    return "\n\n".join([*short_answer(study)[1:], results_table(study)]) if study else NO_STUDY


def render_targets(results: Path) -> str:
    """What the collected study was to reach, and by how much it does not, as Markdown, or that there is none."""
    study = _study(results)
    return targets_table(study) if study else NO_STUDY


def render_models(results: Path) -> str:
    """The checkpoints that come with the source, in `checkpoints` beside the results, with their own results."""
    rows = []
    for name in ("image", "metadata", "fusion"):
        folder = results.parent / "checkpoints" / f"ham10000-{name}"
        if not folder.is_dir():
            continue
        evaluation, run = (read_json(folder / file) for file in (RunFile.EVALUATION, RunFile.TRAINING))
        scores = [interval(evaluation["intervals"][metric]) for metric in ("macro_f1", "balanced_accuracy")]
        size = f"{(folder / 'model.safetensors').stat().st_size / 1e3:,.0f} kB"
        rows.append([f"[{name}](examples/checkpoints/{folder.name})", f"{run['parameters']:,}", size, *scores])
    return table(["model", "parameters", "weights", "macro-F1", "balanced accuracy"], rows, align="lrrrr")


def _render_speeds(results: Path, *, targets: bool) -> str:
    """The tables of all `benchmark*.json`, as `examples/benchmarks/benchmark.py --output` writes them."""
    paths = sorted(results.glob("benchmark*.json"))
    return "\n\n".join(render_benchmark(read_json(path), targets=targets) for path in paths)


def _rendered(results: Path, file: str, render: Callable[[JsonObject], str]) -> str:
    """What a benchmark's JSON file renders to; nothing before it has run."""
    found = read_json(results / file, optional=True)
    return "" if found is None else render(found)


# What a document has between two markers of these names.
BLOCKS = {
    "answer": render_answer,
    "models": render_models,
    "results": render_results,
    "prediction": functools.partial(_rendered, file="prediction.json", render=render_prediction),
    "latency": functools.partial(_rendered, file="latency.json", render=render_latency),
    "quality": functools.partial(_rendered, file="time_to_quality.json", render=render_quality),
    "speed": functools.partial(_render_speeds, targets=False),
    "targets": render_targets,
    "speed targets": functools.partial(_render_speeds, targets=True),
}


def markers(name: str) -> tuple[str, str]:
    """The lines before and after a block."""
    return f"<!-- {name}: start, rendered by `make results` -->", f"<!-- {name}: end -->"


def block(text: str, name: str) -> tuple[str, str, str]:
    """A document's text before a block, the block, and the text after it; the markers belong to the block's sides.

    Raises:
        Ham10000Error: If the markers are not there, once each.
    """
    start, end = markers(name)
    if text.count(start) != 1 or text.count(end) != 1:
        raise Ham10000Error(f"The document needs the line {start!r} and, below it, {end!r}, once each.")
    before, _, rest = text.partition(start)
    inside, _, after = rest.partition(end)
    return before + start, inside.strip(), end + after


def update_document(path: Path, results: Path) -> None:
    """Renders every block of a document anew.

    Raises:
        Ham10000Error: If it has none, or half of one; the file stays as it was.
    """
    text = path.read_text(encoding="utf-8")
    names = [name for name in BLOCKS if any(marker in text for marker in markers(name))]
    if not names:
        raise Ham10000Error(f"{str(path)!r} has no block to render: add, for one, {' and '.join(markers('answer'))}.")
    for name in names:
        before, _, after = block(text, name)
        text = f"{before}\n\n{BLOCKS[name](results)}\n\n{after}"
    atomic_write_text(path, text)


@run_cli
def main(argv: Sequence[str]) -> None:
    """Command line: `collect` or `render`."""
    parser = argparse.ArgumentParser(prog="python examples/benchmarks/results.py", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    collecting = commands.add_parser("collect", help="copy what a finished study found")
    collecting.add_argument("study", type=Path)
    collecting.add_argument("--to", default=Path("examples/results"), type=Path)
    rendering = commands.add_parser("render", help="print all blocks, or write them into documents")
    rendering.add_argument("--results", default=Path("examples/results"), type=Path)
    rendering.add_argument("--readme", type=Path, nargs="+", default=[])
    for command in (collecting, rendering):
        add_debug_argument(command)
    arguments = parser.parse_args(argv)
    if arguments.command == "collect":
        print(f"Saved     {collect(arguments.study, arguments.to)}, study.md and figures/")
        return
    for readme in arguments.readme:
        update_document(readme, arguments.results)
    if not arguments.readme:
        print("\n\n".join(render(arguments.results) for render in BLOCKS.values()))


if __name__ == "__main__":
    sys.exit(main())
