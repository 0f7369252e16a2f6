"""The training loss: cross-entropy with class weights, label smoothing and logit adjustment."""

import torch
import torch.nn.functional as F


class ClassificationLoss:
    """Weighted cross-entropy whose normaliser is the caller's.

    Summed over the micro-batches and processes of one optimiser step and divided by the step's `weight_sum`, it equals
    `torch.nn.functional.cross_entropy(..., weight=class_weights, label_smoothing=...)` on the whole batch, however the
    batch was cut.

    Args:
        class_weights: (7,) weight of each class.
        label_smoothing: As in `torch.nn.functional.cross_entropy`.
        log_prior: (7,) log of the training class frequencies, needed for logit adjustment.
        logit_adjustment: tau; `tau * log_prior` is added to the logits in training only (Menon et al., "Long-tail
            learning via logit adjustment", ICLR 2021, arXiv:2007.07314, equation 10). 0 is off.
    """

    def __init__(
        self,
        class_weights: torch.Tensor,
        *,
        label_smoothing: float = 0.0,
        log_prior: torch.Tensor | None = None,
        logit_adjustment: float = 0.0,
    ):
        self.class_weights = class_weights
        self.label_smoothing = label_smoothing
        self.offset = None
        if logit_adjustment:
            if log_prior is None:
                raise ValueError("logit adjustment needs `log_prior`")
            self.offset = logit_adjustment * log_prior

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


__all__ = ["ClassificationLoss"]
