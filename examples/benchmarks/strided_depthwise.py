"""Measures what `keep_strided_depthwise_fp32` gains in a bf16 training step on a CPU; both variants in one run.

python examples/benchmarks/strided_depthwise.py --output examples/results/strided_depthwise.json
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from ham10000.modeling import Ham10000Config, create_model
from ham10000.training.utils.files import atomic_write_json
from ham10000.training.utils.hardware import environment, keep_strided_depthwise_fp32


def step_seconds(model: torch.nn.Module, pixel_values: torch.Tensor, labels: torch.Tensor) -> float:
    """Time of one forward and backward pass under bf16 autocast."""
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(pixel_values=pixel_values, labels=labels).loss
    loss.backward()
    model.zero_grad()
    return time.perf_counter() - start


def main() -> None:
    """Runs both variants in turns and prints the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", default="tf_efficientnetv2_b0")
    parser.add_argument("--image_size", type=int, default=192)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    pixel_values = torch.randn(options.batch_size, 3, options.image_size, options.image_size)
    pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 7, (options.batch_size,))
    config = Ham10000Config(modality="image", backbone=options.backbone)
    models = {name: create_model(config).to(memory_format=torch.channels_last) for name in ("all bf16", "ours")}
    layers = keep_strided_depthwise_fp32(models["ours"])
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for step in range(options.steps + 3):
        for name, model in models.items():
            taken = step_seconds(model, pixel_values, labels)
            if step >= 3:  # the first steps build oneDNN's kernels
                seconds[name].append(taken)
    medians = {name: round(1000 * statistics.median(values), 1) for name, values in seconds.items()}
    result = {
        "layers_kept_fp32": layers,
        "median_step_ms": medians,
        "ratio": round(medians["all bf16"] / medians["ours"], 3),
        "settings": {name: value for name, value in vars(options).items() if name != "output"},
        "environment": environment(),
    }
    print(f"{layers} layers; {medians['all bf16']} -> {medians['ours']} ms a step, {result['ratio']}x")
    if options.output:
        atomic_write_json(options.output, result)


if __name__ == "__main__":
    main()
