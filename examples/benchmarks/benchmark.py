"""Measures this package against the published baseline's pipeline, both in one run on one machine.

python examples/benchmarks/benchmark.py --output examples/results/benchmark.json
python examples/benchmarks/benchmark.py --render examples/results/benchmark.json

Both sides take turns, so that a machine that slows down slows both; a ratio is the median over the turns of the ratio
within a turn. The images are synthetic, at HAM10000's original 600x450 pixels and with grain, so that a
file is as long as one of HAM10000's and takes as long to decode.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import torchvision
import transformers
from accelerate import Accelerator
from benchmark_baseline import BaselineTraining, Photographs, predict_plainly
from benchmark_report import CASES, render_benchmark
from benchmark_turns import in_own_process, measure_seconds, summarize, take_turns
from PIL import Image
from tqdm.auto import tqdm

from ham10000.modeling import LABELS, Ham10000Config, Ham10000Error, create_model, create_processor
from ham10000.training.config import TrainConfig
from ham10000.training.data.loader import open_images
from ham10000.training.data.sources import load_data
from ham10000.training.data.split import make_split
from ham10000.training.data.synthetic import Lesion, render
from ham10000.training.engine import Engine
from ham10000.training.inference.fast import BACKENDS, optimize_for_inference
from ham10000.training.inference.prediction import choose_device, predict, predict_logits
from ham10000.training.train import build_engine
from ham10000.training.utils.cli import add_debug_argument, run_cli
from ham10000.training.utils.files import atomic_write_json, read_json
from ham10000.training.utils.hardware import environment, keep_freed_memory, resolve_precision

ORIGINAL_SIZE = (600, 450)
HAM10000_SIZE = 10_015
GRAIN = 12.0  # standard deviation in levels of 255


def write_photographs(folder: Path, count: int, progress: bool = True) -> tuple[datasets.Dataset, list[Path]]:
    """Synthetic photographs of HAM10000's original size as files, and the dataset that names them."""
    dataset, _ = load_data(f"synthetic:{count}")
    rng = np.random.default_rng(0)
    paths = [folder / f"{image_id}.jpg" for image_id in dataset["image_id"]]
    for path, label in tqdm(zip(paths, dataset["dx"], strict=True), "Drawing", count, disable=not progress):
        picture = np.asarray(render(Lesion.draw(LABELS[label], rng), rng, ORIGINAL_SIZE))
        grainy = np.clip(picture + rng.normal(0, GRAIN, picture.shape), 0, 255).astype(np.uint8)
        Image.fromarray(grainy).save(path, quality=95)
    images = datasets.Dataset.from_dict(
        {"image": [str(path) for path in paths]}, features=datasets.Features({"image": datasets.Image()})
    )
    return datasets.concatenate_datasets([images, dataset.remove_columns("image")], axis=1), paths


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
    accelerator = Accelerator(
        cpu=options.device.type == "cpu", mixed_precision=resolve_precision("auto", options.device.type)
    )
    return build_engine(config, accelerator, dataset, make_split(dataset, protocol="lesion-grouped"))


def _training_rate(steps: Iterator[Any], options: argparse.Namespace) -> float:
    next(steps)  # workers start, and the caches of the processor are those of the side that is measured
    seconds = measure_seconds(lambda: [next(steps) for _ in range(options.steps)], options.device)
    return options.steps * options.batch_size / seconds


def _baseline_training(paths: list[Path], labels: list[int], options: argparse.Namespace) -> Callable[[], float]:
    photographs = Photographs(paths, labels, options.image_size)
    baseline = BaselineTraining(options.baseline, photographs, options.batch_size, options.device)
    return lambda: _training_rate(baseline.steps(), options)


def _baseline_inference(paths: list[Path], options: argparse.Namespace) -> Callable[[], float]:
    model = torchvision.models.get_model(options.baseline, weights=None, num_classes=7).to(options.device).eval()

    def predict_all() -> torch.Tensor:
        return predict_plainly(model, paths, options.image_size, options.batch_size, options.device)

    return lambda: len(paths) / measure_seconds(predict_all, options.device)


def measure_training(
    dataset: datasets.Dataset, paths: list[Path], options: argparse.Namespace, folder: Path
) -> dict[str, dict[str, Any]]:
    """Training steps a second: the baseline, ours, and ours without anything but the step."""
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

    with in_own_process(_baseline_training, paths, list(dataset["dx"]), options) as baseline:
        sides = {
            "baseline": baseline,
            "ours": lambda: _training_rate(ours(), options),
            "ceiling": lambda: _training_rate(ceiling(), options),
        }
        rates = take_turns(sides, options.repetitions)
    return {"training": summarize(rates, "ours", "baseline"), "ceiling": summarize(rates, "ours", "ceiling")}


