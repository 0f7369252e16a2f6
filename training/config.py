"""The training configuration: command line over file over defaults, strict, saved with every run."""

import argparse
import dataclasses
import json
import re
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args, get_origin

from huggingface_hub.dataclasses import strict

from ham10000.training.data import tables
from ham10000.training.data.tables import DataOptions, input_error
from ham10000.training.utils.cli import add_debug_argument

# Within functions, all that imports torch: it takes seconds, which --help and a mistyped option need not wait for.
if TYPE_CHECKING:
    from ham10000.modeling import Ham10000Config

Protocol = Literal["lesion-grouped", "image-stratified"]
PROTOCOLS: tuple[str, ...] = get_args(Protocol)
# Options of `load_data` that change or drop rows; nothing is dropped unless one is named.
DATA_FIXES = ("drop_unreadable", "drop_duplicates", "drop_unknown_labels", "invalid_to_missing")
_NUMBERS = {int: "a whole number", float: "a number"}  # what a file must have for a field of this type


def _option(default: Any, text: str, *, group: str | None = None) -> Any:
    """A field; `group` is the heading in `--help` from this one on."""
    metadata = {"help": text, "group": group}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


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
        "", "a csv by its images, a folder (HAM10000, ISIC, imagefolder, Parquet), Hub id or 'synthetic'", group="data"
    )
    columns: list[str] = _option([], tables.COLUMNS_HELP)
    labels: list[str] = _option([], tables.LABELS_HELP)
    label_map: list[str] = _option([], tables.LABEL_MAP_HELP)
    malignant_labels: list[str] | None = _option(None, "malignant labels, or 'none' (default: of mel, bcc and akiec)")
    group_by: str | None = _option(None, tables.GROUP_BY_HELP)
    data_fixes: list[str] = _option([], f"what to do about bad rows, any of {', '.join(DATA_FIXES)}")
    cache_dir: str | None = _option(None, "folder of the uint8 image cache (default: ~/.cache/ham10000)")
    cache_size: int | None = _option(None, "shorter side of cached images in pixels (default: twice training's)")

    protocol: Protocol = _option("lesion-grouped", "how the data is split")
    split_seed: int = _option(42, "seed of the split; the training seed does not change it")
    folds: int | None = _option(None, "number of folds (default: the protocol's own split)")
    fold: int = _option(0, "which fold is the test set; the next one is the validation set")
    split_file: str | None = _option(None, "split.csv of an earlier run, used instead of making a split")
    train_on_validation: bool = _option(False, "train on the validation images too, and choose no epoch by them")
    train_on_all: bool = _option(False, "train on every image, the test images too: nothing is left to score it on")

    modality: Literal["image", "metadata", "fusion"] = _option("fusion", "variant of the model", group="model")
    backbone: str = _option("tf_efficientnetv2_s.in21k_ft_in1k", "any timm model")
    backbone_kwargs: str = _option('{"drop_path_rate": 0.1}', "further timm.create_model arguments, as JSON")
    init_from: str | None = _option(
        None,
        "fine-tune a checkpoint, a folder or Hub id: network, image size, weights, classifier of equal labels",
    )
    pretrained: str = _option("timm", "'timm' (weights from the Hub), 'torchvision', 'none', or a .safetensors file")
    fusion: str = _option("concat", "how embeddings are joined, such as concat, gated or film")
    metadata_fields: list[str] = _option(["age", "sex", "localization"], "metadata columns the model reads")
    metadata_dropout: float = _option(0.1, "probability that all metadata of a training sample is hidden")
    metadata_field_dropout: float = _option(0.1, "probability that one field of a training sample is hidden")
    classifier_dropout: float = _option(0.2, "dropout before the classifier")
    freeze_backbone: bool = _option(False, "train the rest only, on a backbone that stays as it was loaded")
    image_size: list[int] = _option([224], "side, or height and width, in pixels")
    train_scales: list[float] = _option([1.0, 1.0], "share of image_size in the first and last epoch of training")
    resizer: Literal["pillow", "torch"] = _option("torch", "what resizes images: torch is faster, pillow is timm's")

    epochs: int = _option(14, "epochs at most", group="schedule")
    patience: int | None = _option(None, "keep the epoch of the lowest validation loss, and stop so many after it")
    batch_size: int = _option(32, "samples per optimiser step, over all processes")
    gradient_accumulation_steps: int = _option(1, "micro-batches the batch is cut into on each process")
    learning_rate: float = _option(5e-4, "peak learning rate of the backbone")
    head_learning_rate: float = _option(2e-3, "peak learning rate of everything else")
    weight_decay: float = _option(0.02, "AdamW weight decay; biases and norms get none")
    schedule: Literal["cosine", "constant"] = _option("cosine", "learning rate after the warm-up")
    warmup_fraction: float = _option(0.1, "share of all steps with a linearly rising learning rate")
    max_gradient_norm: float | None = _option(None, "clip gradients to this norm")
    ema_decay: float = _option(0.998, "moving average of the weights, their mean for 1 / (1 - decay) steps; 0 is off")

    class_weights: Literal["none", "sqrt", "balanced"] = _option("sqrt", "class weights by train counts", group="loss")
    label_smoothing: float = _option(0.05, "label smoothing")
    sampling: Literal["natural", "sqrt"] = _option("natural", "draw classes by their size, or its square root")
    logit_adjustment: float = _option(0.0, "tau of logit adjustment (Menon et al. 2021); 1 is the balanced softmax")

    mixup: float = _option(0.0, "alpha of mixup (Zhang et al. 2018); 0 is off", group="augmentation")
    cutmix: float = _option(0.0, "alpha of CutMix (Yun et al. 2019); 0 is off, with mixup each takes every other step")
    augment_flip: bool = _option(True, "random horizontal and vertical flips")
    augment_rotation: float = _option(45.0, "random rotation up to this many degrees")
    augment_min_area: float = _option(0.5, "random resized crop of at least this share of the area; 1 is off")
    augment_color: float = _option(0.2, "jitter of brightness, contrast, saturation and (a tenth) hue; 0 is off")
    augment_padding: Literal["reflection", "zeros", "border"] = _option("reflection", "what lies beyond the image")

    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = _option(
        "auto", "auto: what `accelerate launch` was told, else bf16 where the hardware has it", group="machine"
    )
    channels_last: bool = _option(True, "NHWC memory layout of the network")
    eval_batch_size: int = _option(64, "batch size of validation")
    seed: int = _option(0, "seed of weights, order, augmentation and dropout")

    output_dir: str = _option("runs/run", "the run's folder: checkpoint, config, split, history, logs", group="output")
    save_dtype: Literal["float32", "float16"] = _option("float32", "type of stored weights; they compute in float32")
    save_every_steps: int | None = _option(None, "save the training state every so many steps, not only each epoch")
    keep_checkpoints: int = _option(2, "training states to keep: a damaged one is passed over for the one before it")
    trackers: list[str] = _option(["tensorboard"], "Accelerate trackers, or 'none'")
    resume: bool = _option(False, "continue the run in output_dir (anew if nothing was saved), with its own settings")
    overwrite: bool = _option(False, "replace the run in output_dir, once the new one has saved its first state")

    def __post_init__(self) -> None:
        """Checks every value; the types are checked by `strict`."""
        for name in ("epochs", "batch_size", "gradient_accumulation_steps", "eval_batch_size", "keep_checkpoints"):
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
        scales = self.train_scales
        self._require("train_scales", len(scales) == 2 and 0 < min(scales) <= max(scales) <= 1, "two shares in (0, 1]")
        has_weights = self.modality != "metadata" and self.pretrained != "none"
        expected = "false for a model without a backbone, or with a random one"
        self._require("freeze_backbone", has_weights or not self.freeze_backbone, expected)
        is_allowed = self.train_on_validation or not self.train_on_all
        self._require("train_on_all", is_allowed, "given with train_on_validation")
        self._require("data_fixes", set(self.data_fixes) <= set(DATA_FIXES), f"any of {list(DATA_FIXES)}")
        for name in ("save_every_steps", "max_gradient_norm", "cache_size", "patience"):
            self._require(name, getattr(self, name) is None or getattr(self, name) > 0, "positive, or left out")
        parts = self.gradient_accumulation_steps
        expected = f"a multiple of `gradient_accumulation_steps`, which is {parts}"
        self._require("batch_size", self.batch_size % parts == 0, expected)
        self.data_options()
        self.model_config()

    def data_options(self) -> DataOptions:
        """How the columns and labels of `data` are read."""
        return DataOptions.from_texts(self.columns, self.labels, self.label_map, self.group_by)

    def model_config(self, labels: Sequence[str] = ()) -> "Ham10000Config":
        """The configuration of the model this run trains, for the label set of the data or else of the settings."""
        from ham10000.modeling import Ham10000Config

        names = list(labels or self.labels)
        malignant = None
        if names and self.malignant_labels is not None:
            malignant = [label for label in self.malignant_labels if label != "none"]
        try:
            backbone_kwargs = json.loads(self.backbone_kwargs)
        except json.JSONDecodeError as error:
            raise input_error(f"`backbone_kwargs` is not JSON: {self.backbone_kwargs!r} ({error}).") from error
        same = ["modality", "backbone", "fusion", "metadata_fields"]
        same += ["metadata_dropout", "metadata_field_dropout", "classifier_dropout"]
        return Ham10000Config(
            backbone_kwargs=backbone_kwargs,
            id2label=dict(enumerate(names)) if names else None,
            malignant_labels=malignant,
            **{name: getattr(self, name) for name in same},
        )

    @property
    def train_parts(self) -> tuple[str, ...]:
        """The parts of the split that are trained on."""
        return ("train", "validation", "test")[: 3 if self.train_on_all else 1 + self.train_on_validation]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (self.image_size[0], self.image_size[-1])

    def train_size(self, epoch: int) -> tuple[int, int]:
        """(height, width) of the training images in an epoch, counted from 0.

        Small images first are EfficientNetV2's progressive learning (Tan & Le, ICML 2021, arXiv:2104.00298);
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
            raise input_error(f"`{name}` must be {expected}, got {getattr(self, name)!r}.")


def read_config_file(path: str | Path) -> dict[str, Any]:
    """Reads the values that a YAML or JSON configuration file sets.

    Args:
        path: The file. Of the `train_config.json` of a run its `config` is read, without what its command was to do
            about an earlier run (`resume`, `overwrite`).

    Raises:
        Ham10000Error: If the file is missing, malformed, or holds an unknown key.
    """
    import yaml

    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise input_error(f"Cannot read the config file {str(path)!r}: {error}") from error
    values = {} if values is None else values
    if isinstance(values, dict) and isinstance(values.get("config"), dict):
        values = {name: value for name, value in values["config"].items() if name not in ("resume", "overwrite")}
    if not isinstance(values, dict):
        raise input_error(f"The config file {str(path)!r} must hold `name: value` lines, got {type(values).__name__}.")
    for name in ("loader", "dataloader_workers"):  # of earlier versions; they never changed a result
        values.pop(name, None)
    known = {item.name: item.type for item in dataclasses.fields(TrainConfig)}
    if unknown := [key for key in values if key not in known]:
        raise input_error(f"{path}: unknown key(s) {unknown}. Known keys: {', '.join(known)}.")
    if isinstance(values.get("backbone_kwargs"), dict):
        values["backbone_kwargs"] = json.dumps(values["backbone_kwargs"])
    for name, value in values.items():
        kind = next((kind for kind in get_args(known[name]) or [known[name]] if kind in _NUMBERS), None)
        if kind is None or value is None:
            continue
        try:
            # YAML 1.1 reads `1` as an int and `1e-3` as text; both are meant as numbers. `true` itself would become 1.
            numbers = [kind(str(number)) for number in (value if isinstance(value, list) else [value])]
        except ValueError as error:
            # As a default of argparse it would be refused without the name of the file.
            raise input_error(f"{path}: {name} must be {_NUMBERS[kind]}, got {value!r}.") from error
        values[name] = numbers if isinstance(value, list) else numbers[0]
    return values


def checkpoint_settings(checkpoint: str) -> dict[str, Any]:
    """The options that describe a checkpoint's network and its images, which fine-tuning takes over, by name."""
    from ham10000.training.inference.prediction import load_checkpoint

    model, processor = load_checkpoint(checkpoint)
    names = ("modality", "backbone", "backbone_kwargs", "fusion", "metadata_fields")
    settings = {name: getattr(model.config, name) for name in names}
    settings["backbone_kwargs"] = json.dumps(settings["backbone_kwargs"])
    if model.config.uses_image:
        size = processor.image_processor.size
        settings["image_size"] = [size["height"], size["width"]]
        settings["resizer"] = processor.image_processor.resizer
    return settings


