"""The HAM10000 model: one class for the image, the metadata and the fusion variant."""

import copy
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_ham10000 import Ham10000Config, Ham10000Error
from .pipeline_ham10000 import CUSTOM_PIPELINES


@dataclass
class Ham10000Output(ModelOutput):
    """Output of `Ham10000ForImageClassification` and of `Ham10000Model`.

    Attributes:
        loss: Scalar cross-entropy, when `labels` were given.
        pooler_output: (batch, features), what the classifier reads; of `Ham10000Model` only. Without labels it is the
            first output, which transformers' feature extraction takes for the features.
        logits: (batch, labels), divided by the calibration temperature; columns in the order of `config.id2label`.
        hidden_states: With `output_hidden_states=True`, the feature maps of the backbone's stages or blocks, as timm's
            `forward_intermediates` gives them; for the metadata variant the outputs of the MLP's layers.
        image_embedding: (batch, backbone features), pooled; None for the metadata variant.
        metadata_embedding: (batch, metadata_hidden_sizes[-1]); None for the image variant.
    """

    loss: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    image_embedding: torch.Tensor | None = None
    metadata_embedding: torch.Tensor | None = None


def _dtype_of(module: nn.Module, default: torch.dtype) -> torch.dtype:
    """The type of a module's first floating-point weight: where bitsandbytes loads in 8 bits, others are int8.

    The default is for a module without any, as under FSDP 1, which gathers them in the outermost one.

    Not by `parameters()`, which is empty in a replica of `nn.DataParallel`: the copied weights are plain attributes
    there, which torch also lists as `_former_parameters`.
    """
    parts = (getattr(part, "_former_parameters", part._parameters) for part in module.modules())
    weights = (weight for part in parts for weight in part.values() if weight is not None)
    return next((weight.dtype for weight in weights if weight.is_floating_point()), default)


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
        dropout = config.metadata_hidden_dropout
        for hidden_size in config.metadata_hidden_sizes:
            layers += [nn.Linear(width, hidden_size), nn.LayerNorm(hidden_size), nn.GELU(), nn.Dropout(dropout)]
            width = hidden_size
        self.mlp = nn.Sequential(*layers)
        self.output_size = width

    def encode(self, metadata: torch.Tensor) -> torch.Tensor:
        """(batch, fields) raw to (batch, width): a field's value or one-hot columns, then its missing flag."""
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

    def forward(self, metadata: torch.Tensor, hidden_states: list[torch.Tensor] | None = None) -> torch.Tensor:
        """(batch, fields) raw values to (batch, output_size); adds each layer's output to `hidden_states`."""
        features = self.encode(metadata.float())
        features = features.to(_dtype_of(self.mlp, features.dtype))
        if hidden_states is None:
            return self.mlp(features)
        for layer in self.mlp:
            features = layer(features)
            if isinstance(layer, nn.Dropout):  # the last part of each hidden layer
                hidden_states.append(features)
        return features


def _identity(features: torch.Tensor) -> torch.Tensor:
    return features


def build_backbone(config: Ham10000Config) -> Any:
    """Builds a config's timm model, which gives pooled features, with timm's own random weights.

    A model that timm cannot build, that gives no pooled features or cannot be saved is a `Ham10000Error`.
    """
    name = f"the backbone {config.backbone!r} with backbone_kwargs={config.backbone_kwargs}"
    try:
        backbone: Any = timm.create_model(config.backbone, pretrained=False, num_classes=0, **config.backbone_kwargs)
    except Exception as error:  # timm and torch raise a dozen types for arguments that do not fit
        raise Ham10000Error(
            f"timm cannot build {name}: {str(error) or type(error).__name__}. `timm.list_models()` lists the names."
        ) from error
    if not hasattr(backbone, "num_features"):
        raise Ham10000Error(f"For {name} timm builds no classifier's body but a {type(backbone).__name__}.")
    names: dict[int, str] = {}
    for key, tensor in backbone.state_dict(keep_vars=True).items():
        # safetensors refuses to save it, and an average of the weights would count it twice.
        if (first := names.setdefault(id(tensor), key)) != key:
            raise Ham10000Error(
                f"{name[0].upper()}{name[1:]} uses one weight in several places ({first!r} is {key!r}), which cannot "
                "be saved as safetensors. Choose another backbone."
            )
    # PEFT finds modules by the end of their names, and would wrap an empty `backbone.classifier` in place of the
    # classifier. A function does what it did.
    if isinstance(backbone._modules.get("classifier"), nn.Identity):
        del backbone.classifier
        backbone.classifier = _identity
    return backbone


