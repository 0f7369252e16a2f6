"""Configuration of the HAM10000 models: what the inputs and the outputs mean, saved with the weights."""

import difflib
import math
from collections.abc import Iterable
from dataclasses import field
from typing import Any, Literal, get_args

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig, __version__
from transformers.utils import logging

# Below transformers' own logger, so that its verbosity holds here too.
logger = logging.get_logger(f"transformers.{__name__}")

# The default label set. Class ids are alphabetical; the order is part of every checkpoint and of every results file.
LABELS = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")

LABEL_DESCRIPTIONS = {
    "akiec": "actinic keratosis / intraepithelial carcinoma",
    "bcc": "basal cell carcinoma",
    "bkl": "benign keratosis-like lesion",
    "df": "dermatofibroma",
    "mel": "melanoma",
    "nv": "melanocytic nevus",
    "vasc": "vascular lesion",
}

# Malignant, or a precursor: what must not be missed.
MALIGNANT = ("mel", "bcc", "akiec")

METADATA_FIELDS = ("age", "sex", "localization")
SEXES = ("female", "male")
# The 14 sites of HAM10000_metadata. "unknown" is not a site: it is the missing state of the field.
LOCALIZATIONS = (
    "abdomen",
    "acral",
    "back",
    "chest",
    "ear",
    "face",
    "foot",
    "genital",
    "hand",
    "lower extremity",
    "neck",
    "scalp",
    "trunk",
    "upper extremity",
)

# Columns of HAM10000 that give the diagnosis away. They can never be configured as inputs.
FORBIDDEN_FIELDS = {
    "dx": "it is the label itself",
    "dx_type": "it says how the diagnosis was made: every mel, bcc and akiec is 'histo', every 'follow_up' is nv",
    "dataset": "it names the source collection: 90 % of akiec come from one of the four, 94 % of another are nv",
    "lesion_id": "it identifies the lesion, and photographs of one lesion share their diagnosis",
    "image_id": "it identifies the image",
}

MODALITIES = ("image", "metadata", "fusion")
Fusion = Literal["concat", "gated", "metablock", "film"]
FUSIONS: tuple[str, ...] = get_args(Fusion)

# Arguments of `timm.create_model` that would make a config read files or fetch weights.
_FORBIDDEN_BACKBONE_KWARGS = ("cache_dir", "checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay")


class Ham10000Error(ValueError):
    """The one error of this package for bad input: data, metadata, configuration or checkpoint.

    Its message names what was wrong (file, row, field, value), what was expected and what to do.
    """


def find_misspelt(unknown: Iterable[str], known: Iterable[str]) -> str:
    """Unknown keys that look like a known one, as `'temprature' (is 'temperature' meant?)`; empty without any."""
    pairs = ((key, difflib.get_close_matches(key, known, n=1, cutoff=0.8)) for key in unknown)
    return ", ".join(f"{key!r} (is {close[0]!r} meant?)" for key, close in pairs if close)


def _whole_numbers(name: str, ids: Any) -> list[int]:
    """Class ids as numbers; JSON's keys, and transformers' own example scripts, have strings of digits."""
    numbers = [int(value) if isinstance(value, str) and value.isdecimal() else value for value in ids]
    if not all(type(number) is int for number in numbers):
        raise Ham10000Error(f"`{name}` needs whole numbers as class ids, such as 0 or '0', got {list(ids)}.")
    return numbers


def check_metadata_schema(fields: Any, sex_vocabulary: Any, localization_vocabulary: Any) -> None:
    """Refuses columns that are unknown or tell the diagnosis, and vocabularies that inputs cannot be compared with."""
    vocabularies = {"sex_vocabulary": sex_vocabulary, "localization_vocabulary": localization_vocabulary}
    for name, values in ({"metadata_fields": fields} | vocabularies).items():
        names: list[Any] = list(values) if isinstance(values, (list, tuple)) else [None]
        if not all(isinstance(value, str) and value == value.strip().lower() != "" for value in names):
            raise Ham10000Error(f"`{name}` must be a list of lower-case names, got {values!r}.")
        if len(set(names)) != len(names):
            raise Ham10000Error(f"`{name}` has a name twice: {values!r}.")
        if name in vocabularies and (not names or "unknown" in names):
            raise Ham10000Error(f"`{name}` needs values, none of them 'unknown' (missing has its own state): {names}.")
    for name in fields:
        if name in FORBIDDEN_FIELDS:
            raise Ham10000Error(f"`metadata_fields`: {name!r} can never be a model input: {FORBIDDEN_FIELDS[name]}.")
        if name not in METADATA_FIELDS:
            raise Ham10000Error(f"`metadata_fields`: unknown {name!r}; expected some of {list(METADATA_FIELDS)}.")


