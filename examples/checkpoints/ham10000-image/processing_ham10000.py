"""The processor: images and metadata in, model inputs out; saved beside the weights."""

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin

from .configuration_ham10000 import (
    FORBIDDEN_FIELDS,
    LOCALIZATIONS,
    METADATA_FIELDS,
    MODALITIES,
    SEXES,
    Ham10000Error,
    check_metadata_schema,
)
from .image_processing_ham10000 import Ham10000ImageProcessor

MAX_AGE = 120
# Of a field, in any case, in training and in prediction.
MISSING_VALUES = frozenset({"", "nan", "none", "null", "na", "n/a", "unknown"})


class Ham10000Processor(ProcessorMixin):
    """Prepares images and metadata for `Ham10000ForImageClassification`.

    Args:
        image_processor: The checkpoint's `Ham10000ImageProcessor`.
        modality: The variant it serves; inputs the variant does not read are an error, not ignored.
        metadata_fields: Columns of the metadata tensor, in order.
        sex_vocabulary: Values of `sex`; the position is the index in the tensor.
        localization_vocabulary: Values of `localization`, likewise.

    Example:
        >>> processor = Ham10000Processor(Ham10000ImageProcessor(size=224))
        >>> inputs = processor(images=image, metadata={"age": 60, "sex": "male", "localization": "back"})
        >>> inputs["pixel_values"].shape, inputs["metadata"].shape
        (torch.Size([1, 3, 224, 224]), torch.Size([1, 3]))
    """

    def __init__(
        self,
        image_processor: Ham10000ImageProcessor | None = None,
        modality: str = "fusion",
        metadata_fields: Sequence[str] = METADATA_FIELDS,
        sex_vocabulary: Sequence[str] = SEXES,
        localization_vocabulary: Sequence[str] = LOCALIZATIONS,
        **kwargs: Any,
    ):
        super().__init__(image_processor or Ham10000ImageProcessor(), **kwargs)
        if modality not in MODALITIES:
            raise Ham10000Error(f"`modality` must be one of {list(MODALITIES)}, got {modality!r}.")
        if not hasattr(self.image_processor, "normalize_pixels"):
            other = type(self.image_processor).__name__
            raise Ham10000Error(f"The image processor must be a Ham10000ImageProcessor, got {other}.")
        self.modality = modality
        check_metadata_schema(metadata_fields, sex_vocabulary, localization_vocabulary)
        self.metadata_fields = list(metadata_fields)
        self.sex_vocabulary = list(sex_vocabulary)
        self.localization_vocabulary = list(localization_vocabulary)

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors `__call__` returns for this variant."""
        names = {"image": ["pixel_values"], "metadata": ["metadata"], "fusion": ["pixel_values", "metadata"]}
        return names[self.modality]

    def __call__(
        self,
        images: Any = None,
        metadata: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        return_tensors: str = "pt",
        unknown_values: str = "error",
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepares a batch.

        Args:
            images: One image or a list: path, bytes, PIL image, array or tensor (see `load_image`).
            metadata: One mapping or a list of them, with any of the keys age (years), sex and localization. A key that
                is absent, None, NaN or one of `MISSING_VALUES` is missing. A fusion model may do without metadata.
            return_tensors: `"pt"` or `"np"`.
            unknown_values: What a sex or localization outside the vocabulary is: `"error"`, or `"missing"` to opt in
                to treating it as missing.
            **kwargs: None are accepted; a misspelled argument is an error.

        Returns:
            `pixel_values` (batch, 3, height, width) and `metadata` (batch, fields), both float32, as far as given.

        Raises:
            Ham10000Error: For unreadable images, unknown keys or values, or batches of different length.
        """
        if kwargs:
            raise Ham10000Error(f"Unknown argument(s) {sorted(kwargs)}; expected images, metadata, unknown_values.")
        if images is None and metadata is None:
            raise Ham10000Error("Nothing to process: give `images`, `metadata` or both.")
        if images is not None and self.modality == "metadata":
            raise Ham10000Error("This checkpoint is metadata-only and reads no image; leave `images` out.")
        if metadata is not None and self.modality == "image":
            raise Ham10000Error("This checkpoint is image-only and reads no metadata; leave `metadata` out.")
        if return_tensors not in ("pt", "np"):
            raise Ham10000Error(f"`return_tensors` must be 'pt' or 'np', got {return_tensors!r}.")
        data: dict[str, Any] = {}
        if images is not None:
            data["pixel_values"] = self.image_processor(images, return_tensors=return_tensors)["pixel_values"]
        if metadata is not None:
            encoded = self.encode_metadata(metadata, unknown_values=unknown_values)
            if "pixel_values" in data and len(data["pixel_values"]) != len(encoded):
                raise Ham10000Error(f"Got {len(data['pixel_values'])} images but {len(encoded)} rows of metadata.")
            data["metadata"] = encoded.numpy() if return_tensors == "np" else encoded
        return BatchFeature(data)

    def encode_metadata(
        self, metadata: Mapping[str, Any] | Sequence[Mapping[str, Any]], *, unknown_values: str = "error"
    ) -> torch.Tensor:
        """Encodes metadata rows as (batch, fields) float32: years, vocabulary indices, NaN where missing.

        Args:
            metadata: As in `__call__`.
            unknown_values: As in `__call__`.

        Returns:
            The tensor the model reads.

        Raises:
            Ham10000Error: Naming the row, field and value that is wrong.
        """
        if unknown_values not in ("error", "missing"):
            raise Ham10000Error(f"`unknown_values` must be 'error' or 'missing', got {unknown_values!r}.")
        if not isinstance(metadata, Iterable):
            raise Ham10000Error(f"`metadata` must be a mapping or a list of them, got {metadata!r}.")
        rows = [metadata] if isinstance(metadata, Mapping) else list(metadata)
        if not rows:
            raise Ham10000Error("`metadata` is empty; expected at least one row.")
        vocabularies = {"sex": self.sex_vocabulary, "localization": self.localization_vocabulary}
        encoded = []
        for number, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise Ham10000Error(f"Metadata row {number}: expected a mapping, got {type(row).__name__} {row!r}.")
            for key in row:
                if key in FORBIDDEN_FIELDS:
                    raise Ham10000Error(f"Metadata row {number}: {key!r} is never an input: {FORBIDDEN_FIELDS[key]}.")
                if key not in self.metadata_fields:
                    raise Ham10000Error(
                        f"Metadata row {number}: unknown key {key!r}; expected {self.metadata_fields}."
                    )
            encoded.append(
                [
                    _encode_age(row.get(name), number)
                    if name == "age"
                    else _encode_category(row.get(name), name, vocabularies[name], number, unknown_values)
                    for name in self.metadata_fields
                ]
            )
        return torch.tensor(encoded, dtype=torch.float32)


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in MISSING_VALUES
    # Not math.isnan, which overflows on integers beyond a float.
    return value is None or (isinstance(value, numbers.Real) and value != value)


