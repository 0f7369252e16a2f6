"""How often tests of differences and intervals err in simulated studies."""

import numpy as np
import pytest
from scipy import stats

from ham10000.training.evaluation.bootstrap import Bootstrap, percentile_interval
from ham10000.training.evaluation.comparison import bootstrap_p_value, mcnemar_mid_p, smallest_detectable


def test_bootstrap_p_value_agrees_with_the_interval() -> None:
    decisions = set()
    for shift in np.linspace(1, 3, 41):
        values = np.random.default_rng(3).normal(shift, 1, size=1999)
        low = percentile_interval(shift, values)["low"]
        if abs(low) > 0.02:  # a resample more or less on the bound may disagree
            assert (bootstrap_p_value(values) < 0.05) == (low > 0)
            decisions.add(low > 0)
    assert decisions == {True, False}


def simulated_answers(
    draws: np.random.Generator, lesions: int, size: int, *, gained: float, lost: float, alike: float, models: int = 1
) -> np.ndarray:
    """Answers (1 + models, N) where class 0 is right: one model right on 75 %, and others that gain and lose shares.

    The images of a lesion are all alike with probability `alike`, else independent.
    """
    together = draws.random(lesions) < alike

    def uniform() -> np.ndarray:
        own = draws.random((lesions, size))
        return np.where(together[:, None], own[:, :1], own).ravel()

    right = uniform() < 0.75
    others = [right ^ (uniform() < np.where(right, lost / 0.75, gained / 0.25)) for _ in range(models)]
    return 1 - np.stack([right, *others]).astype(int)


def p_values(answers: np.ndarray, lesions: np.ndarray, seed: int) -> tuple[list[float], float]:
    """Of each model against the first, and the smallest difference that the first comparison would have found."""
    bootstrap = Bootstrap(np.zeros(len(lesions), int), lesions, 1, 199, seed=seed)
    base, *others = (bootstrap.scores(row[None], ["accuracy"])["accuracy"] for row in answers)
    values = [(other - base).values for other in others]
    return [bootstrap_p_value(of_model) for of_model in values], smallest_detectable(float(values[0].std(ddof=1)))


def test_no_difference_is_found_at_most_at_the_level() -> None:
    """The images of a lesion are all alike: resampling images breaks the 5 %; lesions, and their family, keep it."""
    draws, n, lesions = np.random.default_rng(12), 100, np.repeat(np.arange(210), 3)
    false = dict.fromkeys(("one", "family", "mcnemar", "by images", "mcnemar by images"), 0)
    for repeat in range(n):
        answers = simulated_answers(draws, 210, 3, gained=0.08, lost=0.08, alike=1, models=3)
        p, _ = p_values(answers, lesions, repeat)
        false["one"] += p[0] < 0.05
        false["family"] += 3 * min(p) < 0.05  # the least of Holm's; statsmodels takes 0.1 s to adjust them
        false["by images"] += p_values(answers[:2], np.arange(630), repeat)[0][0] < 0.05
        for name, step in (("mcnemar", 3), ("mcnemar by images", 1)):
            base, model = answers[:2, ::step]
            false[name] += mcnemar_mid_p(int((model < base).sum()), int((model > base).sum())) < 0.05
    highest = stats.binom.ppf(0.999, n, 0.05)
    assert max(false["one"], false["family"], false["mcnemar"]) <= highest, false
    # Counting each lesion three times: 2 * P(z > 1.96 / sqrt(3)) = 26 % instead of 5.
    assert min(false["by images"], false["mcnemar by images"]) > highest, false


def test_the_smallest_detectable_difference_is_found_with_80_percent_power() -> None:
    """Lesions of two images, alike in 7 of 10: the design effect is 1.7."""
    draws, n, effect, discordant = np.random.default_rng(11), 100, 0.05, 0.12
    for _ in range(20):  # the effect that is the smallest detectable one of its own standard error
        effect = smallest_detectable(np.sqrt((discordant - effect**2) * 1.7 / 600))
    lesions, shares = np.repeat(np.arange(300), 2), ((discordant + effect) / 2, (discordant - effect) / 2)
    found, claimed = 0, []
    for repeat in range(n):
        answers = simulated_answers(draws, 300, 2, gained=shares[0], lost=shares[1], alike=0.7)
        (p,), smallest = p_values(answers, lesions, repeat)
        found += p < 0.05
        claimed.append(smallest)
    lowest, highest = stats.binom.interval(0.998, n, 0.8)
    assert lowest <= found <= highest
    assert np.mean(claimed) == pytest.approx(effect, rel=0.04)


def covers(summary, value: float) -> bool:
    return summary["low"] <= value <= summary["high"]


def test_an_interval_over_seeds_covers_a_recipe_whose_seeds_differ() -> None:
    """A seed's accuracy is 0.75 plus a normal effect; resampled lesions alone know nothing of it."""
    draws, n, covered, by_lesions = np.random.default_rng(6), 60, 0, 0
    labels = np.zeros(300, int)
    for repeat in range(n):
        accuracies = np.clip(0.75 + 0.1 * draws.normal(size=(5, 1)), 0.01, 0.99)
        difficulty = (draws.normal(size=300) + draws.normal(size=(5, 300))) / np.sqrt(2)
        answers = np.where(difficulty < stats.norm.ppf(accuracies), 0, 1)
        bootstrap = Bootstrap(labels, np.arange(300), 5, 150, seed=repeat)
        covered += covers(bootstrap.scores(answers, ["accuracy"])["accuracy"].summary(), 0.75)
        by_lesions += covers(bootstrap.means((answers == 0).mean(axis=0)[None])[0].summary(), 0.75)
    # Five seeds estimate their own spread too small, and percentiles know no t: 95 % is not promised.
    assert covered >= 0.75 * n
    assert by_lesions <= 0.68 * n
