"""Explains a prediction: where the network looks (Grad-CAM, by captum) and what the metadata changes.

    explanation = explain(model, processor, "lesion.jpg", {"age": 60, "sex": "male"})
    plot_explanation(explanation, "explanation.png")  # of explanation_figure.py

`ham10000-predict lesion.jpg --explain explanation.png` does the same.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import nn

from ham10000.modeling import Ham10000Error, Ham10000ForImageClassification, Ham10000Processor, load_image
from ham10000.training.inference.prediction import Calibration, calibration_of, evaluating

# `ham10000-predict` imports this file: nothing here may import datasets, pandas, scikit-learn or matplotlib.

SWEEP_AGES = tuple(range(0, 90, 5))  # HAM10000's ages: multiples of 5 from 0 to 85
UNKNOWN = "unknown"
ALL_FIELDS = "all fields"


def malignant_total(probabilities: np.ndarray, labels: Sequence[str], malignant: Iterable[str]) -> float:
    """The sum of the probabilities (classes,), in the order of the labels, of the malignant ones."""
    return float(sum(probabilities[labels.index(label)] for label in malignant))


@dataclass(frozen=True, eq=False)
class MetadataEffect:
    """The prediction with one field changed."""

    field: str  # or `ALL_FIELDS`
    value: str  # as shown, such as `"60"` or `"back"`; `UNKNOWN` for missing
    probabilities: np.ndarray  # (classes,) float64, in the order of the labels


@dataclass(frozen=True, eq=False)
class MetadataEffects:
    """A prediction, and what it becomes when its metadata changes.

    Attributes:
        labels: The classes, in the order of the probabilities.
        given: The metadata as the model read it, by field, as shown; `UNKNOWN` for missing. Empty for the image
            variant.
        baseline: (classes,) float64 probabilities with the metadata as given.
        rows: The changes: each field unknown and, of several fields, all of them; then each field varied over the
            ages 0, 5, … 85 or its vocabulary, the given value included. Empty for the image variant.
        malignant: The malignant classes; may be empty.
        descriptions: Plain-language name of each class.
    """

    labels: tuple[str, ...]
    given: dict[str, str]
    baseline: np.ndarray
    rows: tuple[MetadataEffect, ...]
    malignant: tuple[str, ...]
    descriptions: Mapping[str, str]

    def malignant_total(self, probabilities: np.ndarray | None = None) -> float:
        """The sum of the probabilities (classes,), by default those of the baseline, of the malignant classes."""
        return malignant_total(self.baseline if probabilities is None else probabilities, self.labels, self.malignant)

    def unknown(self) -> np.ndarray | None:
        """(classes,) probabilities with all fields unknown; None for the image variant."""
        # The last of these rows is that of all fields, or of the only one.
        return next((row.probabilities for row in reversed(self.rows) if row.value == UNKNOWN), None)

    def varied(self, field: str) -> list[MetadataEffect]:
        """The rows in which a field has each of its values, without unknown."""
        return [row for row in self.rows if row.field == field and row.value != UNKNOWN]


def _logits(
    model: Ham10000ForImageClassification, image: torch.Tensor | None, metadata: torch.Tensor | None
) -> torch.Tensor:
    """Runs the model's forward from the image embedding (batch, features) and the raw metadata (batch, fields) on."""
    features = image
    if metadata is not None:
        encoded = model.encode_metadata(metadata)
        features = encoded if image is None else model.fuse(image, encoded)
    return model.classifier(model.dropout(features)) / model.config.temperature


def describe_metadata(
    processor: Ham10000Processor, metadata: Mapping[str, object] | None, *, unknown_values: str = "error"
) -> dict[str, str]:
    """Returns the values of a row that the model sees, by field, as text; `UNKNOWN` where one is missing.

    Raises:
        Ham10000Error: For a value the processor refuses.
    """
    row = processor.encode_metadata([metadata or {}], unknown_values=unknown_values)[0].tolist()
    return {
        field: _shown(processor, field, value) for field, value in zip(processor.metadata_fields, row, strict=True)
    }


def _vocabulary(processor: Ham10000Processor, field: str) -> Sequence[str]:
    return processor.sex_vocabulary if field == "sex" else processor.localization_vocabulary