def _supports_checkpointing(backbone: Any) -> bool:
    try:
        backbone.set_grad_checkpointing(True)
        backbone.set_grad_checkpointing(False)
    except (AssertionError, AttributeError, NotImplementedError):  # in as many ways timm says that it does not
        return False
    return True


class ConcatFusion(nn.Module):
    """Late fusion: both embeddings side by side.

    With the linear classifier that follows, the logits are a sum of an image part and a metadata part.
    """

    def __init__(self, image_size: int, metadata_size: int):
        super().__init__()
        self.output_size = image_size + metadata_size

    def forward(self, image: torch.Tensor, metadata: torch.Tensor) -> torch.Tensor:
        """(B, image_size), (B, metadata_size) to (B, image_size + metadata_size)."""
        return torch.cat([image, metadata], dim=1)


class GatedFusion(nn.Module):
    """Gated multimodal unit: `z * tanh(W_v v) + (1 - z) * tanh(W_u u)` with `z = sigmoid(W_z [v, u])`.

    Source: Arevalo et al., "Gated multimodal units for information fusion", 2017, arXiv:1702.01992, section 3.1.
    """

    def __init__(self, image_size: int, metadata_size: int, hidden_size: int = 256):
        super().__init__()
        self.image = nn.Linear(image_size, hidden_size, bias=False)
        self.metadata = nn.Linear(metadata_size, hidden_size, bias=False)
        self.gate = nn.Linear(image_size + metadata_size, hidden_size, bias=False)
        self.output_size = hidden_size

    def forward(self, image: torch.Tensor, metadata: torch.Tensor) -> torch.Tensor:
        """(B, image_size), (B, metadata_size) to (B, hidden_size)."""
        gate = torch.sigmoid(self.gate(torch.cat([image, metadata], dim=1)))
        return gate * torch.tanh(self.image(image)) + (1 - gate) * torch.tanh(self.metadata(metadata))


class MetaBlockFusion(nn.Module):
    """MetaBlock: `sigmoid(tanh(V * f(U)) + g(U))`, where f and g are a linear layer with batch norm.

    V is the pooled image embedding, one value a feature map, U the metadata embedding.

    Source: Pacheco & Krohling, "An attention-based mechanism to combine images and metadata in deep learning models
    applied to skin cancer classification", IEEE JBHI 2021, 10.1109/JBHI.2021.3062002.
    """

    def __init__(self, image_size: int, metadata_size: int):
        super().__init__()
        self.scale = nn.Sequential(nn.Linear(metadata_size, image_size), nn.BatchNorm1d(image_size))
        self.shift = nn.Sequential(nn.Linear(metadata_size, image_size), nn.BatchNorm1d(image_size))
        self.output_size = image_size

    def forward(self, image: torch.Tensor, metadata: torch.Tensor) -> torch.Tensor:
        """(B, image_size), (B, metadata_size) to (B, image_size)."""
        return torch.sigmoid(torch.tanh(image * self.scale(metadata)) + self.shift(metadata))


