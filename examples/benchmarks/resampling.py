"""Shows training images next to the images that are read in use, and compares their sharpness, mean and spread.

python examples/benchmarks/resampling.py --data HAM10000/ --output resampling.png

Training images come from `Augment`, the others from the checkpoint's processor. A ratio of 1 is what a network should
see; `tests/data/test_augment.py` holds them to 3 % without augmentation and to 10 % with the default one.
"""

import argparse
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from benchmark import write_photographs

from ham10000.modeling import Ham10000Config, create_processor
from ham10000.training.config import TrainConfig
from ham10000.training.data.augment import Augment, interpolation
from ham10000.training.data.loader import open_images
from ham10000.training.data.sources import load_data

COLUMNS = 6


def sharpness(pixels: torch.Tensor) -> float:
    """Mean over images (batch, 3, height, width) of the standard deviation of the Laplacian of the luma."""
    luma = (pixels * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]).view(1, 1, 3, 3)
    return F.conv2d(luma, kernel).flatten(1).std(dim=1).mean().item()


def main() -> None:
    """Prints a table by size and draws the grid at one size."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="synthetic")
    parser.add_argument("--sizes", type=int, nargs="+", default=[96, 128, 192, 224])
    parser.add_argument("--show", type=int, default=192, help="size of the images in the figure")
    parser.add_argument("--images", type=int, default=96, help="images compared")
    parser.add_argument("--output", type=Path, default=Path("examples/figures/resampling.png"))
    options = parser.parse_args()
    scratch = tempfile.TemporaryDirectory()
    if options.data == "synthetic":
        dataset, _ = write_photographs(Path(scratch.name), options.images)  # at HAM10000's 600x450
    else:
        dataset, _ = load_data(options.data)
    dataset = dataset.select(np.linspace(0, len(dataset) - 1, min(options.images, len(dataset))).astype(int))
    defaults = TrainConfig()
    config = Ham10000Config(modality="image", backbone="tf_efficientnetv2_b0")
    print("size  augmentation  sharpness  mean (r, g, b)       standard deviation (r, g, b)")
    for size in sorted({*options.sizes, options.show}):
        processor = create_processor(config, image_size=size, resizer="torch")
        kinds = {
            "none": Augment(flip=False, interpolation=interpolation(processor)),
            "default": Augment.from_config(defaults, processor),
        }
        with tempfile.TemporaryDirectory() as cache:
            frames = open_images(
                dataset, processor, torch.device("cpu"), train_size=(size, size), cache_dir=cache, progress=False
            )
            pixels = frames.batch(np.arange(len(dataset)))
        used = torch.from_numpy(np.stack([processor.image_processor.resize(row) for row in dataset["image"]]))
        used = used.permute(0, 3, 1, 2).float()
        generator = torch.Generator().manual_seed(0)
        for name, augment in kinds.items():
            made = augment.apply(pixels, augment.sample(len(pixels), generator, frames.aspect), (size, size))
            means = " ".join(f"{value:.3f}" for value in made.mean((0, 2, 3)) / used.mean((0, 2, 3)))
            spreads = " ".join(f"{value:.3f}" for value in made.std((2, 3)).mean(0) / used.std((2, 3)).mean(0))
            print(
                f"{size:4d}  {name:<12}  {sharpness(made) / sharpness(used):9.3f}  {means:<19}  {spreads}", flush=True
            )
        if size != options.show:
            continue
        rows = np.linspace(0, len(dataset) - 1, 4).astype(int)
        figure, axes = plt.subplots(
            len(rows), COLUMNS, figsize=(COLUMNS * size / 100, len(rows) * size / 100 + 0.3), dpi=100
        )
        for row, panels in zip(rows, axes, strict=True):
            drawn = kinds["default"].sample(COLUMNS - 1, generator, frames.aspect)
            views = kinds["default"].apply(pixels[row].expand(COLUMNS - 1, -1, -1, -1), drawn, (size, size))
            for column, (panel, view) in enumerate(zip(panels, [used[row], *views], strict=True)):
                panel.imshow(view.permute(1, 2, 0).byte(), interpolation="none")
                panel.axis("off")
                if row == rows[0]:
                    panel.set_title("in use" if column == 0 else f"in training, {column}", fontsize=9)
        figure.subplots_adjust(0, 0, 1, 1 - 0.3 / figure.get_figheight(), 0.02, 0.02)
        figure.savefig(options.output)
        print(f"Saved {options.output}")


if __name__ == "__main__":
    main()
