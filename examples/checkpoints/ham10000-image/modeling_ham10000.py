"""The HAM10000 model: one class for the image, the metadata and the fusion variant."""

import copy
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_ham10000 import Ham10000Config, Ham10000Error
from .fusion_ham10000 import build_fusion
from .pipeline_ham10000 import CUSTOM_PIPELINES


@dataclass
class Ham10000Output(ModelOutput):
    """Output of `Ham10000ForImageClassification`.

    Attributes:
        loss: Scalar cross-entropy, when `labels` were given.
        logits: (batch, 7), divided by the calibration temperature; columns in the order of `config.id2label`.
        image_embedding: (batch, backbone features), pooled; None for the metadata variant.
        metadata_embedding: (batch, metadata_hidden_sizes[-1]); None for the image variant.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    image_embedding: torch.Tensor | None = None
    metadata_embedding: torch.Tensor | None = None


class MetadataEncoder(nn.Module):
    """Embeds age, sex and localization; each field has a missing state of its own.

    The raw tensor is one-hot encoded with one extra column a field that is 1 when the value is missing, so a missing
    age is neither 0 years nor the mean age, and the network can learn what missing means.
    """

    def __init__(self, config: Ham10000Config):
        super().__init__()
        self.fields = list(config.metadata_fields)
        self.age_offset = config.age_offset
        self.age_scale = config.age_scale
        self.vocabulary_sizes = {
            "sex": len(config.sex_vocabulary),
            "localization": len(config.localization_vocabulary),
        }
        width = sum(1 + self.vocabulary_sizes.get(name, 1) for name in self.fields)
        layers: list[nn.Module] = []
        for hidden_size in config.metadata_hidden_sizes:
            layers += [
                nn.Linear(width, hidden_size),
                nn.LayerNorm(hidden_size),
                nn.GELU(),
                nn.Dropout(config.metadata_hidden_dropout),
            ]
            width = hidden_size
        self.mlp = nn.Sequential(*layers)
        self.output_size = width

    def encode(self, metadata: torch.Tensor) -> torch.Tensor:
        """Turns raw values into the MLP's input.

        Args:
            metadata: (batch, fields) float; age in years, vocabulary indices, NaN where missing.

        Returns:
            (batch, width) of the same dtype: per field its value or one-hot columns, then the missing flag.
        """
        missing = torch.isnan(metadata)
        values = torch.where(missing, torch.zeros_like(metadata), metadata)
        columns = []
        for index, name in enumerate(self.fields):
            present = ~missing[:, index, None]  # (B, 1)
            value = values[:, index, None]  # (B, 1)
            if name == "age":
                encoded = (value - self.age_offset) / self.age_scale
            else:
                encoded = value == torch.arange(self.vocabulary_sizes[name], device=metadata.device)
            columns += [encoded * present, ~present]
        return torch.cat([column.to(metadata.dtype) for column in columns], dim=1)

    def forward(self, metadata: torch.Tensor) -> torch.Tensor:
        """(batch, fields) raw values to (batch, output_size)."""
        features = self.encode(metadata.float())
        return self.mlp(features.to(next(self.mlp.parameters()).dtype))


def build_backbone(config: Ham10000Config) -> Any:
    """Builds the timm backbone of a config with timm's own random weights and without a classifier.

    Args:
        config: The model's configuration; only `backbone` and `backbone_kwargs` are read.

    Returns:
        A timm model that gives pooled features.

    Raises:
        Ham10000Error: If timm knows no such model, or the model takes no such keyword argument.
    """
    try:
        return timm.create_model(config.backbone, pretrained=False, num_classes=0, **config.backbone_kwargs)
    except (RuntimeError, TypeError, ValueError) as error:
        raise Ham10000Error(
            f"timm cannot build the backbone {config.backbone!r} with backbone_kwargs={config.backbone_kwargs}: "
            f"{error}. `timm.list_models()` lists the names."
        ) from error


class Ham10000PreTrainedModel(PreTrainedModel):
    """Weight handling shared by the HAM10000 models."""

    config_class = Ham10000Config
    base_model_prefix = "ham10000"
    main_input_name = "pixel_values"
    accepts_loss_kwargs = False
    _no_split_modules: list[str] = []

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # `post_init` visits every submodule. timm has initialised the backbone already, and transformers' normal(0.02)
        # would leave EfficientNetV2-S with dead features; only what `from_pretrained` cannot restore is redone.
        if getattr(module, "_is_backbone", False):
            if callable(init_buffers := getattr(module, "init_non_persistent_buffers", None)):
                init_buffers()
        elif getattr(module, "_zero_init", False):
            for parameter in module.parameters(recurse=False):
                nn.init.zeros_(parameter)
        elif isinstance(module, (nn.Linear, nn.LayerNorm, nn.BatchNorm1d)):
            module.reset_parameters()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Loads a checkpoint; parameters the checkpoint lacks are an error, not a warning.

        Args:
            pretrained_model_name_or_path: Repository id or folder.
            *args: Passed to `PreTrainedModel.from_pretrained`.
            **kwargs: Likewise, such as `revision`, `dtype` or `token`.

        Returns:
            The model in evaluation mode, or `(model, loading_info)` with `output_loading_info=True`.

        Raises:
            Ham10000Error: If weights are missing from the checkpoint or left over in it.
        """
        kwargs["use_safetensors"] = True  # by default a folder without safetensors would fall back to a pickle
        wants_info = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        model, info = loaded
        for kind, names in (("lacks", info["missing_keys"]), ("has unexpected", info["unexpected_keys"])):
            if names:
                examples = ", ".join(sorted(names)[:5])
                raise Ham10000Error(
                    f"The checkpoint {str(pretrained_model_name_or_path)!r} {kind} {len(names)} weight tensor(s), "
                    f"such as {examples}. It was not saved with this config; check modality, backbone and fusion."
                )
        # safetensors maps the file, in which tensors lie at odd addresses, and some CPU kernels add in another order
        # there: without memory of their own, loaded weights would give other last bits than those that were saved.
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.device.type == "cpu":
                tensor.data = tensor.data.clone()
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Saves config, code and safetensors weights, so that `AutoModel` and `pipeline` work without this package.

        Args:
            save_directory: Folder, created if needed.
            *args: Passed to `PreTrainedModel.save_pretrained`.
            **kwargs: Likewise, such as `max_shard_size`.
        """
        # A class keeps one `register_for_auto_class` name, so the second entry of the auto map is written by hand.
        if self._auto_class is not None:
            module = type(self).__module__.split(".")[-1]
            auto_map = dict(getattr(self.config, "auto_map", None) or {})
            self.config.auto_map = {**auto_map, "AutoModel": f"{module}.{type(self).__name__}"}
            # The pipeline's file is copied because this one imports it.
            self.config.custom_pipelines = copy.deepcopy(CUSTOM_PIPELINES)
        super().save_pretrained(save_directory, *args, **kwargs)


class Ham10000ForImageClassification(Ham10000PreTrainedModel):
    """Classifies a dermatoscopic image, its metadata, or both; by default into HAM10000's seven classes.

    Research software, never for diagnosis. `config.modality` selects the variant:

    - `"image"`: a timm backbone, then the classifier. Its logits equal the bare timm model's bit for bit.
    - `"metadata"`: an MLP on age, sex and localization, then the classifier.
    - `"fusion"`: both embeddings joined by `config.fusion`, then the classifier.

    Pretrained backbone weights are loaded by `ham10000.modeling.create_model`, never here: `PreTrainedModel` builds
    this class on the meta device and re-initialises it, which would silently lose them.

    Example:
        >>> config = Ham10000Config(modality="fusion", backbone="test_efficientnet")
        >>> model = Ham10000ForImageClassification(config).eval()
        >>> model(pixel_values=torch.zeros(2, 3, 64, 64)).logits.shape
        torch.Size([2, 7])
    """

    # None where the variant has no such part.
    backbone: Any
    metadata_encoder: Any
    fusion: Any

    def __init__(self, config: Ham10000Config):
        super().__init__(config)
        self.backbone = None
        self.metadata_encoder = None
        self.fusion = None
        if config.uses_image:
            self.backbone = build_backbone(config)
            for module in self.backbone.modules():
                setattr(module, "_is_backbone", True)  # noqa: B010 (nn.Module's attributes are typed)
            feature_size = getattr(self.backbone, "head_hidden_size", None) or self.backbone.num_features
        if config.uses_metadata:
            self.metadata_encoder = MetadataEncoder(config)
            metadata_size = self.metadata_encoder.output_size
        if config.modality == "fusion":
            self.fusion = build_fusion(config.fusion, feature_size, metadata_size)
            feature_size = self.fusion.output_size
        elif config.modality == "metadata":
            feature_size = metadata_size
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(feature_size, len(config.label_names))
        self.post_init()

    def encode_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(batch, 3, height, width) normalised pixels to (batch, backbone features), pooled."""
        return self.backbone(pixel_values)

    def encode_metadata(self, metadata: torch.Tensor) -> torch.Tensor:
        """(batch, fields) raw metadata to (batch, metadata_hidden_sizes[-1]); drops fields in training."""
        self._check_metadata(metadata)
        if self.training:
            metadata = self._drop_metadata(metadata)
        return self.metadata_encoder(metadata)

    def fuse(self, image_embedding: torch.Tensor, metadata_embedding: torch.Tensor) -> torch.Tensor:
        """Joins both embeddings to (batch, fusion.output_size)."""
        return self.fusion(image_embedding, metadata_embedding)

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        metadata: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
    ) -> Ham10000Output | tuple[torch.Tensor, ...]:
        """Computes the logits, and the loss if labels are given.

        Args:
            pixel_values: (batch, 3, height, width) float, as `Ham10000Processor` makes it.
            metadata: (batch, len(config.metadata_fields)) float: age in years, indices into the vocabularies, NaN
                where a value is missing. For the fusion variant None means that everything is missing.
            labels: (batch,) int64 class ids.
            return_dict: False gives a tuple.

        Returns:
            `Ham10000Output`, or a tuple of its parts that are not None.

        Raises:
            Ham10000Error: If an input is given that the variant does not read, or one is missing that it needs.

        Example:
            >>> inputs = processor(images=image, metadata=[{"age": 60, "sex": "male", "localization": "back"}])
            >>> model(**inputs).logits.softmax(-1)
        """
        self._check_inputs(pixel_values, metadata)
        if self.config.uses_metadata and metadata is None and pixel_values is not None:
            shape = (pixel_values.shape[0], len(self.config.metadata_fields))
            metadata = torch.full(shape, float("nan"), device=pixel_values.device)
        image_embedding = None if pixel_values is None else self.encode_image(pixel_values)  # (B, C)
        metadata_embedding = None if metadata is None else self.encode_metadata(metadata)  # (B, M)

        features: Any = image_embedding if metadata_embedding is None else metadata_embedding
        if image_embedding is not None and metadata_embedding is not None:
            features = self.fuse(image_embedding, metadata_embedding)
        logits = self.classifier(self.dropout(features)) / self.config.temperature  # (B, classes)

        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.float(), labels)
        output = Ham10000Output(
            loss=loss,
            logits=logits,
            image_embedding=image_embedding,
            metadata_embedding=metadata_embedding,
        )
        return output.to_tuple() if return_dict is False else output

    def _drop_metadata(self, metadata: torch.Tensor) -> torch.Tensor:
        """Sets fields, and whole rows, to missing at random, so that "unknown" is a trained state."""
        batch_size, field_count = metadata.shape
        drop_field = torch.rand(batch_size, field_count, device=metadata.device) < self.config.metadata_field_dropout
        drop_row = torch.rand(batch_size, 1, device=metadata.device) < self.config.metadata_dropout
        return metadata.masked_fill(drop_field | drop_row, float("nan"))

    def _check_inputs(self, pixel_values: torch.Tensor | None, metadata: torch.Tensor | None) -> None:
        modality = self.config.modality
        if self.config.uses_image and pixel_values is None:
            raise Ham10000Error(f"modality={modality!r} needs `pixel_values`, got None.")
        if not self.config.uses_image and pixel_values is not None:
            raise Ham10000Error("modality='metadata' reads no image; leave `pixel_values` out.")
        if modality == "metadata" and metadata is None:
            raise Ham10000Error("modality='metadata' needs `metadata`, got None.")
        if not self.config.uses_metadata and metadata is not None:
            raise Ham10000Error("modality='image' reads no metadata; leave `metadata` out.")
        if pixel_values is not None and pixel_values.ndim != 4:
            raise Ham10000Error(f"`pixel_values` must be (batch, 3, height, width), got {tuple(pixel_values.shape)}.")
        # FiLM and MetaBlock would broadcast one row of metadata over all images.
        if pixel_values is not None and metadata is not None and pixel_values.shape[0] != metadata.shape[0]:
            raise Ham10000Error(f"Got {len(pixel_values)} images but {len(metadata)} rows of metadata.")

    def _check_metadata(self, metadata: torch.Tensor) -> None:
        fields = self.config.metadata_fields
        if metadata.ndim != 2 or metadata.shape[1] != len(fields):
            raise Ham10000Error(
                f"`metadata` must be (batch, {len(fields)}) for the fields {fields}, got {tuple(metadata.shape)}."
            )
        if not metadata.is_floating_point():
            raise Ham10000Error(f"`metadata` must be floating point (NaN is missing), got {metadata.dtype}.")


__all__ = ["Ham10000ForImageClassification", "Ham10000Output", "Ham10000PreTrainedModel", "build_backbone"]
