"""A run's folder: the names of its files, who may write them, and what is published of them."""

import contextlib
import copy
import csv
import json
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ham10000.modeling import Ham10000Error, Ham10000ForImageClassification, Ham10000Processor
from ham10000.training.utils import files


class RunFile:
    """The files of a run, by their names in its folder: `folder / RunFile.TRAINING`."""

    CONFIG = "config.json"  # the model; with the next two and the code (*.py), it loads without this package
    PROCESSOR = "processor_config.json"
    WEIGHTS = "model.safetensors"
    SPLIT = "split.csv"  # the division of the data
    SPLIT_RECORD = "split.json"  # its hash, sizes and leakage
    TRAINING = "train_config.json"  # the resolved configuration, environment and result
    HISTORY = "history.json"  # one row per epoch
    STATES = "training_state-*.safetensors"  # model, optimiser and average after so many steps, to resume from
    EVALUATION = "eval_results.json"
    PREDICTIONS = "predictions.csv"
    CALIBRATION = "calibration.json"
    OUT_OF_FOLD = "out_of_fold.parquet"  # of a run of a study
    ONNX = "onnx/model.onnx"
    CONVERSION = "conversion.json"  # in place of the training files: where converted weights come from


_RESULTS = (  # what would be read as the next run's
    *(RunFile.STATES, RunFile.HISTORY, RunFile.WEIGHTS, RunFile.PREDICTIONS, RunFile.CALIBRATION, RunFile.OUT_OF_FOLD),
    *(RunFile.ONNX, RunFile.CONVERSION, RunFile.EVALUATION, f"evaluation_*/{RunFile.EVALUATION}", "figures/*.png"),
)
# Inside the folder of a run that is replaced: the new run until it has saved a state, and under its second name from
# then on, until its files have moved. Not named as a temporary file: an evaluation of the old run removes those.
_UNSAVED, _SAVED = ".new_run.unsaved", ".new_run"
_PLACES = ("data", "output_dir", "cache_dir", "split_file", "pretrained", "init_from")  # on somebody's machine
_SYNTHETIC_ID = "SYN_"  # how the image ids of `ham10000.training.data.synthetic` begin
# The ids of the 10,015 images of HAM10000 (10.7910/DVN/DBW86T) are all those from the first to the last.
_HAM10000_FIRST, _HAM10000_LAST = "ISIC_0024306", "ISIC_0034320"
# The directories of an absolute path, POSIX or Windows, inside a sentence.
_DIRECTORIES = re.compile(r"(?<![\w.~/\\])(?:[A-Za-z]:|~)?[\\/](?:[^\s\\/'\":,;]+[\\/])+")


@contextlib.contextmanager
def only_writer(directory: Path) -> Iterator[None]:
    """Locks a run's folder for this process; the lock ends with the process, however that ends."""
    with files.writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(directory / "run.lock").acquire(timeout=0)
        except Timeout as error:
            raise Ham10000Error(
                f"Another process is training into {str(directory)!r}. Wait for it, or choose another --output_dir."
            ) from error
    with lock:
        yield


def prepare_output_dir(directory: Path, *, may_have_run: bool) -> None:
    """Refuses a folder that has a run or other weights, unless it `may_have_run`; tidies up after a killed one."""
    if not may_have_run and any((directory / name).exists() for name in (RunFile.TRAINING, RunFile.WEIGHTS)):
        raise Ham10000Error(
            f"{str(directory)!r} already holds a run. Continue it with --resume, replace it with --overwrite, "
            "or choose another --output_dir."
        )
    tidy_output_dir(directory)
    replace_run(directory)


def tidy_output_dir(directory: Path) -> None:
    """Removes what a killed or failed run left half done in its folder, whose lock the caller holds."""
    files.remove_leftovers(directory)
    shutil.rmtree(directory / _UNSAVED, ignore_errors=True)


def settings_path(directory: Path) -> Path:
    """The `train_config.json` of a folder's run: the new one's where it was killed while it replaced the old one."""
    saved = directory / _SAVED / RunFile.TRAINING
    return saved if saved.exists() else directory / RunFile.TRAINING


