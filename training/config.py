"""The training configuration: command line over file over defaults, strict, saved with every run."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from huggingface_hub.dataclasses import strict
from transformers import HfArgumentParser

from ham10000.modeling import Ham10000Config, Ham10000Error
from ham10000.training.inference.prediction import load_checkpoint
from ham10000.training.run_folder import RunFile
from ham10000.training.utils.cli import add_debug_argument

# Options of `load_data` that change or drop rows; nothing is dropped unless one is named.
DATA_FIXES = ("drop_unreadable", "drop_duplicates", "drop_unknown_labels", "invalid_to_missing")

# Options of earlier versions that a run's `train_config.json` may name; they never changed a result.
_REMOVED = ("loader", "dataloader_workers")


def _option(default: Any, text: str) -> Any:
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


@strict
@dataclass(kw_only=True)
class TrainConfig:
    """Everything that decides a training run. A run's `train_config.json` holds all of it, resolved.

    The defaults are the reference recipe for fine-tuning on the lesion-grouped protocol: discriminative learning
    rates, warm-up and cosine, averaged weights, square-root class weights, strong augmentation. Its measurements are
    in `examples/results`. The published baseline's plain recipe is `examples/configs/baseline.yaml`.

    Raises:
        huggingface_hub.errors.StrictDataclassError: For a value of a wrong type or outside its closed set.
        Ham10000Error: For a number out of range or an impossible combination, before anything expensive starts.
    """

    data: str = _option(
        "synthetic", "'synthetic', a folder (official or Kaggle layout, imagefolder, Parquet) or Hub id"
    )
    labels: list[str] = _option([], "the label set in order (default: HAM10000's seven)")
    malignant_labels: list[str] | None = _option(
        None, "the labels that count as malignant, or 'none' (default: mel, bcc and akiec as far as they are labels)"
    )
    data_fixes: list[str] = _option([], f"what to do about bad rows, any of {', '.join(DATA_FIXES)}")
    output_dir: str = _option("runs/run", "folder of the run: checkpoint, config, split, history, logs")
    cache_dir: str | None = _option(None, "folder of the uint8 image cache (default: ~/.cache/ham10000)")
    cache_size: int | None = _option(
        None, "shorter side of the cached images in pixels (default: twice the training size, at most the images' own)"
    )

    protocol: Literal["lesion-grouped", "image-stratified"] = _option("lesion-grouped", "how the data is split")
    split_seed: int = _option(42, "seed of the split; the training seed does not change it")
    folds: int | None = _option(None, "number of folds (default: the protocol's own split)")
    fold: int = _option(0, "which fold is the test set; the next one is the validation set")
    split_file: str | None = _option(None, "split.csv of an earlier run, used instead of making a split")

    train_on_validation: bool = _option(
        False, "train on the validation images too, for a model to publish: the last epoch is kept, nothing is chosen"
    )

    modality: Literal["image", "metadata", "fusion"] = _option("fusion", "variant of the model")
    backbone: str = _option("tf_efficientnetv2_s.in21k_ft_in1k", "any timm model")
    backbone_kwargs: str = _option('{"drop_path_rate": 0.1}', "further timm.create_model arguments, as JSON")
    init_from: str | None = _option(
        None,
        "fine-tune a checkpoint of this package, a folder or Hub id: its network, image size and weights, and its "
        "classifier where the labels are the same; --pretrained is not read",
    )
    pretrained: str = _option("timm", "'timm' (weights from the Hub), 'none', or a local .safetensors file")
    fusion: Literal["concat", "gated", "metablock", "film"] = _option("concat", "how embeddings are joined")
    metadata_fields: list[str] = _option(["age", "sex", "localization"], "metadata columns the model reads")
    metadata_dropout: float = _option(0.1, "probability that all metadata of a training sample is hidden")
    metadata_field_dropout: float = _option(0.1, "probability that one field of a training sample is hidden")
    classifier_dropout: float = _option(0.2, "dropout before the classifier")
    freeze_backbone: bool = _option(False, "train the rest only, on a backbone that stays as it was loaded")
    image_size: list[int] = _option([224], "side, or height and width, in pixels")
    train_scales: list[float] = _option(
        [1.0, 1.0], "training pictures' sides in the first and last epoch, as shares of image_size, linear in between"
    )
    resizer: Literal["pillow", "torch"] = _option(
        "torch", "what resizes pictures, in training and in the checkpoint: torch is faster, pillow exactly timm's"
    )

    epochs: int = _option(14, "epochs at most")
    patience: int | None = _option(
        None,
        "keep the epoch of the lowest validation loss, and stop after this many without a lower one; left out, all "
        "epochs are trained and the last is kept",
    )
    batch_size: int = _option(32, "samples per optimiser step, over all processes")
    gradient_accumulation_steps: int = _option(1, "micro-batches the batch is cut into on each process")
    learning_rate: float = _option(5e-4, "peak learning rate of the backbone")
    head_learning_rate: float = _option(2e-3, "peak learning rate of everything else")
    weight_decay: float = _option(0.02, "AdamW weight decay; biases and norms get none")
    schedule: Literal["cosine", "constant"] = _option("cosine", "learning rate after the warm-up")
    warmup_fraction: float = _option(0.1, "share of all steps with a linearly rising learning rate")
    max_gradient_norm: float | None = _option(None, "clip gradients to this norm")
    class_weights: Literal["none", "sqrt", "balanced"] = _option(
        "sqrt", "class weights of the loss, from train counts"
    )
    label_smoothing: float = _option(0.05, "label smoothing")
    sampling: Literal["natural", "sqrt"] = _option(
        "natural", "how often a class is drawn; sqrt: by the square root of its size, instead of class weights"
    )
    logit_adjustment: float = _option(
        0.0, "tau of logit adjustment (Menon et al. 2021) for the classes as drawn; 1 is the balanced softmax"
    )
    ema_decay: float = _option(
        0.998, "moving average of the weights: their mean at first, exponential after 1 / (1 - decay) steps; 0 is off"
    )

    mixup: float = _option(0.0, "alpha of mixup (Zhang et al. 2018); 0 is off")
    cutmix: float = _option(0.0, "alpha of CutMix (Yun et al. 2019); 0 is off, with mixup each takes every other step")
    augment_flip: bool = _option(True, "random horizontal and vertical flips")
    augment_rotation: float = _option(45.0, "random rotation up to this many degrees")
    augment_min_area: float = _option(0.5, "random resized crop of at least this share of the area; 1 is off")
    augment_color: float = _option(
        0.2, "strength of brightness, contrast, saturation and (a tenth) hue jitter; 0 is off"
    )
    augment_padding: Literal["reflection", "zeros", "border"] = _option("reflection", "what lies beyond the picture")

    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = _option("auto", "auto: bf16 where the hardware has it")
    channels_last: bool = _option(True, "NHWC memory layout of the network")
    eval_batch_size: int = _option(64, "batch size of validation")
    seed: int = _option(0, "seed of weights, order, augmentation and dropout")
    save_dtype: Literal["float32", "float16"] = _option(
        "float32", "how the checkpoint stores its weights; read back, both compute in float32"
    )
    save_every_steps: int | None = _option(
        None, "also save the training state every so many steps, not only each epoch"
    )
    keep_checkpoints: int = _option(2, "training states to keep: a damaged one is passed over for the one before it")
    trackers: list[str] = _option(["tensorboard"], "Accelerate trackers, or 'none'")
    resume: bool = _option(
        False,
        "continue the run in output_dir where it stopped (anew if it had saved nothing), with its own settings",
    )
    overwrite: bool = _option(False, "start anew in an output_dir that already holds a run")

    def __post_init__(self) -> None:
        """Checks every value; the types are checked by `strict`."""
        for name in (
            "epochs",
            "batch_size",
            "gradient_accumulation_steps",
            "eval_batch_size",
            "keep_checkpoints",
        ):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("learning_rate", "head_learning_rate"):
            self._require(name, getattr(self, name) > 0, "positive")
        for name in ("warmup_fraction", "label_smoothing", "ema_decay", "augment_color"):
            self._require(name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        for name in ("weight_decay", "logit_adjustment", "mixup", "cutmix"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        self._require("augment_min_area", 0 < self.augment_min_area <= 1, "in (0, 1]")
        self._require("augment_rotation", 0 <= self.augment_rotation <= 180, "in [0, 180] degrees")
        self._require("image_size", len(self.image_size) in (1, 2) and min(self.image_size) >= 1, "one or two sides")
        self._require(
            "train_scales",
            len(self.train_scales) == 2 and min(self.train_scales) > 0 and max(self.train_scales) <= 1,
            "two shares in (0, 1]",
        )
        self._require(
            "freeze_backbone",
            not self.freeze_backbone or (self.modality != "metadata" and self.pretrained != "none"),
            "false for a model without a backbone, or with a random one",
        )
        self._require("data_fixes", set(self.data_fixes) <= set(DATA_FIXES), f"any of {list(DATA_FIXES)}")
        for name in ("save_every_steps", "max_gradient_norm", "cache_size", "patience"):
            self._require(name, getattr(self, name) is None or getattr(self, name) > 0, "positive, or left out")
        if self.batch_size % self.gradient_accumulation_steps:
            raise Ham10000Error(
                f"Got {self.batch_size} for `batch_size` and {self.gradient_accumulation_steps} for "
                "`gradient_accumulation_steps`; the first must be a multiple of the second."
            )
        self.model_config()

    def model_config(self, labels: Sequence[str] = ()) -> Ham10000Config:
        """The configuration of the model this run trains.

        Args:
            labels: The label set of the data; empty for that of the settings.
        """
        names = list(labels or self.labels)
        malignant = None
        if names and self.malignant_labels is not None:
            malignant = [label for label in self.malignant_labels if label != "none"]
            if unknown := sorted(set(malignant) - set(names)):
                raise Ham10000Error(f"`malignant_labels` names {unknown}, but the labels are {names}.")
        try:
            backbone_kwargs = json.loads(self.backbone_kwargs)
        except json.JSONDecodeError as error:
            raise Ham10000Error(f"`backbone_kwargs` is not JSON: {self.backbone_kwargs!r} ({error}).") from error
        return Ham10000Config(
            modality=self.modality,
            backbone=self.backbone,
            backbone_kwargs=backbone_kwargs,
            fusion=self.fusion,
            metadata_fields=list(self.metadata_fields),
            metadata_dropout=self.metadata_dropout,
            metadata_field_dropout=self.metadata_field_dropout,
            classifier_dropout=self.classifier_dropout,
            id2label=dict(enumerate(names)) if names else None,
            malignant_labels=malignant,
        )

    @property
    def train_parts(self) -> tuple[str, ...]:
        """The parts of the split that are trained on."""
        return ("train", "validation") if self.train_on_validation else ("train",)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (self.image_size[0], self.image_size[-1])

    def train_size(self, epoch: int) -> tuple[int, int]:
        """(height, width) of the training pictures in an epoch, counted from 0.

        Small pictures first are EfficientNetV2's progressive learning (Tan & Le, ICML 2021, arXiv:2104.00298);
        training below the size of evaluation follows Touvron et al. (NeurIPS 2019, arXiv:1906.06423).
        """
        first, last = self.train_scales
        scale = last if self.epochs == 1 else first + (last - first) * epoch / (self.epochs - 1)
        if scale == 1:
            return self.size
        # Steps of 16 pixels, so that few sizes occur: each costs a new plan for the convolutions.
        height, width = (max(16, int(scale * side / 16 + 0.5) * 16) for side in self.size)
        return (min(height, self.size[0]), min(width, self.size[1]))

    @property
    def largest_train_size(self) -> tuple[int, int]:
        """(height, width) of the largest training images of the schedule."""
        return max(self.train_size(0), self.train_size(self.epochs - 1))

    def to_dict(self) -> dict[str, Any]:
        """All fields, JSON-ready."""
        return dataclasses.asdict(self)

    def _require(self, name: str, condition: bool, expected: str) -> None:
        if not condition:
            raise Ham10000Error(f"`{name}` must be {expected}, got {getattr(self, name)!r}.")


def read_config_file(path: str | Path) -> dict[str, Any]:
    """Reads a YAML or JSON configuration file; an unknown key is an error that lists the known ones.

    Args:
        path: The file. The `train_config.json` of a run is accepted as well: its `config` is read.

    Returns:
        The values the file sets.

    Raises:
        Ham10000Error: If the file is missing, malformed, or holds an unknown key.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise Ham10000Error(f"Cannot read the config file {str(path)!r}: {error}") from error
    values = {} if values is None else values
    if isinstance(values, dict) and isinstance(values.get("config"), dict):
        values = values["config"]
    if not isinstance(values, dict):
        raise Ham10000Error(
            f"The config file {str(path)!r} must hold `name: value` lines, got {type(values).__name__}."
        )
    for name in _REMOVED:
        values.pop(name, None)
    known = [item.name for item in dataclasses.fields(TrainConfig)]
    if unknown := [key for key in values if key not in known]:
        raise Ham10000Error(f"{path}: unknown key(s) {unknown}. Known keys: {', '.join(known)}.")
    if isinstance(values.get("backbone_kwargs"), dict):
        values["backbone_kwargs"] = json.dumps(values["backbone_kwargs"])
    for item in dataclasses.fields(TrainConfig):
        if item.type in (int, int | None) and isinstance(values.get(item.name), str):
            # As a default of argparse it would be refused without the name of the file.
            raise Ham10000Error(f"{path}: {item.name} must be a whole number, got {values[item.name]!r}.")
        if item.type == list[float] and isinstance(values.get(item.name), list):
            values[item.name] = [float(v) if isinstance(v, int) else v for v in values[item.name]]
        # YAML 1.1 reads `1` as an int and `1e-3` as text; both are meant as numbers here.
        if item.name in values and item.type is float and isinstance(values[item.name], (int, str)):
            try:
                values[item.name] = float(values[item.name])
            except ValueError as error:
                raise Ham10000Error(f"{path}: {item.name} must be a number, got {values[item.name]!r}.") from error
    return values


