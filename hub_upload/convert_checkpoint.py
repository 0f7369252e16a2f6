"""Converts the published baseline, a torchvision EfficientNetV2-S with a seven-class head, into a checkpoint of ours.

    ham10000-convert --checkpoint efficientnetv2s_image_only_state_dict.pt --output_dir DIR

DIR/
    config.json, processor_config.json, *.py   the image variant, with the baseline's preprocessing
    model.safetensors                          the same weights under timm's names, float32
    conversion.json                            where they came from: file, sha256, format, precision, versions
"""

import argparse
import hashlib
import shutil
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import efficientnet_v2_s
from transformers.utils import logging as transformers_logging

from ham10000.hub_upload.source_checkpoint import float32_weights, read_weights
from ham10000.hub_upload.verify_checkpoint import fixed_inputs
from ham10000.modeling import (
    LABELS,
    Ham10000Config,
    Ham10000Error,
    Ham10000ForImageClassification,
    Ham10000ImageProcessor,
    Ham10000Processor,
)
from ham10000.training.cli import add_debug_argument, run_cli
from ham10000.training.files import atomic_write_json, restore_mode
from ham10000.training.hardware import environment

ARCHITECTURE = "torchvision efficientnet_v2_s"
CONVERSION_FILE = "conversion.json"
# Only a wrong map of the names gives more; where the arithmetic is the same, as on the same CPU, it is 0.
_TOLERANCE = 1e-4


