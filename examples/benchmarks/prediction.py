"""Images a second from JPEG files to probabilities: this package next to what else predicts with the same network.

python examples/benchmarks/prediction.py --data HAM10000/ --output examples/results/prediction.json

Each side works in a process of its own, once a turn, on the same files in the same batches, with random weights of one
network. `plain` is the published baseline card's snippet batched, `timm` timm's own transform in a DataLoader with a
worker a core, `pipeline` transformers' image-classification pipeline with its TimmWrapper, `onnxruntime` our exported
graph behind our processor, `ours` and `ours, openvino` what `ham10000-predict --precision auto` computes with.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import datasets
import timm
import torch
from benchmark import write_photographs
from benchmark_baseline import predict_plainly
from benchmark_turns import in_own_process, measure_seconds, take_turns
from PIL import Image
from torch.utils.data import DataLoader
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification, TimmWrapperImageProcessor, pipeline

from ham10000.hub_upload.export_onnx import export_onnx
from ham10000.modeling import LABELS, Ham10000Config, create_model, create_processor, load_image
from ham10000.training.data.sources import load_data
from ham10000.training.inference.fast import optimize_for_inference
from ham10000.training.inference.prediction import predict
from ham10000.training.utils.cli import add_debug_argument, run_cli
from ham10000.training.utils.files import atomic_write_json
from ham10000.training.utils.hardware import environment, keep_freed_memory

SIDES = ("plain", "timm", "pipeline", "onnxruntime", "ours", "ours, openvino")


class _Files(torch.utils.data.Dataset):
    """timm's transform, file by file."""

    def __init__(self, paths: list[Path], transform: Callable[[Image.Image], torch.Tensor]):
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(Image.open(self.paths[index]).convert("RGB"))


def _side(name: str, paths: list[Path], options: argparse.Namespace) -> Callable[[], float]:
    """Builds one side; what it returns predicts all files once and gives images a second."""
    predict_all = _ours(name, paths, options) if name.startswith("ours") else _theirs(name, paths, options)
    return lambda: len(paths) / measure_seconds(predict_all, torch.device("cpu"))


def _ours(name: str, paths: list[Path], options: argparse.Namespace) -> Callable[[], Any]:
    keep_freed_memory()
    config = Ham10000Config(modality="image", backbone=options.backbone)
    processor = create_processor(config, image_size=options.image_size, resizer="torch")
    backend = "openvino" if "openvino" in name else "torch"
    model = optimize_for_inference(create_model(config).eval(), "auto", backend=backend)
    return lambda: predict(model, processor, paths, batch_size=options.batch_size)


def _theirs(name: str, paths: list[Path], options: argparse.Namespace) -> Callable[[], Any]:
    size, batch_size = options.image_size, options.batch_size
    batches = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    if name == "onnxruntime":
        import onnxruntime

        config = Ham10000Config(modality="image", backbone=options.backbone)
        processor = create_processor(config, image_size=size)
        folder = Path(tempfile.mkdtemp(dir=options.scratch))
        create_model(config).save_pretrained(folder)
        processor.save_pretrained(folder)
        session = onnxruntime.InferenceSession(export_onnx(folder), providers=["CPUExecutionProvider"])

        def run_session() -> None:
            for batch in batches:
                inputs = processor(images=[load_image(path) for path in batch], return_tensors="np")
                session.run(None, {"pixel_values": inputs["pixel_values"]})

        return run_session
    if name == "pipeline":
        config = TimmWrapperConfig(architecture=options.backbone, num_labels=len(LABELS), model_args={})
        model = TimmWrapperForImageClassification(config).eval()
        settings = {**model.timm_model.pretrained_cfg, "input_size": (3, size, size), "crop_pct": 1.0}
        processor = TimmWrapperImageProcessor(settings, architecture=options.backbone)
        classify = pipeline("image-classification", model=model, image_processor=processor, device="cpu")
        return lambda: classify([str(path) for path in paths], batch_size=batch_size)
    model = timm.create_model(options.backbone, num_classes=len(LABELS)).eval()
    if name == "plain":
        return lambda: predict_plainly(model, paths, size, batch_size, torch.device("cpu"))
    transform = timm.data.create_transform((3, size, size), crop_pct=1.0, interpolation="bicubic")
    loader = DataLoader(_Files(paths, transform), batch_size=batch_size, num_workers=os.cpu_count() or 1)

    def run_timm() -> None:
        with torch.inference_mode():
            for images in loader:
                model(images).softmax(-1)

    return run_timm


@run_cli
def main(argv: Sequence[str]) -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(prog="prediction.py", description=__doc__.split("\n")[0])
    parser.add_argument("--data", help="real photographs; without it, synthetic ones of HAM10000's size")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--backbone", default="tf_efficientnetv2_b0")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--images", type=int, default=256, help="files a turn")
    parser.add_argument("--repetitions", type=int, default=5, help="turns that count, after one that does not")
    parser.add_argument("--output", type=Path, help="write the results as JSON")
    add_debug_argument(parser)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="ham10000-prediction-") as scratch, ExitStack() as stack:
        options.scratch = scratch
        if options.data:
            dataset = load_data(options.data)[0].select(range(options.images))
            images = dataset.cast_column("image", datasets.Image(decode=False))["image"]
            paths = [Path(image["path"]) for image in images]
        else:
            _, paths = write_photographs(Path(scratch), options.images)
        sides = {name: stack.enter_context(in_own_process(_side, name, paths, options)) for name in options.sides}
        rates = take_turns(sides, options.repetitions)
    first = rates[options.sides[0]]
    results = {
        "images_per_second": rates,
        "median": {name: statistics.median(values) for name, values in rates.items()},
        # Within a turn, so that a machine that slows down slows both.
        "ratio_to_first": {
            name: statistics.median(a / b for a, b in zip(values, first, strict=True))
            for name, values in rates.items()
        },
        "settings": {
            k: v for k, v in vars(options).items() if k in ("backbone", "image_size", "batch_size", "images")
        },
        "environment": environment(),
    }
    for name, rate in results["median"].items():
        print(f"{name:<16}{rate:>8.1f} images/s  {results['ratio_to_first'][name]:.2f} x {options.sides[0]}")
    if options.output:
        atomic_write_json(options.output, results)
        print(f"Saved     {options.output}")


if __name__ == "__main__":
    sys.exit(main())
