"""How one prediction depends on its metadata: every field unknown, and every field varied, with the image fixed."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ham10000.modeling import (
    LABEL_DESCRIPTIONS,
    MALIGNANT,
    Ham10000Error,
    Ham10000ForImageClassification,
    Ham10000Processor,
)

# `ham10000-predict` imports this file: nothing here may import datasets, pandas, scikit-learn or matplotlib.

SWEEP_AGES = tuple(range(0, 90, 5))  # HAM10000's ages: multiples of 5 from 0 to 85
UNKNOWN = "unknown"
ALL_FIELDS = "all fields"


@dataclass(frozen=True, eq=False)
class MetadataEffect:
    """The prediction with one field changed.

    Attributes:
        field: The field that was changed, or `ALL_FIELDS`.
        value: Its new value as shown, such as `"60"` or `"back"`; `UNKNOWN` for missing.
        probabilities: (classes,) float64, in the order of the labels.
    """

    field: str
    value: str
    probabilities: np.ndarray


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
    malignant: tuple[str, ...] = MALIGNANT
    descriptions: Mapping[str, str] = dataclasses.field(default_factory=lambda: dict(LABEL_DESCRIPTIONS))

    def malignant_total(self, probabilities: np.ndarray | None = None) -> float:
        """The sum of the probabilities (classes,), by default those of the baseline, of the malignant classes."""
        row = self.baseline if probabilities is None else probabilities
        return float(sum(row[self.labels.index(label)] for label in self.malignant))

    def unknown(self, field: str = ALL_FIELDS) -> np.ndarray | None:
        """(classes,) probabilities with a field, by default all, unknown; None if the model lacks the field."""
        if field == ALL_FIELDS and len(self.given) == 1:
            (field,) = self.given
        return next((row.probabilities for row in self.rows if (row.field, row.value) == (field, UNKNOWN)), None)

    def varied(self, field: str) -> list[MetadataEffect]:
        """The rows in which a field has each of its values, without unknown."""
        return [row for row in self.rows if row.field == field and row.value != UNKNOWN]


def logits_from_embeddings(
    model: Ham10000ForImageClassification, image: torch.Tensor | None, metadata: torch.Tensor | None
) -> torch.Tensor:
    """Runs the model's forward from the image embedding on.

    Args:
        model: A model of any variant.
        image: (batch, backbone features); None for the metadata variant.
        metadata: (batch, fields) raw values; None for the image variant.

    Returns:
        (batch, classes) logits, divided by the temperature.
    """
    features: Any = image
    if metadata is not None:
        features = model.encode_metadata(metadata)
        if image is not None:
            features = model.fuse(image, features)
    return model.classifier(model.dropout(features)) / model.config.temperature


def describe_metadata(
    processor: Ham10000Processor, metadata: Mapping[str, object] | None, *, unknown_values: str = "error"
) -> dict[str, str]:
    """Returns the values the model sees, by field, as text; `UNKNOWN` where one is missing.

    Args:
        processor: The model's processor.
        metadata: One row, as for the processor.
        unknown_values: As for the processor.

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
    if value != value:
        return UNKNOWN
    return f"{value:g}" if field == "age" else _vocabulary(processor, field)[int(value)]


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
        processor: The model's processor.
        image: An image in any form `load_image` reads; None for the metadata variant.
        metadata: One row, as for the processor; None if nothing is known, and for the image variant.
        unknown_values: What a sex or site outside the vocabulary is: `"error"` or `"missing"`.

    Returns:
        The effects; for the image variant the baseline alone.

    Raises:
        Ham10000Error: For an input the variant does not read or lacks, an unreadable image, or an unknown value.
    """
    config: Any = model.config
    if config.uses_image and image is None:
        raise Ham10000Error(f"modality={config.modality!r} needs an image, got None.")
    if not config.uses_image and image is not None:
        raise Ham10000Error("modality='metadata' reads no image; leave `image` out.")
    if not config.uses_metadata and metadata:
        raise Ham10000Error("modality='image' reads no metadata; leave `metadata` out.")
    given: dict[str, str] = {}
    changes: list[tuple[str, str]] = []
    table = None
    if config.uses_metadata:
        given = describe_metadata(processor, metadata, unknown_values=unknown_values)
        changes, table = _changed_rows(processor, metadata or {}, unknown_values)
        table = table.to(model.device)
    was_training = model.training
    model.eval()
    try:
        embedding = None
        if image is not None:
            pixel_values = processor.image_processor(image)["pixel_values"].to(model.device)
            embedding = model.encode_image(pixel_values.to(next(model.backbone.parameters()).dtype))  # (1, C)
            embedding = embedding.to(model.classifier.weight.dtype).expand(1 + len(changes), -1)
        logits = logits_from_embeddings(model, embedding, table)
    finally:
        model.train(was_training)
    probabilities = logits.cpu().double().softmax(-1).numpy()  # (1 + changes, 7)
    rows = (MetadataEffect(*change, row) for change, row in zip(changes, probabilities[1:], strict=True))
    return MetadataEffects(
        tuple(config.label_names),
        given,
        probabilities[0],
        tuple(rows),
        tuple(config.malignant_labels),
        config.label_descriptions,
    )


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