def convert_checkpoint(checkpoint: str | Path, output_dir: str | Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Reads a torchvision EfficientNetV2-S checkpoint and writes it as a checkpoint folder of this package.

    The logits of both networks are compared before anything is written, and the folder appears complete or not at all.

    Args:
        checkpoint: The file: a state dict or a training checkpoint of torch.save with the weights under
            `model_state_dict`, or a safetensors file with the same names. Code in it is never run.
        output_dir: The folder to write, new or empty.
        overwrite: Whether an earlier conversion in `output_dir` is replaced, with everything that lies in it.

    Returns:
        What `conversion.json` holds: `source_file` (name only), `source_sha256`, `format` (`"state_dict"` or
        `"training_checkpoint"`), `architecture`, `dtype_of_source`, `prefix_removed` (None where there was none),
        `max_logit_difference` to torchvision's network (0.0 where the arithmetic is the same) and `versions`.

    Raises:
        Ham10000Error: If the file cannot be read safely, is another network, or the folder cannot be written.

    Example:
        >>> convert_checkpoint("efficientnetv2s_image_only_state_dict.pt", "runs/baseline")["format"]
        'state_dict'
    """
    checkpoint, output_dir = Path(checkpoint).expanduser(), Path(output_dir).expanduser().resolve()
    _check_output_dir(checkpoint, output_dir, overwrite)
    source = read_weights(checkpoint)
    torchvision_model = efficientnet_v2_s(weights=None, num_classes=len(LABELS)).eval()
    weights, dtypes = float32_weights(source.weights, torchvision_model.state_dict(), checkpoint)
    torchvision_model.load_state_dict(weights)

    model = build_model(weights)
    processor = baseline_processor()
    inputs = fixed_inputs(processor)
    with torch.inference_mode():
        difference = (model(**inputs).logits - torchvision_model(inputs["pixel_values"])).abs().max().item()
    if not difference <= _TOLERANCE:  # also catches NaN
        raise Ham10000Error(
            f"{str(checkpoint)!r}: the converted logits differ from torchvision's by {difference:g}. NaN means "
            "weights that overflow, a number versions of timm or torchvision that order their layers differently."
        )
    with checkpoint.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    record = {
        "source_file": checkpoint.name,
        "source_sha256": sha256,
        "format": source.format,
        "architecture": ARCHITECTURE,
        "dtype_of_source": ", ".join(dtypes),
        "prefix_removed": source.prefix or None,
        "max_logit_difference": difference,
        "versions": environment()["versions"],
    }
    try:
        _write_folder(output_dir, model, processor, record)
    except OSError as error:
        raise Ham10000Error(f"Cannot write {str(output_dir)!r}: {error}. Choose another --output_dir.") from error
    return record


def name_map() -> dict[str, str]:
    """The name of each tensor of torchvision's network in ours.

    Both libraries register the same layers in the same order, so the names pair up by position in two networks built
    here, with every shape compared. The order of a file is never relied on.

    Returns:
        782 pairs, from torchvision's name to the name in `Ham10000ForImageClassification`.

    Raises:
        Ham10000Error: If the installed timm or torchvision builds the network differently.
    """
    with torch.device("meta"):
        theirs = efficientnet_v2_s(weights=None, num_classes=len(LABELS)).state_dict()
        ours = Ham10000ForImageClassification(baseline_config()).state_dict()
    if [value.shape for value in theirs.values()] != [value.shape for value in ours.values()]:
        raise Ham10000Error(
            "The installed torchvision and timm build EfficientNetV2-S with layers of different shape or order; "
            "conversion was tried with torchvision 0.29 and timm 1.0.31."
        )
    return dict(zip(theirs, ours, strict=True))


def baseline_config() -> Ham10000Config:
    """Configuration of the baseline: torchvision's EfficientNetV2-S, image only."""
    return Ham10000Config(
        modality="image",
        backbone="efficientnetv2_s",
        backbone_kwargs={"bn_eps": 1e-3},  # torchvision's; timm's default is 1e-5
        classifier_dropout=0.2,
    )


def baseline_processor() -> Ham10000Processor:
    """The baseline's preprocessing: resize to 224x224 without keeping the aspect ratio, ImageNet mean and std."""
    image_processor = Ham10000ImageProcessor(
        size={"height": 224, "width": 224},
        resample=int(Image.Resampling.BILINEAR),  # the default of torchvision's Resize
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    return Ham10000Processor(image_processor, modality="image", metadata_fields=[])


def build_model(weights: dict[str, Tensor]) -> Ham10000ForImageClassification:
    """Our model with torchvision's weights, in evaluation mode.

    Args:
        weights: The complete float32 state dict, under torchvision's names.

    Returns:
        The model.
    """
    model = Ham10000ForImageClassification(baseline_config()).eval()
    names = name_map()
    nn.Module.load_state_dict(model, {names[name]: value for name, value in weights.items()})
    return model


def _check_output_dir(checkpoint: Path, output_dir: Path, overwrite: bool) -> None:
    if output_dir.exists() and not output_dir.is_dir():
        raise Ham10000Error(f"{str(output_dir)!r} is a file; --output_dir names a folder.")
    if not output_dir.is_dir() or not any(output_dir.iterdir()):
        return
    if not overwrite:
        raise Ham10000Error(
            f"{str(output_dir)!r} exists and is not empty. Choose another --output_dir, or replace an earlier "
            "conversion with --overwrite."
        )
    # The folder is deleted: a mistyped path must not cost a training run.
    if not (output_dir / CONVERSION_FILE).is_file():
        raise Ham10000Error(
            f"{str(output_dir)!r} holds no {CONVERSION_FILE}, so it is no earlier conversion and is not replaced. "
            "Choose another --output_dir, or empty it yourself."
        )
    if output_dir in checkpoint.resolve().parents:
        raise Ham10000Error(f"{str(checkpoint)!r} lies in the folder that --overwrite would delete; move it first.")


def _write_folder(
    output_dir: Path, model: Ham10000ForImageClassification, processor: Ham10000Processor, record: dict[str, Any]
) -> None:
    """Assembles the folder beside its destination, then renames it there."""
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    unique = uuid.uuid4().hex[:12]
    scratch = output_dir.with_name(f".{output_dir.name}.{unique}.tmp")
    replaced = output_dir.with_name(f".{output_dir.name}.{unique}.old")
    try:
        scratch.mkdir()
        model.save_pretrained(scratch)
        processor.save_pretrained(scratch)
        atomic_write_json(scratch / CONVERSION_FILE, record)
        for path in scratch.iterdir():
            restore_mode(path)
        if output_dir.is_dir():
            output_dir.rename(replaced)
        try:
            scratch.rename(output_dir)
        except BaseException:
            if replaced.is_dir():
                replaced.rename(output_dir)
            raise
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@run_cli
def main(argv: Sequence[str]) -> None:
    """Command line of `ham10000-convert`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="the baseline's .pt, .pth or .safetensors file")
    parser.add_argument("--output_dir", required=True, help="folder to write, new or empty")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier conversion in output_dir")
    add_debug_argument(parser)
    arguments = parser.parse_args(argv)
    transformers_logging.disable_progress_bar()
    record = convert_checkpoint(arguments.checkpoint, arguments.output_dir, overwrite=arguments.overwrite)
    print(
        f"Source    {record['source_file']} ({record['format'].replace('_', ' ')}), sha256 {record['source_sha256']}"
    )
    if record["prefix_removed"]:
        print(f"Note      the prefix {record['prefix_removed']!r} was removed from every name")
    if record["dtype_of_source"] != "float32":
        print(f"Note      weights of type {record['dtype_of_source']}, converted to float32 without rounding")
    print(f"Note      the seven outputs are taken as {', '.join(LABELS)}, the baseline's alphabetical order")
    print(f"Checked   logits differ from torchvision's by at most {record['max_logit_difference']:g}")
    print(f"Saved     {arguments.output_dir}")
    print(f"Next      ham10000-verify {arguments.output_dir}")


__all__ = [
    "ARCHITECTURE",
    "CONVERSION_FILE",
    "baseline_config",
    "baseline_processor",
    "build_model",
    "convert_checkpoint",
    "main",
    "name_map",
]


if __name__ == "__main__":
    sys.exit(main())
