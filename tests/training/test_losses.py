import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ham10000.training.data.loader import class_shares
from ham10000.training.data.split import class_weights
from ham10000.training.engine import ClassificationLoss, answered_prior, logit_offset

WEIGHTS = torch.tensor([4.3602, 2.7689, 1.3065, 12.3696, 1.2801, 0.2136, 9.9825])
PRIOR = np.array([261, 411, 871, 92, 889, 5328, 114]) / 7966


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cut_batches_sum_to_torch_cross_entropy_on_the_whole(label_smoothing: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(32, 7, generator=generator)
    labels = torch.randint(0, 7, (32,), generator=generator)
    loss = ClassificationLoss(WEIGHTS, label_smoothing=label_smoothing)
    parts = sum(loss(logits[start::5], labels[start::5]) for start in range(5))
    expected = F.cross_entropy(logits, labels, weight=WEIGHTS, label_smoothing=label_smoothing)
    torch.testing.assert_close(parts / loss.weight_sum(labels), expected)


@pytest.mark.parametrize("tau", [0.25, 0.5, 1.0])
def test_logit_adjustment_is_the_published_formula(tau: float) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(8, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 7, (8,), generator=generator)
    loss = ClassificationLoss(torch.ones(7), offset=logit_offset(PRIOR, tau))
    # Menon et al. 2021, equation 10: -log( pi_y^tau e^f_y / sum_c pi_c^tau e^f_c ).
    scores = PRIOR**tau * np.exp(logits.numpy())
    expected = -np.log(scores[np.arange(8), labels.numpy()] / scores.sum(axis=1)).sum()
    assert loss(logits, labels).item() == pytest.approx(expected, rel=1e-5)
    assert not logit_offset(np.array([0.0, 1.0]), 0.0).any()


@pytest.mark.parametrize(("sampling", "kind", "tau"), [("natural", "sqrt", 0.0), ("sqrt", "balanced", 0.5)])
def test_the_answered_prior_is_what_training_without_a_feature_ends_at(sampling: str, kind: str, tau: float) -> None:
    counts = np.array([26, 41, 88, 9, 89, 536, 11])
    drawn, weights = class_shares(counts, sampling), class_weights(counts, kind)
    loss = ClassificationLoss(torch.tensor(weights).float(), offset=logit_offset(drawn, tau))
    logits = torch.zeros(7, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe")

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        total = sum(loss(logits[None], torch.tensor([k])) * share for k, share in enumerate(drawn))
        total.backward()
        return total

    optimizer.step(step)
    found = answered_prior(drawn, weights, tau)
    np.testing.assert_allclose(logits.detach().softmax(-1).numpy(), found, atol=1e-4)
    assert found.max() > 2 * found.min()
