"""P-values and detectable effects against published values, statsmodels and scipy."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.power import NormalIndPower

from ham10000.modeling import Ham10000Error
from ham10000.training.evaluation.bootstrap import percentile_interval
from ham10000.training.evaluation.comparison import bootstrap_p_value, holm, mcnemar_mid_p, smallest_detectable


@pytest.mark.parametrize(("counts", "published"), [((1, 7), 0.0391), ((6, 16), 0.0347)], ids=["Bentur", "Cavo"])
def test_mcnemar_gives_the_published_values(counts: tuple[int, int], published: float) -> None:
    """Tables of Fagerland, Lydersen & Laake 2013: bronchial hyper-responsiveness, response to consolidation."""
    assert mcnemar_mid_p(*counts) == pytest.approx(published, abs=5e-5)
    assert mcnemar_mid_p(*counts[::-1]) == mcnemar_mid_p(*counts)


def test_mcnemar_follows_the_definition_and_statsmodels() -> None:
    for first, second in [(0, 1), (0, 9), (3, 3), (4, 5), (17, 30), (1, 1), (400, 480), (1200, 1200), (3000, 900)]:
        total = first + second
        outcomes = np.arange(total + 1)
        gaps, probabilities = np.abs(2 * outcomes - total), stats.binom.pmf(outcomes, total, 0.5)
        observed = abs(first - second)
        by_definition = probabilities[gaps > observed].sum() + 0.5 * probabilities[gaps == observed].sum()
        assert mcnemar_mid_p(first, second) == pytest.approx(by_definition, rel=1e-9), (first, second)
        if first != second:
            exact = mcnemar([[0, first], [second, 0]], exact=True).pvalue
            assert mcnemar_mid_p(first, second) == pytest.approx(exact - stats.binom.pmf(first, total, 0.5), rel=1e-9)


def test_mcnemar_of_models_that_never_differ_and_of_nonsense() -> None:
    assert mcnemar_mid_p(0, 0) == 1
    with pytest.raises(Ham10000Error, match="3 and -1"):
        mcnemar_mid_p(3, -1)


def test_holm_by_hand() -> None:
    """Holm's steps: 4 * 0.01; 3 * 0.011 is less, so it stays; 2 * 0.3; 1 * 0.9."""
    assert holm([0.9, 0.011, 0.01, 0.3]) == pytest.approx([0.9, 0.04, 0.04, 0.6])
    assert holm([]) == []
    for wrong in ([0.5, 1.2], [0.5, float("nan")]):
        with pytest.raises(Ham10000Error, match="number 1 is"):
            holm(wrong)


def test_bootstrap_p_value_by_hand() -> None:
    assert bootstrap_p_value(np.full(99, 0.3)) == pytest.approx(2 / 100)  # never 0: one more resample is counted
    assert bootstrap_p_value(np.array([-1.0] * 4 + [1.0] * 95)) == pytest.approx(2 * 5 / 100)
    assert bootstrap_p_value(np.array([1.0] * 4 + [-1.0] * 95)) == pytest.approx(2 * 5 / 100)
    # Ties count on both sides: 3 resamples at 0 are 3 that do not favour the model.
    assert bootstrap_p_value(np.array([0.0] * 3 + [1.0] * 96)) == pytest.approx(2 * 4 / 100)
    assert bootstrap_p_value(np.zeros(500)) == 1
    assert bootstrap_p_value(np.array([np.nan] * 50 + [1.0] * 99)) == pytest.approx(2 / 100)
    with pytest.raises(Ham10000Error, match="undefined in every resample"):
        bootstrap_p_value(np.array([np.nan]))


def test_bootstrap_p_value_agrees_with_the_interval() -> None:
    generator = np.random.default_rng(3)
    decisions = []
    for shift in np.linspace(1, 3, 41):
        values = generator.normal(shift, 1, size=1999)
        interval = percentile_interval(shift, values, 0.95)
        assert interval.low is not None
        # A resample more or less on the bound is allowed to disagree.
        if abs(interval.low) > 0.02:
            decisions.append(interval.low > 0)
            assert (bootstrap_p_value(values) < 0.05) == decisions[-1]
    assert set(decisions) == {True, False}


@pytest.mark.parametrize(("n", "confidence", "power"), [(100, 0.95, 0.8), (400, 0.99, 0.9), (25, 0.9, 0.5)])
def test_smallest_detectable_is_that_of_statsmodels(n: int, confidence: float, power: float) -> None:
    expected = NormalIndPower(ddof=0).solve_power(
        nobs1=n, alpha=1 - confidence, power=power, ratio=0, alternative="two-sided"
    )
    ours = smallest_detectable(n**-0.5, confidence=confidence, power=power)
    # Theirs counts the wrong tail, too: a power of 50 % at level 10 % has 0.05 % of it there.
    assert ours == pytest.approx(expected, rel=2e-3)
    assert smallest_detectable(1.0) == pytest.approx(2.8016, abs=1e-4)
