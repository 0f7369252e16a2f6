"""The training loss: cross-entropy with class weights, label smoothing and logit adjustment."""

import numpy as np
import torch
import torch.nn.functional as F


def logit_offset(natural: np.ndarray, drawn: np.ndarray, tau: float) -> torch.Tensor | None:
    """What is added to the logits in training, so that without it they answer for the prior `natural ** (1 - tau)`.

    With rows drawn as frequent as they are, it is `tau * log(natural)`: logit adjustment (Menon et al., "Long-tail
    learning via logit adjustment", ICLR 2021, arXiv:2007.07314, equation 10), at tau = 1 the balanced softmax (Ren et
    al., NeurIPS 2020, arXiv:2007.10740). Rows drawn otherwise are corrected for, so that sampling decides how often a
    class is seen and tau alone which prior the model answers for: 0 the natural one, 1 equal classes.

    Args:
        natural: (7,) share of each class among the training rows.
        drawn: (7,) share of each class among the rows an epoch draws.
        tau: Strength, from 0.

    Returns:
        (7,) float32, or None where it changes nothing.
    """
    if tau == 0 and np.allclose(natural, drawn):
        return None
    return torch.from_numpy(np.log(drawn) - (1 - tau) * np.log(natural)).float()


class ClassificationLoss:
    """Weighted cross-entropy whose normaliser is the caller's.

    Summed over the micro-batches and processes of one optimiser step and divided by the step's `weight_sum`, it equals
    `torch.nn.functional.cross_entropy(..., weight=class_weights, label_smoothing=...)` on the whole batch, however the
    batch was cut.

    Args:
        class_weights: (7,) weight of each class.
        label_smoothing: As in `torch.nn.functional.cross_entropy`.
        offset: (7,) added to the logits in training only, see `logit_offset`; None adds nothing.
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
            logits: (batch, 7).
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


__all__ = ["ClassificationLoss", "logit_offset"]
