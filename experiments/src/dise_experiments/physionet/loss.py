"""The published loss of a Latent ODE that reconstructs and classifies.

Source: Rubanova, Chen, Duvenaud, 2019, and its code: weights, averages and the deviation of observations are as there.
"""

import math

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from dise_experiments.physionet.model import OBSERVED, Reconstruction
from dise_experiments.physionet.stays import Stays

DEVIATION = 0.01  # of a scaled observation
CLASSIFICATION = 100.0  # weight of the cross-entropy


def latent_ode_loss(made: Reconstruction, x: Stays) -> tuple[Tensor, dict[str, Tensor]]:
    """−logsumexp over S samples of (log p(x|z) − w·KL) + 100·CE/S, and its parts."""
    likelihood = log_likelihood(made.values, x)
    kl = kl_divergence(Normal(made.mean, made.deviation), Normal(0.0, 1.0)).mean()
    bound = torch.logsumexp(likelihood - x.kl_weight * kl, 0)
    labels = x.labels.expand_as(made.logits)
    cross_entropy = F.binary_cross_entropy_with_logits(made.logits, labels)
    parts = {"likelihood": likelihood.mean(), "kl": kl, "cross_entropy": cross_entropy}
    # as published: a mean over samples, divided by their number once more
    return CLASSIFICATION * cross_entropy / len(made.logits) - bound, parts


def log_likelihood(values: Tensor, x: Stays) -> Tensor:
    """[S] log-density of the observations given values [S, M, 41].

    The mean over a stay's measurements of each variable, then over all 41 (one never measured counts 0), then over
    the stays.
    """
    counts = x.mask.new_zeros(len(x), OBSERVED).index_add_(0, x.stay, x.mask)
    weight = x.mask / counts.clamp(min=1)[x.stay] / (OBSERVED * len(x))
    squares = (weight * (values - x.values).square()).sum((1, 2))
    constant = math.log(DEVIATION * math.sqrt(2 * math.pi)) * weight.sum()
    return -squares / (2 * DEVIATION**2) - constant
