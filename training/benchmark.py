"""Measures this package against the published baseline's pipeline, both in one run on one machine.

python -m ham10000.training.benchmark --output examples/results/benchmark.json
python -m ham10000.training.benchmark --render examples/results/benchmark.json

Both sides take turns, so that a machine that slows down slows both; a ratio is the median over the turns of the ratio
within a turn. The pictures are synthetic, at HAM10000's original 600x450 pixels.
"""

import argparse
import contextlib
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from accelerate import Accelerator
from tqdm.auto import tqdm

from ham10000.modeling import LABELS, Ham10000Config, Ham10000Error, create_model, create_processor
from ham10000.training.allocator import keep_freed_memory
from ham10000.training.atomic import atomic_write_json
from ham10000.training.benchmark_baseline import BaselineTraining, Photographs, predict_plainly
from ham10000.training.benchmark_report import CASES, render_benchmark
from ham10000.training.cache import cached_images
from ham10000.training.cli import add_debug_argument, run_cli
from ham10000.training.config import TrainConfig
from ham10000.training.data import load_data
from ham10000.training.engine import Engine
from ham10000.training.environment import environment
from ham10000.training.inference import optimize_for_inference
from ham10000.training.precision import resolve_precision
from ham10000.training.prediction import choose_device, predict
from ham10000.training.split import make_split
from ham10000.training.synthetic_images import Lesion, encode_jpeg, render
from ham10000.training.train import build_engine

ORIGINAL_SIZE = (600, 450)


def write_photographs(folder: Path, count: int, progress: bool = True) -> tuple[datasets.Dataset, list[Path]]:
    """Synthetic photographs of HAM10000's original size as files, and the dataset that names them."""
    dataset, _ = load_data(f"synthetic:{count}")
    rng = np.random.default_rng(0)
    paths = [folder / f"{image_id}.jpg" for image_id in dataset["image_id"]]
    for path, label in tqdm(zip(paths, dataset["dx"], strict=True), "Drawing", count, disable=not progress):
        path.write_bytes(encode_jpeg(render(Lesion.draw(LABELS[label], rng), rng, ORIGINAL_SIZE)))
    images = datasets.Dataset.from_dict(
        {"image": [str(path) for path in paths]}, features=datasets.Features({"image": datasets.Image()})
    )
    return datasets.concatenate_datasets([images, dataset.remove_columns("image")], axis=1), paths


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    _synchronize(device)
    start = time.perf_counter()
    run()
    _synchronize(device)
    return time.perf_counter() - start


def take_turns(
    sides: dict[str, Callable[[], float]], repetitions: int, progress: bool = True
) -> dict[str, list[float]]:
    """Measures every side once a turn, after a turn that does not count.

    Args:
        sides: Name to a function that works once and returns a rate.
        repetitions: Turns that count.
        progress: Whether to show a progress bar.

    Returns:
        Name to the rates of the turns.
    """
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for turn in tqdm(range(repetitions + 1), ", ".join(sides), unit="turn", disable=not progress, leave=False):
        for name, work in sides.items():
            rate = work()
            if turn:
                rates[name].append(rate)
    return rates


