"""The table of a benchmark: what was measured, what was aimed at, and by how much it was missed."""

from typing import Any

from ham10000.training.utils.markdown_text import join, table

# Name to what it is, and the least ratio that is aimed at on a CPU and on a data-centre GPU.
CASES: dict[str, tuple[str, float, float]] = {
    "training": ("training images/s, against the baseline's pipeline", 2.5, 8.0),
    "ceiling": ("training images/s, against the same step on batches that are there already", 0.95, 0.90),
    "inference": ("images/s from JPEG files to probabilities, against the baseline card's snippet", 3.0, 10.0),
    "cache": ("images/s a core while the cache is built, against 200", 1.0, 1.0),
    "memory": ("GiB (3 on a CPU, 40 on a GPU), against the peak of training on 10,015 images", 1.0, 1.0),
    "cold_start": ("`import torch, transformers, timm`, against a cold `ham10000-predict`", 1 / 1.3, 1 / 1.3),
}


def render_benchmark(results: dict[str, Any], *, targets: bool = True) -> str:
    """The results as a markdown table.

    Args:
        results: What `--output` holds.
        targets: Whether each row has its target.

    Returns:
        Markdown: one row a case, then the settings and the machine.
    """
    on_gpu = results["environment"]["gpu"] is not None
    header = ["what", "ours", "other", "ratio (lowest and highest turn)", *(["target", "gap"] if targets else [])]
    rows = []
    for name, (title, cpu_target, gpu_target) in CASES.items():
        if name not in results["cases"]:
            continue
        case, target = results["cases"][name], gpu_target if on_gpu else cpu_target
        ratio, ratios = case["ratio"], case["ratios"]
        verdict = "reached" if ratio >= target else f"{1 - ratio / target:.0%} short"
        turns = f"{ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        row = [title, f"{case['ours']:.2f}", f"{case['other']:.2f}", turns]
        rows.append([*row, f"{target:.2f}", verdict] if targets else row)
    facts, settings = results["environment"], results["settings"]
    machine = facts["gpu"]["model"] if on_gpu else f"{facts['cpu']['count']} cores of {facts['cpu']['model']}"
    commit = (facts["git"] or {}).get("commit", "unknown")[:10]
    return join(
        table(header, rows, align="lrrrrl"[: len(header)]),
        f"{settings['backbone']} at {settings['image_size']} px, batch {settings['batch_size']}, "
        f"precision {settings['precision']}, predictions by {settings.get('backend', 'torch')}, "
        f"{settings['repetitions']} turns, on {machine}; torch {facts['versions']['torch']}, commit `{commit}`. "
        + ("Memory with batch 256." if on_gpu else "Memory with EfficientNetV2-B0."),
    )


__all__ = ["CASES", "render_benchmark"]
