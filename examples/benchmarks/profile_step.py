"""Where the time of a training step goes: self time by kind of operation, from torch's profiler.

python examples/benchmarks/profile_step.py --output examples/results/profile_step.json
"""

import argparse
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from ham10000.modeling import Ham10000Config, create_model
from ham10000.training.utils.files import atomic_write_json
from ham10000.training.utils.hardware import (
    environment,
    keep_freed_memory,
    keep_strided_depthwise_fp32,
    resolve_precision,
)

# Part of an operation's name to its kind; the first that fits counts.
KINDS = {
    "convolution_backward": "convolution, backward",
    "conv": "convolution, forward",
    "batch_norm": "batch norm",
    "silu": "SiLU",
    "adam": "optimiser",
    "copy_": "casts and copies",
}


def main() -> None:
    """Profiles and prints the shares."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", default="efficientnetv2_s")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    keep_freed_memory()
    precision = resolve_precision("auto", "cpu")
    model = create_model(Ham10000Config(modality="image", backbone=options.backbone)).train()
    if precision == "bf16":
        keep_strided_depthwise_fp32(model)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
    pixels = torch.randn(options.batch_size, 3, options.image_size, options.image_size)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 7, (options.batch_size,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(pixel_values=pixels, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(options.steps):
            step()
    times: dict[str, float] = {}
    for event in profiler.key_averages():
        kind = next((kind for part, kind in KINDS.items() if part in event.key.lower()), "all else")
        times[kind] = times.get(kind, 0.0) + event.self_cpu_time_total
    total = sum(times.values())
    shares = {kind: round(time / total, 4) for kind, time in sorted(times.items(), key=lambda item: -item[1])}
    for kind, share in shares.items():
        print(f"{share:6.1%}  {kind}")
    print(f"{total / options.steps / 1e6:.2f} s a step")
    if options.output:
        settings = {name: getattr(options, name) for name in ("backbone", "image_size", "batch_size", "steps")}
        seconds = round(total / options.steps / 1e6, 3)
        results = {"shares": shares, "seconds_per_step": seconds, "settings": settings, "environment": environment()}
        atomic_write_json(options.output, results)


if __name__ == "__main__":
    main()