def _shown(processor: Ham10000Processor, field: str, value: float) -> str:
    if np.isnan(value):
        return UNKNOWN
    return f"{value:g}" if field == "age" else _vocabulary(processor, field)[int(value)]


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """An image after a model's backbone: what stays the same whatever the metadata are.

    Attributes:
        image: Upright RGB.
        feature_map: The backbone's last feature map, (1, ...) in its dtype, on the model's device; a list of them for
            some networks, and None for OpenVINO's.
        embedding: (1, features) the pooled feature map, in the classifier's dtype.
        warning: Why a prediction of this image is worth nothing, or None.
    """

    image: Image.Image
    feature_map: torch.Tensor | list[torch.Tensor] | None
    embedding: torch.Tensor
    warning: str | None


@torch.inference_mode()
def encode_image(model: Ham10000ForImageClassification, processor: Ham10000Processor, image: object) -> EncodedImage:
    """Takes an image through the backbone, once for any number of metadata and explained classes.

    Args:
        model: An image or fusion model, on any device, in any floating point type.
        processor: Its processor.
        image: An image in any form `load_image` reads.

    Raises:
        Ham10000Error: For a model that reads no image, or an unreadable image.
    """
    if not model.config.uses_image:
        raise Ham10000Error("modality='metadata' reads no image; leave `image` out.")
    loaded, backbone = load_image(image), model.backbone
    pixel_values = processor.image_processor(loaded)["pixel_values"]
    with evaluating(model):
        pixel_values = pixel_values.to(model.device, next(backbone.parameters()).dtype)
        features = backbone.forward_features(pixel_values) if hasattr(backbone, "forward_features") else None
        embedding = model.encode_image(pixel_values) if features is None else backbone.forward_head(features)
    embedding = embedding.to(model.classifier.weight.dtype)
    return EncodedImage(loaded, features, embedding, processor.image_processor.unlike_training(loaded))


@torch.inference_mode()
def metadata_effects(
    model: Ham10000ForImageClassification,
    processor: Ham10000Processor,
    image: object = None,
    metadata: Mapping[str, object] | None = None,
    *,
    unknown_values: str = "error",
) -> MetadataEffects:
    """Predicts an image with its own metadata and with changed ones.

    The image goes through the backbone once. These are statements about the model, not about skin: what it would have
    answered for the same image of another patient.

    Args:
        model: A model of any variant, on any device, in any floating point type.
        processor: Its processor.
        image: An image in any form `load_image` reads, or what `encode_image` made of it with this model; None for the
            metadata variant.
        metadata: One row, as for the processor; None if nothing is known, and for the image variant.
        unknown_values: What a sex or site outside the vocabulary is: `"error"` or `"missing"`.

    Returns:
        The effects; for the image variant the baseline alone.

    Raises:
        Ham10000Error: For an input the variant does not read or lacks, an unreadable image, or an unknown value.
    """
    config = model.config
    if config.uses_image and image is None:
        raise Ham10000Error(f"modality={config.modality!r} needs an image, got None.")
    if not config.uses_metadata and metadata:
        raise Ham10000Error("modality='image' reads no metadata; leave `metadata` out.")
    encoded = _encoded(model, processor, image)
    given: dict[str, str] = {}
    changes: list[tuple[str, str]] = []
    table = None
    if config.uses_metadata:
        given = describe_metadata(processor, metadata, unknown_values=unknown_values)
        changes, table = _changed_rows(processor, metadata or {}, unknown_values)
        table = table.to(model.device)
    with evaluating(model):
        embedding = None if encoded is None else encoded.embedding.expand(1 + len(changes), -1)
        logits = _logits(model, embedding, table)
    probabilities = logits.cpu().double().softmax(-1).numpy()  # (1 + changes, 7)
    rows = (MetadataEffect(*change, row) for change, row in zip(changes, probabilities[1:], strict=True))
    return MetadataEffects(
        tuple(config.label_names),
        given,
        probabilities[0],
        tuple(rows),
        tuple(config.malignant_labels or ()),
        config.label_descriptions or {},
    )


def _encoded(
    model: Ham10000ForImageClassification, processor: Ham10000Processor, image: object
) -> EncodedImage | None:
    """An image, or none, after the backbone, if it is not already."""
    return image if image is None or isinstance(image, EncodedImage) else encode_image(model, processor, image)