class FilmFusion(nn.Module):
    """Feature-wise linear modulation: `(1 + gamma(u)) * v + beta(u)`.

    It starts as the identity on the image embedding, so training begins at the image-only model.

    Source: Perez et al., "FiLM: visual reasoning with a general conditioning layer", AAAI 2018, arXiv:1709.07871; the
    `1 +` is theirs.
    """

    def __init__(self, image_size: int, metadata_size: int):
        super().__init__()
        self.modulation = nn.Linear(metadata_size, 2 * image_size)
        # Read by the model's `_init_weights`. The mark is on the layer itself: in custom code transformers initialises
        # only modules that own parameters, so a method of this block would never be called.
        self.modulation._zero_init = True  # type: ignore[assignment]
        self.output_size = image_size

    def forward(self, image: torch.Tensor, metadata: torch.Tensor) -> torch.Tensor:
        """(B, image_size), (B, metadata_size) to (B, image_size)."""
        gamma, beta = self.modulation(metadata).chunk(2, dim=1)
        return (1 + gamma) * image + beta


_FUSIONS = {"concat": ConcatFusion, "gated": GatedFusion, "metablock": MetaBlockFusion, "film": FilmFusion}


def build_fusion(kind: str, image_size: int, metadata_size: int) -> nn.Module:
    """Builds the fusion block named `kind`; its `output_size` is the width it returns."""
    return _FUSIONS[kind](image_size, metadata_size)


