"""Builds a model with pretrained backbone weights, and the processor that fits it."""

from pathlib import Path

import timm
import torch
import torchvision
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data import resolve_data_config
from torch import Tensor

from .configuration_ham10000 import Ham10000Config, Ham10000Error
from .image_processing_ham10000 import Ham10000ImageProcessor
from .modeling_ham10000 import Ham10000ForImageClassification, build_backbone
from .processing_ham10000 import Ham10000Processor

_RANDOM = "To train from random weights, say so (pretrained=False, or --pretrained none)."
# timm's names of the networks that are torchvision's, and torchvision's.
_TORCHVISION = {f"efficientnetv2_{size}": f"efficientnet_v2_{size}" for size in "sml"}


def create_model(config: Ham10000Config, *, pretrained: bool | str | Path = False) -> Ham10000ForImageClassification:
    """Builds a model and, if asked, loads pretrained backbone weights into it.

    Args:
        config: The model's configuration.
        pretrained: False for random weights; True for timm's weights of `config.backbone` from the Hub (or its local
            cache); `"torchvision"` for torchvision's ImageNet weights of EfficientNetV2-S, M or L, for the backbones
            `efficientnetv2_s`, `_m` and `_l` with `bn_eps=1e-3`; a path to a safetensors file with the backbone's
            parameters under timm's names, or under the `backbone.` prefix of a checkpoint of this package. A
            classifier in the file is ignored.

    Returns:
        The model, in training mode.

    Raises:
        Ham10000Error: If the weights cannot be had or do not fit the backbone.
    """
    model = Ham10000ForImageClassification(config).train()
    if pretrained is False or not config.uses_image:
        return model
    if pretrained is True:
        state_dict = _timm_weights(config)
    elif pretrained == "torchvision":
        state_dict = _torchvision_weights(config, model.backbone.state_dict())
    else:
        state_dict = _file_weights(Path(pretrained))
    classifier = model.backbone.pretrained_cfg.get("classifier") or "classifier"
    prefixes = tuple(f"{name}." for name in ([classifier] if isinstance(classifier, str) else classifier))
    state_dict = {name: value for name, value in state_dict.items() if not name.startswith(prefixes)}
    own = model.backbone.state_dict()
    # Files converted from other frameworks leave out batch norm's step counter; it does not enter the output.
    missing = [name for name in own if name not in state_dict and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state_dict if name not in own]
    misshaped = [name for name in state_dict if name in own and state_dict[name].shape != own[name].shape]
    if missing or unexpected or misshaped:
        raise Ham10000Error(
            f"The weights in {str(pretrained)!r} do not fit the backbone {config.backbone!r}: {len(missing)} missing "
            f"{missing[:3]}, {len(unexpected)} unexpected {unexpected[:3]}, {len(misshaped)} of another shape "
            f"{misshaped[:3]}. Give the file that belongs to this backbone."
        )
    model.backbone.load_state_dict(state_dict, strict=False)
    return model


def create_processor(
    config: Ham10000Config, *, image_size: int | tuple[int, int] | None = None, resizer: str = "pillow"
) -> Ham10000Processor:
    """Builds the processor for a config, with the preprocessing numbers of the backbone's own timm configuration.

    Args:
        config: The model's configuration.
        image_size: Side, or (height, width), in pixels; by default the backbone's own training size.
        resizer: `"pillow"`, to the last bit what timm's own transform makes, or `"torch"`, which is faster and within
            two of 255 levels of it.

    Returns:
        The processor that `save_pretrained` stores with the checkpoint.
    """
    image_processor = Ham10000ImageProcessor()
    if config.uses_image:
        data_config = resolve_data_config(model=build_backbone(config))
        # A backbone built for another size than its pretraining, such as a ViT with `img_size`, reads that size.
        usual = config.backbone_kwargs.get("img_size", data_config["input_size"][1:])
        size = usual if image_size is None else image_size
        height, width = (size, size) if isinstance(size, int) else size
        image_processor = Ham10000ImageProcessor(
            size={"height": height, "width": width},
            resample=int(Image.Resampling[data_config["interpolation"].upper()]),
            image_mean=list(data_config["mean"]),
            image_std=list(data_config["std"]),
            resizer=resizer,
        )
    return Ham10000Processor(
        image_processor,
        modality=config.modality,
        metadata_fields=config.metadata_fields if config.uses_metadata else [],
        sex_vocabulary=config.sex_vocabulary,
        localization_vocabulary=config.localization_vocabulary,
    )


def _timm_weights(config: Ham10000Config) -> dict[str, Tensor]:
    try:
        published = timm.create_model(config.backbone, pretrained=True, num_classes=0, **config.backbone_kwargs)
    except Exception as error:  # timm and the Hub client raise a dozen types here: offline, not found, no such weights
        raise Ham10000Error(
            f"No pretrained weights for the backbone {config.backbone!r}: {type(error).__name__}: {error} -- Two ways "
            "out: (1) connect to the internet once, so that timm can download them to its cache; (2) pass the path of "
            f"a local safetensors file with the backbone's weights under timm's names. {_RANDOM}"
        ) from error
    return published.state_dict()


def _torchvision_weights(config: Ham10000Config, own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under timm's names: both networks are the same tensor for tensor, in the same order."""
    epsilon = config.backbone_kwargs.get("bn_eps")
    if config.backbone not in _TORCHVISION or epsilon != 1e-3:  # that of torchvision's batch norm
        raise Ham10000Error(
            f"torchvision has no weights for the backbone {config.backbone!r} with bn_eps={epsilon}: expected one of "
            f"{', '.join(_TORCHVISION)} with backbone_kwargs={{'bn_eps': 0.001}}."
        )
    weights = torchvision.models.get_model_weights(_TORCHVISION[config.backbone])["IMAGENET1K_V1"]
    try:
        theirs = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        raise Ham10000Error(
            f"Cannot download torchvision's weights {weights.url}: {error}. Connect to the internet once, or put that "
            f"file at {cached}. {_RANDOM}"
        ) from error
    theirs = {name: value for name, value in theirs.items() if not name.startswith("classifier.")}
    return dict(zip(own, theirs.values(), strict=True))


def _file_weights(path: Path) -> dict[str, Tensor]:
    if path.is_dir():
        path = path / "model.safetensors"
    if path.suffix != ".safetensors" or not path.is_file():
        raise Ham10000Error(
            f"No pretrained weights at {str(path)!r}: expected a .safetensors file (pickle is never loaded), "
            "or True for timm's weights from the Hub."
        )
    try:
        state_dict = load_file(path)
    except SafetensorError as error:
        raise Ham10000Error(f"Cannot read {str(path)!r} as safetensors: {error}. Download it again.") from error
    prefix = "backbone."
    ours = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
    return ours or state_dict
