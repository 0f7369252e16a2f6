"""Predicts with a checkpoint's ONNX file, where only onnxruntime, numpy and Pillow are installed.

    pip install onnxruntime numpy pillow
    python examples/onnx_without_torch.py runs/fusion lesion.jpg --age 60 --sex male --localization back

The folder needs config.json, processor_config.json and onnx/model.onnx (made by `ham10000-export-onnx runs/fusion`).
What is not known about the patient is left out: missing is a state the model was trained with.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

NOTICE = "Research software, not a medical device: never for diagnosis or for decisions about a patient."


def load_image(path: str | Path) -> Image.Image:
    """Opens an image as the package does: upright, 8-bit RGB, transparent pixels on white.

    Args:
        path: An image of any mode Pillow reads; the first frame of an animated one.

    Returns:
        An RGB image.

    Raises:
        ValueError: If it cannot be read, or holds values that no image has.
    """
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I;16") or image.mode == "I":
                values = np.asarray(image).astype(np.int64)
                if values.min() < 0 or values.max() > 65535:
                    raise ValueError("it holds values outside 0..65535")
                image = Image.fromarray((values // 257).astype(np.uint8))
            elif image.mode == "F":
                values = np.asarray(image)
                if not (values.min() >= 0 and values.max() <= 1):
                    raise ValueError("it is floating point and does not lie in [0, 1]")
                image = Image.fromarray(np.rint(values * 255).astype(np.uint8))
            elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
                rgba = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read the image {str(path)!r}: {error}") from error


def prepare_image(path: str | Path, settings: dict[str, Any]) -> np.ndarray:
    """Makes `pixel_values` of an image.

    Args:
        path: The image.
        settings: `image_processor` of processor_config.json.

    Returns:
        (1, 3, height, width) float32.
    """
    image = load_image(path)
    size = (settings["size"]["width"], settings["size"]["height"])
    if image.size != size:
        image = image.resize(size, Image.Resampling(settings["resample"]))
    pixels = np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / np.float32(255)
    mean = np.array(settings["image_mean"], dtype=np.float32).reshape(3, 1, 1)
    std = np.array(settings["image_std"], dtype=np.float32).reshape(3, 1, 1)
    return np.ascontiguousarray((pixels - mean) / std)[None]


def prepare_metadata(row: dict[str, Any], settings: dict[str, Any]) -> np.ndarray:
    """Makes `metadata` of one row: years, positions in the vocabularies, NaN where a value is missing.

    Args:
        row: Any of age, sex and localization; a value may be None, empty or "unknown".
        settings: processor_config.json.

    Returns:
        (1, fields) float32.

    Raises:
        ValueError: For a field the model does not read, or a value it does not know.
    """
    if unknown := sorted(set(row) - set(settings["metadata_fields"])):
        raise ValueError(f"this model does not read {', '.join(unknown)}, only {settings['metadata_fields']}")
    values = []
    for name in settings["metadata_fields"]:
        text = str(row.get(name)).strip().lower()
        if text in ("", "unknown", "nan", "none"):
            values.append(math.nan)
        elif name == "age":
            values.append(float(text))
            if not 0 <= values[-1] <= 120:
                raise ValueError(f"age {text} is outside 0..120 years")
        elif text in (vocabulary := settings[f"{name}_vocabulary"]):
            values.append(float(vocabulary.index(text)))
        else:
            raise ValueError(f"unknown {name} {text!r}; expected one of {', '.join(vocabulary)}")
    return np.array([values], dtype=np.float32)


def predict(folder: str | Path, image: str | Path | None, metadata: dict[str, Any]) -> dict[str, float]:
    """The probability of each class.

    Args:
        folder: The checkpoint.
        image: None for a metadata-only model.
        metadata: As for `prepare_metadata`; empty if nothing is known, and for an image-only model.

    Returns:
        Label to probability, calibrated by the checkpoint's temperature, the most probable first.

    Raises:
        ValueError: For inputs that the model does not read, lacks or cannot understand.
    """
    config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    settings = json.loads(Path(folder, "processor_config.json").read_text(encoding="utf-8"))
    network = Path(folder, "onnx", "model.onnx")
    if not network.is_file():
        raise ValueError(f"there is no {str(network)!r}; make it with `ham10000-export-onnx {folder}`")
    session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]
    if ("pixel_values" in names) != (image is not None):
        raise ValueError("this model needs an image" if image is None else "this model reads no image")
    if metadata and "metadata" not in names:
        raise ValueError("this model reads no metadata")
    inputs = {}
    if image is not None:
        inputs["pixel_values"] = prepare_image(image, settings["image_processor"])
    if "metadata" in names:
        inputs["metadata"] = prepare_metadata(metadata, settings)
    logits = session.run(["logits"], inputs)[0][0].astype(np.float64)
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    return {config["id2label"][str(index)]: float(shares[index]) for index in np.argsort(-shares, kind="stable")}


def main() -> None:
    """Prints the table of one prediction."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder with config.json, processor_config.json and onnx/model.onnx")
    parser.add_argument("image", nargs="?", help="left out for a metadata-only model")
    parser.add_argument("--age", help="in years")
    parser.add_argument("--sex", help="female or male")
    parser.add_argument("--localization", help="anatomical site, such as back")
    arguments = vars(parser.parse_args())
    metadata = {name: arguments[name] for name in ("age", "sex", "localization") if arguments[name] is not None}
    try:
        shares = predict(arguments["checkpoint"], arguments["image"], metadata)
        config = json.loads(Path(arguments["checkpoint"], "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    for label, share in shares.items():
        print(f"{share:9.4%}  {label:<5}  {config['label_descriptions'][label]}")
    print(NOTICE)


if __name__ == "__main__":
    main()
