"""Compares training speed and memory of two checkouts of this repository, in turns within one run.

python examples/benchmarks/compare_trees.py ../before . --data HAM10000/ --cache_dir CACHE --output compare_trees.json

Each turn is a process of its own that builds the run as `ham10000-train` does, takes a few steps to warm up, and times
the next ones with everything that belongs to them: reading, augmentation, forward, backward, optimiser.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from ham10000.training.utils.files import atomic_write_json
from ham10000.training.utils.hardware import environment

# Runs in the tree that is measured, with whatever that tree's modules are.
STEPS = """
import json, resource, sys, time
from importlib import import_module
def find(name, *modules):  # where it is in this tree: modules have moved
    for module in modules:
        try:
            return getattr(import_module("ham10000.training." + module), name)
        except ModuleNotFoundError:
            pass
    raise SystemExit(f"{name} is in none of {modules}")
keep_freed_memory = find("keep_freed_memory", "utils.hardware", "allocator")
load_data = find("load_data", "data.sources", "data")
make_split = find("make_split", "data.split", "split")
TrainConfig = find("TrainConfig", "config")
build_accelerator, build_engine = (find(name, "train") for name in ("build_accelerator", "build_engine"))
settings, warmup, steps = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
config = TrainConfig(**settings)
keep_freed_memory()
dataset, _ = load_data(config.data)
accelerator = build_accelerator(config)
engine = build_engine(config, accelerator, dataset, make_split(dataset, "lesion-grouped", seed=42))
engine.wrapped.train()
batches = engine.train_loader.epoch(0)
for number in range(warmup):
    engine._step(number, *next(batches))
start = time.perf_counter()
for number in range(warmup, warmup + steps):
    engine._step(number, *next(batches))
seconds = time.perf_counter() - start
rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({"images_per_second": steps * config.batch_size / seconds, "peak_rss_gib": rss}))
"""


def measure(tree: Path, settings: dict, options: argparse.Namespace) -> dict[str, float]:
    """Images a second and peak resident memory of one tree."""
    with tempfile.TemporaryDirectory() as links:
        package = Path(links) / "ham10000"
        package.mkdir()
        for name in ("modeling", "training", "hub_upload"):
            (package / name).symlink_to((tree / name).resolve())
        arguments = [json.dumps(settings), str(options.warmup), str(options.steps)]
        process = subprocess.run(
            [sys.executable, "-c", STEPS, *arguments],
            env={"PYTHONPATH": links, "PATH": "", "HOME": str(Path.home())},
            capture_output=True,
            text=True,
            check=False,
        )
    if process.returncode:
        raise SystemExit(process.stderr)
    return json.loads(process.stdout.splitlines()[-1])


def _commit(tree: Path) -> str:
    """The commit of a checkout, and whether it has other changes."""
    command = ["git", "-C", str(tree), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    """Takes turns and writes the rates, their medians, and the median of the ratios within a turn."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--data", default="synthetic:400")
    parser.add_argument("--backbone", default="tf_efficientnetv2_b0")
    parser.add_argument("--image_size", type=int, default=192)
    parser.add_argument("--cache_dir", required=True)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    settings = {
        "data": str(Path(options.data).resolve()) if Path(options.data).exists() else options.data,
        "modality": "image",
        "backbone": options.backbone,
        "pretrained": "none",
        "image_size": [options.image_size],
        "cache_dir": options.cache_dir,
        "trackers": ["none"],
    }
    rows: dict[str, list[dict[str, float]]] = {"before": [], "after": []}
    for _ in range(options.turns):
        for side, values in rows.items():
            values.append(measure(getattr(options, side), settings, options))
            print(side, values[-1], flush=True)
    ratios = [
        after["images_per_second"] / before["images_per_second"]
        for before, after in zip(rows["before"], rows["after"], strict=True)
    ]
    found = {
        "trees": {side: _commit(getattr(options, side)) for side in rows},
        "settings": {name: value for name, value in settings.items() if name not in ("data", "cache_dir")},
        "turns": rows,
        "median": {
            side: {name: statistics.median(row[name] for row in values) for name in values[0]}
            for side, values in rows.items()
        },
        "ratio_of_images_per_second": {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)},
        "environment": environment(),
    }
    print(json.dumps({name: found[name] for name in ("median", "ratio_of_images_per_second")}, indent=1))
    if options.output:
        atomic_write_json(options.output, found)


if __name__ == "__main__":
    main()