def measure_inference(paths: list[Path], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Files to probabilities with the same network on both sides, each with random weights of its own."""
    config = Ham10000Config(
        modality="image", backbone=options.backbone, backbone_kwargs=json.loads(options.backbone_kwargs)
    )
    processor = create_processor(config, image_size=options.image_size, resizer=TrainConfig.resizer)
    model = optimize_for_inference(create_model(config).to(options.device).eval(), "auto", backend=options.backend)
    chosen = (paths * -(-options.images_a_turn // len(paths)))[: options.images_a_turn]

    def predict_all() -> np.ndarray:
        return predict(model, processor, chosen, batch_size=options.batch_size)

    with in_own_process(_baseline_inference, chosen, options) as baseline:
        sides = {"baseline": baseline, "ours": lambda: len(chosen) / measure_seconds(predict_all, options.device)}
        rates = take_turns(sides, options.repetitions)
    return {"inference": summarize(rates, "ours", "baseline")}


def measure_cache(dataset: datasets.Dataset, options: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    """Images a second and core while the frames of the training cache are built."""
    cores = environment()["cpu"]["count"]
    processor = create_processor(
        Ham10000Config(modality="image"), image_size=options.image_size, resizer=TrainConfig.resizer
    )
    train_size = (options.image_size, options.image_size)

    def rate() -> float:
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            seconds = measure_seconds(
                lambda: open_images(
                    dataset, processor, torch.device("cpu"), train_size=train_size, cache_dir=fresh, progress=False
                ),
                options.device,
            )
        return len(dataset) / seconds / cores

    rates = take_turns({"ours": rate, "goal": lambda: 200.0}, options.repetitions)
    return {"cache": summarize(rates, "ours", "goal")}


def _peak_memory(dataset: datasets.Dataset, options: argparse.Namespace, folder: Path) -> Callable[[], float]:
    if options.device.type == "cpu":
        keep_freed_memory()
    copies = -(-HAM10000_SIZE // len(dataset))
    whole = datasets.concatenate_datasets(
        [
            dataset.map(lambda row, copy=copy: {name: f"{row[name]}-{copy}" for name in ("image_id", "lesion_id")})
            for copy in range(copies)
        ]
    ).select(range(HAM10000_SIZE))
    engine = build_training(whole, options, folder)
    engine.wrapped.train()
    assert engine.validation_loader is not None
    validation_loader = engine.validation_loader

    def gibibytes() -> float:
        steps = engine.train_loader.epoch(0)
        for number in range(options.steps):
            engine._step(number, *next(steps))
        predict_logits(engine.published_model.eval(), validation_loader, autocast=engine.accelerator.autocast)
        facts = environment()
        return (facts["peak_cuda_mib"] or facts["peak_rss_mib"]) / 1024

    return gibibytes


def measure_memory(dataset: datasets.Dataset, options: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    """Peak memory of training and validation on as many images as HAM10000 has, in a process of its own."""
    on_gpu = options.device.type == "cuda"
    backbone, kwargs, batch_size, limit = (
        (options.backbone, options.backbone_kwargs, 256, 40.0) if on_gpu else (options.memory_backbone, "{}", 32, 3.0)
    )
    settings = {"backbone": backbone, "backbone_kwargs": kwargs, "batch_size": batch_size}
    own = argparse.Namespace(**{**vars(options), **settings})
    with in_own_process(_peak_memory, dataset, own, folder) as peak:
        used = peak()
    ratio, trains = limit / used, f"{backbone}, batch {batch_size}"
    return {"memory": {"ours": used, "other": limit, "ratio": ratio, "ratios": [ratio], "trains": trains}}


def build_parser() -> argparse.ArgumentParser:
    """Returns the benchmark's parser."""
    parser = argparse.ArgumentParser(prog="benchmark.py", description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=[name for name in CASES if name != "ceiling"], default=None)
    parser.add_argument("--backbone", default="efficientnetv2_s", help="ours; the default is the baseline's network")
    parser.add_argument("--baseline", default="efficientnet_v2_s", help="torchvision's name of the same network")
    parser.add_argument("--backbone_kwargs", default='{"bn_eps": 1e-3}')
    parser.add_argument(
        "--memory_backbone", default="tf_efficientnetv2_b0", help="network of the memory case on a CPU"
    )
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10, help="training steps a turn")
    parser.add_argument("--images_a_turn", type=int, default=128, help="images that a turn of inference predicts")
    parser.add_argument("--images", type=int, default=300, help="size of the synthetic dataset")
    parser.add_argument("--repetitions", type=int, default=5, help="turns that count, after one that does not")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--backend", choices=BACKENDS, default="torch", help="what computes our predictions")
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
        print(render_benchmark(read_json(options.render)))
        return
    transformers.utils.logging.disable_progress_bar()
    options.device = choose_device(options.device)
    wanted = options.cases or [name for name in CASES if name != "ceiling"]
    cases: dict[str, Any] = {}
    if options.device.type == "cpu":
        keep_freed_memory()  # as `ham10000-train` and `ham10000-predict --precision` do
    with tempfile.TemporaryDirectory(prefix="ham10000-benchmark-") as scratch:
        folder = Path(scratch)
        (folder / "images").mkdir()
        dataset, paths = write_photographs(folder / "images", options.images)
        if "inference" in wanted:
            cases |= measure_inference(paths, options)
        if "cache" in wanted:
            cases |= measure_cache(dataset, options, folder)
        if "memory" in wanted:
            cases |= measure_memory(dataset, options, folder)
        if "training" in wanted:
            with contextlib.redirect_stdout(sys.stderr):
                cases |= measure_training(dataset, paths, options, folder)
    settings = {
        name: getattr(options, name)
        for name in ("backbone", "baseline", "image_size", "batch_size", "steps", "images_a_turn", "backend")
    }
    settings |= {"images": options.images, "repetitions": options.repetitions}
    settings |= {"precision": resolve_precision("auto", options.device.type), "device": str(options.device)}
    results = {"cases": cases, "settings": settings, "environment": environment()}
    print(render_benchmark(results))
    if options.output is not None:
        atomic_write_json(options.output, results)
        print(f"\nSaved     {options.output}")


if __name__ == "__main__":
    sys.exit(main())
