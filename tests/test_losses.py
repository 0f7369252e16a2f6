import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ham10000.training.losses import ClassificationLoss

WEIGHTS = torch.tensor([4.3602, 2.7689, 1.3065, 12.3696, 1.2801, 0.2136, 9.9825])


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cut_batches_sum_to_torch_cross_entropy_on_the_whole(label_smoothing: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(32, 7, generator=generator)
    labels = torch.randint(0, 7, (32,), generator=generator)
    loss = ClassificationLoss(WEIGHTS, label_smoothing=label_smoothing)
    parts = sum(loss(logits[start::5], labels[start::5]) for start in range(5))
    expected = F.cross_entropy(logits, labels, weight=WEIGHTS, label_smoothing=label_smoothing)
    torch.testing.assert_close(parts / loss.weight_sum(labels), expected)


def test_logit_adjustment_is_the_published_formula() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(8, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 7, (8,), generator=generator)
    prior = np.array([261, 411, 871, 92, 889, 5328, 114]) / 7966
    tau = 0.5
    loss = ClassificationLoss(torch.ones(7), log_prior=torch.tensor(np.log(prior)).float(), logit_adjustment=tau)
    # Menon et al. 2021, equation 10: -log( pi_y^tau e^f_y / sum_c pi_c^tau e^f_c ).
    scores = prior**tau * np.exp(logits.numpy())
    expected = -np.log(scores[np.arange(8), labels.numpy()] / scores.sum(axis=1)).sum()
    assert loss(logits, labels).item() == pytest.approx(expected, rel=1e-5)


def test_logit_adjustment_needs_the_prior() -> None:
    with pytest.raises(ValueError, match="log_prior"):
        ClassificationLoss(WEIGHTS, logit_adjustment=1.0)