def _changed_rows(
    processor: Ham10000Processor, metadata: Mapping[str, object], unknown_values: str
) -> tuple[list[tuple[str, str]], torch.Tensor]:
    """Names of the changes, and (1 + changes, F) metadata, the first row of which is the baseline."""
    fields = processor.metadata_fields
    nan = float("nan")
    changes: list[tuple[str, slice, float]] = [(field, slice(i, i + 1), nan) for i, field in enumerate(fields)]
    if len(fields) > 1:
        changes.append((ALL_FIELDS, slice(None), nan))
    for i, field in enumerate(fields):
        values = SWEEP_AGES if field == "age" else range(len(_vocabulary(processor, field)))
        changes += [(field, slice(i, i + 1), float(value)) for value in values]
    table = processor.encode_metadata([metadata] * (1 + len(changes)), unknown_values=unknown_values)
    for row, (_, columns, value) in zip(table[1:], changes, strict=True):
        row[columns] = value
    return [(field, _shown(processor, field, value)) for field, _, value in changes], table


@dataclass(frozen=True, eq=False)
class Explanation:
    """A prediction with what explains it.

    `heatmaps` has the Grad-CAM map of each explained class by its label, the most probable first: float32 in [0, 1] of
    the image's height and width.
    """

    effects: MetadataEffects
    image: Image.Image | None  # upright RGB; None for the metadata variant
    heatmaps: dict[str, np.ndarray]
    name: str | None  # of the image, in the figure
    calibration: Calibration
    warning: str | None  # why the prediction is worth nothing


def explain(
    model: Ham10000ForImageClassification,
    processor: Ham10000Processor,
    image: object = None,
    metadata: Mapping[str, object] | None = None,
    *,
    label: str | None = None,
    name: str | None = None,
    unknown_values: str = "error",
) -> Explanation:
    """Predicts one image, or one row of metadata, and explains the prediction.

    Args:
        model: A model of any variant, as loaded.
        processor: Its processor.
        image: As for `metadata_effects`, like `metadata` and `unknown_values`.
        metadata: One row.
        label: The class that is explained next to the most probable one, by default mel; where it is that one, or the
            model has no mel, the second most probable takes its place.
        name: Name of the image in the figure.
        unknown_values: `"error"` or `"missing"`.

    Returns:
        The explanation; a model that reads no image has no maps.

    Raises:
        Ham10000Error: As `grad_cam` and `metadata_effects`, and for an unknown label.
    """
    names = model.config.label_names
    if label is not None and label not in names:
        raise Ham10000Error(f"`label` must be one of {names}, got {label!r}.")
    label = label or ("mel" if "mel" in names else None)
    encoded = _encoded(model, processor, image)
    effects = metadata_effects(model, processor, encoded, metadata, unknown_values=unknown_values)
    heatmaps: dict[str, np.ndarray] = {}
    if encoded is not None:
        order = [names[index] for index in np.argsort(-effects.baseline, kind="stable")]
        chosen = [order[0], order[1] if label in (None, order[0]) else label]
        rows = None
        if model.config.uses_metadata:
            rows = processor.encode_metadata([metadata or {}] * 2, unknown_values=unknown_values)
        _channel_dimension(model, encoded.feature_map)  # raises for what is not one map
        assert isinstance(encoded.feature_map, torch.Tensor)
        features, size = encoded.feature_map.repeat_interleave(2, dim=0), processor.image_processor.size
        ids = [names.index(name) for name in chosen]
        maps = _class_maps(model, features, ids, rows, (size["height"], size["width"]))
        # Undoes the processor's resize, which neither crops nor keeps the aspect: the maps then lie on the image.
        maps = nn.functional.interpolate(maps[:, None], encoded.image.size[::-1], mode="bilinear", antialias=True)
        heatmaps = dict(zip(chosen, maps[:, 0].clamp(0, 1).numpy(), strict=True))
    image, warning = (None, None) if encoded is None else (encoded.image, encoded.warning)
    return Explanation(effects, image, heatmaps, name, calibration_of(model), warning)


