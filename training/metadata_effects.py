"""What one prediction owes to its metadata: every field unknown, and every field varied, with the picture fixed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ham10000.modeling import LABELS, Ham10000Error, Ham10000ForImageClassification, Ham10000Processor

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
        probabilities: (7,) float64, in the order of `LABELS`.
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
        baseline: (7,) float64 probabilities with the metadata as given.
        rows: The changes: each field unknown and, of several fields, all of them; then each field varied over the
            ages 0, 5, … 85 or its vocabulary. The value that was given is among them. Empty for the image variant.
    """

    labels: tuple[str, ...]
    given: dict[str, str]
    baseline: np.ndarray
    rows: tuple[MetadataEffect, ...]

    def unknown(self, field: str = ALL_FIELDS) -> np.ndarray | None:
        """(7,) probabilities with a field, by default every field, unknown; None if the model lacks the field."""
        if field == ALL_FIELDS and len(self.given) == 1:
            (field,) = self.given
        found = [row.probabilities for row in self.rows if (row.field, row.value) == (field, UNKNOWN)]
        return found[0] if found else None

    def varied(self, field: str) -> list[MetadataEffect]:
        """The rows in which a field has each of its values, without unknown."""
        return [row for row in self.rows if row.field == field and row.value != UNKNOWN]


def logits_from_embeddings(
    model: Ham10000ForImageClassification, image: torch.Tensor | None, metadata: torch.Tensor | None
) -> torch.Tensor:
    """The model's forward from the image embedding on.

    Args:
        model: Any variant.
        image: (batch, backbone features); None for the metadata variant.
        metadata: (batch, fields) raw values; None for the image variant.

    Returns:
        (batch, 7) logits, divided by the temperature.
    """
    features: Any = image
    if metadata is not None:
        features = model.encode_metadata(metadata)
        if image is not None:
            features = model.fuse(image, features)
    return model.classifier(model.dropout(features)) / model.config.temperature


def describe_metadata(
    processor: Ham10000Processor, metadata: Mapping[str, Any] | None, *, unknown_values: str = "error"
) -> dict[str, str]:
    """The values the model sees, not those that were written.

    Args:
        processor: The model's processor.
        metadata: One row, as for the processor.
        unknown_values: As for the processor.

    Returns:
        Every field of the processor as shown; `UNKNOWN` where it is missing.

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
    image: Any = None,
    metadata: Mapping[str, Any] | None = None,
    *,
    unknown_values: str = "error",
) -> MetadataEffects:
    """Predicts a picture with its own metadata and with changed ones.

    The picture goes through the backbone once. These are statements about the model, not about skin: what it would
    have answered for the same picture of somebody else.

    Args:
        model: Any variant, on any device, in any floating point type.
        processor: The model's processor.
        image: A picture in any form `load_image` reads; None for the metadata variant.
        metadata: One row, as for the processor; None if nothing is known, and for the image variant.
        unknown_values: What a sex or site outside the vocabulary is: `"error"` or `"missing"`.

    Returns:
        The effects; for the image variant the baseline alone.

    Raises:
        Ham10000Error: For an input the variant does not read or lacks, an unreadable picture, or an unknown value.
    """
    config: Any = model.config
    if config.uses_image and image is None:
        raise Ham10000Error(f"modality={config.modality!r} needs a picture, got None.")
    if not config.uses_image and image is not None:
        raise Ham10000Error("modality='metadata' reads no picture; leave `image` out.")
    if not config.uses_metadata and metadata:
        raise Ham10000Error("modality='image' reads no metadata; leave `metadata` out.")
    fields = list(processor.metadata_fields) if config.uses_metadata else []
    changes: list[tuple[str, str]] = []
    table = None
    if fields:
        baseline = processor.encode_metadata([metadata or {}], unknown_values=unknown_values)  # (1, F)
        changes, table = _changed_rows(processor, baseline)
        table = table.to(model.device)
    was_training = model.training
    model.eval()
    try:
        embedding = None
        if image is not None:
            pixel_values = processor.image_processor(image)["pixel_values"].to(model.device)
            embedding = model.encode_image(pixel_values.to(next(model.backbone.parameters()).dtype))  # (1, C)
            embedding = embedding.to(model.classifier.weight.dtype).expand(1 if table is None else len(table), -1)
        logits = logits_from_embeddings(model, embedding, table)
    finally:
        model.train(was_training)
    probabilities = logits.cpu().double().softmax(-1).numpy()  # (1 + changes, 7)
    return MetadataEffects(
        LABELS,
        describe_metadata(processor, metadata, unknown_values=unknown_values) if fields else {},
        probabilities[0],
        tuple(MetadataEffect(*change, row) for change, row in zip(changes, probabilities[1:], strict=True)),
    )


def _changed_rows(processor: Ham10000Processor, baseline: torch.Tensor) -> tuple[list[tuple[str, str]], torch.Tensor]:
    """Names of the changes, and (1 + changes, F) metadata, the first row of which is the baseline."""
    fields = processor.metadata_fields
    names, rows = [], [baseline]

    def add(field: str, columns: Sequence[int], value: float) -> None:
        changed = baseline.clone()
        changed[:, columns] = value
        names.append((field, UNKNOWN if value != value else _shown(processor, field, value)))
        rows.append(changed)

    for column, field in enumerate(fields):
        add(field, [column], float("nan"))
    if len(fields) > 1:
        add(ALL_FIELDS, range(len(fields)), float("nan"))
    for column, field in enumerate(fields):
        values = SWEEP_AGES if field == "age" else range(len(_vocabulary(processor, field)))
        for value in values:
            add(field, [column], float(value))
    return names, torch.cat(rows)


__all__ = [
    "ALL_FIELDS",
    "SWEEP_AGES",
    "UNKNOWN",
    "MetadataEffect",
    "MetadataEffects",
    "describe_metadata",
    "logits_from_embeddings",
    "metadata_effects",
]