def ended_before_saving(directory: Path) -> bool:
    """Whether a folder's run was ended before it had saved anything, so that resuming it means starting it again.

    False where there is no run, or results that a fresh start would destroy: `load_training_state` says so.
    """
    training = files.read_json(directory / RunFile.TRAINING, optional=True)
    saved = (directory / _SAVED, directory / RunFile.HISTORY, *training_states(directory))
    return training is not None and not training.get("finished") and not any(path.exists() for path in saved)


def begin_run(directory: Path, config: dict[str, Any]) -> Path:
    """Records a new run's settings, and says where it writes until it has saved a state.

    That is the folder, or a hidden one inside where an earlier run has results, which stay as they are until
    `replace_run`. From here on `--resume` goes on with the run, even if it is killed while it builds the image cache.
    """
    has_results = any(path for pattern in _RESULTS for path in directory.glob(pattern))
    place = directory / _UNSAVED if has_results else directory
    files.atomic_write_json(place / RunFile.TRAINING, {"config": config, "finished": False})
    return place


def replace_run(directory: Path) -> None:
    """Puts a run that has saved its first state in the place of the earlier one; without such a run does nothing.

    A rename decides at one moment whose the folder is. Killed after it, the rest is done by whoever opens the folder
    next to train.
    """
    unsaved, saved = directory / _UNSAVED, directory / _SAVED
    with files.writing(directory):
        if unsaved.exists():
            unsaved.rename(saved)
        if not saved.exists():
            return
        # The settings move first: as long as they are here, whatever the folder has is the old run's.
        if (saved / RunFile.TRAINING).exists():
            for path in [path for pattern in _RESULTS for path in directory.glob(pattern)]:
                path.unlink()
            (saved / RunFile.TRAINING).replace(directory / RunFile.TRAINING)
        # The weights last, as in `save_checkpoint`.
        for path in sorted(saved.iterdir(), key=lambda path: path.name == RunFile.WEIGHTS):
            path.replace(directory / path.name)
        saved.rmdir()


def save_checkpoint(
    directory: str | Path,
    model: Ham10000ForImageClassification,
    processor: Ham10000Processor,
    *,
    dtype: str = "float32",
) -> None:
    """Writes a checkpoint that `AutoModel` loads anywhere; each file is complete or absent.

    Args:
        directory: The run's folder.
        model: The model, with the weights to publish.
        processor: Its processor.
        dtype: Type of the stored weights, see `save_model`.

    Raises:
        Ham10000Error: If the folder cannot be written or is full; an earlier checkpoint in it stays whole.
    """
    directory = Path(directory)
    with files.writing(directory, SafetensorError), files.scratch_folder(directory) as scratch:
        save_model(scratch, model, dtype=dtype)
        processor.save_pretrained(scratch)
        # The weights last: a folder with weights always has the config that explains them.
        for path in sorted(scratch.iterdir(), key=lambda path: path.suffix == ".safetensors"):
            files.restore_mode(path)
            path.replace(directory / path.name)


def save_model(folder: Path, model: Ham10000ForImageClassification, *, dtype: str = "float32", **options: Any) -> None:
    """Writes a model's config, code and weights.

    Half precision (a `dtype` of float16) halves the file. The config still names the type the model computes in: read
    by `AutoModel`, a pipeline or a server, the stored numbers become that type, and inputs need no cast. The options
    are those of `save_pretrained`. A weight that is too large for the type is an error.
    """
    stored: torch.dtype = getattr(torch, dtype)
    if stored != model.dtype:
        weights = model.state_dict()
        floats = {name: value.to(stored) for name, value in weights.items() if value.is_floating_point()}
        for name, value in floats.items():
            if not value.isfinite().all():
                raise Ham10000Error(f"The weight {name!r} is too large for {dtype}; save it as float32.")
        options["state_dict"] = weights | floats
    model.save_pretrained(folder, **options)


def stored_dtype(folder: Path) -> str:
    """Name of the type in which a checkpoint stores its weights, such as `float16`."""
    with safe_open(min(folder.glob("model*.safetensors")), framework="pt") as file:
        types = (file.get_tensor(name).dtype for name in file.keys())  # noqa: SIM118 (not a dict)
        return str(next(dtype for dtype in types if dtype.is_floating_point)).removeprefix("torch.")