def grad_cam(
    model: Ham10000ForImageClassification,
    pixel_values: torch.Tensor,
    class_ids: Sequence[int] | torch.Tensor,
    metadata: torch.Tensor | None = None,
) -> torch.Tensor:
    """Computes Grad-CAM on the last feature map of the backbone, the one that its pooling reads.

    Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based localization", ICCV 2017,
    arXiv:1610.02391, equations 1 and 2, of the class's logit; computed by captum's `LayerGradCam`. The map has the
    resolution of the feature map (7 x 7 at 224 pixels and stride 32) and is enlarged bilinearly, so it shows a region
    and not an outline. Each map is divided by its own maximum: maps compare in place, never in strength.

    Args:
        model: An image or fusion model whose timm backbone ends in a spatial feature map (convolutional networks, and
            Swin and its like), on any device and in any floating point type. It is left as it was.
        pixel_values: (batch, 3, height, width) float, from the processor.
        class_ids: (batch,) the explained class of each image.
        metadata: (batch, fields) float, for a fusion model; None means that everything is missing.

    Returns:
        (batch, height, width) float32 on the CPU in [0, 1]; all 0 where nothing speaks for the class.

    Raises:
        Ham10000Error: If captum is missing, for a metadata-only model, a backbone without a spatial feature map (such
            as a ViT), or inputs the model does not read.
    """
    if not model.config.uses_image:
        raise Ham10000Error("modality='metadata' reads no image, so there is nothing to draw a map on.")
    model._check_inputs(pixel_values, metadata)
    if model.config.uses_metadata and metadata is None:
        metadata = torch.full((len(pixel_values), len(model.config.metadata_fields)), float("nan"))
    backbone = model.backbone
    # The gradient is needed down to the feature map only, so the backbone keeps no activations.
    with evaluating(model), torch.no_grad():
        features = backbone.forward_features(pixel_values.to(model.device, next(backbone.parameters()).dtype))
    return _class_maps(model, features, class_ids, metadata, tuple(pixel_values.shape[-2:]))


def _class_maps(
    model: Ham10000ForImageClassification,
    features: torch.Tensor,
    class_ids: Sequence[int] | torch.Tensor,
    metadata: torch.Tensor | None,
    size: tuple[int, ...],
) -> torch.Tensor:
    """Grad-CAM from the backbone's feature map on: (batch, *size) float32 on the CPU."""
    try:
        from captum.attr import LayerAttribution, LayerGradCam  # late, because captum imports matplotlib
    except ImportError as error:
        raise Ham10000Error(f"Grad-CAM needs captum ({error}): `pip install ham10000[explain]`.") from error
    dimension, device = _channel_dimension(model, features), model.device
    layer = nn.Identity()  # captum takes a module, and timm's feature map is the result of a method
    # An inference tensor can have no gradient; its clone outside of inference mode can.
    with evaluating(model), torch.inference_mode(False):
        rows = None if metadata is None else metadata.to(device).clone()

        def score(feature_map: torch.Tensor) -> torch.Tensor:
            """(batch, channels, h, w) to (batch, classes) logits."""
            mapped = layer(feature_map).movedim(1, dimension).to(features.dtype)
            embedding = model.backbone.forward_head(mapped).to(model.classifier.weight.dtype)
            return _logits(model, embedding, rows).float()

        # In float32 also for a bf16 backbone, whose sum over the channels would be rounded.
        maps = LayerGradCam(score, layer).attribute(  # captum enables gradients itself
            features.clone().movedim(dimension, 1).float(),
            target=torch.as_tensor(class_ids, device=device).clone(),
            relu_attributions=True,
        )  # (B, 1, h, w)
    enlarged = LayerAttribution.interpolate(maps.detach(), size, interpolate_mode="bilinear")[:, 0].float().cpu()
    return (enlarged / enlarged.amax(dim=(1, 2), keepdim=True)).nan_to_num(0)


def _channel_dimension(model: Ham10000ForImageClassification, features: object) -> int:
    """The dimension of a feature map's channels: 1, or 3 for Swin and its like."""
    shape = tuple(getattr(features, "shape", ()))
    for dimension in (1, 3):
        if len(shape) == 4 and shape[dimension] == model.backbone.num_features:
            return dimension
    raise Ham10000Error(
        f"The backbone {model.config.backbone!r} gives features of shape {shape}, not a spatial feature map (batch, "
        "channels, height, width), so Grad-CAM cannot say where it looks; use a convolutional backbone."
    )
