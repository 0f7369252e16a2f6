"""Tests and their sizes: McNemar's mid-p, Holm's correction, a bootstrap p-value, the smallest effect to be seen."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from ham10000.modeling.configuration_ham10000 import Ham10000Error


def mcnemar_mid_p(only_first: int, only_second: int) -> float:
    """McNemar's test that two models are right equally often, on the same cases, as a two-sided mid-p-value.

    Given the number of cases that only one of the two gets right, each is equally likely to be the one. The mid-p
    counts half of the observed outcome's probability, which takes away the exact test's conservatism (Fagerland,
    Lydersen & Laake 2013, 10.1186/1471-2288-13-91). The cases must be independent: give one photograph a lesion.

    Args:
        only_first: Cases that only the first model gets right.
        only_second: Cases that only the second one gets right.

    Returns:
        The p-value in (0, 1]; 1 where the models never differ.

    Raises:
        Ham10000Error: For a negative count.

    Example:
        >>> round(mcnemar_mid_p(1, 7), 4)
        0.0391
    """
    if only_first < 0 or only_second < 0:
        raise Ham10000Error(f"Expected counts of at least 0, got {only_first} and {only_second}.")
    fewer, total = min(int(only_first), int(only_second)), int(only_first) + int(only_second)
    if total == 0:
        return 1.0
    # Whole numbers divided once: exact, and no tail is too small or too large for a float.
    observed = math.comb(total, fewer)
    if only_first == only_second:
        return 1 - observed / 2 ** (total + 1)
    below = sum(math.comb(total, count) for count in range(fewer))
    return (2 * below + observed) / 2**total


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts p-values for being several, so that all claims together are wrong with the probability of one.

    Step-down: the smallest is multiplied by their number m, the next by m - 1 and so on, never below the one before
    (Holm 1979, Scandinavian Journal of Statistics 6, 65-70). Valid under any dependence between the tests.

    Args:
        p_values: P-values (m,), in any order; may be empty.

    Returns:
        The adjusted p-values in the same order, at most 1.

    Raises:
        Ham10000Error: For a value outside [0, 1], NaN included.

    Example:
        >>> holm([0.04, 0.01])
        [0.04, 0.02]
    """
    values = np.asarray(p_values, dtype=np.float64)
    wrong = np.flatnonzero(~((values >= 0) & (values <= 1)))
    if len(wrong):
        raise Ham10000Error(f"P-values lie in [0, 1]; number {wrong[0]} is {values[wrong[0]]}.")
    order = np.argsort(values, kind="stable")
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)), 1)
    return adjusted.tolist()


def bootstrap_p_value(values: np.ndarray) -> float:
    """Two-sided p-value of a difference being 0, from its bootstrap distribution.

    Twice the smaller of the two shares of resamples on either side of 0, with one more resample counted into each, so
    that it is never 0 (Davison & Hinkley 1997, "Bootstrap Methods and their Application", section 4.4). A
    resample at exactly 0 counts on both sides, which is cautious for accuracy, whose differences are often exactly 0.
    It says the same as the percentile interval: p < 0.05 where the 95 % interval leaves 0 out.

    Args:
        values: The difference in each resample (R,); NaN entries are left out.

    Returns:
        The p-value in [2 / (R + 1), 1].

    Raises:
        Ham10000Error: If the difference is undefined in every resample.
    """
    defined = np.asarray(values, dtype=np.float64)
    defined = defined[~np.isnan(defined)]
    if len(defined) == 0:
        raise Ham10000Error("A difference that is undefined in every resample has no p-value.")
    smaller = min(np.count_nonzero(defined <= 0), np.count_nonzero(defined >= 0))
    return min(1.0, 2 * (1 + smaller) / (1 + len(defined)))


def smallest_detectable(standard_error: float, *, confidence: float = 0.95, power: float = 0.8) -> float:
    """The true difference that a two-sided test finds with the given power: (z_{1-a/2} + z_power) * standard error.

    It is a property of the sample's size and of the pairing, not of the difference that was observed; power computed
    from the observed difference would only restate the p-value (Hoenig & Heisey 2001, 10.1198/000313001300339897).

    Args:
        standard_error: Standard error of the difference.
        confidence: 1 minus the test's level, in (0, 1).
        power: Probability of finding the difference, in (0, 1).

    Returns:
        The difference, in the units of the standard error.

    Raises:
        Ham10000Error: For a confidence or power outside (0, 1), or a standard error that is negative or NaN.
    """
    for name, value in (("confidence", confidence), ("power", power)):
        if not 0 < value < 1:
            raise Ham10000Error(f"`{name}` must be between 0 and 1, got {value}.")
    if not standard_error >= 0:
        raise Ham10000Error(f"`standard_error` must be at least 0, got {standard_error}.")
    normal = NormalDist()
    return (normal.inv_cdf((1 + confidence) / 2) + normal.inv_cdf(power)) * standard_error


__all__ = ["bootstrap_p_value", "holm", "mcnemar_mid_p", "smallest_detectable"]
