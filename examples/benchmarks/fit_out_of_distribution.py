"""Fits the out-of-distribution score on HAM10000, tries it, and says how good it is.

python examples/benchmarks/fit_out_of_distribution.py fit --data HAM10000/ --others pictures/
python examples/benchmarks/fit_out_of_distribution.py report
"""

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_images

from ham10000.modeling import Ham10000Error, load_image
from ham10000.training.data.sources import load_data
from ham10000.training.data.split import SPLITS, apply_split, make_split
from ham10000.training.inference.inputs import find_images
from ham10000.training.inference.out_of_distribution import (
    CONSTANTS,
    FEATURES,
    PICTURE_SIZE,
    Distribution,
    from_json,
    mahalanobis,
    picture_features,
)
from ham10000.training.utils.cli import add_debug_argument, run_cli
from ham10000.training.utils.files import atomic_write_json, read_json
from ham10000.training.utils.hardware import environment
from ham10000.training.utils.markdown_text import code, join, table

_SYNTHETIC = "synthetic:300"
_SIZE = (600, 450)


def other_pictures() -> dict[str, Any]:
    """Pictures that are surely no dermatoscopic images, none of which needs a network.

    Returns:
        By name: the two photographs that come with scikit-learn, plain colours, noise, a page of text, a form.
    """
    photographs = load_sample_images()
    noise = np.random.default_rng(0).integers(0, 256, (_SIZE[1], _SIZE[0], 3), dtype=np.uint8)
    pictures: dict[str, Any] = {
        f"photograph {Path(name).name} (scikit-learn)": image
        for name, image in zip(photographs.filenames, photographs.images, strict=True)
    }
    pictures |= {f"plain {name}": Image.new("RGB", _SIZE, name) for name in ("white", "black", "red")}
    pictures["plain colour of skin"] = Image.new("RGB", _SIZE, (214, 158, 146))
    pictures["noise"] = noise
    pictures["page of text, drawn"] = _page()
    pictures["window with a form, drawn"] = _form()
    return pictures


def _page() -> Image.Image:
    page = Image.new("RGB", _SIZE, "white")
    draw = ImageDraw.Draw(page)
    for line in range(24):
        draw.text(
            (40, 20 + 17 * line), "The quick brown fox jumps over the lazy dog, and over it again. " * 2, "black"
        )
    return page


def _form() -> Image.Image:
    form = Image.new("RGB", _SIZE, (243, 244, 246))
    draw = ImageDraw.Draw(form)
    draw.rectangle((0, 0, _SIZE[0], 40), fill=(37, 99, 235))
    for row in range(6):
        draw.text((40, 62 + 60 * row), f"Field {row + 1}", "black")
        draw.rectangle((160, 55 + 60 * row, 540, 85 + 60 * row), fill="white", outline=(120, 120, 120))
    draw.rectangle((440, 410, 540, 440), fill=(22, 163, 74))
    return form


def features_of(images: Iterable[Any]) -> np.ndarray:
    """(pictures, features) of pictures in any form `load_image` reads; several threads decode."""
    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(picture_features, images)))


def _stored(part: datasets.Dataset) -> list[Any]:
    rows = part.cast_column("image", datasets.Image(decode=False))["image"]
    return [row["bytes"] or row["path"] for row in rows]


def fit_distribution(features: np.ndarray, quantile: float, provenance: dict[str, Any]) -> Distribution:
    """Fits mean, covariance and threshold.

    Args:
        features: (images, features) float64 of the training images.
        quantile: Share of them that must lie below the threshold, in (0, 1).
        provenance: The origin of the data, which the distribution keeps.

    Raises:
        Ham10000Error: For a quantile outside (0, 1), or too few or too similar images.
    """
    if not 0 < quantile < 1:
        raise Ham10000Error(f"The quantile must lie between 0 and 1, got {quantile!r}; 0.99 keeps 99 of 100 images.")
    count, width = features.shape
    if count <= 10 * width:
        raise Ham10000Error(f"{count} images are too few to fit {width} statistics; expected more than {10 * width}.")
    covariance = np.cov(features, rowvar=False)
    if np.linalg.cond(covariance) > 1e12:
        raise Ham10000Error("The images are too similar: one of their statistics never varies. Use other images.")
    fitted = Distribution(features.mean(axis=0), np.linalg.inv(covariance), np.inf, quantile, provenance)
    return replace(fitted, threshold=float(np.quantile(mahalanobis(features, fitted), quantile)))


def to_json(distribution: Distribution) -> dict[str, Any]:
    """The distribution as strict JSON; `from_json` undoes it bit-identically."""
    return {
        "features": list(FEATURES),
        "picture_size": list(PICTURE_SIZE),
        "quantile": distribution.quantile,
        "threshold": distribution.threshold,
        "mean": distribution.mean.tolist(),
        "precision": distribution.precision.tolist(),
        "provenance": distribution.provenance,
    }


