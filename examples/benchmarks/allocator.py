"""Measures what `keep_freed_memory` gains in a bf16 training step on a CPU; each side in its own processes, in turns.

python examples/benchmarks/allocator.py --output examples/results/allocator.json
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from ham10000.modeling import Ham10000Config, create_model
from ham10000.training.utils.files import atomic_write_json
from ham10000.training.utils.hardware import environment, keep_freed_memory, keep_strided_depthwise_fp32


def step_seconds(options: argparse.Namespace) -> float:
    """Median time of a training step in this process."""
    torch.manual_seed(0)
    model = create_model(Ham10000Config(modality="image", backbone=options.backbone)).train()
    keep_strided_depthwise_fp32(model)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
    pixel_values = torch.randn(options.batch_size, 3, options.image_size, options.image_size)
    pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 7, (options.batch_size,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    seconds = []
    for _ in range(options.steps + 2):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(pixel_values=pixel_values, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])


def main() -> None:
    """Runs both sides in turns and prints the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", default="tf_efficientnetv2_b0")
    parser.add_argument("--image_size", type=int, default=192)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--measure", choices=["plain", "kept"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        if options.measure == "kept" and not keep_freed_memory():
            sys.exit("keep_freed_memory has no effect here: it needs Linux with glibc.")
        print(step_seconds(options))
        return
    seconds: dict[str, list[float]] = {"plain": [], "kept": []}
    for _ in range(options.turns):
        for side, values in seconds.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--measure", side]
            values.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    ratios = [plain / kept for plain, kept in zip(seconds["plain"], seconds["kept"], strict=True)]
    result = {
        "settings": {name: getattr(options, name) for name in ("backbone", "image_size", "batch_size", "steps")},
        "milliseconds": {side: round(statistics.median(values) * 1e3, 1) for side, values in seconds.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "environment": environment(),
    }
    print(f"{result['milliseconds']['plain']} -> {result['milliseconds']['kept']} ms a step, {result['ratio']}x")
    if options.output is not None:
        atomic_write_json(options.output, result)


if __name__ == "__main__":
    main()
