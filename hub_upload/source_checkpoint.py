"""Reads the weights of a torchvision EfficientNetV2-S from a file nobody vouches for, without running code in it."""

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torchvision import models

from ham10000.modeling import LABELS, Ham10000Error

# What DistributedDataParallel and torch.compile put before every name.
_PREFIXES = ("module.", "_orig_mod.")
_LABEL_ENTRIES = {"class_names", "class_to_idx", "classes", "id2label", "idx_to_class", "label2id", "label_map"}
# Number of entries of networks that are recognised, so that a refusal can name what the file is.
_OTHER_NETWORKS = {
    "efficientnet_v2_m": 1120,
    "efficientnet_v2_l": 1548,
    "efficientnet_b0": 360,
    "efficientnet_b1": 508,
    "efficientnet_b2": 508,
    "efficientnet_b3": 574,
    "efficientnet_b4": 706,
    "efficientnet_b5": 854,
    "efficientnet_b6": 986,
    "efficientnet_b7": 1200,
    "resnet18": 122,
    "resnet34": 218,
    "resnet50": 320,
    "resnet101": 626,
    "resnet152": 932,
    "densenet121": 727,
    "densenet201": 1207,
    "convnext_tiny": 182,
    "convnext_base": 344,
    "mobilenet_v2": 314,
    "mobilenet_v3_large": 312,
    "vgg16": 32,
    "vit_b_16": 152,
    "swin_t": 185,
}


@dataclass
class SourceCheckpoint:
    """What a file holds.

    Attributes:
        weights: The values as they are stored, under their names without the prefix.
        format: `"state_dict"`, or `"training_checkpoint"` when the weights lay under `model_state_dict`.
        prefix: The prefix that was removed from every name; empty where there was none.
    """

    weights: dict[str, Any]
    format: str
    prefix: str


def read_weights(path: Path) -> SourceCheckpoint:
    """Reads a state dict or a training checkpoint; a pickle that holds more than data is refused unread.

    Args:
        path: A file of torch.save, or a safetensors file.

    Returns:
        Its weights, which may still be of any network.

    Raises:
        Ham10000Error: If there is no such file, it is damaged or unsafe, it holds no weights where they are expected,
            or it orders the classes otherwise than this package.
    """
    if not path.is_file():
        found = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise Ham10000Error(f"{str(path)!r} {found}; give the .pt, .pth or .safetensors file of the weights.")
    content = _load(path)
    if not isinstance(content, Mapping):
        raise Ham10000Error(
            f"{str(path)!r} holds a {type(content).__name__}; expected a state dict: names to tensors."
        )
    form, weights = "state_dict", content
    if "model_state_dict" in content:
        form, weights = "training_checkpoint", content["model_state_dict"]
        if not isinstance(weights, Mapping):
            raise Ham10000Error(f"{str(path)!r}: `model_state_dict` is a {type(weights).__name__}, not a state dict.")
        _check_labels({key: value for key, value in content.items() if key != "model_state_dict"}, path)
    elif content and not any(isinstance(value, Tensor) for value in content.values()):
        raise Ham10000Error(
            f"{str(path)!r} holds neither tensors nor `model_state_dict`, but the entries {_some(content)}. Save the "
            "weights alone: torch.save(model.state_dict(), FILE)."
        )
    if not weights:
        raise Ham10000Error(f"{str(path)!r} holds an empty state dict.")
    if strange := [name for name in weights if not isinstance(name, str)]:
        raise Ham10000Error(f"{str(path)!r}: the names of weights must be text, got {_some(strange)}.")
    removed, names = "", list(weights)
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in names)), ""):
        removed, names = removed + prefix, [name.removeprefix(prefix) for name in names]
    return SourceCheckpoint(dict(zip(names, weights.values(), strict=True)), form, removed)


def float32_weights(
    weights: Mapping[str, Any], expected: Mapping[str, Tensor], path: Path
) -> tuple[dict[str, Tensor], list[str]]:
    """Holds weights against the network they should belong to, and brings them to float32 without rounding.

    Args:
        weights: Names to what should be tensors.
        expected: A state dict of the network.
        path: Where they come from, for the messages.

    Returns:
        The weights in the order of `expected`, and the names of the floating point types they were stored in.

    Raises:
        Ham10000Error: Naming the entries that are missing, unexpected, of a wrong shape or type, or not finite.
    """
    strange = [name for name, value in weights.items() if not isinstance(value, Tensor)]
    if strange:
        raise Ham10000Error(
            f"{str(path)!r}: a state dict holds tensors only, but {strange[0]!r} is a "
            f"{type(weights[strange[0]]).__name__} ({len(strange)} such entries)."
        )
    missing, unexpected = expected.keys() - weights.keys(), weights.keys() - expected.keys()
    misshaped = sorted(
        name for name in expected.keys() & weights.keys() if weights[name].shape != expected[name].shape
    )
    if misshaped and set(misshaped) <= {"classifier.1.weight", "classifier.1.bias"} and not missing | unexpected:
        name = misshaped[-1]
        raise Ham10000Error(
            f"{str(path)!r}: the head has {len(weights[name])} outputs (`{name}`), but HAM10000 has {len(LABELS)} "
            "classes. Give the weights after training on HAM10000; an ImageNet network has 1000 outputs."
        )
    if missing or unexpected or misshaped:
        other = _recognise(weights)
        raise Ham10000Error(
            f"{str(path)!r} is not torchvision's efficientnet_v2_s with {len(LABELS)} classes: "
            + (f"it is a {other}; " if other else "")
            + f"{len(missing)} entries are missing {_some(missing)}, {len(unexpected)} are unexpected "
            f"{_some(unexpected)}, {len(misshaped)} are of another shape {_some(misshaped)}."
        )
    converted = {name: _to_float32(weights[name], own.dtype, name, path) for name, own in expected.items()}
    dtypes = {str(value.dtype).removeprefix("torch.") for value in weights.values() if value.is_floating_point()}
    return converted, sorted(dtypes)


