"""How well the warning of images unlike the training data tells them apart.

python examples/benchmarks/unlike_images.py --data HAM10000/ --output examples/results/unlike_images.json
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_images

from ham10000.modeling import Ham10000Error, load_image
from ham10000.modeling.image_statistics_ham10000 import distances, fit_image_statistics, image_features
from ham10000.training.data.loader import features_of_images
from ham10000.training.data.sources import load_data
from ham10000.training.data.split import apply_split, make_split
from ham10000.training.inference.inputs import find_images
from ham10000.training.utils.cli import add_debug_argument, run_cli
from ham10000.training.utils.files import atomic_write_json
from ham10000.training.utils.hardware import environment
from ham10000.training.utils.markdown_text import join, table

_SIZE = (600, 450)


def other_images() -> dict[str, Image.Image]:
    """Images that are surely not dermatoscopic ones, by name, none of which needs a network.

    Two photographs that come with scikit-learn, plain colours, noise, a page of text and a form.
    """
    photographs = load_sample_images()
    images = {
        f"photograph {Path(name).name} (scikit-learn)": load_image(image)
        for name, image in zip(photographs.filenames, photographs.images, strict=True)
    }
    images |= {f"plain {name}": Image.new("RGB", _SIZE, name) for name in ("white", "black", "red")}
    images["plain colour of skin"] = Image.new("RGB", _SIZE, (214, 158, 146))
    images["noise"] = load_image(np.random.default_rng(0).integers(0, 256, (*_SIZE[::-1], 3), dtype=np.uint8))
    page, form = Image.new("RGB", _SIZE, "white"), Image.new("RGB", _SIZE, (243, 244, 246))
    text, fields = ImageDraw.Draw(page), ImageDraw.Draw(form)
    for line in range(24):
        text.text(
            (40, 20 + 17 * line), "The quick brown fox jumps over the lazy dog, and over it again. " * 2, "black"
        )
    fields.rectangle((0, 0, _SIZE[0], 40), fill=(37, 99, 235))
    for row in range(6):
        fields.text((40, 62 + 60 * row), f"Field {row + 1}", "black")
        fields.rectangle((160, 55 + 60 * row, 540, 85 + 60 * row), fill="white", outline=(120, 120, 120))
    return {**images, "page of text, drawn": page, "window with a form, drawn": form}


def measure(data: str, others: Mapping[str, Path]) -> dict[str, Any]:
    """Fits on the training images of a lesion-grouped split, and tries the others of it and other images.

    Args:
        data: As for `load_data`.
        others: Further images that are not like the data, by name.

    Returns:
        Strict JSON: the `statistics`, `accepted`, the shares without a warning, and `distances` of the other images.

    Raises:
        Ham10000Error: For too few images.
    """
    dataset, _ = load_data(data)
    split = make_split(dataset, "lesion-grouped", seed=42)
    parts = apply_split(dataset, split)
    statistics = fit_image_statistics(features_of_images(parts["train"]))
    if statistics is None:
        raise Ham10000Error(f"The {len(parts['train'])} training images of {data} are too few, or too similar.")
    found: dict[str, Any] = {}
    for name in ("validation", "test"):
        inside = distances(features_of_images(parts[name]), statistics) <= statistics["threshold"]
        found[name] = {"images": len(inside), "share": float(inside.mean())}
    images = other_images() | {name: load_image(path) for name, path in others.items()}
    return {
        "data": Path(data).name,  # not where it lay on this machine
        "split": {"protocol": split.protocol, "seed": split.seed, "sha256": split.sha256},
        "statistics": statistics,  # those of the shipped checkpoints
        "accepted": found,
        "distances": {name: float(distances(image_features(image), statistics)) for name, image in images.items()},
        "environment": environment(),
    }


def report(values: Mapping[str, Any]) -> str:
    """The measurement as Markdown."""
    threshold, measured = values["statistics"]["threshold"], values["distances"]
    warned = sum(distance > threshold for distance in measured.values())
    accepted = [[name, f"{row['images']:,}", f"{row['share']:.1%}"] for name, row in values["accepted"].items()]
    others = [
        [name, f"{distance:.1f}", "warning" if distance > threshold else "no warning"]
        for name, distance in sorted(measured.items(), key=lambda item: item[1])
    ]
    return join(
        table(("part", "images", "without a warning"), accepted),
        f"Of {len(measured)} images of something else, {warned} get the warning (distance above {threshold:.1f}). "
        "They were looked at while the statistics were chosen, so others may do worse.",
        table(("image", "distance", "result"), others, align="lrl"),
    )


@run_cli
def main(argv: Sequence[str]) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python examples/benchmarks/unlike_images.py", description=__doc__)
    parser.add_argument("--data", required=True, help="as for ham10000-train")
    parser.add_argument("--others", type=Path, help="folder of images that are not dermatoscopic ones")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    add_debug_argument(parser)
    arguments = parser.parse_args(argv)
    others = {path.stem: path for path in find_images([arguments.others])} if arguments.others else {}
    values = measure(arguments.data, others)
    if arguments.output:
        atomic_write_json(arguments.output, values)
    print(report(values))


if __name__ == "__main__":
    sys.exit(main())
