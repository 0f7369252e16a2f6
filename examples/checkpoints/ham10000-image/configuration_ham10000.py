"""Configuration of the HAM10000 models: what the inputs and the outputs mean, saved with the weights."""

import math
from dataclasses import field
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

# Class ids are alphabetical; the order is part of every checkpoint and of every results file.
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
FUSIONS = ("concat", "gated", "metablock", "film")

# Arguments of `timm.create_model` that would make a config read files or fetch weights.
_FORBIDDEN_BACKBONE_KWARGS = ("cache_dir", "checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay")

# Not fields of ours, but legitimate in a config.json or in a `from_pretrained` call.
_LIBRARY_KEYS = frozenset(
    {
        "_attn_implementation_internal",
        "_commit_hash",
        "_experts_implementation_internal",
        "_name_or_path",
        "attn_implementation",
        "auto_map",
        "custom_pipelines",
        "experts_implementation",
        "model_type",
        "name_or_path",
        "num_labels",
        "output_attentions",
        "tags",
        "torch_dtype",
        "use_cache",  # transformers.Trainer sets it on any model's config before it saves
    }
)


class Ham10000Error(ValueError):
    """The one error of this package for bad input: data, metadata, configuration or checkpoint.

    Its message names what was wrong (file, row, field, value), what was expected and what to do.
    """