def summarize(rates: dict[str, list[float]], ours: str, other: str) -> dict[str, Any]:
    """Medians of both sides, and the median of the ratio within each turn."""
    ratios = [a / b for a, b in zip(rates[ours], rates[other], strict=True)]
    return {
        "ours": statistics.median(rates[ours]),
        "other": statistics.median(rates[other]),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def build_training(dataset: datasets.Dataset, options: argparse.Namespace, folder: Path) -> Engine:
    """Our training run, as `ham10000-train` builds it, with the baseline's network and every default."""
    config = TrainConfig(
        data="benchmark",
        output_dir=str(folder / "run"),
        cache_dir=str(folder / "cache"),
        modality="image",
        backbone=options.backbone,
        backbone_kwargs=options.backbone_kwargs,
        pretrained="none",
        image_size=[options.image_size],
        batch_size=options.batch_size,
        trackers=["none"],
    )
    accelerator = Accelerator(cpu=options.device.type == "cpu", mixed_precision=resolve_precision("auto"))
    return build_engine(config, accelerator, dataset, make_split(dataset, protocol="lesion-grouped"))


def _training_rate(steps: Iterator[Any], options: argparse.Namespace) -> float:
    next(steps)  # workers start, and the caches of the processor are those of the side that is measured
    seconds = _seconds(lambda: [next(steps) for _ in range(options.steps)], options.device)
    return options.steps * options.batch_size / seconds


def _baseline_process(connection: Any, paths: list[Path], labels: list[int], options: argparse.Namespace) -> None:
    photographs = Photographs(paths, labels, options.image_size)
    baseline = BaselineTraining(photographs, options.batch_size, options.device)
    while connection.recv():
        connection.send(_training_rate(baseline.steps(), options))


def measure_training(
    dataset: datasets.Dataset, paths: list[Path], options: argparse.Namespace, folder: Path
) -> dict[str, dict[str, Any]]:
    """Training steps a second: the baseline, ours, and ours without anything but the step."""
    # In processes of their own: the allocator's setting is ours, and would speed up the baseline too.
    context = multiprocessing.get_context("spawn")
    connection, remote = context.Pipe()
    arguments = (remote, paths, list(dataset["dx"]), options)
    context.Process(target=_baseline_process, args=arguments).start()

    def baseline() -> float:
        connection.send(True)
        return connection.recv()

    if options.device.type == "cpu":
        keep_freed_memory()
    engine = build_training(dataset, options, folder)
    engine.wrapped.train()
    number = iter(range(10**9))

    def batches() -> Iterator[tuple[torch.Tensor, list[Any]]]:
        while True:
            yield from engine.train_loader.epoch(next(number))

    ready = next(batches())

    def ours() -> Iterator[None]:
        for labels, micro_batches in batches():
            engine._step(next(number), labels, micro_batches)
            yield

    def ceiling() -> Iterator[None]:
        while True:
            engine._step(next(number), *ready)
            yield

    sides = {
        "baseline": baseline,
        "ours": lambda: _training_rate(ours(), options),
        "ceiling": lambda: _training_rate(ceiling(), options),
    }
    try:
        rates = take_turns(sides, options.repetitions)
    finally:
        connection.send(False)
    return {"training": summarize(rates, "ours", "baseline"), "ceiling": summarize(rates, "ours", "ceiling")}


def measure_inference(paths: list[Path], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Files to probabilities with the same network on both sides, each with random weights of its own."""
    from torchvision.models import efficientnet_v2_s

    device = options.device
    theirs = efficientnet_v2_s(weights=None, num_classes=7).to(device).eval()
    config = Ham10000Config(
        modality="image", backbone=options.backbone, backbone_kwargs=json.loads(options.backbone_kwargs)
    )
    processor = create_processor(config, image_size=options.image_size)
    model = optimize_for_inference(create_model(config).to(device).eval(), "auto")
    chosen = (paths * -(-options.pictures // len(paths)))[: options.pictures]
    batch_size, size = options.batch_size, options.image_size

    def rate(run: Callable[[], Any]) -> float:
        return len(chosen) / _seconds(run, device)

    rates = take_turns(
        {
            "baseline": lambda: rate(lambda: predict_plainly(theirs, chosen, size, batch_size, device)),
            "ours": lambda: rate(lambda: predict(model, processor, chosen, batch_size=batch_size)),
        },
        options.repetitions,
    )
    return {"inference": summarize(rates, "ours", "baseline")}


def measure_cache(dataset: datasets.Dataset, options: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    """Pictures a second and core while the uint8 cache is built."""
    cores = environment()["cpu"]["count"]
    processor: Any = create_processor(Ham10000Config(modality="image"), image_size=options.image_size).image_processor

    def rate() -> float:
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            seconds = _seconds(
                lambda: cached_images(dataset, processor, cache_dir=fresh, progress=False), options.device
            )
        return len(dataset) / seconds / cores

    rates = take_turns({"ours": rate, "goal": lambda: 200.0}, options.repetitions)
    return {"cache": summarize(rates, "ours", "goal")}


def measure_cold_start(paths: list[Path], options: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    """One picture from a new process, against the imports that any such process needs."""
    config = Ham10000Config(modality="image", backbone="test_efficientnet")
    checkpoint = folder / "checkpoint"
    create_model(config).save_pretrained(checkpoint)
    create_processor(config, image_size=64).save_pretrained(checkpoint)
    predicting = ["-m", "ham10000.training.predict", str(paths[0]), "--checkpoint", str(checkpoint)]

    def rate(arguments: list[str]) -> float:
        run = [sys.executable, *arguments]
        return 1 / _seconds(lambda: subprocess.run(run, check=True, capture_output=True), options.device)

    rates = take_turns(
        {"ours": lambda: rate(predicting), "imports": lambda: rate(["-c", "import torch, transformers, timm"])},
        options.repetitions,
    )
    return {"cold_start": summarize(rates, "ours", "imports")}


def build_parser() -> argparse.ArgumentParser:
    """Returns the benchmark's parser."""
    parser = argparse.ArgumentParser(prog="python -m ham10000.training.benchmark", description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=[name for name in CASES if name != "ceiling"], default=None)
    parser.add_argument("--backbone", default="efficientnetv2_s", help="ours; the default is the baseline's network")
    parser.add_argument("--backbone_kwargs", default='{"bn_eps": 1e-3}')
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3, help="training steps a turn")
    parser.add_argument("--pictures", type=int, default=128, help="pictures a turn, for inference")
    parser.add_argument("--images", type=int, default=300, help="size of the synthetic dataset")
    parser.add_argument("--repetitions", type=int, default=3, help="turns that count, after one that does not")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--output", type=Path, help="write the results as JSON")
    parser.add_argument("--render", type=Path, metavar="JSON", help="only print the table of earlier results")
    add_debug_argument(parser)
    return parser


@run_cli
def main(argv: Sequence[str]) -> None:
    """Command line of the benchmark."""
    options = build_parser().parse_args(argv)
    if options.render is not None:
        if not options.render.is_file():
            raise Ham10000Error(f"There is no {str(options.render)!r}; make it with --output.")
        print(render_benchmark(json.loads(options.render.read_text(encoding="utf-8"))))
        return
    transformers.utils.logging.disable_progress_bar()
    options.device = choose_device(options.device)
    wanted = options.cases or [name for name in CASES if name != "ceiling"]
    cases: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="ham10000-benchmark-") as scratch:
        folder = Path(scratch)
        (folder / "pictures").mkdir()
        dataset, paths = write_photographs(folder / "pictures", options.images)
        if "inference" in wanted:
            cases |= measure_inference(paths, options)
        if "cache" in wanted:
            cases |= measure_cache(dataset, options, folder)
        if "cold_start" in wanted:
            cases |= measure_cold_start(paths, options, folder)
        if "training" in wanted:
            with contextlib.redirect_stdout(sys.stderr):
                cases |= measure_training(dataset, paths, options, folder)
    settings = {name: getattr(options, name) for name in ("backbone", "image_size", "batch_size", "steps", "pictures")}
    settings |= {"images": options.images, "repetitions": options.repetitions}
    settings |= {"precision": resolve_precision("auto"), "device": str(options.device)}
    results = {"cases": cases, "settings": settings, "environment": environment()}
    print(render_benchmark(results))
    if options.output is not None:
        atomic_write_json(options.output, results)
        print(f"\nSaved     {options.output}")


if __name__ == "__main__":
    sys.exit(main())
