"""The files of a run, read once and checked: what a model card is rendered from."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from huggingface_hub.errors import StrictDataclassError

from ham10000.modeling import LABELS, Ham10000Config, Ham10000Error
from ham10000.training.run_folder import RunFile, image_origin, portable_training, trained_on_validation
from ham10000.training.utils.files import JsonObject, read_json

# What the card needs of each file, as dotted names: an old or foreign file is named here instead of failing midway.
_REQUIRED = {
    RunFile.PROCESSOR: "modality",
    RunFile.TRAINING: "config.data config.pretrained config.seed split.protocol split.seed split.sha256 split.sizes "
    "split.class_counts split.leakage class_weights parameters finished epochs_trained best training_seconds device "
    "processes environment.versions environment.cpu environment.memory_mib",
    RunFile.EVALUATION: "metrics.n_images metrics.confusion_matrix metrics.per_class metrics.undefined data "
    "split.name intervals.per_class bootstrap.n_lesions bootstrap.n_resamples bootstrap.confidence",
    RunFile.CONVERSION: "source_file source_sha256 format architecture",
}


@dataclass(frozen=True)
class RunFiles:
    """What a run or a checkpoint folder says about itself: its files, None where it has none, and whose images it saw.

    `synthetic_*` says whether the model was trained, or evaluated, on the synthetic stand-in for HAM10000;
    `ham10000_*` whether on HAM10000's images and classes, as is assumed of a checkpoint without `train_config.json`.
    """

    folder: Path
    config: JsonObject  # with the defaults of `Ham10000Config`
    processor: JsonObject
    training: JsonObject | None  # without the paths of the machine
    evaluation: JsonObject | None
    conversion: JsonObject | None
    modality: str
    figures: list[str]  # names of the PNG files in `figures/`
    trained_on_validation: bool
    synthetic_training: bool
    synthetic_evaluation: bool
    ham10000_training: bool
    ham10000_evaluation: bool
    base: JsonObject | None  # the checkpoint that the run was fine-tuned from, as `train_config.json` records it
    base_may_have_seen: bool  # the scored images, which are not compared with the base model's own
    # Whose images the weights derive from, the base model's included: `HAM10000`, `synthetic`, or others. None is the
    # run's own data where they are neither, and a base model's that are not known.
    sources: set[str | None]


class Sibling(NamedTuple):
    """Another variant to compare with, its Hub id, and `compare_predictions` of the card's model minus this one."""

    run: RunFiles
    repo_id: str | None = None
    comparison: JsonObject | None = None


def read_run(folder: str | Path) -> RunFiles:
    """Reads the files of a run, a checkpoint or a conversion; `Ham10000Error` names one that is missing or wrong."""
    folder = Path(folder)
    config, where = _read(folder, RunFile.CONFIG, required=True), repr(str(folder / RunFile.CONFIG))
    if config.get("model_type") != "ham10000":
        raise Ham10000Error(f"{where}: model_type is {config.get('model_type')!r}, expected 'ham10000'.")
    try:
        config = Ham10000Config.from_dict(config).to_dict()
    except (Ham10000Error, StrictDataclassError) as error:
        raise Ham10000Error(f"{where}: {error}") from error
    training, evaluation = _read(folder, RunFile.TRAINING), _read(folder, RunFile.EVALUATION)
    read_json(folder / RunFile.HISTORY, list, optional=True)  # published as it is, if it is JSON
    trained_on, scored_on = image_origin(folder / RunFile.SPLIT), image_origin(folder / RunFile.PREDICTIONS)
    same_labels = set(config["label2id"]) == set(LABELS)
    same_split = bool(training and evaluation) and training["split"]["sha256"] == evaluation["split"].get("sha256")
    synthetic_training = training is not None and _is_synthetic(training["config"]["data"], trained_on)
    synthetic_evaluation = evaluation is not None and (
        _is_synthetic(evaluation["data"], scored_on) or (synthetic_training and same_split)
    )
    ham10000_training = same_labels and (training is None or synthetic_training or trained_on == "HAM10000")
    own = "synthetic" if synthetic_training else "HAM10000" if ham10000_training else None
    # Of the checkpoints whose weights, or whose backbone alone, the run started from.
    bases = [one for name in ("base_model", "pretrained_from") if (one := (training or {}).get(name))]
    earlier = [base.get("data") for base in bases]
    return RunFiles(
        folder=folder,
        config=config,
        processor=_read(folder, RunFile.PROCESSOR, required=True),
        training=training and portable_training(training),
        evaluation=evaluation,
        conversion=_read(folder, RunFile.CONVERSION),
        modality=config["modality"],
        figures=sorted(path.name for path in folder.glob("figures/*.png")),
        trained_on_validation=trained_on_validation(training),
        synthetic_training=synthetic_training,
        synthetic_evaluation=synthetic_evaluation,
        ham10000_training=ham10000_training,
        ham10000_evaluation=same_labels and ((same_split and ham10000_training) or scored_on is not None),
        base=(training or {}).get("base_model"),
        base_may_have_seen=any(synthetic_evaluation or data != "synthetic" for data in earlier),
        sources={own, *earlier},
    )


def _read(folder: Path, name: str, *, required: bool = False) -> JsonObject:
    path = folder / name
    if required and not path.is_file():
        raise Ham10000Error(f"{str(path)!r} does not exist; expected a checkpoint folder, as training writes it.")
    value: JsonObject = read_json(path, optional=True)
    for dotted in _REQUIRED.get(name, "").split() if value is not None else ():
        found: object = value
        for key in dotted.split("."):
            if not isinstance(found, dict) or key not in found:
                raise Ham10000Error(f"{str(path)!r} lacks {dotted!r}; make it again with this version of ham10000.")
            found = found[key]
    return value


def _is_synthetic(data: object, origin: str | None) -> bool:
    return origin == "synthetic" or str(data).partition(":")[0] == "synthetic"
