"""Measures how speed scales: with the batch, with processes on a CPU, and with the number of images.

python examples/benchmarks/scaling.py --output examples/results/scaling.json

Every number is of the package's own commands or functions on synthetic images. The JSON holds all of them, and
`scaling.png` beside it shows them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from ham10000.modeling import Ham10000Config, create_model
from ham10000.training.config import TrainConfig
from ham10000.training.data.sources import load_data
from ham10000.training.data.split import make_split
from ham10000.training.inference.fast import optimize_for_inference
from ham10000.training.inference.prediction import predict_logits
from ham10000.training.train import build_engine
from ham10000.training.utils.figures import OKABE_ITO, new_figure, save_figure, style_axes
from ham10000.training.utils.files import atomic_write_json
from ham10000.training.utils.hardware import environment, keep_freed_memory, resolve_precision


def batch_scaling(options: argparse.Namespace) -> list[dict[str, float]]:
    """Images a second of a training step and of prediction, for batches of 1 to 512."""
    rows = []
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = resolve_precision("auto")
    for batch_size in tqdm([2**k for k in range(10)], "batch"):
        model: Any = create_model(Ham10000Config(modality="image", backbone=options.backbone)).to(device)
        model = model.to(memory_format=torch.channels_last)
        fast = optimize_for_inference(model.eval(), "auto")
        optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-4, fused=True)
        pixels = torch.randn(batch_size, 3, options.image_size, options.image_size, device=device)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        labels = torch.randint(0, 7, (batch_size,), device=device)

        def train_step(model: Any = model, optimizer: Any = optimizer, pixels: Any = pixels, y: Any = labels) -> None:
            dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                loss = model(pixel_values=pixels, labels=y).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        @torch.inference_mode()
        def predict_step(fast: Any = fast, pixels: Any = pixels) -> None:
            fast(pixel_values=pixels).logits.sum().item()

        row: dict[str, float] = {"batch_size": batch_size}
        # Batch norm needs more than one value a channel, which an image's positions give from batch 1 on.
        for name, step in (("training", train_step), ("prediction", predict_step)):
            step()
            repeats = max(2, 64 // batch_size)
            start = time.perf_counter()
            for _ in range(repeats):
                step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            row[name] = repeats * batch_size / (time.perf_counter() - start)
        rows.append(row)
    return rows


def process_scaling(options: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    """Images a second of `accelerate launch` with 1, 2 and 4 processes on a CPU, the batch of a step unchanged."""
    rows = []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    train = Path(__file__).resolve().parents[2] / "training" / "train.py"
    for processes in tqdm([1, 2, 4], "processes"):
        command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)]
        command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        command += ["--multi_gpu"] if processes > 1 else []  # the launcher of several processes, on CPUs too
        command += ["--num_cpu_threads_per_process", str(max(1, cores // processes)), str(train), "--epochs", "1"]
        command += ["--data", "synthetic:800", "--modality", "image", "--pretrained", "none", "--trackers", "none"]
        command += ["--backbone", options.backbone, "--image_size", str(options.image_size), "--batch_size", "32"]
        command += ["--output_dir", str(folder / f"processes{processes}"), "--cache_dir", str(folder / "cache")]
        subprocess.run(command, check=True, capture_output=True)
        (epoch,) = json.loads((folder / f"processes{processes}" / "history.json").read_text(encoding="utf-8"))
        rows.append({"processes": processes, "training": epoch["images_per_second"]})
    return rows


def image_scaling(folder: Path) -> list[dict[str, float]]:
    """Seconds of start-up and of an epoch for 1,000 to 10,015 images, with a tiny network so that the rest shows."""
    rows = []
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=resolve_precision("auto"))
    for count in tqdm([1000, 2500, 5000, 10015], "images"):
        config = TrainConfig(
            data=f"synthetic:{count}",
            modality="fusion",
            backbone="test_efficientnet",
            backbone_kwargs="{}",
            pretrained="none",
            image_size=[64],
            cache_dir=str(folder / "cache"),
            output_dir=str(folder / "images"),
            trackers=["none"],
        )
        dataset, _ = load_data(config.data)
        build_engine(config, accelerator, dataset, make_split(dataset))  # builds the cache, which is not start-up
        start = time.perf_counter()
        split = make_split(dataset)
        engine = build_engine(config, accelerator, dataset, split)
        ready = time.perf_counter()
        engine.wrapped.train()
        for number, step in enumerate(engine.train_loader.epoch(0)):
            engine._step(number, *step)
        trained = time.perf_counter()
        predict_logits(engine.published_model.eval(), engine.validation_loader, autocast=accelerator.autocast)
        seconds = {"startup": ready - start, "epoch": trained - ready, "validation": time.perf_counter() - trained}
        rows.append({"images": count, "train_images": split.sizes["train"], **seconds})
    return rows


def plot(results: dict[str, Any], path: Path) -> None:
    """Three panels: batch, processes, images."""
    figure = new_figure(11, 3.8)
    panels = figure.subplots(1, 3)
    batch, processes, images = results["batch"], results["processes"], results["images"]
    sizes = [row["batch_size"] for row in batch]
    for name, colour, marker in (("prediction", "blue", "s"), ("training", "vermilion", "o")):
        panels[0].plot(sizes, [row[name] for row in batch], marker=marker, color=OKABE_ITO[colour], label=name)
    best = max(batch, key=lambda row: row["training"])["batch_size"]
    style_axes(panels[0], title=f"Training is fastest at batch {best}", xlabel="Batch size", ylabel="Images / s")
    panels[0].set_xscale("log", base=2)
    panels[0].set_ylim(bottom=0)
    panels[0].legend(frameon=False)
    names = [str(row["processes"]) for row in processes]
    panels[1].bar(names, [row["training"] for row in processes], color=OKABE_ITO["green"], width=0.6)
    ratio = processes[1]["training"] / processes[0]["training"]
    title = f"Two processes: {ratio:.2f} of one"
    style_axes(
        panels[1], title=title, xlabel="Processes, the cores shared out", ylabel="Training images / s", grid="y"
    )
    counts = np.array([row["train_images"] for row in images])
    epochs = np.array([row["epoch"] for row in images])
    panels[2].plot(counts, epochs, "o-", color=OKABE_ITO["vermilion"], label="epoch")
    panels[2].plot(counts, [row["startup"] for row in images], "s-", color=OKABE_ITO["blue"], label="start-up")
    per_thousand = 1000 * epochs / counts
    title = f"{per_thousand.min():.2f} to {per_thousand.max():.2f} s per 1,000 images"
    style_axes(panels[2], title=title, xlabel="Training images", ylabel="Seconds")
    panels[2].set_ylim(bottom=0)
    panels[2].legend(frameon=False)
    save_figure(figure, path)


def main() -> None:
    """Runs all three and writes the JSON and the figure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", default="tf_efficientnetv2_b0")
    parser.add_argument("--image_size", type=int, default=96)
    parser.add_argument("--output", type=Path, default=Path("runs/scaling.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ham10000-scaling-") as scratch:
        folder = Path(scratch)
        # First what starts processes of its own, then what sets this one's allocator.
        processes = process_scaling(options, folder)
        keep_freed_memory()
        results = {"batch": batch_scaling(options), "processes": processes, "images": image_scaling(folder)}
    results["settings"] = {"backbone": options.backbone, "image_size": options.image_size}
    results["environment"] = environment()
    atomic_write_json(options.output, results)
    plot(results, options.output.with_suffix(".png"))
    for name in ("batch", "processes", "images"):
        for row in results[name]:
            print(name, {key: round(value, 2) for key, value in row.items()})
    print(f"Saved     {options.output} and {options.output.with_suffix('.png')}")


if __name__ == "__main__":
    main()
