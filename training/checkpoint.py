"""What a run leaves on disk: the best model as a Hub-ready folder, and the state to resume from.

runs/fusion/
    config.json, processor_config.json, *.py   what the model is; loads without this package
    model.safetensors                          the best weights so far
    split.csv, split.json                      who was trained on, with a hash
    train_config.json                          the resolved configuration, environment and result
    history.json                               one row per epoch
    training_state-STEP.safetensors            model, optimiser and average after so many steps, to resume from
    logs/                                      TensorBoard
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ham10000.modeling import Ham10000Error, Ham10000ForImageClassification, Ham10000Processor
from ham10000.training.atomic import atomic_path, atomic_write_json, restore_mode, scratch_folder, writing

_STATE_FILES = "training_state-*.safetensors"


def save_checkpoint(
    directory: str | Path,
    model: Ham10000ForImageClassification,
    processor: Ham10000Processor,
    *,
    dtype: str = "float32",
) -> None:
    """Writes a checkpoint that `AutoModel` loads anywhere; each file is complete or not there.

    Args:
        directory: The run's folder.
        model: The model, with the weights to publish.
        processor: Its processor.
        dtype: What the weights are stored as, see `save_model`.

    Raises:
        Ham10000Error: If the folder cannot be written or is full; an earlier checkpoint in it stays whole.
    """
    directory = Path(directory)
    with writing(directory, SafetensorError), scratch_folder(directory) as scratch:
        save_model(scratch, model, dtype=dtype)
        processor.save_pretrained(scratch)
        # The weights last: a folder with weights always has the config that explains them.
        for path in sorted(scratch.iterdir(), key=lambda path: path.suffix == ".safetensors"):
            restore_mode(path)
            path.replace(directory / path.name)


def save_model(folder: Path, model: Ham10000ForImageClassification, *, dtype: str = "float32", **options: Any) -> None:
    """Writes a model's config, code and weights, the weights in a type of their own.

    Half precision halves the file. The config goes on saying what the model computes in: read by `AutoModel`, a
    pipeline or a server, the stored numbers become its type, and inputs need no cast.

    Args:
        folder: Destination.
        model: The model, which stays as it is.
        dtype: Name of the stored type, such as `float16`.
        **options: Passed to `save_pretrained`.

    Raises:
        Ham10000Error: If a weight is too large for the type.
    """
    stored: torch.dtype = getattr(torch, dtype)
    if stored != model.dtype:
        stored_model: Any = copy.deepcopy(model)
        stored_model = stored_model.to(stored)
        for name, value in stored_model.state_dict().items():
            if value.is_floating_point() and not value.isfinite().all():
                raise Ham10000Error(f"The weight {name!r} is too large for {dtype}; save it as float32.")
        stored_model.save_pretrained(folder, **options)
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        atomic_write_json(path, {**config, "dtype": str(model.dtype).removeprefix("torch.")})
    else:
        model.save_pretrained(folder, **options)


def stored_dtype(folder: Path) -> str:
    """Name of the type in which a checkpoint stores its weights, such as `float16`."""
    path = next(iter(sorted(folder.glob("model*.safetensors"))))
    with safe_open(path, framework="pt") as file:
        types = (file.get_tensor(name).dtype for name in file.keys())  # noqa: SIM118 (not a dict)
        return str(next(dtype for dtype in types if dtype.is_floating_point)).removeprefix("torch.")


def training_states(directory: str | Path) -> list[Path]:
    """The states to resume from in a run's folder, the newest first."""
    return sorted(Path(directory).glob(_STATE_FILES), reverse=True)


def save_training_state(
    directory: str | Path,
    state: dict[str, Any],
    modules: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    *,
    step: int,
    keep: int = 1,
) -> None:
    """Writes everything a resumed run needs into one safetensors file, tensors and JSON together.

    Args:
        directory: The run's folder.
        state: JSON values: counters, history, the best result.
        modules: Modules whose parameters and buffers are saved, by name.
        optimizer: Its state is saved; learning rates are not, they are a function of the step.
        step: Optimiser steps done since the run began.
        keep: States to keep; older ones go once this one is complete.

    Raises:
        Ham10000Error: If the folder cannot be written or is full; the earlier states stay.
    """
    tensors = {}
    for prefix, module in modules.items():
        for name, value in module.state_dict().items():
            tensors[f"{prefix}/{name}"] = value.detach().contiguous()
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            tensors[f"optimizer/{index}/{name}"] = value.detach().contiguous()
    path = Path(directory) / f"training_state-{step:08d}.safetensors"
    with writing(path, SafetensorError), atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"state": json.dumps(state)})
    for older in training_states(directory)[keep:]:
        older.unlink(missing_ok=True)


def load_training_state(
    directory: str | Path,
    modules: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    warn: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Reads what `save_training_state` wrote back into the modules and the optimiser.

    A damaged state is passed over for the one before it.

    Args:
        directory: The run's folder.
        modules: As when saving.
        optimizer: Likewise, over the same parameters in the same order.
        warn: Told about each state that is passed over.

    Returns:
        The JSON values.

    Raises:
        Ham10000Error: If there is no state, all are damaged, or it belongs to another model.
    """
    paths = training_states(directory)
    if not paths:
        raise Ham10000Error(
            f"Nothing to resume: {str(directory)!r} holds no {_STATE_FILES}. Start anew with `--overwrite`."
        )
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                state = json.loads(file.metadata()["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            break
        except (SafetensorError, KeyError, TypeError, OSError, json.JSONDecodeError) as error:
            warn(f"warning: {str(path)!r} is damaged ({error}) and passed over")
    else:
        raise Ham10000Error(
            f"Every saved state in {str(directory)!r} is damaged: {[path.name for path in paths]}. Start anew with "
            "`--overwrite`."
        )
    for prefix, module in modules.items():
        own = {
            name.removeprefix(f"{prefix}/"): value for name, value in tensors.items() if name.startswith(f"{prefix}/")
        }
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            raise Ham10000Error(f"{str(path)!r} belongs to another model: {error}") from error
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    restored: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, index, name = key.split("/")
            parameter = parameters[int(index)]
            # Moments must lie in memory as their parameter does: kernels walk both with one stride.
            if value.shape == parameter.shape:
                value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            restored.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": restored, "param_groups": optimizer.state_dict()["param_groups"]})
    return state


__all__ = [
    "load_training_state",
    "save_checkpoint",
    "save_model",
    "save_training_state",
    "stored_dtype",
    "training_states",
]
