"""How often tests of differences and intervals err in simulated studies."""

import numpy as np
from scipy import stats

from ham10000.training.evaluation.bootstrap import Bootstrap
from ham10000.training.evaluation.comparison import bootstrap_p_value


def p_values(answers: np.ndarray, lesions: np.ndarray, seed: int) -> list[float]:
    """Of each model against the first."""
    bootstrap = Bootstrap(np.zeros(len(lesions), int), lesions, 1, 199, seed=seed)
    base, *others = (bootstrap.scores(row[None], ["accuracy"])["accuracy"] for row in answers)
    return [bootstrap_p_value((other - base).values) for other in others]


def test_no_difference_is_found_at_most_at_the_level() -> None:
    """The images of a lesion are all alike: resampling images breaks the 5 %; lesions, and their family, keep it."""
    draws, n, lesions = np.random.default_rng(12), 100, np.repeat(np.arange(210), 3)
    false = dict.fromkeys(("one", "family", "by images"), 0)
    for repeat in range(n):
        # Class 0 is right: one model answers it for 75 % of the lesions, and the others gain and lose 8 %.
        right = draws.random(210) < 0.75
        others = [right ^ (draws.random(210) < np.where(right, 0.08 / 0.75, 0.08 / 0.25)) for _ in range(3)]
        answers = 1 - np.repeat([right, *others], 3, axis=1).astype(int)
        p = p_values(answers, lesions, repeat)
        false["one"] += p[0] < 0.05
        false["family"] += 3 * min(p) < 0.05  # the least of Holm's; statsmodels takes 0.1 s to adjust them
        false["by images"] += p_values(answers[:2], np.arange(630), repeat)[0] < 0.05
    highest = stats.binom.ppf(0.999, n, 0.05)
    assert max(false["one"], false["family"]) <= highest, false
    # Counting each lesion three times: 2 * P(z > 1.96 / sqrt(3)) = 26 % instead of 5.
    assert false["by images"] > highest, false


def test_an_interval_over_seeds_covers_a_recipe_whose_seeds_differ() -> None:
    """A seed's accuracy is 0.75 plus a normal effect; resampled lesions alone know nothing of it."""
    draws, n, covered, by_lesions = np.random.default_rng(6), 60, 0, 0
    labels = np.zeros(300, int)
    for repeat in range(n):
        accuracies = np.clip(0.75 + 0.1 * draws.normal(size=(5, 1)), 0.01, 0.99)
        difficulty = (draws.normal(size=300) + draws.normal(size=(5, 300))) / np.sqrt(2)
        answers = np.where(difficulty < stats.norm.ppf(accuracies), 0, 1)
        bootstrap = Bootstrap(labels, np.arange(300), 5, 150, seed=repeat)
        found = bootstrap.scores(answers, ["accuracy"])["accuracy"].interval()
        covered += found["low"] <= 0.75 <= found["high"]
        found = bootstrap.means((answers == 0).mean(axis=0)[None])[0].interval()
        by_lesions += found["low"] <= 0.75 <= found["high"]
    # Five seeds estimate their own spread too small, and percentiles know no t: 95 % is not promised.
    assert covered >= 0.75 * n
    assert by_lesions <= 0.68 * n