def training_states(directory: str | Path) -> list[Path]:
    """The states to resume from in a run's folder, the newest first."""
    return sorted(Path(directory).glob(RunFile.STATES), reverse=True)


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
    values = {f"{prefix}/{name}": v for prefix, module in modules.items() for name, v in module.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        values |= {f"optimizer/{index}/{name}": value for name, value in moments.items()}
    tensors = {name: value.detach().contiguous() for name, value in values.items()}
    path = Path(directory) / RunFile.STATES.replace("*", f"{step:08d}")
    with files.writing(path, SafetensorError), files.atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"state": json.dumps(state)})
    for older in training_states(directory)[keep:]:
        older.unlink(missing_ok=True)


def load_training_state(
    directory: str | Path,
    modules: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    fingerprint: Mapping[str, object],
    warn: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Reads what `save_training_state` wrote back into the modules and the optimiser, and returns the JSON values.

    A damaged state is passed over for the one before it.

    Args:
        directory: The run's folder.
        modules: As when saving.
        optimizer: As when saving, over the same parameters in the same order.
        fingerprint: What must be as it is in the state's own `fingerprint`.
        warn: Told about each state that is passed over.

    Raises:
        Ham10000Error: If there is no state, all are damaged, or it was saved with other settings or data.
    """
    paths = training_states(directory)
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                state = json.loads(file.metadata()["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            break
        except (SafetensorError, KeyError, TypeError, OSError, json.JSONDecodeError) as error:
            warn(f"warning: {str(path)!r} is damaged ({error}) and passed over")
    else:
        problem = f"Nothing to resume: {str(directory)!r} has no {RunFile.STATES}"
        if paths:
            problem = f"Every saved state in {str(directory)!r} is damaged: {[path.name for path in paths]}"
        raise Ham10000Error(f"{problem}. Start again with `--overwrite`.")
    # Before any tensor: other settings may make other modules and parameters.
    for name, value in fingerprint.items():
        if (saved := state["fingerprint"].get(name)) != value:
            raise Ham10000Error(
                f"Cannot resume {str(directory)!r}: {name} was {saved!r} and is now {value!r}. "
                "Use the run's own settings (its train_config.json), or another output_dir."
            )
    for prefix, module in modules.items():
        own = {name.removeprefix(f"{prefix}/"): v for name, v in tensors.items() if name.startswith(f"{prefix}/")}
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


def trained_on_validation(training: Mapping[str, Any] | None) -> bool:
    """Whether a `train_config.json` (None: there is none) says that the validation images were trained on as well."""
    return training is not None and bool(training["config"].get("train_on_validation"))


def image_origin(table: Path) -> str | None:
    """Whose images a `split.csv` or `predictions.csv` names, as `origin_of_ids`, whatever their folder was called."""
    if not table.is_file():
        return None
    with table.open(encoding="utf-8", newline="") as stream:
        return origin_of_ids({row.get("image_id") or "" for row in csv.DictReader(stream)})


def origin_of_ids(ids: Collection[str]) -> str | None:
    """`"synthetic"` where the generator of this package made any, `"HAM10000"` where all are of that, else None."""
    if any(image_id.startswith(_SYNTHETIC_ID) for image_id in ids):
        return "synthetic"
    return "HAM10000" if ids and all(_HAM10000_FIRST <= image_id <= _HAM10000_LAST for image_id in ids) else None


def portable_training(training: dict[str, Any]) -> dict[str, Any]:
    """A copy of a `train_config.json` without the paths of the machine it was made on.

    Places keep their last component only, in the settings and in the notes about the data.
    """
    portable = copy.deepcopy(training)
    config = portable["config"]
    places = {name: config[name] for name in _PLACES if isinstance(config.get(name), str)}
    config |= {name: _last_component(place) for name, place in places.items()}
    notes = portable.get("data_notes") or []
    for place in sorted(places.values(), key=len, reverse=True):
        notes = [note.replace(place, _last_component(place)) for note in notes]
    portable["data_notes"] = [_DIRECTORIES.sub("", note) for note in notes]
    return portable


def _last_component(place: str) -> str:
    """Of a POSIX or Windows path; `pathlib` knows only the kind of the machine it runs on.

    The weights of a run keep their folder's name: without it, all runs' are called the same.
    """
    parts = re.split(r"[\\/]", place.rstrip("\\/"))
    return "/".join(parts[-2:] if parts[-1] == RunFile.WEIGHTS else parts[-1:])