def _is_probability(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1


@strict
class Ham10000Config(PreTrainedConfig):
    """Configuration of `Ham10000ForImageClassification`, all three variants.

    Wrong values and misspelled names are errors. Label order, metadata schema and calibration travel with the weights.

    Args:
        modality: `"image"`, `"metadata"` or `"fusion"`.
        backbone: Name of any timm model, with or without the pretrained tag. The default is EfficientNetV2-S;
            `"efficientnetv2_s"` with `backbone_kwargs={"bn_eps": 1e-3}` is torchvision's network.
        backbone_kwargs: Further keyword arguments of `timm.create_model`, such as `{"drop_path_rate": 0.1}`.
        fusion: How the image and the metadata embedding are joined: `"concat"` (late fusion), `"gated"`,
            `"metablock"` or `"film"`. Only read when `modality="fusion"`.
        metadata_fields: The columns the metadata tensor holds, in that order; a subset of age, sex, localization.
        sex_vocabulary: Values of `sex`; the value's position is its index in the metadata tensor.
        localization_vocabulary: Values of `localization`, likewise.
        age_offset: Age in years that is encoded as 0.
        age_scale: Years per unit of the encoded age: `(age - age_offset) / age_scale`.
        metadata_hidden_sizes: Widths of the layers of the metadata MLP; the last is the metadata embedding's.
        metadata_hidden_dropout: Dropout between the layers of the metadata MLP, in [0, 1).
        metadata_field_dropout: Probability, in training, that one field of one sample is set to missing.
        metadata_dropout: Probability, in training, that all fields of one sample are set to missing.
        classifier_dropout: Dropout before the classifier, in [0, 1).
        temperature: Calibration temperature; the logits are divided by it (Guo et al. 2017, arXiv:1706.04599).
        label_descriptions: Plain-language name of each label; by default HAM10000's, or the label itself.
        malignant_labels: The labels that count as malignant; by default those of mel, bcc and akiec that are in the
            label set. May be empty.

    The labels are `id2label`, as in any transformers config; by default HAM10000's seven.

    Raises:
        Ham10000Error: For an unknown key.
        huggingface_hub.errors.StrictDataclassError: For a value of a wrong type or outside its closed set.

    Example:
        >>> Ham10000Config(modality="fusion", backbone="test_efficientnet", fusion="film").num_labels
        7
    """

    model_type = "ham10000"

    modality: Literal["image", "metadata", "fusion"] = "fusion"
    backbone: str = "tf_efficientnetv2_s.in21k_ft_in1k"
    backbone_kwargs: dict[str, Any] = field(default_factory=dict)
    fusion: Literal["concat", "gated", "metablock", "film"] = "concat"

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
    label_descriptions: dict[str, str] | None = None
    malignant_labels: list[str] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Rejects unknown keys and fills in the label maps."""
        unknown = sorted(set(kwargs) - _LIBRARY_KEYS)
        if unknown:
            known = ", ".join(sorted(Ham10000Config.__annotations__))
            raise Ham10000Error(f"Unknown Ham10000Config key(s) {unknown}. Known keys: {known}.")
        if self.id2label is None:
            self.id2label = dict(enumerate(LABELS))
        if kwargs.pop("num_labels", len(self.id2label)) != len(self.id2label):
            raise Ham10000Error(
                f"`num_labels` is the number of labels, {len(self.id2label)}; pass `id2label` instead."
            )
        names = [str(name) for _, name in sorted((int(index), name) for index, name in self.id2label.items())]
        if self.label2id is None:
            self.label2id = {label: index for index, label in enumerate(names)}
        if self.label_descriptions is None:
            self.label_descriptions = {label: LABEL_DESCRIPTIONS.get(label, label) for label in names}
        if self.malignant_labels is None:
            self.malignant_labels = [label for label in MALIGNANT if label in names]
        super().__post_init__(**kwargs)

    @property
    def label_names(self) -> list[str]:
        """The labels in the order of their ids, which is the order of the logits."""
        id2label = {int(index): label for index, label in (self.id2label or {}).items()}
        return [id2label[index] for index in sorted(id2label)]

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Builds a config from a saved one; overrides in `kwargs` are checked as the constructor's arguments are."""
        loaded: Any = super().from_dict(config_dict, **kwargs)
        # transformers assigns the overrides one by one, which checks types but runs no validator.
        (loaded[0] if isinstance(loaded, tuple) else loaded).validate()
        return loaded

    def validate_labels(self) -> None:
        """Labels, ids, descriptions and the malignant ones must fit together: a wrong order gives no error later."""
        names = self.label_names
        if sorted(int(index) for index in self.id2label or {}) != list(range(len(names))) or len(names) < 2:
            raise ValueError(f"`id2label` must number at least two labels from 0, got {self.id2label}.")
        if len(set(names)) != len(names) or not all(isinstance(name, str) and name.strip() for name in names):
            raise ValueError(f"`id2label` needs distinct names that are not empty, got {names}.")
        if self.label2id != {label: index for index, label in enumerate(names)}:
            raise ValueError(f"`label2id` must be the inverse of `id2label`, got {self.label2id}.")
        if set(self.label_descriptions or {}) != set(names):
            raise ValueError(f"`label_descriptions` must have one entry for each of {names}.")
        if unknown := sorted(set(self.malignant_labels or []) - set(names)):
            raise ValueError(f"`malignant_labels` has {unknown}, which are not among the labels {names}.")

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
        for name in self.metadata_fields:
            if name in FORBIDDEN_FIELDS:
                raise ValueError(f"`{name}` can never be a model input: {FORBIDDEN_FIELDS[name]}.")
            if name not in METADATA_FIELDS:
                raise ValueError(f"Unknown metadata field {name!r}; expected some of {list(METADATA_FIELDS)}.")
        if len(set(self.metadata_fields)) != len(self.metadata_fields):
            raise ValueError(f"`metadata_fields` names a field twice: {self.metadata_fields}.")
        if self.modality != "image" and not self.metadata_fields:
            raise ValueError(f"`metadata_fields` is empty, but modality={self.modality!r} needs at least one.")
        for name in ("sex_vocabulary", "localization_vocabulary"):
            vocabulary = getattr(self, name)
            if not vocabulary or len(set(vocabulary)) != len(vocabulary) or "unknown" in vocabulary:
                raise ValueError(f"`{name}` needs distinct values without 'unknown' (missing has its own state).")
            if any(value != value.strip().lower() for value in vocabulary):
                raise ValueError(
                    f"`{name}` needs lower-case values, as inputs are compared in lower case: {vocabulary}."
                )

    def validate_numbers(self) -> None:
        """Ranges of the numeric fields."""
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"`temperature` must be a positive number, got {self.temperature}.")
        if not (math.isfinite(self.age_scale) and self.age_scale > 0 and math.isfinite(self.age_offset)):
            raise ValueError(f"`age_scale` must be positive, got {self.age_scale} (offset {self.age_offset}).")
        if not self.metadata_hidden_sizes or min(self.metadata_hidden_sizes) < 1:
            raise ValueError(f"`metadata_hidden_sizes` needs positive widths, got {self.metadata_hidden_sizes}.")
        for name in (
            "metadata_hidden_dropout",
            "metadata_field_dropout",
            "metadata_dropout",
            "classifier_dropout",
        ):
            if not _is_probability(getattr(self, name)):
                raise ValueError(f"`{name}` must be in [0, 1), got {getattr(self, name)}.")

    @property
    def uses_image(self) -> bool:
        """Whether the model reads `pixel_values`."""
        return self.modality != "metadata"

    @property
    def uses_metadata(self) -> bool:
        """Whether the model reads `metadata`."""
        return self.modality != "image"


__all__ = [
    "FORBIDDEN_FIELDS",
    "FUSIONS",
    "LABELS",
    "LABEL_DESCRIPTIONS",
    "LOCALIZATIONS",
    "MALIGNANT",
    "METADATA_FIELDS",
    "MODALITIES",
    "SEXES",
    "Ham10000Config",
    "Ham10000Error",
]
