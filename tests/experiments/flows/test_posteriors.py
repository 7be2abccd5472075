import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm
from torch.testing import assert_close

from dise_experiments.common.errors import DataError
from dise_experiments.flows.c2st import c2st
from dise_experiments.flows.simulators import posteriors
from dise_experiments.flows.simulators.posteriors import posterior
from dise_experiments.flows.simulators.reference import observation

N = 20_000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_gaussian_linears_posterior_is_conjugate():
    theta = posterior("gaussian_linear", 2, N, generator())
    expected = norm(observation("gaussian_linear", 2)[4] / 2, 0.05**0.5)
    assert theta.shape == (N, 10)
    assert kstest(theta[:, 4].numpy(), expected.cdf).pvalue > 0.01
    assert_close(theta.T.corrcoef(), torch.eye(10), rtol=0, atol=0.04)


def test_gaussian_mixtures_posterior_is_half_wide_and_half_narrow():
    # far from the prior's bounds
    distance = posterior("gaussian_mixture", 6, N, generator()) - observation("gaussian_mixture", 6)

    def both(x):
        return 0.5 * norm(0, 1.0).cdf(x) + 0.5 * norm(0, 0.1).cdf(x)

    assert kstest(distance[:, 0].numpy(), both).pvalue > 0.01


def test_the_priors_bounds_cut_a_posterior():
    theta = posteriors.gaussian_mixture(torch.tensor([9.9, 0.0]), N, generator())
    assert theta.shape == (N, 2)
    assert theta.abs().max() <= 10
    whole = norm(0, 0.1).cdf(0.1) + norm(0, 1.0).cdf(0.1)

    def both(x):
        return np.minimum(norm(9.9, 0.1).cdf(x) + norm(9.9, 1.0).cdf(x), whole) / whole

    assert kstest(theta[:, 0].numpy(), both).pvalue > 0.01


@pytest.mark.parametrize("task", ["gaussian_linear", "gaussian_mixture"])
def test_closed_forms_are_the_benchmarks(task, reference):
    # two standardized coordinates, so that few epochs suffice
    ours, theirs = posterior(task, 5, 2000, generator()), reference(task, 5)[:2000]
    assert c2st(theirs[:, :2], ours[:, :2], epochs=15) == pytest.approx(0.5, abs=0.04)


def test_other_posteriors_are_the_benchmarks(data_dir):
    drawn = posterior("slcp", 1, 100, generator(), data_dir)
    again = posterior("slcp", 1, 100, generator(), data_dir)
    assert drawn.shape == (100, 5)
    assert torch.equal(drawn, again)


def test_a_posterior_without_closed_form_needs_data(tmp_path):
    with pytest.raises(DataError, match="slcp"):
        posterior("slcp", 1, 100, generator(), tmp_path)


def test_unknown_tasks_are_refused(tmp_path):
    with pytest.raises(DataError, match="three_moons"):
        posterior("three_moons", 1, 100, generator(), tmp_path)
