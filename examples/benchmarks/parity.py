"""Checks that speed changes no result: the fast paths against the plain ones, the same seeds, the same data.

python examples/benchmarks/parity.py --data synthetic:1500 --output examples/results/parity.json

Fast is what `ham10000-train` does by default (images resized by torch, bf16 where the hardware has it, channels last);
plain is fp32, Pillow, NCHW.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ham10000.training.run_folder import RunFile
from ham10000.training.utils.files import atomic_write_json, read_json
from ham10000.training.utils.hardware import environment

SIDES = {
    "fast": [],
    "plain": ["--mixed_precision", "no", "--resizer", "pillow", "--channels_last", "false"],
}
METRICS = ("validation_macro_f1", "validation_accuracy", "validation_loss")


def train(side: str, seed: int, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """The last epoch of one run."""
    output = folder / f"{side}{seed}"
    command = [sys.executable, "-m", "ham10000.training.train", "--data", options.data, "--modality", "image"]
    command += ["--backbone", options.backbone, "--pretrained", options.pretrained, "--epochs", str(options.epochs)]
    command += ["--image_size", str(options.image_size), "--seed", str(seed), "--trackers", "none", *SIDES[side]]
    command += ["--output_dir", str(output), "--cache_dir", str(folder / "cache")]
    subprocess.run(command, check=True, capture_output=True)
    row = read_json(output / RunFile.HISTORY, list)[-1]
    return {name: row[name] for name in (*METRICS, "images_per_second")}


def main() -> None:
    """Trains both sides for each seed and prints the differences beside the spread over seeds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="synthetic:1500")
    parser.add_argument("--backbone", default="tf_efficientnetv2_b0")
    parser.add_argument("--pretrained", default="none", help="'none', or a .safetensors file")
    parser.add_argument("--image_size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3, help="at least 2, whose spread is compared with")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error(f"--seeds {options.seeds}: a spread over seeds needs at least 2")
    rows: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory(prefix="ham10000-parity-") as scratch:
        for seed in tqdm(range(options.seeds), "seeds"):
            for side, values in rows.items():
                values.append(train(side, seed, options, Path(scratch)))
    results: dict[str, Any] = {"runs": rows, "metrics": {}}
    for name in METRICS:
        sides = {side: [row[name] for row in values] for side, values in rows.items()}
        differences = [a - b for a, b in zip(sides["fast"], sides["plain"], strict=True)]
        spread = statistics.stdev(sides["plain"])
        results["metrics"][name] = {
            **{side: statistics.mean(values) for side, values in sides.items()},
            "differences": differences,
            "mean_difference": statistics.mean(differences),
            "sd_over_seeds": spread,
        }
        print(
            f"{name:22} fast {statistics.mean(sides['fast']):.4f}  plain {statistics.mean(sides['plain']):.4f}  "
            f"difference {statistics.mean(differences):+.4f}, by seed {', '.join(f'{d:+.4f}' for d in differences)}; "
            f"SD over seeds {spread:.4f}"
        )
    results["settings"] = {k: getattr(options, k) for k in ("data", "backbone", "image_size", "epochs", "seeds")}
    results["settings"]["pretrained"] = Path(options.pretrained).name
    results["environment"] = environment()
    if options.output:
        atomic_write_json(options.output, results)


if __name__ == "__main__":
    main()
