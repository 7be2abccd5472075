"""L_task: the published loss of a Latent ODE, reconstruction and classification, or the cross-entropy alone.

Source: Rubanova, Chen, Duvenaud, 2019, and its code, with the same weights, averages and deviation of observations.
"""

import math

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from dise_experiments.common.shares import mean_over_processes
from dise_experiments.physionet.model import OBSERVED, Reconstruction
from dise_experiments.physionet.stays import Stays

DEVIATION = 0.01  # standard deviation of a scaled observation
CLASSIFICATION = 100.0  # weight of the cross-entropy


def latent_ode_loss(made: Reconstruction, x: Stays) -> tuple[Tensor, dict[str, Tensor]]:
    """−logsumexp over S samples of (log p(x|z) − w·KL) + 100·CE/S, or CE if nothing is reconstructed; and the parts."""
    # the bound is a function of means over the stays of the whole batch
    likelihood = mean_over_processes(log_likelihood(made.values, x))
    kl = mean_over_processes(kl_divergence(Normal(made.mean, made.deviation), Normal(0.0, 1.0)).mean())
    bound = torch.logsumexp(likelihood - x.kl_weight * kl, 0)
    labels = x.labels.expand_as(made.logits)
    cross_entropy = F.binary_cross_entropy_with_logits(made.logits, labels)
    parts = {"likelihood": likelihood.mean(), "kl": kl, "cross_entropy": cross_entropy}
    if not x.reconstructed:
        return cross_entropy, parts
    # as published: the mean over samples is divided by their number again
    return CLASSIFICATION * cross_entropy / len(made.logits) - bound, parts


def log_likelihood(values: Tensor, x: Stays) -> Tensor:
    """[S] log-density of the observations given values [S, M, 41].

    The mean over a stay's measurements of each variable, then over all 41 variables (0 for one
    without measurements), then over the stays.
    """
    counts = x.mask.new_zeros(len(x), OBSERVED).index_add_(0, x.stay, x.mask)
    weight = x.mask / counts.clamp(min=1)[x.stay] / (OBSERVED * len(x))
    squares = (weight * (values - x.values).square()).sum((1, 2))
    constant = math.log(DEVIATION * math.sqrt(2 * math.pi)) * weight.sum()
    return -squares / (2 * DEVIATION**2) - constant
