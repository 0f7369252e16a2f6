"""The files of a run, read once and checked: what a model card is rendered from."""

import copy
import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from ham10000.modeling import Ham10000Config, Ham10000Error

_SYNTHETIC_ID = "SYN_"  # how the image ids of `ham10000.training.synthetic` begin

# What the card needs of each file, as dotted names: an old or foreign file is named here instead of failing midway.
_REQUIRED = {
    "processor_config.json": ("modality",),
    "train_config.json": (
        "config.data",
        "config.pretrained",
        "config.seed",
        "split.protocol",
        "split.seed",
        "split.sha256",
        "split.sizes",
        "split.class_counts",
        "split.leakage",
        "class_weights",
        "parameters",
        "finished",
        "epochs_trained",
        "best",
        "training_seconds",
        "device",
        "processes",
        "environment.versions",
        "environment.cpu",
        "environment.memory_mib",
    ),
    "eval_results.json": (
        "metrics.n_images",
        "metrics.confusion_matrix",
        "metrics.per_class",
        "metrics.undefined",
        "intervals.per_class",
        "bootstrap.n_lesions",
        "bootstrap.n_resamples",
        "bootstrap.confidence",
        "data",
        "split.name",
    ),
    "conversion.json": ("source_file", "source_sha256", "format", "architecture"),
}


@dataclass(frozen=True)
class RunFiles:
    """What a run or a checkpoint folder says about itself.

    Attributes:
        folder: The folder.
        config: `config.json`, with the defaults of `Ham10000Config` filled in.
        processor: `processor_config.json`.
        training: `train_config.json`, or None for a checkpoint that was not trained by this package.
        evaluation: `eval_results.json`, or None.
        history: `history.json`, one row per epoch, or None.
        conversion: `conversion.json` of a checkpoint carried over from torchvision, or None.
        figures: Names of the PNG files in `figures/`, sorted.
        synthetic_training: Whether the model was trained on the synthetic stand-in for HAM10000.
        synthetic_evaluation: Whether it was evaluated on it.
    """

    folder: Path
    config: dict[str, Any]
    processor: dict[str, Any]
    training: dict[str, Any] | None
    evaluation: dict[str, Any] | None
    history: list[dict[str, Any]] | None
    conversion: dict[str, Any] | None
    figures: tuple[str, ...]
    synthetic_training: bool
    synthetic_evaluation: bool

    @property
    def modality(self) -> str:
        """`image`, `metadata` or `fusion`."""
        return self.config["modality"]

    @property
    def trained_on_validation(self) -> bool:
        """Whether the validation images were trained on as well; runs of earlier versions do not say, and were not."""
        return self.training is not None and bool(self.training["config"].get("train_on_validation"))

    @property
    def synthetic(self) -> bool:
        """Whether any number of the run rests on synthetic data."""
        return self.synthetic_training or self.synthetic_evaluation


@dataclass(frozen=True)
class Sibling:
    """Another variant, to be compared with.

    Attributes:
        run: Its files.
        repo_id: Where it is published, or None.
        comparison: Result of `ham10000.training.comparison.compare_predictions` of the card's model minus this one, or
            None.
    """

    run: RunFiles
    repo_id: str | None = None
    comparison: dict[str, Any] | None = None


def read_run(folder: str | Path) -> RunFiles:
    """Reads and checks the files of a run.

    Args:
        folder: A run of `ham10000-train`, a checkpoint folder, or one made by `ham10000-convert`.

    Returns:
        Its files.

    Raises:
        Ham10000Error: If `config.json` or `processor_config.json` is absent, or a file is not what it should be;
            the message names the file.
    """
    folder = Path(folder)
    raw_config = _read(folder, "config.json", dict, required=True)
    if raw_config.get("model_type") != "ham10000":
        raise Ham10000Error(
            f"{str(folder / 'config.json')!r}: model_type is {raw_config.get('model_type')!r}, expected 'ham10000'."
        )
    try:
        config = Ham10000Config.from_dict(copy.deepcopy(raw_config)).to_dict()
    except (Ham10000Error, StrictDataclassError) as error:
        raise Ham10000Error(f"{str(folder / 'config.json')!r}: {error}") from error
    training = _read(folder, "train_config.json", dict)
    evaluation = _read(folder, "eval_results.json", dict)
    synthetic_training = training is not None and (
        _names_synthetic(training["config"]["data"]) or _has_synthetic_ids(folder / "split.csv")
    )
    synthetic_evaluation = evaluation is not None and (
        _names_synthetic(evaluation["data"])
        or _has_synthetic_ids(folder / "predictions.csv")
        or (synthetic_training and _same_split(training, evaluation))
    )
    figures = folder / "figures"
    return RunFiles(
        folder=folder,
        config=config,
        processor=_read(folder, "processor_config.json", dict, required=True),
        training=training,
        evaluation=evaluation,
        history=_read(folder, "history.json", list),
        conversion=_read(folder, "conversion.json", dict),
        figures=tuple(sorted(path.name for path in figures.glob("*.png"))) if figures.is_dir() else (),
        synthetic_training=synthetic_training,
        synthetic_evaluation=synthetic_evaluation,
    )


def _read(folder: Path, name: str, kind: type, *, required: bool = False) -> Any:
    path = folder / name
    if not path.is_file():
        if required:
            raise Ham10000Error(f"{str(path)!r} does not exist; expected a checkpoint folder, as training writes it.")
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise Ham10000Error(f"{str(path)!r} cannot be read as JSON: {error}. Write it again.") from error
    if not isinstance(value, kind):
        raise Ham10000Error(f"{str(path)!r} must hold a JSON {kind.__name__}, got {type(value).__name__}.")
    for dotted in _REQUIRED.get(name, ()):
        found: Any = value
        for key in dotted.split("."):
            if not isinstance(found, dict) or key not in found:
                raise Ham10000Error(f"{str(path)!r} lacks {dotted!r}; make it again with this version of ham10000.")
            found = found[key]
    return value


def _names_synthetic(data: Any) -> bool:
    return isinstance(data, str) and (data == "synthetic" or data.startswith("synthetic:"))


def _has_synthetic_ids(table: Path) -> bool:
    """Whether a table of images holds ids of the synthetic generator, whatever the folder they came from is called."""
    if not table.is_file():
        return False
    with table.open(encoding="utf-8", newline="") as stream:
        return any((row.get("image_id") or "").startswith(_SYNTHETIC_ID) for row in csv.DictReader(stream))


def _same_split(training: dict[str, Any] | None, evaluation: dict[str, Any]) -> bool:
    return training is not None and training["split"]["sha256"] == evaluation["split"].get("sha256")


__all__ = ["RunFiles", "Sibling", "read_run"]
