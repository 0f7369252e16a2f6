"""Keeps the results of real runs in the repository and renders them: tables are never typed.

python -m ham10000.training.results collect runs/image runs/fusion --to examples/results/lesion-grouped
python -m ham10000.training.results render --results examples/results --readme README.md
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ham10000.modeling import Ham10000Error
from ham10000.training.atomic import atomic_write_json, atomic_write_text
from ham10000.training.benchmark_report import render_benchmark
from ham10000.training.cli import add_debug_argument, run_cli
from ham10000.training.evaluation_report import METRIC_TITLES, SUMMARY_METRICS
from ham10000.training.portable import portable_training
from ham10000.training.published import published_baseline

START, END = "<!-- results: start, rendered by `make results` -->", "<!-- results: end -->"
SPEED_START, SPEED_END = "<!-- speed: start, rendered by `make results` -->", "<!-- speed: end -->"
_FIGURES = ("confusion_matrix.png", "training_curves.png")


def collect(run: Path, to: Path) -> Path:
    """Copies what a finished run measured: no weights, no image ids, no paths of this machine.

    Args:
        run: A run that was trained and evaluated on its test split.
        to: Folder of one protocol's results; the run's modality becomes the folder below it.

    Returns:
        The folder written.

    Raises:
        Ham10000Error: If the run is not finished or not evaluated.
    """
    files = {name: run / f"{name}.json" for name in ("train_config", "history", "eval_results")}
    for path in files.values():
        if not path.is_file():
            raise Ham10000Error(f"{str(path)!r} does not exist; train and evaluate {str(run)!r} first.")
    values = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in files.items()}
    if not values["train_config"]["finished"]:
        raise Ham10000Error(f"The run {str(run)!r} is not finished; continue it with --resume.")
    values["train_config"] = portable_training(values["train_config"])
    folder = to / values["train_config"]["config"]["modality"]
    for name, value in values.items():
        atomic_write_json(folder / f"{name}.json", value)
    for name in _FIGURES:
        shutil.copyfile(run / "figures" / name, folder / name)
    return folder


def _cell(interval: dict[str, Any] | None) -> str:
    if interval is None or interval["estimate"] is None:
        return "–"
    low, high = interval.get("low"), interval.get("high")
    return f"{interval['estimate']:.3f}" + (f" [{low:.3f}, {high:.3f}]" if low is not None else "")


def _cost(training: dict[str, Any]) -> str:
    facts = training["environment"]
    hardware = facts["gpu"]["model"] if facts["gpu"] else f"{facts['cpu']['count']} cores of {facts['cpu']['model']}"
    return (
        f"{training['training_seconds'] / 60:.1f} min, {training['median_images_per_second']:,.0f} images/s, "
        f"{facts['peak_rss_mib'] / 1024:.1f} GiB on {hardware}"
    )


def _rows(results: Path) -> list[list[str]]:
    published = published_baseline()
    rows = [
        [published["name"], published["protocol"], f"{published['leak']:.1%}"]
        + [_cell(published["intervals"].get(name)) for name in SUMMARY_METRICS]
    ]
    for path in sorted(results.glob("*/*/eval_results.json")):
        evaluation = json.loads(path.read_text(encoding="utf-8"))
        training = json.loads((path.parent / "train_config.json").read_text(encoding="utf-8"))
        config, split = training["config"], evaluation["split"]
        name = config["modality"]
        if name != "metadata":
            name += f", {config['backbone']}, {' x '.join(map(str, config['image_size']))} px"
        rows.append(
            [f"ours: {name}", split["protocol"], f"{split['leakage']['test']['all']:.1%}"]
            + [_cell(evaluation["intervals"][column]) for column in SUMMARY_METRICS]
        )
    return rows


def _notes(results: Path) -> list[str]:
    lines = []
    for path in sorted(results.glob("*/*/eval_results.json")):
        evaluation = json.loads(path.read_text(encoding="utf-8"))
        training = json.loads((path.parent / "train_config.json").read_text(encoding="utf-8"))
        config, split, versions = training["config"], evaluation["split"], training["environment"]["versions"]
        commit = (training["environment"]["git"] or {}).get("commit", "unknown")
        lines.append(
            f"- {config['modality']}, {split['protocol']}: {evaluation['metrics']['n_images']:,} test images of "
            f"{split['n_lesions']:,} lesions, split `{split['sha256'][:12]}`, seed {config['seed']}, best epoch "
            f"{training['best']['epoch']} of {training['epochs_trained']} (validation macro-F1 "
            f"{training['best']['validation_macro_f1']:.3f}), {training['parameters'] / 1e6:.2f} M parameters, "
            f"{_cost(training)}, torch {versions['torch']}, commit `{commit[:10]}`"
        )
    return lines


def render(results: Path) -> str:
    """Renders the results table.

    Args:
        results: Folder with `<protocol>/<modality>/eval_results.json`.

    Returns:
        Markdown.
    """
    titles = [METRIC_TITLES[name] for name in SUMMARY_METRICS]
    header = ["model", "protocol", "test images whose lesion is in train", *titles]
    table = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *_rows(results))]
    return "\n".join(
        [
            *table,
            "",
            "Intervals are 95 %, from a bootstrap that resamples whole lesions; the published row's resample images. "
            "Numbers of different protocols do not compare.",
            "",
            *_notes(results),
        ]
    ).rstrip()


def render_speed(results: Path) -> str:
    """Renders the tables of all benchmarks.

    Args:
        results: Folder with `benchmark*.json`, as `ham10000.training.benchmark --output` writes them.

    Returns:
        Markdown.
    """
    paths = sorted(results.glob("benchmark*.json"))
    return "\n\n".join(render_benchmark(json.loads(path.read_text(encoding="utf-8"))) for path in paths)


def update_readme(readme: Path, markdown: str, start: str = START, end: str = END) -> None:
    """Replaces what stands between two markers.

    Raises:
        Ham10000Error: If the markers are not there.
    """
    text = readme.read_text(encoding="utf-8")
    if text.count(start) != 1 or text.count(end) != 1:
        raise Ham10000Error(f"{str(readme)!r} needs the line {start!r} and, below it, {end!r}, once each.")
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    atomic_write_text(readme, f"{before}{start}\n\n{markdown}\n\n{end}{after}")


@run_cli
def main(argv: Sequence[str]) -> None:
    """Command line: `collect` or `render`."""
    parser = argparse.ArgumentParser(prog="python -m ham10000.training.results", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    collecting = commands.add_parser("collect", help="copy the measurements of finished runs")
    collecting.add_argument("runs", nargs="+", type=Path)
    collecting.add_argument("--to", required=True, type=Path)
    rendering = commands.add_parser("render", help="print the table, or write it into a README")
    rendering.add_argument("--results", default=Path("examples/results"), type=Path)
    rendering.add_argument("--readme", type=Path)
    for command in (collecting, rendering):
        add_debug_argument(command)
    arguments = parser.parse_args(argv)
    if arguments.command == "collect":
        for run in arguments.runs:
            print(collect(run, arguments.to))
        return
    markdown, speed = render(arguments.results), render_speed(arguments.results)
    if arguments.readme:
        update_readme(arguments.readme, markdown)
        if speed:
            update_readme(arguments.readme, speed, SPEED_START, SPEED_END)
    else:
        print(f"{markdown}\n\n{speed}")


if __name__ == "__main__":
    sys.exit(main())
