"""Where in a picture the evidence for a class lies, as the network sees it: Grad-CAM, by captum."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ham10000.modeling import LABELS, Ham10000Error, Ham10000ForImageClassification
from ham10000.training.metadata_effects import logits_from_embeddings


def grad_cam(
    model: Ham10000ForImageClassification,
    pixel_values: torch.Tensor,
    class_ids: Sequence[int] | torch.Tensor,
    metadata: torch.Tensor | None = None,
    *,
    signed: bool = False,
) -> torch.Tensor:
    """Grad-CAM on the last feature map of the backbone, the one that its pooling reads.

    Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based localization", ICCV 2017,
    arXiv:1610.02391, equations 1 and 2, of the class's logit; computed by captum's `LayerGradCam`. The map has the
    resolution of the feature map (7 x 7 at 224 pixels and stride 32) and is enlarged bilinearly, so it shows a region
    and no outline. Each map is divided by its own maximum: two maps compare in place, never in strength.

    Args:
        model: An image or fusion model whose timm backbone ends in a spatial feature map (convolutional networks, and
            Swin and its like), on any device and in any floating point type. It is left as it was.
        pixel_values: (batch, 3, height, width) float, as the processor makes them.
        class_ids: (batch,) the class explained of each picture.
        metadata: (batch, fields) float, for a fusion model; None means that everything is missing.
        signed: Whether to keep what speaks against the class, which equation 2 sets to 0: the map is then divided by
            its largest magnitude.

    Returns:
        (batch, height, width) float32 on the CPU in [0, 1], or [-1, 1] if signed; all 0 where nothing speaks for the
        class.

    Raises:
        Ham10000Error: If captum is missing, for a metadata-only model, a backbone without a spatial feature map (such
            as a ViT), inputs the model does not read, or class ids outside 0..6.
    """
    layer_grad_cam, interpolate = _load_captum()
    if not model.config.uses_image:
        raise Ham10000Error("modality='metadata' reads no image, so there is no picture to explain.")
    model._check_inputs(pixel_values, metadata)
    targets = torch.as_tensor(class_ids).to(torch.int64).flatten()
    if targets.shape != pixel_values.shape[:1] or not bool(((targets >= 0) & (targets < len(LABELS))).all()):
        raise Ham10000Error(
            f"`class_ids` must be {len(pixel_values)} class ids in 0..{len(LABELS) - 1}, one a picture, "
            f"got {targets.tolist()}."
        )
    backbone, device = model.backbone, model.device
    if not hasattr(backbone, "forward_features"):
        raise Ham10000Error(
            f"The backbone is a {type(backbone).__name__}, which has no gradient; explain the model as loaded, not a "
            "copy made for another backend."
        )
    dtype = next(backbone.parameters()).dtype
    layer = nn.Identity()  # captum takes a module, and timm's feature map is the result of a method

    was_training = model.training
    model.eval()
    try:
        # An inference tensor can have no gradient; its clone outside of inference mode can.
        with torch.inference_mode(False):
            if model.config.uses_metadata and metadata is None:
                metadata = torch.full((len(pixel_values), len(model.config.metadata_fields)), float("nan"))
            rows = None if metadata is None else metadata.to(device).clone()
            # The gradient is needed down to the feature map only, so the backbone keeps no activations.
            with torch.no_grad():
                features = backbone.forward_features(pixel_values.to(device, dtype).clone())
            dimension = _channel_dimension(model, features)
            options: dict[str, Any] = {"target": targets.to(device).clone(), "relu_attributions": not signed}

            def score(feature_map: torch.Tensor) -> torch.Tensor:
                """(batch, channels, h, w) to (batch, 7) logits."""
                mapped = layer(feature_map).movedim(1, dimension).to(dtype)
                embedding = backbone.forward_head(mapped).to(model.classifier.weight.dtype)
                return logits_from_embeddings(model, embedding, rows).float()

            with torch.enable_grad():
                # In float32 also for a bf16 backbone, whose sum over the channels would be rounded.
                maps = layer_grad_cam(score, layer).attribute(
                    features.movedim(dimension, 1).float(), **options
                )  # (B, 1, h, w)
    finally:
        model.train(was_training)
    size = tuple(pixel_values.shape[-2:])
    enlarged: torch.Tensor = interpolate(maps.detach(), size, interpolate_mode="bilinear")[:, 0].float().cpu()
    strongest = enlarged.abs().amax(dim=(1, 2), keepdim=True)
    return torch.where(strongest > 0, enlarged / strongest, torch.zeros_like(enlarged))


def _load_captum() -> tuple[Any, Any]:
    """`LayerGradCam` and `interpolate`, imported late because captum imports matplotlib."""
    try:
        from captum.attr import LayerAttribution, LayerGradCam
    except ImportError as error:
        raise Ham10000Error(f"Grad-CAM needs captum ({error}): `pip install ham10000[explain]`.") from error
    return LayerGradCam, LayerAttribution.interpolate


def _channel_dimension(model: Ham10000ForImageClassification, features: Any) -> int:
    """Where a feature map has its channels: 1, or 3 for Swin and its like."""
    shape = tuple(getattr(features, "shape", ()))
    if len(shape) == 4:
        if shape[1] == model.backbone.num_features:
            return 1
        if shape[3] == model.backbone.num_features:
            return 3
    raise Ham10000Error(
        f"The backbone {model.config.backbone!r} gives features of shape {shape}, not a spatial feature map (batch, "
        "channels, height, width), so Grad-CAM cannot say where it looks; use a convolutional backbone."
    )


__all__ = ["grad_cam"]
