"""A run's folder: one writer, nothing half written, and an old run that stays until the new one is ready to begin."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from ham10000.modeling import Ham10000Error
from ham10000.training.atomic import atomic_write_json, cannot_write, remove_leftovers
from ham10000.training.checkpoint import training_states
from ham10000.training.config import TrainConfig

# What a run, its evaluation, its calibration and its export write, and what would be read as the next run's.
_RESULTS = ("history.json", "model.safetensors", "predictions.csv", "calibration.json", "shortcuts.npz")
_EVALUATIONS = ("eval_results.json", "evaluation_*/eval_results.json", "onnx/model.onnx")


@contextlib.contextmanager
def only_writer(directory: Path) -> Iterator[None]:
    """Holds a run's folder for this process; the lock ends with the process, however that ends.

    Raises:
        Ham10000Error: If another process trains into the folder, or it cannot be written.
    """
    lock = FileLock(directory / "run.lock")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise Ham10000Error(
            f"Another process is training into {str(directory)!r}. Wait for it, or choose another --output_dir."
        ) from error
    except OSError as error:
        raise cannot_write(directory, error) from error
    try:
        yield
    finally:
        lock.release()


def as_begun(config: TrainConfig) -> TrainConfig:
    """Turns `resume` into a fresh start where the run was ended before it had saved anything.

    Args:
        config: The configuration as asked for.

    Returns:
        The same, or with `overwrite` in place of `resume`. Where there is nothing at all to go on with, or results
        that a fresh start would destroy, it is left to `load_training_state` to say so.
    """
    directory = Path(config.output_dir)
    begun = directory / "train_config.json"
    if not config.resume or training_states(directory) or not begun.is_file():
        return config
    is_finished = json.loads(begun.read_text(encoding="utf-8")).get("finished")
    if is_finished or (directory / "history.json").exists():
        return config
    return dataclasses.replace(config, resume=False, overwrite=True)


def prepare_output_dir(config: TrainConfig) -> None:
    """Refuses to mix two runs in one folder, and removes what a killed one had half written.

    Raises:
        Ham10000Error: If the folder holds a run and neither `resume` nor `overwrite` was asked for.
    """
    directory = Path(config.output_dir)
    if (directory / "train_config.json").exists() and not (config.resume or config.overwrite):
        raise Ham10000Error(
            f"{str(directory)!r} already holds a run. Continue it with --resume, replace it with --overwrite, "
            "or choose another --output_dir."
        )
    remove_leftovers(directory)  # nobody else writes here while we hold the lock


def begin_run(config: TrainConfig) -> None:
    """Replaces an earlier run, once data and settings are known to be good, and records the new one's settings.

    From here on `--resume` goes on with the new run, even if it is killed while it builds the image cache.

    Raises:
        Ham10000Error: If the folder cannot be written.
    """
    directory = Path(config.output_dir)
    # The states first: those of the old run must not be taken for the new one's.
    for path in training_states(directory):
        path.unlink()
    atomic_write_json(directory / "train_config.json", {"config": config.to_dict(), "finished": False})
    for pattern in (*_RESULTS, *_EVALUATIONS):
        for path in directory.glob(pattern):
            path.unlink()


__all__ = ["as_begun", "begin_run", "only_writer", "prepare_output_dir"]
