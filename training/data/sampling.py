"""Which training rows an epoch draws, and the class prior that the drawn rows have."""

import numpy as np

SAMPLINGS = ("natural", "sqrt")


def class_shares(counts: np.ndarray, sampling: str) -> np.ndarray:
    """The share of an epoch that each class takes.

    Args:
        counts: (classes,) training images of each class.
        sampling: `natural`: as frequent as the class is; `sqrt`: in proportion to the square root of that, half way
            to equal shares (Mahajan et al., ECCV 2018, arXiv:1805.00932; Kang et al., ICLR 2020, arXiv:1910.09217,
            equation 1 with q = 1/2).

    Returns:
        (classes,) float64, summing to one.
    """
    weights = counts.astype(np.float64) ** {"natural": 1.0, "sqrt": 0.5}[sampling]
    return weights / weights.sum()


def epoch_order(labels: np.ndarray, sampling: str, rng: np.random.Generator) -> np.ndarray:
    """The rows of one epoch, as many as there are.

    A class is drawn as evenly as its share allows: every row as many whole times as it fits, and a random part of the
    rows once more. Compared with weights of the loss, rare classes come with more augmented views instead of larger
    gradients of few.

    Args:
        labels: (rows,) class ids.
        sampling: One of `SAMPLINGS`.
        rng: Source of randomness.

    Returns:
        (rows,) int64 positions; with `natural` a permutation.
    """
    if sampling == "natural":
        return rng.permutation(len(labels))
    classes, counts = np.unique(labels, return_counts=True)
    ends = np.rint(np.cumsum(class_shares(counts, sampling)) * len(labels)).astype(np.int64)
    drawn = []
    for label, draws in zip(classes, np.diff(ends, prepend=0), strict=True):
        rows = np.flatnonzero(labels == label)
        passes, rest = divmod(int(draws), len(rows))
        drawn += [np.tile(rows, passes), rng.permutation(rows)[:rest]]
    return rng.permutation(np.concatenate(drawn))


__all__ = ["SAMPLINGS", "class_shares", "epoch_order"]
