"""Explains a prediction: where the network looks (Grad-CAM, by captum) and what the metadata changes."""

import math
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

    `rows` has each field unknown and, of several fields, all of them; then each field varied over the ages 0, 5, … 85
    or its vocabulary, the given value included. It is empty for the image variant, like `given`.
    """

    labels: tuple[str, ...]  # in the order of the probabilities
    given: dict[str, str]  # the metadata as the model read it, by field, as shown; `UNKNOWN` for missing
    baseline: np.ndarray  # (classes,) float64 probabilities with the metadata as given
    rows: tuple[MetadataEffect, ...]
    malignant: tuple[str, ...]  # may be empty
    descriptions: Mapping[str, str]  # plain-language name of each class

    def malignant_total(self, probabilities: np.ndarray | None = None) -> float:
        """The sum of the probabilities (classes,), by default those of the baseline, of the malignant classes."""
        return malignant_total(self.baseline if probabilities is None else probabilities, self.labels, self.malignant)

    def unknown(self) -> np.ndarray | None:
        """(classes,) probabilities with all fields unknown; None where they are anyway, or none is read."""
        if set(self.given.values()) <= {UNKNOWN}:
            return None
        # The last of these rows is that of all fields, or of the only one.
        return [row.probabilities for row in self.rows if row.value == UNKNOWN][-1]

    def varied(self, field: str) -> list[MetadataEffect]:
        """The rows in which a field has each of its values, without unknown."""
        return [row for row in self.rows if row.field == field and row.value != UNKNOWN]


def _logits(
    model: Ham10000ForImageClassification, features: torch.Tensor | None, metadata: torch.Tensor | None
) -> torch.Tensor:
    """Runs the model's forward from the image embedding (batch, features) and the raw metadata (batch, fields) on."""
    if metadata is not None:
        encoded = model.encode_metadata(metadata.to(model.device))
        features = encoded if features is None else model.fuse(features, encoded)
    return model.classifier(model.dropout(features)) / model.config.temperature


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """An image after a model's backbone: what stays the same whatever the metadata are."""

    image: Image.Image  # upright RGB
    # The backbone's last, (1, ...) in its dtype and on its device; a list for some networks, None for OpenVINO's.
    feature_map: torch.Tensor | list[torch.Tensor] | None
    embedding: torch.Tensor  # (1, features) the pooled feature map, in the classifier's dtype
    warning: str | None  # why a prediction of this image is worth nothing


@torch.inference_mode()
def encode_image(model: Ham10000ForImageClassification, processor: Ham10000Processor, image: object) -> EncodedImage:
    """Takes an image through the backbone, once for any number of metadata and explained classes.

    It may be in any form `load_image` reads; one that was encoded with this model comes back as it is. A
    `Ham10000Error` says that it cannot be read, or that the model reads none.
    """
    if isinstance(image, EncodedImage):
        return image
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
    """Predicts an image, as for `encode_image`, with its own metadata and with changed ones.

    These are statements about the model, not about skin: what it would have answered for the same image of another
    patient. Arguments and errors are those of `explain`, whose class and heat maps are left out.
    """
    config = model.config
    if config.uses_image and image is None:
        raise Ham10000Error(f"modality={config.modality!r} needs an image, got None.")
    if not config.uses_metadata and metadata:
        raise Ham10000Error("modality='image' reads no metadata; leave `metadata` out.")
    embedding = None if image is None else encode_image(model, processor, image).embedding
    given: dict[str, str] = {}
    changes: list[tuple[str, str, dict[str, object]]] = []  # field, its value as shown, the row
    table = None
    if config.uses_metadata:
        vocabularies = {"sex": processor.sex_vocabulary, "localization": processor.localization_vocabulary}
        values = {"age": [str(age) for age in SWEEP_AGES], **vocabularies}
        row, fields = metadata or {}, processor.metadata_fields
        changes += [(field, UNKNOWN, {**row, field: None}) for field in fields]
        changes += [(ALL_FIELDS, UNKNOWN, {})] if len(fields) > 1 else []
        changes += [(field, value, {**row, field: value}) for field in fields for value in values[field]]
        table = processor.encode_metadata([row, *(new for _, _, new in changes)], unknown_values=unknown_values)
        for field, value in zip(fields, table[0].tolist(), strict=True):
            if math.isnan(value):
                given[field] = UNKNOWN
            else:
                given[field] = f"{value:g}" if field == "age" else values[field][int(value)]
    with evaluating(model):
        logits = _logits(model, None if embedding is None else embedding.expand(1 + len(changes), -1), table)
    probabilities = logits.cpu().double().softmax(-1).numpy()  # (1 + changes, classes)
    return MetadataEffects(
        tuple(config.label_names),
        given,
        probabilities[0],
        tuple(MetadataEffect(*change[:2], row) for change, row in zip(changes, probabilities[1:], strict=True)),
        tuple(config.malignant_labels or ()),
        config.label_descriptions or {},
    )


