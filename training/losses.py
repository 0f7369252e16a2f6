"""The training loss: cross-entropy with class weights, label smoothing and logit adjustment."""

import numpy as np
import torch
import torch.nn.functional as F


def logit_offset(drawn: np.ndarray, tau: float) -> torch.Tensor | None:
    """`tau * log(drawn)`, added to the logits in training only.

    Logit adjustment (Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, arXiv:2007.07314, equation
    10), at tau = 1 the balanced softmax (Ren et al., NeurIPS 2020, arXiv:2007.10740). Without it the logits answer for
    a class prior of `drawn ** (1 - tau)`: at 0 the classes as drawn, at 1 equal classes.

    Args:
        drawn: (classes,) share of each class among the rows an epoch draws.
        tau: Strength, from 0.

    Returns:
        (classes,) float32, or None where tau is 0.
    """
    return torch.from_numpy(tau * np.log(drawn)).float() if tau else None


def answered_prior(drawn: np.ndarray, class_weights: np.ndarray, tau: float) -> np.ndarray:
    """The class prior that a model's probabilities answer for, by how it was trained.

    Args:
        drawn: (classes,) share of each class among the rows an epoch draws.
        class_weights: (classes,) weights of the loss, which multiply it.
        tau: Strength of the logit adjustment, which takes `drawn ** tau` off.

    Returns:
        (classes,) shares, summing to one.
    """
    prior = drawn ** (1 - tau) * class_weights
    return prior / prior.sum()


class ClassificationLoss:
    """Weighted cross-entropy whose normaliser is the caller's.

    Summed over the micro-batches and processes of one optimiser step and divided by the step's `weight_sum`, it equals
    `torch.nn.functional.cross_entropy(..., weight=class_weights, label_smoothing=...)` on the whole batch, however the
    batch was cut.

    Args:
        class_weights: (classes,) weight of each class.
        label_smoothing: As in `torch.nn.functional.cross_entropy`.
        offset: (classes,) added to the logits in training only, see `logit_offset`; None adds nothing.
    """

    def __init__(
        self,
        class_weights: torch.Tensor,
        *,
        label_smoothing: float = 0.0,
        offset: torch.Tensor | None = None,
    ):
        self.class_weights = class_weights
        self.label_smoothing = label_smoothing
        self.offset = offset

    def weight_sum(self, labels: torch.Tensor) -> torch.Tensor:
        """Scalar sum of the class weights of (batch,) labels, the normaliser of the batch."""
        return self.class_weights[labels].sum()

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Sum of the weighted losses of a micro-batch.

        Args:
            logits: (batch, classes).
            labels: (batch,) int64.

        Returns:
            Scalar float32, not yet divided by `weight_sum`.
        """
        logits = logits.float()
        if self.offset is not None:
            logits = logits + self.offset
        return F.cross_entropy(
            logits, labels, weight=self.class_weights, label_smoothing=self.label_smoothing, reduction="sum"
        )


__all__ = ["ClassificationLoss", "answered_prior", "logit_offset"]