def checkpoint_settings(checkpoint: str) -> dict[str, Any]:
    """The options that describe a checkpoint's network and its images, which fine-tuning takes over.

    Args:
        checkpoint: A checkpoint folder or Hub id.

    Returns:
        Options of `TrainConfig` by name.

    Raises:
        Ham10000Error: As `load_checkpoint`.
    """
    model, processor = load_checkpoint(checkpoint)
    names = ("modality", "backbone", "backbone_kwargs", "fusion", "metadata_fields")
    settings = {name: getattr(model.config, name) for name in names}
    settings["backbone_kwargs"] = json.dumps(settings["backbone_kwargs"])
    if model.config.uses_image:
        size = processor.image_processor.size
        settings["image_size"] = [size["height"], size["width"]]
        settings["resizer"] = processor.image_processor.resizer
    return settings


def _parser_fields() -> Any:
    """A plain copy of the fields: HfArgumentParser overwrites the types it is given, which `strict` still needs."""
    copies = []
    for item in dataclasses.fields(TrainConfig):
        default: Any = {"default": item.default}
        if item.default_factory is not dataclasses.MISSING:
            default = {"default_factory": item.default_factory}
        copies.append((item.name, item.type, dataclasses.field(metadata=item.metadata, **default)))
    return dataclasses.make_dataclass("TrainOptions", copies)


