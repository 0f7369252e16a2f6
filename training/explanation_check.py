"""Whether heat maps depend on what the network learned: the sanity check of Adebayo et al. 2018.

A map that stays the same when the weights are random shows the picture's edges, not the model's reasons.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

from ham10000.modeling import Ham10000ForImageClassification
from ham10000.training.grad_cam import grad_cam


@dataclass(frozen=True, eq=False)
class RandomizationStep:
    """One step of the cascade.

    Attributes:
        part: The part of the model whose weights were re-drawn in this step, besides those of the steps before.
        rank_correlation: (batch,) Spearman's correlation, over the pixels, of each picture's map with that of the
            model as it was; NaN where one of the two maps is constant.
    """

    part: str
    rank_correlation: np.ndarray


def randomized_copy(
    model: Ham10000ForImageClassification, parts: Sequence[str] | None = None, *, seed: int = 0
) -> Ham10000ForImageClassification:
    """A copy of a model some parts of which have the weights a new model is given; the original stays as it is.

    Args:
        model: Any variant.
        parts: Names of submodules, such as `"classifier"` or `"backbone.layer4"`; None for the whole model.
        seed: Seed of the new weights.

    Returns:
        The copy, on the model's device, in evaluation mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config: Any = model.config
        fresh = type(model)(config).state_dict()
    randomized = copy.deepcopy(model).eval()
    chosen = {
        name: value
        for name, value in fresh.items()
        if parts is None or any(name.startswith(f"{part}.") for part in parts)
    }
    randomized.load_state_dict({**randomized.state_dict(), **chosen})
    return randomized


def sanity_check(
    model: Ham10000ForImageClassification,
    pixel_values: torch.Tensor,
    class_ids: Sequence[int] | torch.Tensor,
    metadata: torch.Tensor | None = None,
    *,
    seed: int = 0,
) -> list[RandomizationStep]:
    """Re-draws the weights from the classifier down to the first layer and compares the maps.

    The cascading parameter randomisation of Adebayo, Gilmer, Muelly, Goodfellow, Hardt & Kim, "Sanity checks for
    saliency maps", NeurIPS 2018, arXiv:1810.03292, section 3.1. A method that explains the model has correlations
    that fall towards 0. The maps are signed: a random network's are often negative everywhere, which Grad-CAM shows
    as nothing at all, and nothing has no ranks.

    Args:
        model: As for `grad_cam`.
        pixel_values: As for `grad_cam`; some ten pictures, as a single map may resemble another by chance.
        class_ids: As for `grad_cam`.
        metadata: As for `grad_cam`.
        seed: Seed of the new weights.

    Returns:
        One step for the head (classifier, fusion and metadata encoder), then one for each child of the backbone that
        has weights, the last first; after the last step every weight is random.

    Raises:
        Ham10000Error: As `grad_cam`.
    """
    original = grad_cam(model, pixel_values, class_ids, metadata, signed=True)
    children = [name for name, child in model.backbone.named_children() if child.state_dict()]
    head = [name for name, child in model.named_children() if name != "backbone" and child.state_dict()]
    steps = [("head", head), *((f"backbone.{name}", [f"backbone.{name}"]) for name in reversed(children))]
    done: list[str] = []
    results = []
    for title, names in steps:
        done += names
        # Each copy is drawn anew with the same seed, so a step keeps the random weights of the steps before it.
        copied = randomized_copy(model, done, seed=seed)
        maps = grad_cam(copied, pixel_values, class_ids, metadata, signed=True)
        results.append(RandomizationStep(title, rank_correlations(original, maps)))
    return results


def rank_correlations(first: torch.Tensor, second: torch.Tensor) -> np.ndarray:
    """Spearman's rank correlation of each pair of maps.

    Args:
        first: (batch, height, width).
        second: Likewise.

    Returns:
        (batch,) in [-1, 1]; NaN where a map is constant.
    """
    ranks = [rankdata(maps.flatten(1).numpy(), axis=1) for maps in (first, second)]
    centred = [rank - rank.mean(axis=1, keepdims=True) for rank in ranks]
    scale = np.sqrt((centred[0] ** 2).sum(axis=1) * (centred[1] ** 2).sum(axis=1))
    product = (centred[0] * centred[1]).sum(axis=1)
    return np.divide(product, scale, out=np.full(len(product), np.nan), where=scale > 0)


__all__ = ["RandomizationStep", "randomized_copy", "rank_correlations", "sanity_check"]