def _load(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with path.open("rb") as stream:
            start = stream.read(32)
        if start.startswith(b"version https://git-lfs"):
            raise Ham10000Error(f"{str(path)!r} is a pointer of Git LFS, not the weights: run `git lfs pull`.")
        # torch does not compare the checksums that its own files carry; a flipped bit would be a slightly other model.
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise zipfile.BadZipFile(f"wrong checksum of {damaged!r}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about deprecated storages in old files
            return torch.load(path, map_location="cpu", weights_only=True)
    except Ham10000Error:
        raise
    except pickle.UnpicklingError as error:
        # The message of torch proposes weights_only=False; what matters is the name of the object it stopped at.
        if not (found := re.search(r"GLOBAL (\S+) (?:was not|whose)", str(error))):
            raise _unreadable(path, "it is no file of torch.save, or holds more than data") from error
        raise Ham10000Error(
            f"{str(path)!r} is a pickle that asks for {found[1]}, which is more than weights: refused, and nothing "
            "in it was run. Ask its author for the state dict alone, torch.save(model.state_dict(), FILE), or for "
            "safetensors."
        ) from error
    except SafetensorError as error:
        raise _unreadable(path, error) from error
    except Exception as error:  # damaged files make the unpickler and the zip readers raise a dozen types
        reason = str(error).strip().split(". ")[0] or "the file ends too early"
        raise _unreadable(path, f"{type(error).__name__}: {reason}") from error


def _unreadable(path: Path, reason: Any) -> Ham10000Error:
    return Ham10000Error(
        f"Cannot read {str(path)!r} as weights of torch.save or safetensors ({reason}). If it was cut short or "
        "damaged, copy it again."
    )


def _check_labels(entries: Mapping[Any, Any], path: Path) -> None:
    """Refuses a training checkpoint that says its classes come in another order."""
    own = list(LABELS)
    for name, value in _walk(entries):
        order = _label_order(value)
        named = name.rsplit(".", 1)[-1] in _LABEL_ENTRIES and isinstance(value, (Mapping, list, tuple))
        if (named or (order is not None and set(order) == set(own))) and order != own:
            raise Ham10000Error(
                f"{str(path)!r}: `{name}` gives the classes as {repr(value)[:300]}, but this package has the order "
                f"{own}. The outputs would be named wrongly, so the file is not converted."
            )


def _walk(entries: Mapping[Any, Any], parent: str = "", depth: int = 3) -> Iterator[tuple[str, Any]]:
    """Entries of nested mappings; to a depth, because a pickle may hold a mapping that contains itself."""
    for key, value in entries.items():
        yield f"{parent}{key}", value
        if isinstance(value, Mapping) and depth > 1:
            yield from _walk(value, f"{parent}{key}.", depth - 1)


def _label_order(value: Any) -> list[str] | None:
    """The classes in the order a list, an index-to-label or a label-to-index map gives them; None if it is none."""
    if isinstance(value, Mapping):
        if value and all(isinstance(index, int) for index in value.values()):
            value = {index: label for label, index in value.items()}
        try:
            by_index = {int(index): label for index, label in value.items()}
        except (OverflowError, TypeError, ValueError):
            return None
        if sorted(by_index) != list(range(len(value))):
            return None
        value = [by_index[index] for index in range(len(by_index))]
    if not isinstance(value, (list, tuple)) or not all(isinstance(label, str) for label in value):
        return None
    return [label.strip().lower() for label in value]


def _to_float32(value: Tensor, expected: torch.dtype, name: str, path: Path) -> Tensor:
    if value.layout != torch.strided or value.device.type != "cpu":
        raise Ham10000Error(
            f"{str(path)!r}: {name!r} is not stored as plain numbers ({value.layout}, {value.device})."
        )
    if not expected.is_floating_point:  # batch norm's step counter
        if value.dtype != expected:
            raise Ham10000Error(f"{str(path)!r}: {name!r} must be {expected}, got {value.dtype}.")
        return value
    if value.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise Ham10000Error(
            f"{str(path)!r}: {name!r} is {value.dtype}; expected float32, or float16, bfloat16 or float64 that "
            "float32 holds without rounding."
        )
    if not value.isfinite().all():
        raise Ham10000Error(
            f"{str(path)!r}: {name!r} holds NaN or infinite values; the training that wrote it failed."
        )
    converted = value.detach().to(torch.float32)
    if value.dtype == torch.float64 and not torch.equal(converted.double(), value):
        raise Ham10000Error(
            f"{str(path)!r}: {name!r} is float64 and would be rounded to float32, which changes the logits. To accept "
            "that, save the float32 weights yourself: model.float().state_dict()."
        )
    return converted


def _recognise(weights: Mapping[str, Any]) -> str | None:
    """Name of the torchvision network, its head aside, that has exactly these weights."""
    for name in [name for name, count in _OTHER_NETWORKS.items() if count == len(weights)]:
        with torch.device("meta"):
            own = models.get_model(name, weights=None).state_dict()
        body = list(own)[:-2]  # the last layer is the head: its weight and its bias
        if weights.keys() == own.keys() and all(weights[key].shape == own[key].shape for key in body):
            return f"torchvision {name}"
    return None


def _some(names: Any) -> str:
    """The first few names, for a message."""
    names = sorted(map(repr, names))
    return f"[{', '.join(names[:3])}{', …' if len(names) > 3 else ''}]"


__all__ = ["SourceCheckpoint", "float32_weights", "read_weights"]