def parse_arguments(argv: list[str] | None = None) -> TrainConfig:
    """Builds the configuration from the command line, over `--config FILE`, over the defaults.

    Args:
        argv: Arguments without the program's name; None reads `sys.argv`.

    Returns:
        The validated configuration.

    Raises:
        Ham10000Error: As `TrainConfig` and `read_config_file`.
    """
    file_option = argparse.ArgumentParser(add_help=False)
    file_option.add_argument("--config", help="YAML or JSON file with any of these options; the command line wins")
    add_debug_argument(file_option)
    first = argparse.ArgumentParser(add_help=False, parents=[file_option], allow_abbrev=False)
    first.add_argument("--output_dir", default=TrainConfig.output_dir)
    first.add_argument("--resume", nargs="?", const="true", default="false")
    first.add_argument("--init_from")
    known, _ = first.parse_known_args(argv)
    own_file = Path(known.output_dir) / RunFile.TRAINING
    if known.config is None and known.resume.lower() == "true" and own_file.is_file():
        known.config = str(own_file)
    parser = HfArgumentParser(
        _parser_fields(),
        parents=[file_option],
        description="Train a HAM10000 model: image-only, metadata-only or fusion.",
        allow_abbrev=False,
    )
    values = read_config_file(known.config) if known.config else {}
    init_from = known.init_from or values.get("init_from")
    # A resumed run's own settings have them already, and must not need the checkpoint again.
    if init_from and known.resume.lower() != "true":
        parser.set_defaults(**checkpoint_settings(init_from))
    parser.set_defaults(**values)
    arguments = vars(parser.parse_args(argv))
    del arguments["config"], arguments["debug"]
    return TrainConfig(**arguments)


__all__ = ["DATA_FIXES", "TrainConfig", "checkpoint_settings", "parse_arguments", "read_config_file"]
