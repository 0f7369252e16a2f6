"""Converts a published baseline, torchvision's EfficientNetV2-S or a network of timm, into a checkpoint folder.

It is the image variant with the baseline's preprocessing and the same weights, float32, under this package's names;
`conversion.json` says where they came from.
"""

import hashlib
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models import efficientnet_v2_s

from ham10000.hub_upload.export_onnx import fixed_inputs
from ham10000.modeling import LABELS, Ham10000Config, Ham10000Error, Ham10000ForImageClassification, create_processor
from ham10000.training.run_folder import RunFile
from ham10000.training.utils.files import atomic_write_json, restore_mode, scratch_folder, writing
from ham10000.training.utils.hardware import environment

# Only a wrong pairing of the names gives more; where the arithmetic is the same, as on the same CPU, it is 0.
_TOLERANCE = 1e-4
# Where training loops keep the weights.
_WRAPPERS = ("model_state_dict", "state_dict", "model")
# What DistributedDataParallel, torch.compile and Lightning prepend to every name.
_PREFIX = re.compile(r"(?:(?:module|_orig_mod|model)\.)*")


def read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """Reads a state dict or a training checkpoint of torch.save or safetensors; code in a pickle is never run.

    Returns:
        The tensors as they are stored, without a prefix such as `module.` of all names; and `"state_dict"`, or
        `"training_checkpoint"` where they lay under a key such as `state_dict`.

    Raises:
        Ham10000Error: If the file is absent, damaged or unsafe, or has no weights or another order of the classes.
    """
    if not path.is_file():
        raise Ham10000Error(f"{str(path)!r} is not a file; give the .pt, .pth or .safetensors file of the weights.")
    content = _load(path)
    entries = content if isinstance(content, Mapping) else {}
    wrapper = next((name for name in _WRAPPERS if isinstance(entries.get(name), Mapping)), None)
    weights = entries if wrapper is None else entries[wrapper]
    if not weights or not all(isinstance(name, str) and isinstance(weights[name], Tensor) for name in weights):
        found = f"the entries {sorted(map(repr, weights))[:3]}" if weights else f"a {type(content).__name__}"
        raise Ham10000Error(
            f"{str(path)!r} does not contain a state dict, names to tensors, alone or under one of {_WRAPPERS}, but "
            f"{found[:300]}. Save the weights alone: torch.save(model.state_dict(), FILE)."
        )
    if wrapper is not None:
        _check_class_order(entries, path)
    match = _PREFIX.match(next(iter(weights)))
    prefix = match[0] if match and all(name.startswith(match[0]) for name in weights) else ""
    form = "state_dict" if wrapper is None else "training_checkpoint"
    return {name.removeprefix(prefix): value for name, value in weights.items()}, form


def _load(path: Path) -> object:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # torch does not compare the checksums that its own files carry; a flipped bit would be a slightly other model.
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise zipfile.BadZipFile(f"wrong checksum of {damaged!r}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about deprecated storages in old files
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make the unpickler and the zip reader raise a dozen types
        # torch's message about an unsafe file proposes weights_only=False; only the name in it is of use.
        asked = re.search(r"GLOBAL (\S+) (?:was not|whose)", str(error))
        reason = f"{type(error).__name__}: {str(error).split('. ')[0][:200]}"
        if asked:
            reason = f"it asks for {asked[1]}, which is more than weights; nothing in it was run"
        raise Ham10000Error(
            f"Cannot read {str(path)!r} as weights of torch.save or safetensors ({reason}). If it was cut short or "
            "damaged, or is a pointer of Git LFS, fetch it again; otherwise ask its author for the state dict alone."
        ) from error


def _check_class_order(entries: Mapping[str, object], path: Path) -> None:
    """Refuses a training checkpoint that says its classes come in another order."""
    order = dict(enumerate(LABELS))
    accepted = (LABELS, order, {str(i): label for i, label in order.items()}, {v: k for k, v in order.items()})
    for name in ("class_names", "classes", "class_to_idx", "label2id", "id2label"):
        value = entries.get(name)
        value = tuple(value) if isinstance(value, list) else value
        if isinstance(value, (Mapping, tuple)) and value not in accepted:
            raise Ham10000Error(
                f"{str(path)!r}: `{name}` gives the classes as {repr(value)[:300]}, but this package has the order "
                f"{LABELS}. The outputs would be named wrongly, so the file is not converted."
            )


def convert_checkpoint(
    checkpoint: str | Path, output_dir: str | Path, *, backbone: str | None = None
) -> dict[str, object]:
    """Writes the weights of a timm network, or of torchvision's EfficientNetV2-S, as a new checkpoint folder.

    The logits of both networks are compared before anything is written; the content of `conversion.json` is returned.
    `backbone` cannot be read from the weights: networks of the same names and shapes differ in padding and
    preprocessing.
    """
    checkpoint, output_dir = Path(checkpoint).expanduser(), Path(output_dir).expanduser()
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise Ham10000Error(f"{str(output_dir)!r} exists and is not an empty folder; choose another --output_dir.")
    weights, form = read_weights(checkpoint)
    if backbone is not None:
        architecture = f"timm {backbone}"
        config = Ham10000Config(modality="image", backbone=backbone, backbone_kwargs={})
        processor = create_processor(config)
        reference = timm.create_model(backbone, pretrained=False, num_classes=len(LABELS)).eval()
    else:
        architecture, name = "torchvision efficientnet_v2_s", "efficientnetv2_s"
        kwargs = {"bn_eps": 1e-3}  # torchvision's; timm's default is 1e-5
        config = Ham10000Config(modality="image", backbone=name, backbone_kwargs=kwargs, classifier_dropout=0.2)
        processor = create_processor(config, image_size=224)
        processor.image_processor.resample = int(Image.Resampling.BILINEAR)  # by the default of torchvision's Resize
        reference = efficientnet_v2_s(weights=None, num_classes=len(LABELS)).eval()
    model = Ham10000ForImageClassification(config).eval()
    try:
        reference.load_state_dict(weights)
        # Both networks register the same layers in the same order; the order of the file is not used.
        model.load_state_dict(dict(zip(model.state_dict(), reference.state_dict().values(), strict=True)))
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:500]
        raise Ham10000Error(
            f"{str(checkpoint)!r} does not fit {architecture} with {len(LABELS)} classes. {reason}... Give the "
            "weights after training on HAM10000, and --backbone for a network of timm."
        ) from error
    inputs = fixed_inputs(processor)
    with torch.inference_mode():
        difference = (model(**inputs).logits - reference(inputs["pixel_values"])).abs().max().item()
    if not difference <= _TOLERANCE:  # also catches NaN
        raise Ham10000Error(
            f"{str(checkpoint)!r}: the converted logits differ from those of {architecture} by {difference:g}. NaN "
            "means weights that are not finite, a number versions of timm or torchvision that order their layers so."
        )
    with checkpoint.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    record = {
        "source_file": checkpoint.name,
        "source_sha256": sha256,
        "format": form,
        "architecture": architecture,
        "max_logit_difference": difference,  # 0.0 where the arithmetic is the same
        "versions": environment()["versions"],
    }
    with writing(output_dir), scratch_folder(output_dir.parent) as scratch:
        folder = scratch / "new"
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        atomic_write_json(folder / RunFile.CONVERSION, record)
        for path in folder.iterdir():
            restore_mode(path)
        folder.replace(output_dir)  # which is absent or empty: the folder appears complete or not at all
    return record