def _switch(text: str) -> bool:
    """The value of `--x true` and `--x false`."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return text.lower() == "true"


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of `ham10000-train`: an option for each field of `TrainConfig`, under its group."""
    parser = argparse.ArgumentParser(
        prog="ham10000-train",
        usage="%(prog)s [--config FILE] [options]",
        description="Train a HAM10000 model: image-only, metadata-only or fusion.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML or JSON file of these options; the command line wins")
    add_debug_argument(parser)
    group: Any = parser
    for item in dataclasses.fields(TrainConfig):
        if item.metadata["group"]:
            group = parser.add_argument_group(item.metadata["group"])
        default: Any = item.default_factory() if callable(item.default_factory) else item.default
        shown = " ".join(str(value) for value in (default if isinstance(default, list) else [default]))
        text = item.metadata["help"] + ("" if shown in ("", "None", "False") else f" (default: {shown})")
        options: dict[str, Any] = {"default": default, "help": text.replace("%", "%%")}
        kind = cast(Any, item.type)
        if isinstance(kind, types.UnionType):  # `int | None`: left out, it is None
            kind = get_args(kind)[0]
        if get_origin(kind) is Literal:
            options["choices"] = get_args(kind)
        elif kind is bool:
            options |= {"type": _switch, "nargs": "?", "const": True, "metavar": "true|false"}
        else:
            if get_origin(kind) is list:
                options["nargs"], kind = "+", get_args(kind)[0]
            options |= {"type": kind, "metavar": {int: "N", float: "X", str: "TEXT"}[kind]}
        group.add_argument(f"--{item.name}", **options)
        if default is True:
            group.add_argument(f"--no_{item.name}", dest=item.name, action="store_false", help="the same as false")
    return parser


