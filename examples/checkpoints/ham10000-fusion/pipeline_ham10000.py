"""The pipeline for an image with its metadata: `pipeline("image-metadata-classification", model=...)`."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

from torch.utils.data import IterableDataset, StackDataset
from transformers import Pipeline

from .configuration_ham10000 import METADATA_FIELDS, Ham10000Error, logger
from .image_processing_ham10000 import load_image

PIPELINE_TASK = "image-metadata-classification"
_KEYS = ("image", *METADATA_FIELDS)


class Ham10000Pipeline(Pipeline):
    """Classifies images with their metadata, or whichever of the two the checkpoint reads.

    Research software, never for diagnosis. An input is one dict, or a list, iterator or dataset of them, with the keys

    - `image`: path, encoded bytes, PIL image, array or tensor (see `load_image`); URLs are not fetched. Needed unless
      the checkpoint is metadata-only, which refuses it.
    - `age` (years), `sex`, `localization`: absent or None where missing, which is legal. An image-only checkpoint
      refuses them.

    Parameters, of the pipeline or of a call:

    - `top_k`: number of labels returned, at most all; None, the default, returns all.
    - `unknown_values`: what a sex or localization outside the vocabulary is, `"error"` (default) or `"missing"`.
    - `batch_size`: inputs a forward pass, 1 by default; `num_workers`: processes that decode images.

    A call returns, for one dict, a list of `{"label": str, "score": float}` with the highest score first; for a list,
    a list of those; for an iterator or a dataset, an iterator of those. Scores are calibrated by the checkpoint's
    temperature and sum to one over the labels of the config. An image unlike the training data is logged as a warning.

    Raises:
        Ham10000Error: For bad input, naming the input by its position, and for unknown or wrong parameters.

    Example:
        >>> import ham10000.modeling  # or trust_remote_code=True, where the package is not installed
        >>> classify = pipeline("image-metadata-classification", model="runs/fusion")
        >>> classify({"image": "lesion.jpg", "age": 60, "sex": "male", "localization": "back"}, top_k=1)
        [{'label': 'nv', 'score': 0.93}]
    """

    # Any, as the base class declares all of these for every kind of pipeline at once.
    model: Any
    processor: Any
    _load_processor: Any = True
    _load_image_processor: Any = False
    _load_video_processor: Any = False
    _load_feature_extractor: Any = False
    _load_tokenizer: Any = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # A model handed over in training mode would drop metadata at random.
        self.model.eval()

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Classifies one input or many; see the class."""
        if isinstance(inputs, list) and not inputs:
            return []  # the base class looks at the first of them
        # The base class would take an iterator that is no generator, or a `datasets` dataset, for a single input.
        if isinstance(inputs, Iterator) or (hasattr(inputs, "features") and isinstance(inputs, Iterable)):
            inputs = (row for row in inputs)
        return super().__call__(inputs, *args, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Saves model, processor and code; the base class would leave the processor out.

        Args:
            save_directory: Folder, created if needed.
            **kwargs: Passed to `save_pretrained` of both.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def get_iterator(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Numbers the inputs on their way to `preprocess`, so that its errors can say which one is wrong."""
        numbered: Any = ({"number": number, "row": row} for number, row in enumerate(inputs))
        if isinstance(inputs, Sized) and not isinstance(inputs, IterableDataset):
            columns: Any = {"number": range(len(inputs)), "row": inputs}
            numbered = StackDataset(**columns)  # reads no row before it is asked for
        return super().get_iterator(numbered, *args, **kwargs)

    def _sanitize_parameters(self, **parameters: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if unknown := sorted(set(parameters) - {"top_k", "unknown_values"}):
            raise Ham10000Error(f"Unknown parameter(s) {unknown}; expected top_k, unknown_values or batch_size.")
        top_k, labels = parameters.get("top_k"), len(self.model.config.id2label)
        if top_k is not None and (type(top_k) is not int or not 1 <= top_k <= labels):
            raise Ham10000Error(f"`top_k` must be a whole number in 1..{labels}, or None for all, got {top_k!r}.")
        unknown_values = parameters.get("unknown_values", "error")
        if unknown_values not in ("error", "missing"):  # the processor would not look at it without metadata
            raise Ham10000Error(f"`unknown_values` must be 'error' or 'missing', got {unknown_values!r}.")
        preprocess = {key: parameters[key] for key in ("unknown_values",) if key in parameters}
        postprocess = {key: parameters[key] for key in ("top_k",) if key in parameters}
        return preprocess, {}, postprocess

    def preprocess(self, input_: Any, unknown_values: str = "error") -> dict[str, Any]:  # type: ignore[override]
        """One input to what the variant reads of `pixel_values` (1, 3, height, width) and `metadata` (1, fields)."""
        name, row = "The input", input_
        if isinstance(input_, dict) and input_.keys() == {"number", "row"}:  # from `get_iterator`
            name, row = f"Input {input_['number']}", input_["row"]
        try:
            return self._encode(name, row, unknown_values)
        # Not Ham10000Error: loaded from a folder, the processor raises a class of that name from another module.
        except ValueError as error:
            # The processor only ever sees one row.
            raise Ham10000Error(f"{name}: {str(error).removeprefix('Metadata row 0: ')}") from error

    def _encode(self, name: str, row: Any, unknown_values: str) -> dict[str, Any]:
        if not isinstance(row, Mapping):
            raise Ham10000Error(
                f'expected a dict such as {{"image": "lesion.jpg", "age": 60}}, got {type(row).__name__}. '
                'An image without metadata is {"image": image}.'
            )
        # None means absent; under any other key it is still a misspelled key.
        given = {key: value for key, value in row.items() if value is not None or key not in _KEYS}
        image = given.pop("image", None)
        modality = self.processor.modality
        if modality == "metadata" and image is not None:
            raise Ham10000Error("this checkpoint is metadata-only and reads no image; leave 'image' out.")
        if modality != "metadata" and image is None:
            raise Ham10000Error(f"'image' is missing, and this checkpoint (modality={modality!r}) needs one.")
        if modality == "image" and given:
            keys = ", ".join(map(repr, given))
            raise Ham10000Error(f"this checkpoint is image-only and reads nothing but 'image'; leave {keys} out.")
        if image is not None:
            image = load_image(image)  # once, for the warning and for the model
            if warning := self.processor.image_processor.unlike_training(image):
                logger.warning(f"{name}: {warning}")
        # The image in a list, as otherwise a list of images would pass for one.
        images = None if image is None else [image]
        metadata = None if modality == "image" else given
        return dict(self.processor(images=images, metadata=metadata, unknown_values=unknown_values))

    def _forward(self, input_tensors: dict[str, Any]) -> Any:  # type: ignore[override]
        return {"logits": self.model(**input_tensors).logits}

    def postprocess(self, model_outputs: Any, top_k: int | None = None) -> list[dict[str, Any]]:  # type: ignore[override]
        """(1, labels) logits to `{"label": str, "score": float}` of `top_k` labels, highest score first."""
        scores = model_outputs["logits"][0].double().softmax(-1).tolist()
        labels = [self.model.config.id2label[index] for index in range(len(scores))]
        ranked = sorted(zip(labels, scores, strict=True), key=lambda pair: -pair[1])
        return [{"label": label, "score": score} for label, score in ranked[:top_k]]


# What config.json says about the pipeline, for a process that has no such package; the file is named as in a folder.
CUSTOM_PIPELINES = {
    PIPELINE_TASK: {
        "impl": "pipeline_ham10000.Ham10000Pipeline",
        "pt": ["AutoModelForImageClassification"],
        "type": "multimodal",
    }
}
