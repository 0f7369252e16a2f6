"""Explains one prediction: where the network looks (Grad-CAM) and what the metadata changes, in one figure.

    explanation = explain(model, processor, "lesion.jpg", {"age": 60, "sex": "male"})
    plot_explanation(explanation, "explanation.png")

`ham10000-predict lesion.jpg --explain explanation.png` does the same. The parts are in `grad_cam.py`,
`metadata_effects.py`, `explanation_plots.py`; `explanation_check.py` asks whether the maps depend on what was learned.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from ham10000.modeling import LABELS, Ham10000Error, Ham10000ForImageClassification, Ham10000Processor
from ham10000.modeling.image_processing_ham10000 import load_image
from ham10000.training.explanation_plots import overlay_heatmap, plot_explanation
from ham10000.training.grad_cam import grad_cam
from ham10000.training.metadata_effects import MetadataEffect, MetadataEffects, metadata_effects


@dataclass(frozen=True, eq=False)
class Explanation:
    """A prediction with what explains it.

    Attributes:
        effects: The probabilities, and what they become when the metadata changes.
        picture: The picture, upright RGB; None for the metadata variant.
        heatmaps: Label to the Grad-CAM map of that class, (picture height, picture width) float32 in [0, 1]; the
            predicted class first.
        name: What the picture is called in the figure; None for nothing.
        temperature: The model's calibration temperature; 1 if it was never calibrated.
    """

    effects: MetadataEffects
    picture: Image.Image | None
    heatmaps: dict[str, np.ndarray]
    name: str | None = None
    temperature: float = 1.0


def explain(
    model: Ham10000ForImageClassification,
    processor: Ham10000Processor,
    image: Any = None,
    metadata: Mapping[str, Any] | None = None,
    *,
    label: str = "mel",
    name: str | None = None,
    unknown_values: str = "error",
) -> Explanation:
    """Predicts one picture, or one row of metadata, and explains the prediction.

    Args:
        model: Any variant, as loaded.
        processor: The model's processor.
        image: A picture in any form `load_image` reads; None for the metadata variant.
        metadata: One row, as for the processor; None if nothing is known.
        label: The class that is explained beside the predicted one; where it is the predicted one, the second most
            probable takes its place.
        name: What the figure calls the picture.
        unknown_values: As for `metadata_effects`.

    Returns:
        The explanation; a model without a picture has no maps.

    Raises:
        Ham10000Error: As `grad_cam` and `metadata_effects`, and for an unknown label.
    """
    if label not in LABELS:
        raise Ham10000Error(f"`label` must be one of {list(LABELS)}, got {label!r}.")
    picture = None if image is None else load_image(image)
    effects = metadata_effects(model, processor, picture, metadata, unknown_values=unknown_values)
    heatmaps: dict[str, np.ndarray] = {}
    if picture is not None:
        order = [LABELS[index] for index in np.argsort(-effects.baseline, kind="stable")]
        chosen = [order[0], order[1] if label == order[0] else label]
        pixel_values = processor.image_processor(picture)["pixel_values"].expand(2, -1, -1, -1)
        rows = None
        if model.config.uses_metadata:
            rows = processor.encode_metadata([metadata or {}] * 2, unknown_values=unknown_values)
        maps = grad_cam(model, pixel_values, [LABELS.index(name) for name in chosen], rows)
        heatmaps = dict(zip(chosen, resize_heatmaps(maps, picture.size), strict=True))
    return Explanation(effects, picture, heatmaps, name, float(model.config.temperature))


def resize_heatmaps(heatmaps: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """Undoes the processor's resize, which neither crops nor keeps the aspect: the maps then lie on the picture.

    Args:
        heatmaps: (batch, height, width), as `grad_cam` gives them.
        size: Width and height of the picture in pixels, as PIL has it.

    Returns:
        (batch, picture height, picture width) float32 in [0, 1].
    """
    resized = torch.nn.functional.interpolate(heatmaps[:, None], size[::-1], mode="bilinear", antialias=True)
    return resized[:, 0].clamp(0, 1).numpy()


__all__ = [
    "Explanation",
    "MetadataEffect",
    "MetadataEffects",
    "explain",
    "grad_cam",
    "metadata_effects",
    "overlay_heatmap",
    "plot_explanation",
    "resize_heatmaps",
]