@dataclass(frozen=True, eq=False)
class Explanation:
    """A prediction with what explains it."""

    effects: MetadataEffects
    image: Image.Image | None  # upright RGB; None for the metadata variant
    heatmaps: dict[str, np.ndarray]  # by label, the most probable first: (height, width) float32 in [0, 1]
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

    Grad-CAM: Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based localization",
    ICCV 2017, arXiv:1610.02391, equations 1 and 2, of the class's logit, on the feature map that the backbone's
    pooling reads; computed by captum's `LayerGradCam`. The map has the resolution of the feature map (7 x 7 at 224
    pixels and stride 32) and is enlarged bilinearly, so it shows a region and not an outline. Each map is divided by
    its own maximum: maps compare in place, never in strength.

    Args:
        model: A model of any variant, as loaded, on any device, in any floating point type; it is left as it was. For
            a map its timm backbone must end in a spatial feature map (convolutional networks, Swin and its like).
        processor: Its processor.
        image: An image in any form `load_image` reads, or what `encode_image` made of it with this model; None for the
            metadata variant.
        metadata: One row, as for the processor; None if nothing is known, and for the image variant.
        label: The class that is explained next to the most probable one, by default mel; where it is that one, or the
            model has no mel, the second most probable takes its place.
        name: Name of the image in the figure.
        unknown_values: What a sex or site outside the vocabulary is: `"error"` or `"missing"`.

    Returns:
        The explanation; a model that reads no image has no maps, and a map is all 0 where nothing speaks for the
        class.

    Raises:
        Ham10000Error: For an input the variant does not read or lacks, an unreadable image, an unknown value or label,
            a backbone without a spatial feature map (such as a ViT), or if captum is missing.
    """
    config, names = model.config, model.config.label_names
    if label is not None and label not in names:
        raise Ham10000Error(f"`label` must be one of {names}, got {label!r}.")
    encoded = None if image is None else encode_image(model, processor, image)
    effects = metadata_effects(model, processor, encoded, metadata, unknown_values=unknown_values)
    if encoded is None:
        return Explanation(effects, None, {}, name, calibration_of(model), None)
    order = [names[index] for index in np.argsort(-effects.baseline, kind="stable")]
    label = label or "mel"
    chosen = [order[0], label if label in order[1:] else order[1]]
    row = processor.encode_metadata(metadata or {}, unknown_values=unknown_values) if config.uses_metadata else None
    maps = _grad_cam(model, encoded.feature_map, [names.index(name) for name in chosen], row)
    size = processor.image_processor.size
    maps = nn.functional.interpolate(maps, (size["height"], size["width"]), mode="bilinear")
    maps = (maps / maps.amax(dim=(2, 3), keepdim=True)).nan_to_num(0)
    # Undoes the processor's resize, which neither crops nor keeps the aspect: the maps then lie on the image.
    maps = nn.functional.interpolate(maps, encoded.image.size[::-1], mode="bilinear", antialias=True)
    heatmaps = dict(zip(chosen, maps[:, 0].clamp(0, 1).numpy(), strict=True))
    return Explanation(effects, encoded.image, heatmaps, name, calibration_of(model), encoded.warning)


def _grad_cam(
    model: Ham10000ForImageClassification, features: object, class_ids: Sequence[int], metadata: torch.Tensor | None
) -> torch.Tensor:
    """Maps (classes, 1, h, w) float32 on the CPU, not scaled, of a feature map and a metadata row, (1, ...) both."""
    try:
        from captum.attr import LayerGradCam  # late, because captum imports matplotlib
    except ImportError as error:
        raise Ham10000Error(f"Grad-CAM needs captum ({error}): `pip install ham10000[explain]`.") from error
    shape, count = tuple(getattr(features, "shape", ())), len(class_ids)
    # The dimension of the channels: 1, or 3 for Swin and its like.
    dimension = next((d for d in (1, 3) if len(shape) == 4 and shape[d] == model.backbone.num_features), None)
    if not isinstance(features, torch.Tensor) or dimension is None:
        raise Ham10000Error(
            f"The backbone {model.config.backbone!r} gives features of shape {shape}, not a spatial feature map "
            "(batch, channels, height, width), so Grad-CAM cannot say where it looks; use a convolutional backbone."
        )
    layer = nn.Identity()  # captum takes a module, and timm's feature map is the result of a method
    # An inference tensor can have no gradient; its copy outside of inference mode can.
    with evaluating(model), torch.inference_mode(False):
        rows = None if metadata is None else metadata.repeat(count, 1)

        def score(feature_map: torch.Tensor) -> torch.Tensor:
            """(classes, channels, h, w) to (classes, classes) logits."""
            mapped = layer(feature_map).movedim(1, dimension).to(features.dtype)
            embedding = model.backbone.forward_head(mapped).to(model.classifier.weight.dtype)
            return _logits(model, embedding, rows).float()

        # In float32 also for a bf16 backbone, whose sum over the channels would be rounded.
        maps = LayerGradCam(score, layer).attribute(  # captum enables gradients itself
            features.repeat_interleave(count, dim=0).movedim(dimension, 1).float(),
            target=torch.tensor(class_ids, device=model.device),
            relu_attributions=True,
        )
    return maps.detach().float().cpu()
