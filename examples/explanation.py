"""Draws `examples/figures/explanation.png`, the explanation of one prediction, on SYNTHETIC data, offline.

    python examples/explanation.py

trains a small fusion model (minutes on a CPU; a second run uses the first one's checkpoint in `runs/explanation`),
fits its temperature on the validation split, and explains a synthetic image of the test split. The image and the
numbers show what the figure looks like, and mean nothing about skin.
"""

import csv
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

# Before the first import of a library that reads it.
os.environ["HF_HUB_OFFLINE"] = "1"

from PIL import Image

from ham10000.training.data.__main__ import main as data_main
from ham10000.training.evaluation.__main__ import main as evaluate_main
from ham10000.training.evaluation.calibration import fit_temperature
from ham10000.training.evaluation.report import read_predictions
from ham10000.training.predict import main as predict_main
from ham10000.training.run_folder import RunFile
from ham10000.training.train import main as train_main
from ham10000.training.utils.files import atomic_path, atomic_write_json, read_json

ROOT = Path("runs/explanation")
DATA, CHECKPOINT = ROOT / "data", ROOT / "fusion"
FIGURE = Path(__file__).parent / "figures" / "explanation.png"
WIDTH = 1000  # pixels; with 256 colours the file is small enough for a repository
# A stride of 8 instead of 32 leaves a feature map of 12 x 12 cells for an image of 96 pixels, fine enough to look at.
NETWORK = "--backbone test_resnet --backbone_kwargs '{\"output_stride\": 8}' --pretrained none --image_size 96"
RECIPE = "--epochs 12 --learning_rate 3e-3 --head_learning_rate 3e-3 --augment_min_area 0.8 --ema_decay 0.98"


def run(program: str, main: Callable[[list[str]], int], arguments: str) -> None:
    """Shows a command line and runs it in this process; a failure ends the script."""
    print(f"\n$ {program} {arguments}", flush=True)
    if code := main(shlex.split(arguments)):
        sys.exit(f"{program} ended with exit code {code}.")


def calibrate() -> None:
    """Fits the temperature on the validation split, once: evaluation gives probabilities at temperature 1 before."""
    config = read_json(CHECKPOINT / RunFile.CONFIG)
    if config["temperature"] != 1.0:
        return
    output = ROOT / "validation"
    run(
        "ham10000-evaluate",
        evaluate_main,
        f"--checkpoint {CHECKPOINT} --data {DATA} --cache_dir {ROOT / 'cache'} --split validation "
        f"--output_dir {output} --n_resamples 100",
    )
    _, labels, probabilities = read_predictions(output / "predictions.csv")
    temperature = fit_temperature(labels, probabilities)
    atomic_write_json(CHECKPOINT / RunFile.CONFIG, {**config, "temperature": temperature})


def choose_row() -> dict[str, str]:
    """The first melanoma of the test split, as the csv has it."""
    with (CHECKPOINT / RunFile.SPLIT).open(newline="", encoding="utf-8") as stream:
        test = {row["image_id"] for row in csv.DictReader(stream) if row["split"] == "test"}
    with (DATA / "HAM10000_metadata.csv").open(newline="", encoding="utf-8") as stream:
        return next(row for row in csv.DictReader(stream) if row["image_id"] in test and row["dx"] == "mel")


def main() -> None:
    """Trains if there is no checkpoint yet, and draws the figure."""
    if not DATA.is_dir():
        run("ham10000-data", data_main, f"--data synthetic:1600 --export {DATA}")
    if not (CHECKPOINT / RunFile.WEIGHTS).is_file():
        common = f"--data {DATA} --cache_dir {ROOT / 'cache'} --output_dir {CHECKPOINT}"
        run("ham10000-train", train_main, f"--modality fusion {common} {NETWORK} {RECIPE}")
    calibrate()
    row = choose_row()
    (image,) = DATA.glob(f"HAM10000_images_part_*/{row['image_id']}.jpg")
    metadata = f"--age {row['age']} --sex {row['sex']} --localization '{row['localization']}'"
    large = ROOT / "explanation.png"
    run("ham10000-predict", predict_main, f"{image} --checkpoint {CHECKPOINT} {metadata} --explain {large}")
    with Image.open(large) as figure, atomic_path(FIGURE) as temporary:
        height = round(figure.height * WIDTH / figure.width)
        small = figure.convert("RGB").resize((WIDTH, height), Image.Resampling.LANCZOS)
        # The default, median cut, has no colour left for the few yellow pixels that matter most.
        palette = small.quantize(256, method=Image.Quantize.MAXCOVERAGE)
        small.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(temporary, optimize=True)
    print(f"\nwrote examples/figures/{FIGURE.name}, {FIGURE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
