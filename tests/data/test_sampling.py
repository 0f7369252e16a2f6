import numpy as np
import pytest

from ham10000.training.data.sampling import class_shares, epoch_order

COUNTS = np.array([262, 411, 879, 92, 890, 5364, 114])
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(7), COUNTS))


def test_natural_is_a_permutation() -> None:
    order = epoch_order(LABELS, "natural", np.random.default_rng(1))
    assert sorted(order) == list(range(len(LABELS)))


def test_square_root_shares_are_kang_et_al_equation_1() -> None:
    # p_j = n_j^q / sum_i n_i^q with q = 1/2.
    expected = [count**0.5 / sum(other**0.5 for other in COUNTS) for count in COUNTS]
    np.testing.assert_allclose(class_shares(COUNTS, "sqrt"), expected)
    order = epoch_order(LABELS, "sqrt", np.random.default_rng(1))
    assert len(order) == len(LABELS)
    np.testing.assert_allclose(np.bincount(LABELS[order]) / len(order), expected, atol=1 / len(order))


def test_a_class_is_drawn_as_evenly_as_its_share_allows() -> None:
    order = epoch_order(LABELS, "sqrt", np.random.default_rng(1))
    times = np.bincount(order, minlength=len(LABELS))
    for label in range(7):
        own = times[label == LABELS]
        assert own.max() - own.min() <= 1, label


@pytest.mark.parametrize("sampling", ["natural", "sqrt"])
def test_the_order_follows_the_generator(sampling: str) -> None:
    first, same, other = (epoch_order(LABELS, sampling, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def test_a_class_without_rows_is_no_error() -> None:
    assert sorted(epoch_order(np.array([0, 0, 5, 5]), "sqrt", np.random.default_rng(0))) == [0, 1, 2, 3]