def _encode_age(value: Any, number: int) -> float:
    if isinstance(value, (bool, np.bool_)):
        raise Ham10000Error(f"Metadata row {number}: age {value!r} is not a number of years.")
    if _is_missing(value):
        return math.nan
    try:
        # Python reads "6_0" as 60; in a table it is a slip.
        age = float(value.replace("_", "?") if isinstance(value, str) else value)
    except OverflowError:
        age = math.inf
    except (TypeError, ValueError) as error:
        raise Ham10000Error(
            f"Metadata row {number}: age {value!r} is not a number; expected years in 0..{MAX_AGE}, or None."
        ) from error
    if not 0 <= age <= MAX_AGE:
        raise Ham10000Error(f"Metadata row {number}: age {value!r} is outside 0..{MAX_AGE} years; None if missing.")
    return age


def _encode_category(value: Any, name: str, vocabulary: list[str], number: int, unknown_values: str) -> float:
    if _is_missing(value):
        return math.nan
    if isinstance(value, str) and (text := value.strip().lower()) in vocabulary:
        return float(vocabulary.index(text))
    if unknown_values == "missing":
        return math.nan
    raise Ham10000Error(
        f"Metadata row {number}: unknown {name} {value!r}; expected one of {', '.join(vocabulary)}, or None. "
        "Pass unknown_values='missing' to treat it as missing."
    )
