"""Fine-tunes a checkpoint on your own pictures and csv, and says what that changed on lesions it has not seen.

    python examples/finetune_own_data.py --checkpoint runs/fusion --data mine/labels.csv --output_dir runs/mine

The csv lies above or beside its pictures. It has the columns `image_id` (file name, with or without suffix), `dx` (one
of the seven labels) and `lesion_id`, which keeps photographs of one lesion on one side of the split; `age`, `sex` and
`localization` as far as they are known. Without these two options the script makes both: a small checkpoint trained on
synthetic pictures, and a csv of synthetic pictures taken "by another camera", darker and bluer.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance

from ham10000.training.data.augment import Augment
from ham10000.training.data.loader import EvalLoader, Samples, TrainLoader, open_frames, open_images
from ham10000.training.data.sources import load_data, metadata_frame
from ham10000.training.data.split import apply_split, make_split
from ham10000.training.evaluation.metrics import compute_metrics, softmax
from ham10000.training.inference.prediction import choose_device, load_checkpoint, predict_logits
from ham10000.training.run_folder import RunFile, save_checkpoint
from ham10000.training.train import main as train_main
from ham10000.training.utils.cli import run_cli


def make_checkpoint(folder: Path, synthetic: int) -> Path:
    """Trains a small fusion model to start from, unless the folder holds one already."""
    if not (folder / RunFile.TRAINING).is_file():
        print("No --checkpoint: training a small one on synthetic pictures first.")
        network = "--backbone test_resnet --backbone_kwargs {} --pretrained none --image_size 64 --batch_size 16"
        recipe = "--epochs 6 --learning_rate 3e-3 --head_learning_rate 3e-3 --augment_min_area 0.8 --ema_decay 0.95"
        places = ["--data", f"synthetic:{synthetic}", "--output_dir", str(folder), "--trackers", "none"]
        if code := train_main([*network.split(), *recipe.split(), *places, "--cache_dir", str(folder.parent)]):
            sys.exit(code)
    return folder


def make_own_data(folder: Path, synthetic: int) -> Path:
    """Writes synthetic pictures as another camera would have taken them, and their labels.csv."""
    dataset, _ = load_data(f"synthetic:{synthetic}", seed=7)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for row in dataset:
        red, green, blue = ImageEnhance.Brightness(row["image"]).enhance(0.7).split()
        picture = Image.merge("RGB", (red, green, blue.point([min(255, value + 40) for value in range(256)])))
        picture.save(folder / "pictures" / f"{row['image_id']}.jpg", quality=95)
    columns = ["image_id", "lesion_id", "dx", "age", "sex", "localization"]
    metadata_frame(dataset)[columns].to_csv(folder / "labels.csv", index=False)
    return folder / "labels.csv"


@run_cli
def main(argv: Sequence[str]) -> None:
    """Fine-tunes, compares, saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="folder of any variant; by default a small one is trained")
    parser.add_argument("--data", help="your csv; by default one is made")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/examples/finetune"))
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="for a real checkpoint, 1e-5 to 1e-4")
    parser.add_argument("--synthetic", type=int, default=400, help="photographs of the data that the script makes")
    options = parser.parse_args(argv)

    device, folder = choose_device("auto"), options.output_dir
    checkpoint = options.checkpoint or make_checkpoint(folder / "start", options.synthetic)
    data = options.data or str(make_own_data(folder / "data", options.synthetic))
    model, processor = load_checkpoint(checkpoint, device=device)
    dataset, report = load_data(data)
    print(report)
    # Photographs of one lesion are on one side: the test asks about lesions the model has never seen.
    split = make_split(dataset, "lesion-grouped", folds=5)
    parts = apply_split(dataset, split)
    # The checkpoint's processor prepares the pictures, so size, mean and vocabulary are those it was trained with.
    images = open_images(parts["test"], processor, device, cache_dir=folder / "cache")
    test = EvalLoader(Samples.from_dataset(parts["test"], processor), images, processor, device)

    def score() -> dict:
        model.eval()
        return compute_metrics(np.asarray(test.samples.labels), softmax(predict_logits(model, test)))

    before = score()
    model.config.temperature = 1.0  # fitted to the old weights; calibrate again if you need probabilities
    sides = processor.image_processor.size
    loader = TrainLoader(
        Samples.from_dataset(parts["train"], processor),
        open_frames(
            parts["train"],
            processor,
            device,
            train_size=(sides["height"], sides["width"]),
            cache_dir=folder / "cache",
        ),
        processor,
        device,
        augment=Augment(rotation=45.0, min_area=0.8),
        batch_size=options.batch_size,
    )
    weights = torch.tensor(split.class_weights("sqrt"), dtype=torch.float32, device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.learning_rate, total_steps=options.epochs * loader.steps_per_epoch
    )
    for epoch in range(options.epochs):
        model.train()
        losses = []
        for _, (batch,) in loader.epoch(epoch):
            loss = F.cross_entropy(model(**batch.inputs).logits, batch.labels, weight=weights)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1}: train loss {np.mean(losses):.3f}")

    after = score()
    split.save(folder)
    save_checkpoint(folder, model, processor)
    print(f"\n{after['n_images']} test photographs of {data}")
    for name in ("macro_f1", "balanced_accuracy", "accuracy", "nll"):
        print(f"{name:<20}{before[name]:.3f} before, {after[name]:.3f} after")
    print(f"Saved {folder}. Next: ham10000-evaluate --checkpoint {folder} --data {data}")
    print("Research software, not for diagnosis.")


if __name__ == "__main__":
    sys.exit(main())