def with_underscores(argv: Sequence[str]) -> list[str]:
    """The arguments with names such as `--batch-size` as they are listed, `--batch_size`."""
    return [re.sub(r"^--[\w-]+", lambda name: "--" + name[0][2:].replace("-", "_"), word) for word in argv]


def parse_arguments(argv: Sequence[str] | None = None) -> TrainConfig:
    """Builds the configuration from the command line, over `--config FILE`, over the defaults.

    With `--resume` and no file, the run's own `train_config.json` is the file.

    Args:
        argv: Arguments without the program's name; None reads `sys.argv`. Hyphens in names count as underscores.

    Raises:
        Ham10000Error: As `TrainConfig` and `read_config_file`.
    """
    given = with_underscores(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    arguments = parser.parse_args(given)
    file = arguments.config
    if file is None and arguments.resume:
        from ham10000.training.run_folder import settings_path

        own_file = settings_path(Path(arguments.output_dir))
        file = own_file if own_file.is_file() else None
    values = {} if file is None else read_config_file(file)
    init_from = arguments.init_from or values.get("init_from")
    # A resumed run's own settings have them already, and must not need the checkpoint again.
    if init_from and not arguments.resume:
        values = checkpoint_settings(init_from) | values
    parser.set_defaults(**values)
    arguments = parser.parse_args(given)
    return TrainConfig(**{item.name: getattr(arguments, item.name) for item in dataclasses.fields(TrainConfig)})
