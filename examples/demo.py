"""What `make demo` runs: all three variants trained, evaluated and used, on synthetic data and without a network.

The model trained on the real data, in examples/checkpoints, answers too.

    runs/demo/
    ├── data/                        800 synthetic images in HAM10000's own layout
    ├── image/ metadata/ fusion/     a checkpoint each, with eval_results.json, predictions.csv and figures/
    ├── images/                      a few photographs that none of them was trained on
    ├── predictions.csv              the fusion model's answer to these
    └── bundle/                      what would be published on the Hub; its README.md is the model card

Every step is a command line of the package, shown before it is run.
"""

import csv
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

# Before the first import of a library that reads it: the demo never touches the network.
os.environ["HF_HUB_OFFLINE"] = "1"

from ham10000.hub_upload.commands import push as push_main
from ham10000.modeling import MODALITIES
from ham10000.training.data.__main__ import main as data_main
from ham10000.training.evaluation.__main__ import main as evaluate_main
from ham10000.training.predict import main as predict_main
from ham10000.training.run_folder import RunFile
from ham10000.training.train import main as train_main
from ham10000.training.utils.files import read_json

ROOT = Path("runs/demo")
DATA = ROOT / "data"
# Small images, a small network from random weights, a high learning rate: half a minute a variant is enough.
NETWORK = "--backbone test_resnet --backbone_kwargs {} --pretrained none --image_size 64 --train_scales 0.5 1"
RECIPE = "--epochs 14 --learning_rate 3e-3 --head_learning_rate 3e-3 --augment_min_area 0.8 --ema_decay 0.98"


def run(program: str, main: Callable[[list[str]], int], arguments: str) -> None:
    """Shows a command line and runs it in this process, which saves importing torch nine times.

    Args:
        program: Name of the command.
        main: Its entry point.
        arguments: As typed in a shell.
    """
    print(f"\n$ {program} {arguments}", flush=True)
    if code := main(shlex.split(arguments)):
        sys.exit(f"The demo stopped: {program} ended with exit code {code}.")


def copy_test_images(count: int) -> Path:
    """Copies photographs of the test split, of as many classes as possible, into one folder.

    Args:
        count: Number of photographs.

    Returns:
        The folder.
    """
    with (ROOT / "fusion" / RunFile.SPLIT).open(newline="", encoding="utf-8") as stream:
        test = {row["image_id"] for row in csv.DictReader(stream) if row["split"] == "test"}
    with (DATA / "HAM10000_metadata.csv").open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["image_id"] in test]
    first_of_class = {row["dx"]: row["image_id"] for row in reversed(rows)}
    chosen = sorted({*list(first_of_class.values())[:count]})
    folder = ROOT / "images"
    folder.mkdir()
    for image_id in chosen:
        (image,) = DATA.glob(f"HAM10000_images_part_*/{image_id}.jpg")
        shutil.copy(image, folder)
    return folder


def results_table() -> str:
    """The test results of the three variants, read from the files their evaluations wrote.

    Returns:
        Lines of text.
    """
    names = {"macro_f1": "macro-F1", "balanced_accuracy": "balanced accuracy", "accuracy": "accuracy"}
    lines = [f"{'variant':<10}" + "".join(f"{title:<23}" for title in names.values()) + "training"]
    for modality in MODALITIES:
        results = read_json(ROOT / modality / RunFile.EVALUATION)
        training = read_json(ROOT / modality / RunFile.TRAINING)
        cells = []
        for name in names:
            interval = results["intervals"][name]
            cells.append(f"{interval['estimate']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]")
        lines.append(
            f"{modality:<10}" + "".join(f"{cell:<23}" for cell in cells) + f"{training['training_seconds']:.0f} s"
        )
    classes = results["metrics"]["per_class"]
    lines += [
        "",
        f"Test split: {results['metrics']['n_images']} photographs of {results['bootstrap']['n_lesions']} lesions, "
        f"95 % intervals. Guessing: balanced accuracy {1 / len(classes):.3f}.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Runs the demo from the beginning; an earlier one is replaced."""
    start = time.perf_counter()
    shutil.rmtree(ROOT, ignore_errors=True)
    print("Demo on SYNTHETIC data: it shows that everything works. Its numbers mean nothing about skin.")
    run("ham10000-data", data_main, f"--data synthetic:800 --export {DATA}")
    common = f"--data {DATA} --cache_dir {ROOT / 'cache'}"
    for modality in MODALITIES:
        output = f"--output_dir {ROOT / modality}"
        run("ham10000-train", train_main, f"--modality {modality} {common} {output} {NETWORK} {RECIPE}")
        run("ham10000-evaluate", evaluate_main, f"--checkpoint {ROOT / modality} {common}")

    images = copy_test_images(6)
    checkpoint = f"--checkpoint {ROOT / 'fusion'}"
    first = sorted(images.iterdir())[0]
    print("\nThe model of examples/checkpoints, trained on the real HAM10000, on an image it was not made for:")
    run("ham10000-predict", predict_main, f"{first} --age 60 --sex male --localization back")
    print("\nThe model just trained on synthetic images, on the same one:")
    run("ham10000-predict", predict_main, f"{first} {checkpoint} --age 60 --sex male --localization back")
    table = f"--metadata {DATA / 'HAM10000_metadata.csv'}"
    run("ham10000-predict", predict_main, f"{images} {checkpoint} {table}")
    run("ham10000-predict", predict_main, f"{images} {checkpoint} {table} --output {ROOT / 'predictions.csv'}")

    siblings = f"--sibling {ROOT / 'image'} --sibling {ROOT / 'metadata'}"
    publication = f"--repo_id user/ham10000-fusion --dry_run --output_dir {ROOT / 'bundle'}"
    run("ham10000-push", push_main, f"{checkpoint} {siblings} {publication}")

    print(f"\n{results_table()}")
    print("\nThese are synthetic images: the numbers show that the code works, and mean nothing about skin.")
    print(f"\nTo look at, after {time.perf_counter() - start:.0f} s:")
    for modality in MODALITIES:
        print(f"  {ROOT / modality}/  checkpoint, eval_results.json, predictions.csv")
    for figure in sorted((ROOT / "fusion" / "figures").iterdir()):
        print(f"  {figure}")
    print(f"  {ROOT / 'predictions.csv'}")
    print(f"  {ROOT / 'bundle' / 'README.md'}  the model card, as it would be published")


if __name__ == "__main__":
    main()