def fit(data: str, *, seed: int, quantile: float, others: Mapping[str, Any]) -> dict[str, Any]:
    """Fits on the training images of a lesion-grouped split, and tries the result on what it has not seen.

    Args:
        data: As for `load_data`.
        seed: Of the split.
        quantile: As for `fit_distribution`.
        others: Further pictures that are no dermatoscopic images, by name.

    Returns:
        The content of `out_of_distribution.json`.

    Raises:
        Ham10000Error: For bad data, or too few of them.
    """
    dataset, _ = load_data(data)
    split = make_split(dataset, "lesion-grouped", seed=seed)
    parts = {name: _stored(part) for name, part in apply_split(dataset, split).items()}
    features = {name: features_of(images) for name, images in parts.items()}
    described = environment()
    provenance = {
        "data": Path(data).name,  # not where it lay on this machine
        "picture_size": list(load_image(parts["train"][0]).size),
        "split": {"protocol": split.protocol, "seed": split.seed, "sha256": split.sha256, "sizes": split.sizes},
        "versions": {name: described["versions"][name] for name in ("ham10000", "numpy", "python")},
        "git": described["git"],
    }
    distribution = fit_distribution(features["train"], quantile, provenance)
    features["synthetic"] = features_of(_stored(load_data(_SYNTHETIC)[0]))
    tried = {
        name: {
            "images": len(rows),
            "accepted": float((mahalanobis(rows, distribution) <= distribution.threshold).mean()),
        }
        for name, rows in features.items()
        if name != "train"
    }
    distances = {
        name: float(mahalanobis(picture_features(picture), distribution))
        for name, picture in {**other_pictures(), **others}.items()
    }
    return {**to_json(distribution), "evaluation": {"accepted": tried, "other_pictures": distances}}


def report(values: Mapping[str, Any]) -> str:
    """What the fit says about itself.

    Args:
        values: Content of `out_of_distribution.json`.

    Returns:
        Markdown.
    """
    distribution: Distribution = from_json(dict(values))
    tried, distances = values["evaluation"]["accepted"], values["evaluation"]["other_pictures"]
    split = distribution.provenance["split"]
    passed = [name for name, distance in distances.items() if distance <= distribution.threshold]
    sentence = (
        f"Mahalanobis distance on {len(distribution.mean)} statistics of colour and texture, fitted on "
        f"{split['sizes']['train']:,} training images ({split['protocol']}, seed {split['seed']}, split "
        f"{code(split['sha256'][:12])}). A picture farther than {distribution.threshold:.2f}, the "
        f"{distribution.quantile:.0%} quantile of these, gets a warning."
    )
    accepted = [
        [f"{name} images" if name in SPLITS else f"{name} pictures of this package", f"{row['images']:,}",
         f"{row['accepted']:.1%}"]
        for name, row in tried.items()
    ]  # fmt: skip
    others = [
        [name, f"{distance:.1f}", "no warning" if name in passed else "warning"]
        for name, distance in sorted(distances.items(), key=lambda item: item[1])
    ]
    return join(
        sentence,
        table(("without a warning", "pictures", "share"), accepted),
        f"Of {len(distances)} pictures that are no dermatoscopic images, {len(distances) - len(passed)} get the "
        "warning. They were looked at while the statistics were chosen, so other pictures may do worse.",
        table(("picture", "distance", "result"), others, align="lrl"),
    )


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command."""
    parser = argparse.ArgumentParser(
        prog="python examples/benchmarks/fit_out_of_distribution.py", description=(__doc__ or "").split("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    fitting = commands.add_parser("fit", help="fit on a data set's training images and write the constants")
    fitting.add_argument("--data", required=True, help="as for ham10000-train")
    fitting.add_argument("--seed", type=int, default=42, help="of the lesion-grouped split")
    fitting.add_argument("--quantile", type=float, default=0.99, help="share of train that passes")
    fitting.add_argument("--others", type=Path, help="folder of pictures that are no dermatoscopic images")
    fitting.add_argument("--others_name", default="", help="where these come from, shown behind their names")
    fitting.add_argument("--output", type=Path, default=CONSTANTS, help="default: the package's own constants")
    reporting = commands.add_parser("report", help="print how good it is, as Markdown")
    reporting.add_argument("--constants", type=Path, default=CONSTANTS)
    for command in (fitting, reporting):
        add_debug_argument(command)
    return parser


@run_cli
def main(argv: Sequence[str]) -> None:
    """Command line."""
    arguments = build_parser().parse_args(argv)
    if arguments.command == "report":
        print(report(read_json(arguments.constants)))
        return
    suffix = f" ({arguments.others_name})" if arguments.others_name else ""
    folder = find_images([arguments.others]) if arguments.others else []
    others = {f"{path.stem}{suffix}": path for path in folder}
    values = fit(arguments.data, seed=arguments.seed, quantile=arguments.quantile, others=others)
    atomic_write_json(arguments.output, values)
    print(report(values))
    print(f"\nSaved {arguments.output}")


__all__ = ["features_of", "fit", "fit_distribution", "main", "other_pictures", "report", "to_json"]


if __name__ == "__main__":
    sys.exit(main())
