import numpy as np
import pytest
import torch
from scipy import stats
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy

from ham10000.training.data.mixing import mix_batch
from ham10000.training.losses import ClassificationLoss

LABELS = torch.tensor([0, 5, 4, 1, 5, 6])


@pytest.fixture
def pictures() -> torch.Tensor:
    return torch.randn(6, 3, 20, 28, generator=torch.Generator().manual_seed(0))


def share_of(targets) -> float:
    assert len(targets) == 2
    assert targets[0][1] + targets[1][1] == pytest.approx(1)
    return targets[0][1]


def test_off_changes_nothing(pictures) -> None:
    mixed, targets = mix_batch(pictures, LABELS, mixup=0, cutmix=0, seed=0)
    assert mixed is pictures
    assert targets == [(LABELS, 1.0)]


@pytest.mark.parametrize("seed", range(5))
def test_mixup_is_the_published_formula(pictures, seed: int) -> None:
    mixed, targets = mix_batch(pictures, LABELS, mixup=0.4, cutmix=0, seed=seed)
    share = share_of(targets)
    assert 0.5 <= share <= 1
    torch.testing.assert_close(mixed, share * pictures + (1 - share) * pictures.flip(0))


@pytest.mark.parametrize("seed", range(20))
def test_cutmix_pastes_one_box_and_its_share_is_the_area_kept(pictures, seed: int) -> None:
    mixed, targets = mix_batch(pictures, LABELS, mixup=0, cutmix=1.0, seed=seed)
    kept = (mixed == pictures).all(dim=(0, 1))  # (20, 28)
    assert torch.equal(mixed[:, :, ~kept], pictures.flip(0)[:, :, ~kept])
    assert share_of(targets) == pytest.approx(kept.float().mean().item())
    if not kept.all():
        rows, columns = np.nonzero(~kept.numpy())
        assert (~kept).sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1), "not a box"


def test_shares_follow_the_beta_distribution(pictures) -> None:
    alpha = 0.4
    shares = [share_of(mix_batch(pictures, LABELS, mixup=alpha, cutmix=0, seed=seed)[1]) for seed in range(2000)]
    # max(s, 1 - s) of s ~ Beta(a, a) lies above x with twice the upper tail.
    expected = stats.beta(alpha, alpha)
    assert stats.kstest(shares, lambda share: 2 * expected.cdf(share) - 1).pvalue > 0.01


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_loss_of_mixed_targets_equals_timms_soft_target_loss(pictures, label_smoothing: float) -> None:
    _, targets = mix_batch(pictures, LABELS, mixup=0.4, cutmix=0, seed=3)
    logits = torch.randn(6, 7, generator=torch.Generator().manual_seed(1))
    loss = ClassificationLoss(torch.ones(7), label_smoothing=label_smoothing)
    ours = sum(share * loss(logits, labels) for labels, share in targets) / len(LABELS)
    theirs = SoftTargetCrossEntropy()(logits, mixup_target(LABELS, 7, share_of(targets), label_smoothing))
    torch.testing.assert_close(ours, theirs)


def test_both_take_turns_and_the_seed_decides(pictures) -> None:
    kinds = []
    for seed in range(200):
        mixed, _ = mix_batch(pictures, LABELS, mixup=1.0, cutmix=1.0, seed=seed)
        again, _ = mix_batch(pictures, LABELS, mixup=1.0, cutmix=1.0, seed=seed)
        assert torch.equal(mixed, again)
        kinds.append(bool((mixed == pictures).any()))
    assert 70 < sum(kinds) < 130