@strict
class Ham10000Config(PreTrainedConfig):
    """Configuration of `Ham10000ForImageClassification`, all three variants.

    Wrong values and misspelled arguments are errors. Label order, metadata schema and calibration travel with the
    weights. Keys that a library has saved, such as `quantization_config`, are kept as they are; one that looks like a
    misspelled field gives a warning.

    Args:
        modality: `"image"`, `"metadata"` or `"fusion"`.
        backbone: Name of any timm model, with or without the pretrained tag. The default is EfficientNetV2-S;
            `"efficientnetv2_s"` with `backbone_kwargs={"bn_eps": 1e-3}` is torchvision's network.
        backbone_kwargs: Further keyword arguments of `timm.create_model`, such as `{"drop_path_rate": 0.1}`.
        fusion: How the image and the metadata embedding are joined, one of `FUSIONS`; `"concat"` is late fusion. Only
            read when `modality="fusion"`.
        metadata_fields: The columns the metadata tensor holds, in that order; a subset of age, sex, localization.
        sex_vocabulary: Values of `sex`; the value's position is its index in the metadata tensor.
        localization_vocabulary: Values of `localization`, in the same way.
        age_offset: Age in years that is encoded as 0.
        age_scale: Years per unit of the encoded age: `(age - age_offset) / age_scale`.
        metadata_hidden_sizes: Widths of the layers of the metadata MLP; the last is the metadata embedding's.
        metadata_hidden_dropout: Dropout between the layers of the metadata MLP, in [0, 1).
        metadata_field_dropout: Probability, in training, that one field of one sample is set to missing.
        metadata_dropout: Probability, in training, that all fields of one sample are set to missing.
        classifier_dropout: Dropout before the classifier, in [0, 1).
        temperature: Calibration temperature; the logits are divided by it (Guo et al. 2017, arXiv:1706.04599).
        class_prior: Class shares that the probabilities answer for, in the order of the labels: those of the training
            images, changed by class weights and sampling; None where unknown.
        conformal_thresholds: Coverage (such as `"0.9"`) to the largest `1 - p` of each class that its prediction sets
            accept; None where none were fitted.
        malignant_labels: The labels that count as malignant; by default those of mel, bcc and akiec that are in the
            label set. May be empty.
        label_descriptions: Plain-language name of each label; by default HAM10000's, or the label itself.
        **kwargs: Fields of `PreTrainedConfig`. `id2label`, `label2id` or `num_labels` give another label set of two
            or more classes; by default it is the seven of HAM10000.

    Raises:
        Ham10000Error: For an unknown key, or label maps that contradict each other.
        huggingface_hub.errors.StrictDataclassError: For a value of a wrong type or outside its closed set.

    Example:
        >>> Ham10000Config(modality="fusion", backbone="test_efficientnet", fusion="film").num_labels
        7
        >>> Ham10000Config(id2label={0: "benign", 1: "mel"}).malignant_labels
        ['mel']
    """

    model_type = "ham10000"
    # `Trainer` collects every other output as a prediction.
    keys_to_ignore_at_inference = ["pooler_output", "image_embedding", "metadata_embedding", "hidden_states"]

    modality: Literal["image", "metadata", "fusion"] = "fusion"
    backbone: str = "tf_efficientnetv2_s.in21k_ft_in1k"
    backbone_kwargs: dict[str, Any] = field(default_factory=dict)
    fusion: Fusion = "concat"

    metadata_fields: list[str] = field(default_factory=lambda: list(METADATA_FIELDS))
    sex_vocabulary: list[str] = field(default_factory=lambda: list(SEXES))
    localization_vocabulary: list[str] = field(default_factory=lambda: list(LOCALIZATIONS))
    age_offset: float | int = 50.0
    age_scale: float | int = 20.0

    metadata_hidden_sizes: list[int] = field(default_factory=lambda: [128, 64])
    metadata_hidden_dropout: float | int = 0.1
    metadata_field_dropout: float | int = 0.1
    metadata_dropout: float | int = 0.1
    classifier_dropout: float | int = 0.2
    temperature: float | int = 1.0
    class_prior: list[float] | None = None
    conformal_thresholds: dict[str, list[float]] | None = None
    malignant_labels: list[str] | None = None
    label_descriptions: dict[str, str] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Rejects unknown keys and fills in the label maps."""
        # transformers writes its version into whatever it saves, and so does `from_dict` below. Saved keys are a
        # library's business, of this release or the next; what somebody types is checked.
        unknown = sorted(key for key in kwargs if not (hasattr(type(self), key) or hasattr(type(self), f"_{key}")))
        known = sorted(Ham10000Config.__annotations__)
        if unknown and self.transformers_version is None:
            raise Ham10000Error(f"Unknown Ham10000Config key(s) {unknown}. Known keys: {', '.join(known)}.")
        if misspelt := find_misspelt(unknown, known):
            logger.warning_once(f"config.json has keys that change nothing: {misspelt}.")
        self._fill_label_maps(kwargs.pop("num_labels", None))
        super().__post_init__(**kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        """Lets what is said about labels follow when `id2label` or `num_labels` is set later, as `from_dict` does."""
        if name == "label2id" and isinstance(value, dict):
            value = dict(zip(value, _whole_numbers(name, value.values()), strict=True))
        before = vars(self).get("id2label")
        super().__setattr__(name, value)
        if name == "id2label" and "_post_init_done" in vars(self):
            if set(self.label_names) != set(self.label_descriptions or ()):
                self.malignant_labels = self.label_descriptions = None
            self.label2id = None
            self._fill_label_maps(None)
            if self.id2label != before:
                fitted = (self.temperature, self.class_prior, self.conformal_thresholds)
                if fitted != (1.0, None, None):
                    logger.warning_once("Other labels: temperature, class_prior and conformal_thresholds are reset.")
                self.temperature, self.class_prior, self.conformal_thresholds = 1.0, None, None

    def _fill_label_maps(self, num_labels: int | None) -> None:
        given: dict[Any, Any] = self.id2label or {}
        if self.id2label is None and self.label2id is not None:
            given = {index: label for label, index in self.label2id.items()}
            if len(given) != len(self.label2id):
                raise Ham10000Error(f"`label2id` gives several labels the same id: {self.label2id}.")
        elif self.id2label is None:
            seven = num_labels in (None, len(LABELS))
            given = dict(enumerate(LABELS if seven else [f"LABEL_{index}" for index in range(num_labels or 0)]))
        id2label = dict(sorted(zip(_whole_numbers("id2label", given), given.values(), strict=True)))
        vars(self)["id2label"] = id2label  # an assignment would come back here
        if self.label2id is None:
            self.label2id = {label: index for index, label in id2label.items()}
        if num_labels not in (None, len(id2label)):
            raise Ham10000Error(
                f"`num_labels` is {num_labels}, but the label maps have {len(id2label)} labels: {self.label_names}. "
                "Leave `num_labels` out, or give the maps that belong to it."
            )
        if self.malignant_labels is None:
            self.malignant_labels = [label for label in MALIGNANT if label in self.label_names]
        if self.label_descriptions is None:
            self.label_descriptions = {name: LABEL_DESCRIPTIONS.get(name, name) for name in self.label_names}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Builds a config from a saved one; overrides in `kwargs` are checked as the constructor's arguments are.

        Other labels replace the saved ones and all that was said about them. The same labels in another order replace
        what was fitted to the logits of the old classifier: temperature, class prior and conformal thresholds.
        """
        config_dict = {"transformers_version": __version__, **config_dict}
        maps = ("id2label", "label2id", "num_labels")
        given = {name: value for name in maps if (value := kwargs.pop(name, None)) is not None}
        saved = cls(**{name: config_dict[name] for name in maps if name in config_dict})
        if given and given != {"num_labels": saved.num_labels}:
            kwargs = {"id2label": cls(**given).id2label, **kwargs}  # assigned first, see `__setattr__`
        loaded: Any = super().from_dict(config_dict, **kwargs)
        # transformers assigns the overrides one by one, which checks types but runs no validator.
        (loaded[0] if isinstance(loaded, tuple) else loaded).validate()
        return loaded

    def validate_labels(self) -> None:
        """Two classes or more, numbered from 0, and everything said about labels is about these."""
        names = self.label_names
        if list(self.id2label or ()) != list(range(len(names))) or len(set(names)) != len(names) or len(names) < 2:
            raise ValueError(
                f"`id2label` must name two or more different labels by ids from 0 up, got {self.id2label}."
            )
        if any(not name or name != name.strip() for name in names):
            raise ValueError(f"`id2label` has an empty label, or one with blanks at its ends: {names}.")
        if self.label2id != {label: index for index, label in enumerate(names)}:
            raise ValueError(f"`label2id` must be the inverse of `id2label`, {self.id2label}, got {self.label2id}.")
        malignant = self.malignant_labels or []
        if not set(malignant) <= set(names) or len(set(malignant)) != len(malignant):
            raise ValueError(f"`malignant_labels` must be different ones of the labels {names}, got {malignant}.")
        if set(self.label_descriptions or ()) != set(names):
            raise ValueError(f"`label_descriptions` must have one entry for each of {names}.")

    def validate_problem_type(self) -> None:
        """Probabilities are a softmax over the classes everywhere: loss, calibration, metrics and pipelines."""
        if self.problem_type not in (None, "single_label_classification"):
            raise ValueError(
                f"`problem_type` must be 'single_label_classification' or None, got {self.problem_type!r}: "
                "an image has one label."
            )

    def validate_backbone(self) -> None:
        """A config comes from strangers: it names a network, never a file, a folder or a repository."""
        if ":" in self.backbone or "/" in self.backbone or "\\" in self.backbone:
            raise ValueError(f"`backbone` must be the name of a timm model, not a place, got {self.backbone!r}.")
        for name in _FORBIDDEN_BACKBONE_KWARGS:
            if name in self.backbone_kwargs:
                value = self.backbone_kwargs[name]
                raise ValueError(f"`backbone_kwargs` cannot hold {name!r}, got {value!r}: a config reads no file.")

    def validate_metadata_schema(self) -> None:
        """The metadata tensor is (batch, len(metadata_fields)), so its columns must be known and harmless."""
        check_metadata_schema(self.metadata_fields, self.sex_vocabulary, self.localization_vocabulary)
        if self.modality != "image" and not self.metadata_fields:
            raise ValueError(f"`metadata_fields` is empty, but modality={self.modality!r} needs at least one.")

    def validate_numbers(self) -> None:
        """Ranges of the numeric fields."""
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"`temperature` must be a positive number, got {self.temperature}.")
        if not (math.isfinite(self.age_scale) and self.age_scale > 0 and math.isfinite(self.age_offset)):
            raise ValueError(f"`age_scale` must be positive, got {self.age_scale} (offset {self.age_offset}).")
        prior, n_labels = self.class_prior, len(self.id2label or LABELS)
        if prior is not None and not (
            len(prior) == n_labels and all(share > 0 for share in prior) and abs(sum(prior) - 1) < 1e-6
        ):
            raise ValueError(f"`class_prior` needs {n_labels} positive shares that sum to 1, got {prior}.")
        for coverage, thresholds in (self.conformal_thresholds or {}).items():
            if len(thresholds) != n_labels or not all(0 <= value <= 1 for value in thresholds):
                raise ValueError(
                    f"`conformal_thresholds` needs {n_labels} numbers in [0, 1] for {coverage!r}, got {thresholds}."
                )
        if not self.metadata_hidden_sizes or min(self.metadata_hidden_sizes) < 1:
            raise ValueError(f"`metadata_hidden_sizes` needs positive widths, got {self.metadata_hidden_sizes}.")
        for name in ("metadata_hidden_dropout", "metadata_field_dropout", "metadata_dropout", "classifier_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be in [0, 1), got {getattr(self, name)}.")

    @property
    def label_names(self) -> list[str]:
        """The labels in the order of the logits."""
        id2label: dict[Any, str] = self.id2label or {}
        return [id2label[index] for index in sorted(id2label)]

    @property
    def uses_image(self) -> bool:
        """Whether the model reads `pixel_values`."""
        return self.modality != "metadata"

    @property
    def uses_metadata(self) -> bool:
        """Whether the model reads `metadata`."""
        return self.modality != "image"
