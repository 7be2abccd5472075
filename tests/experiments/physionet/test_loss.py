from dataclasses import replace

import pytest
import torch
from torch.distributions import Normal
from torch.testing import assert_close

from dise_experiments.physionet.loss import latent_ode_loss, log_likelihood
from dise_experiments.physionet.model import Reconstruction
from dise_experiments.physionet.stays import Stays


@pytest.fixture
def stays(records):
    return Stays.of(records, noise=torch.zeros(3, 5, 20), kl_weight=0.5)


def test_log_likelihood_is_the_mean_over_measurements_then_variables_then_stays(stays):
    torch.manual_seed(0)
    values = stays.values + 0.02 * torch.randn(3, *stays.values.shape)
    density = Normal(values, 0.01).log_prob(stays.values.expand_as(values))
    expected = torch.zeros(3)
    for b in range(5):
        for a in range(41):
            seen = (stays.stay == b) & (stays.mask[:, a] > 0)
            if seen.any():
                expected += density[:, seen, a].mean(1) / 41 / 5
    assert_close(log_likelihood(values, stays), expected, rtol=1e-4, atol=1e-3)


def test_the_published_sum(stays):
    """−logsumexp over samples of (likelihood − weight·KL) + 100·(mean cross-entropy)/3."""
    torch.manual_seed(1)
    mean, deviation = torch.randn(5, 20), torch.rand(5, 20) + 0.1
    values, logits = stays.values + 0.01 * torch.randn(3, *stays.values.shape), torch.randn(3, 5)
    value, parts = latent_ode_loss(Reconstruction(mean, deviation, values, logits, None), stays)
    kl = (0.5 * (mean**2 + deviation**2 - 1) - deviation.log()).mean()
    p = logits.sigmoid()
    cross_entropy = -(stays.labels * p.log() + (1 - stays.labels) * (1 - p).log()).mean()
    bound = torch.logsumexp(log_likelihood(values, stays) - 0.5 * kl, 0)
    assert_close(value, 100 * cross_entropy / 3 - bound, rtol=1e-4, atol=1e-4)
    assert_close(parts["kl"], kl)
    assert_close(parts["cross_entropy"], cross_entropy)


def test_the_cross_entropy_alone(stays):
    """Neither reconstruction nor z(0)'s distribution matters, and nothing weighs it: λ is the paper's."""
    torch.manual_seed(2)
    logits, far = torch.randn(3, 5, requires_grad=True), torch.randn(3, *stays.values.shape, requires_grad=True)
    made = Reconstruction(torch.randn(5, 20), torch.rand(5, 20) + 0.1, far, logits, None)
    value, _ = latent_ode_loss(made, replace(stays, reconstructed=False))
    p = logits.sigmoid()
    assert_close(value, -(stays.labels * p.log() + (1 - stays.labels) * (1 - p).log()).mean())
    assert torch.autograd.grad(value, (logits, far), allow_unused=True)[1] is None