class Ham10000PreTrainedModel(PreTrainedModel):
    """Weight handling shared by the HAM10000 models."""

    config_class = Ham10000Config
    base_model_prefix = "ham10000"
    main_input_name = "pixel_values"
    accepts_loss_kwargs = False
    _no_split_modules: list[str] = []

    # timm's attention calls torch's fused kernel wherever there is one.
    _supports_sdpa = True

    def get_input_embeddings(self) -> Any:
        """There are none: quantizers and PEFT ask every model for its token embeddings."""
        return None

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
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, ignore_mismatched_sizes: bool = False, **kwargs: Any
    ) -> Any:
        """Loads a checkpoint; parameters the checkpoint lacks are an error, not a warning.

        Args:
            pretrained_model_name_or_path: Repository id or folder.
            *args: Passed to `PreTrainedModel.from_pretrained`.
            ignore_mismatched_sizes: Allows a new classifier on the trained body: its weights are random where the
                checkpoint has none, another number of labels, or other labels than asked for by `id2label`.
            **kwargs: Passed to `PreTrainedModel.from_pretrained`, such as `revision`, `dtype` or `token`.

        Returns:
            The model in evaluation mode, or `(model, loading_info)` with `output_loading_info=True`.

        Raises:
            Ham10000Error: If weights are missing from the checkpoint or left over in it, or its labels are others.

        Example:
            >>> names = {0: "benign", 1: "malignant"}
            >>> Ham10000ForImageClassification.from_pretrained(folder, id2label=names, ignore_mismatched_sizes=True)
        """
        kwargs["use_safetensors"] = True  # by default a folder without safetensors would fall back to a pickle
        wants_info = kwargs.pop("output_loading_info", False)
        place = str(pretrained_model_name_or_path)
        loaded: Any = super().from_pretrained(
            pretrained_model_name_or_path,
            *args,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
            output_loading_info=True,
            **kwargs,
        )
        model, info = loaded
        absent = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
        if ignore_mismatched_sizes:
            absent = {name for name in absent if not name.startswith("classifier.")}
        for kind, names in (("lacks", absent), ("has unexpected", info["unexpected_keys"])):
            if names:
                examples = ", ".join(sorted(names)[:5])
                raise Ham10000Error(
                    f"The checkpoint {place!r} {kind} {len(names)} weight tensor(s), "
                    f"such as {examples}. It was not saved with this config; check modality, backbone and fusion."
                )
        labels, saved = model.config.label_names, cls._saved_labels(pretrained_model_name_or_path, kwargs)
        if saved not in (None, labels):
            if not ignore_mismatched_sizes:
                raise Ham10000Error(
                    f"The checkpoint {place!r} knows the labels {saved}, not {labels}. For a new classifier on its "
                    "trained body, pass ignore_mismatched_sizes=True."
                )
            # Of the same shape as the saved one it has been loaded, with a meaning of its rows that no longer holds.
            model._init_weights(model.classifier)
        # safetensors maps the file, in which tensors lie at odd addresses, and some CPU kernels add in another order
        # there: without memory of their own, loaded weights would give other last bits than those that were saved.
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.device.type == "cpu":
                tensor.data = tensor.data.clone()
        return (model, info) if wants_info else model

    @classmethod
    def _saved_labels(cls, place: Any, kwargs: dict[str, Any]) -> list[str] | None:
        """The labels in the checkpoint's own config; None where it has no config."""
        hub = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
        try:
            saved, _ = cls.config_class.get_config_dict(place, **{key: kwargs[key] for key in hub if key in kwargs})
        except OSError:
            return None
        return cls.config_class.from_dict(saved).label_names if saved else None

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Saves config, code and safetensors weights, so that `AutoModel` and `pipeline` work without this package.

        Args:
            save_directory: Folder, created if needed.
            *args: Passed to `PreTrainedModel.save_pretrained`.
            **kwargs: Passed to `PreTrainedModel.save_pretrained`, such as `max_shard_size`.

        Raises:
            Ham10000Error: If the number of labels was changed in the config of a model that is already built.
        """
        classes = getattr(self.classifier, "out_features", self.config.num_labels)
        if classes != self.config.num_labels:
            raise Ham10000Error(
                f"The config has the labels {self.config.label_names}, but the classifier of this model has {classes} "
                f"outputs. Give the labels to the config before the model is built, or to "
                "`from_pretrained` with ignore_mismatched_sizes=True."
            )
        # Each class would write the name it was registered under only.
        if self._auto_class is not None:
            own = {"AutoModel": "Ham10000Model", "AutoModelForImageClassification": "Ham10000ForImageClassification"}
            own = {auto: f"modeling_ham10000.{name}" for auto, name in own.items()}
            self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), **own}
            # The pipeline's file is copied because this one imports it.
            self.config.custom_pipelines = copy.deepcopy(CUSTOM_PIPELINES)
        super().save_pretrained(save_directory, *args, **kwargs)


class Ham10000ForImageClassification(Ham10000PreTrainedModel):
    """Classifies a dermatoscopic image, its metadata, or both, into `config.label_names`.

    Research software, never for diagnosis. `config.modality` selects the variant:

    - `"image"`: a timm backbone, then the classifier. Its logits are bit-identical to the bare timm model's, which is
      `model.backbone` (without a classifier), for use in timm.
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
    config: Ham10000Config
    _returns_features = False

    def __init__(self, config: Ham10000Config):
        super().__init__(config)
        self.backbone = self.metadata_encoder = self.fusion = None
        self.gradient_checkpointing = self.supports_gradient_checkpointing = False
        if config.uses_image:
            self.backbone = build_backbone(config)
            self._backbone_is_empty = next(self.backbone.parameters()).is_meta
            self.supports_gradient_checkpointing = _supports_checkpointing(self.backbone)
            for module in self.backbone.modules():
                setattr(module, "_is_backbone", True)  # noqa: B010 (nn.Module's attributes are typed)
                if config._attn_implementation == "eager" and hasattr(module, "fused_attn"):
                    module.fused_attn = False
            feature_size = getattr(self.backbone, "head_hidden_size", None) or self.backbone.num_features
        if config.uses_metadata:
            self.metadata_encoder = MetadataEncoder(config)
            metadata_size = self.metadata_encoder.output_size
        if config.modality == "fusion":
            self.fusion = build_fusion(config.fusion, feature_size, metadata_size)
            feature_size = self.fusion.output_size
        elif config.modality == "metadata":
            feature_size = metadata_size
        # For `device_map`: accelerate moves a module's inputs to its device, but not what the module adds up inside.
        self._no_split_modules = [type(part).__name__ for part in (self.backbone, self.fusion) if part is not None]
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(feature_size, len(config.label_names))
        self.post_init()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initialises the weights; a backbone that was built on the meta device gets timm's own initialisation now.

        That is how FSDP builds a model: on the meta device, then `to_empty`, then this.
        """
        initialised = getattr(self, "_is_hf_initialized", False)
        if self.backbone is not None and self._backbone_is_empty and not initialised:
            own = dict((*self.backbone.named_parameters(), *self.backbone.named_buffers()))
            if not any(value.is_meta for value in own.values()):
                with torch.device("cpu"):
                    fresh = build_backbone(self.config)
                for name, value in (*fresh.named_parameters(), *fresh.named_buffers()):
                    if isinstance(own[name], DTensor):
                        mesh, placements = own[name].device_mesh, own[name].placements
                        value = distribute_tensor(value.data.to(own[name].device), mesh, placements)
                    own[name].copy_(value)
        super().init_weights()

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Any = None, every_n_layers: int = 1, **_: Any
    ) -> None:
        # transformers passes torch's function with its arguments bound, or its own that offloads.
        offload = getattr(gradient_checkpointing_func, "func", checkpoint) is not checkpoint
        if every_n_layers != 1 or offload:
            raise Ham10000Error(
                "timm recomputes every block or none, and offloads nothing: `every_n_layers` must be 1 and `offload` "
                f"False, got {every_n_layers} and {offload}."
            )
        # As in timm, batch norm's running statistics are updated twice per step: a block that is recomputed runs twice
        # in training mode.
        self.backbone.set_grad_checkpointing(enable)
        self.gradient_checkpointing = enable

    def encode_image(
        self, pixel_values: torch.Tensor, hidden_states: list[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """(batch, 3, height, width) normalised pixels to (batch, backbone features), pooled.

        Args:
            pixel_values: What the processor makes, in the model's dtype.
            hidden_states: A list that receives the backbone's feature maps, or None.
        """
        if hidden_states is None:
            return self.backbone(pixel_values)
        if not hasattr(self.backbone, "forward_intermediates"):
            raise Ham10000Error(f"`output_hidden_states`: timm's {self.config.backbone!r} does not return them.")
        features, states = self.backbone.forward_intermediates(pixel_values)
        hidden_states += states
        return self.backbone.forward_head(features)

    def encode_metadata(self, metadata: torch.Tensor, hidden_states: list[torch.Tensor] | None = None) -> torch.Tensor:
        """(batch, fields) raw metadata to (batch, metadata_hidden_sizes[-1]); drops fields in training.

        Args:
            metadata: As `forward` takes it.
            hidden_states: A list that receives the outputs of the MLP's layers, or None.
        """
        fields = self.config.metadata_fields
        if metadata.ndim != 2 or metadata.shape[1] != len(fields):
            raise Ham10000Error(
                f"`metadata` must be (batch, {len(fields)}) for the fields {fields}, got {tuple(metadata.shape)}."
            )
        if not metadata.is_floating_point():
            raise Ham10000Error(f"`metadata` must be floating point (NaN is missing), got {metadata.dtype}.")
        if self.training:  # fields, and whole rows, become missing at random, so that "unknown" is a trained state
            drop_field = torch.rand(metadata.shape, device=metadata.device) < self.config.metadata_field_dropout
            drop_row = torch.rand(len(metadata), 1, device=metadata.device) < self.config.metadata_dropout
            metadata = metadata.masked_fill(drop_field | drop_row, float("nan"))
        return self.metadata_encoder(metadata, hidden_states)

    def fuse(self, image_embedding: torch.Tensor, metadata_embedding: torch.Tensor) -> torch.Tensor:
        """Joins both embeddings to (batch, fusion.output_size)."""
        return self.fusion(image_embedding, metadata_embedding.to(image_embedding.dtype))

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        metadata: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Computes the logits, and the loss if labels are given.

        Args:
            pixel_values: (batch, 3, height, width) floating point, as `Ham10000Processor` makes it.
            metadata: (batch, len(config.metadata_fields)) float: age in years, indices into the vocabularies, NaN
                where a value is missing. For the fusion variant None means that everything is missing.
            labels: (batch,) int64 class ids.
            output_hidden_states: Whether to return `hidden_states`; by default `config.output_hidden_states`.
            return_dict: False gives a tuple; by default `config.return_dict`.

        Returns:
            `Ham10000Output`, or a tuple of its parts that are not None.

        Raises:
            Ham10000Error: If an input is given that the variant does not read, or one is missing that it needs; if the
                backbone cannot give its hidden states, or attentions are asked for.

        Example:
            >>> inputs = processor(images=image, metadata=[{"age": 60, "sex": "male", "localization": "back"}])
            >>> model(**inputs).logits.softmax(-1)
        """
        self._check_inputs(pixel_values, metadata)
        if self.config.output_attentions:
            raise Ham10000Error("`output_attentions`: timm's models do not return attentions; leave it out.")
        if self.config.uses_metadata and metadata is None and pixel_values is not None:
            shape = (pixel_values.shape[0], len(self.config.metadata_fields))
            metadata = torch.full(shape, float("nan"), device=pixel_values.device)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden_states: list[torch.Tensor] | None = [] if output_hidden_states else None
        image_embedding = metadata_embedding = None
        if pixel_values is not None:
            # The processor's pixels are float32, whatever the model was loaded in.
            dtype = _dtype_of(self.backbone, pixel_values.dtype)
            image_embedding = self.encode_image(pixel_values.to(dtype), hidden_states)  # (B, C)
        if metadata is not None:
            own = None if self.config.uses_image else hidden_states
            metadata_embedding = self.encode_metadata(metadata, own)  # (B, M)

        features: Any = image_embedding if metadata_embedding is None else metadata_embedding
        if image_embedding is not None and metadata_embedding is not None:
            features = self.fuse(image_embedding, metadata_embedding)
        logits = self.classifier(self.dropout(features)) / self.config.temperature  # (B, labels)

        output = Ham10000Output(
            loss=None if labels is None else F.cross_entropy(logits.float(), labels.to(logits.device)),
            pooler_output=features if self._returns_features else None,
            logits=logits,
            hidden_states=None if hidden_states is None else tuple(hidden_states),
            image_embedding=image_embedding,
            metadata_embedding=metadata_embedding,
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

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
        if pixel_values is not None and not pixel_values.is_floating_point():
            raise Ham10000Error(f"`pixel_values` must be floating point and normalised, got {pixel_values.dtype}.")
        if pixel_values is not None and pixel_values.ndim != 4:
            raise Ham10000Error(f"`pixel_values` must be (batch, 3, height, width), got {tuple(pixel_values.shape)}.")
        # FiLM and MetaBlock would broadcast one row of metadata over all images.
        if pixel_values is not None and metadata is not None and pixel_values.shape[0] != metadata.shape[0]:
            raise Ham10000Error(f"Got {len(pixel_values)} images but {len(metadata)} rows of metadata.")


class Ham10000Model(Ham10000ForImageClassification):
    """What `AutoModel` loads: the same network and weights, whose first output is the features.

    transformers' `pipeline("image-feature-extraction")` takes the first output of this model. The classifier is there
    too, so that saving it again loses nothing.

    Example:
        >>> model = Ham10000Model(Ham10000Config(modality="image", backbone="test_efficientnet")).eval()
        >>> model(pixel_values=torch.zeros(2, 3, 64, 64)).pooler_output.shape
        torch.Size([2, 256])
    """

    _returns_features = True
