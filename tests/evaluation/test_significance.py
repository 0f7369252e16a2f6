"""The tests against published values, statsmodels, scipy, and error rates that are enumerated or simulated."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import NormalIndPower

from ham10000.modeling import Ham10000Error
from ham10000.training.evaluation.bootstrap import percentile_interval
from ham10000.training.evaluation.significance import bootstrap_p_value, holm, mcnemar_mid_p, smallest_detectable


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


@pytest.mark.parametrize("n_pairs", [20, 60, 120])
@pytest.mark.parametrize("discordant", [0.1, 0.3])
def test_mcnemar_keeps_its_level_and_is_less_timid_than_the_exact_test(n_pairs: int, discordant: float) -> None:
    """All outcomes under the null hypothesis, enumerated: the paper's finding over 9,595 scenarios."""
    level = exact_level = 0.0
    for total in range(n_pairs + 1):
        chance = stats.binom.pmf(total, n_pairs, discordant)
        for first in range(total + 1):
            outcome = chance * stats.binom.pmf(first, total, 0.5)
            level += outcome * (mcnemar_mid_p(first, total - first) <= 0.05)
            exact_level += outcome * (min(1, 2 * stats.binom.cdf(min(first, total - first), total, 0.5)) <= 0.05)
    assert exact_level < level <= 0.05
    if n_pairs * discordant >= 12:
        assert level > 0.03


def test_holm_is_that_of_statsmodels() -> None:
    generator = np.random.default_rng(0)
    # Few calls, for theirs collects garbage each time; a hundred values make up for it.
    for size in (1, 2, 5, 6, 100):
        values = np.round(generator.random(size) ** 3, 2)  # rounding makes ties
        expected = multipletests(values, method="holm")[1]
        np.testing.assert_allclose(holm(values.tolist()), expected, rtol=1e-12)
    assert holm([]) == []
    # Holm's steps by hand: 4 * 0.01; 3 * 0.011 is less, so it stays; 2 * 0.3; 1 * 0.9.
    assert holm([0.9, 0.011, 0.01, 0.3]) == pytest.approx([0.9, 0.04, 0.04, 0.6])
    for wrong in ([0.5, 1.2], [0.5, float("nan")]):
        with pytest.raises(Ham10000Error, match="number 1 is"):
            holm(wrong)


@pytest.mark.parametrize("n_real", [0, 2])
def test_holm_keeps_the_family_wise_error(n_real: int) -> None:
    """Five models against one: the tests share the one, which makes them dependent."""
    generator = np.random.default_rng(1)
    n, tests = 4000, 5
    effects = np.where(np.arange(tests) < n_real, 4.0, 0.0)
    z = (generator.normal(size=(n, tests)) - generator.normal(size=(n, 1))) / np.sqrt(2) + effects
    p_values = 2 * stats.norm.sf(np.abs(z))
    adjusted = np.array([holm(row) for row in p_values])
    false = (adjusted[:, n_real:] < 0.05).any(axis=1).sum()
    assert false <= stats.binom.ppf(0.999, n, 0.05)
    assert (p_values[:, n_real:] < 0.05).any(axis=1).sum() > stats.binom.ppf(0.999, n, 0.08)
    if n_real:
        bonferroni = (p_values[:, :n_real] * tests < 0.05).mean()
        assert bonferroni < (adjusted[:, :n_real] < 0.05).mean()


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


@pytest.mark.parametrize("z", [-3.0, -1.0, 0.2, 1.8, 2.3])
def test_bootstrap_p_value_of_a_normal_distribution(z: float) -> None:
    values = np.random.default_rng(2).normal(z, 1, size=200_000)
    expected = 2 * stats.norm.sf(abs(z))
    assert bootstrap_p_value(values) == pytest.approx(expected, abs=5 * np.sqrt(expected / 200_000))


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"standard_error": -0.1}, "standard_error.*-0.1"),
        ({"standard_error": float("nan")}, "standard_error.*nan"),
        ({"standard_error": 1.0, "power": 1.0}, "power.*1.0"),
        ({"standard_error": 1.0, "confidence": 95}, "confidence.*95"),
    ],
)
def test_nonsense_has_no_smallest_effect(arguments: dict, message: str) -> None:
    with pytest.raises(Ham10000Error, match=message):
        smallest_detectable(**arguments)
