"""The simulators beside two_moons and slcp, against closed forms, SciPy and the benchmark's reference posteriors."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.stats import truncnorm
from torch.testing import assert_close

from dise_experiments.flows.simulators import bernoulli_glm, lotka_volterra, sir
from dise_experiments.flows.simulators.gaussian_linear import GAUSSIAN_LINEAR
from dise_experiments.flows.simulators.gaussian_mixture import GAUSSIAN_MIXTURE
from dise_experiments.flows.simulators.reference import observation
from dise_experiments.flows.simulators.tasks import SIMULATORS

N = 20_000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_gaussian_linear_is_normal_around_its_parameters():
    theta = torch.linspace(-1, 1, 10)
    noise = GAUSSIAN_LINEAR.simulate(theta.expand(N, 10), generator()) - theta
    assert_close(noise.mean(0), torch.zeros(10), rtol=0, atol=0.01)
    assert_close(noise.T.cov(), 0.1 * torch.eye(10), rtol=0, atol=0.006)


def test_gaussian_linears_posterior_is_the_closed_form(reference):
    theta = reference("gaussian_linear", 3)
    assert_close(theta.mean(0), observation("gaussian_linear", 3) / 2, rtol=0, atol=0.01)
    assert_close(theta.var(0), torch.full((10,), 0.05), rtol=0, atol=0.004)


def test_gaussian_linear_uniforms_posterior_is_truncated(reference):
    theta, x = reference("gaussian_linear_uniform", 3), observation("gaussian_linear_uniform", 3)
    deviation = 0.1**0.5
    expected = truncnorm.mean((-1 - x) / deviation, (1 - x) / deviation, loc=x, scale=deviation)
    assert_close(theta.mean(0), torch.as_tensor(expected, dtype=torch.float32), rtol=0, atol=0.02)


def test_half_of_a_gaussian_mixture_is_narrow():
    noise = GAUSSIAN_MIXTURE.simulate(torch.full((N, 2), 3.0), generator()) - 3
    assert_close(noise.var(0), torch.full((2,), (1 + 0.01) / 2), rtol=0.05, atol=0)
    fourth = 3 * (1 + 1e-4) / 2  # of a mixture of normal distributions of variance 1 and 0.01
    assert_close(noise.pow(4).mean(0), torch.full((2,), fourth), rtol=0.12, atol=0)
    # both coordinates have the same component: within 0.3 for nearly all narrow ones and few wide ones
    narrow = (noise.abs() < 0.3).all(1).float().mean()
    assert narrow == pytest.approx(0.5 * math.erf(3 / 2**0.5) ** 2 + 0.5 * math.erf(0.3 / 2**0.5) ** 2, abs=0.015)


def test_gaussian_mixtures_posterior_is_the_mixture_around_the_observation(reference):
    # far from the prior's ends
    distance = reference("gaussian_mixture", 6) - observation("gaussian_mixture", 6)
    assert_close(distance.var(0), torch.full((2,), (1 + 0.01) / 2), rtol=0.09, atol=0)


def test_bernoullis_statistics_have_the_moments_of_independent_spikes():
    V = bernoulli_glm.design_matrix()
    theta = 0.3 * torch.randn(10, generator=generator())
    x = bernoulli_glm.simulate(theta.expand(N, 10), generator(1))
    rate = (V @ theta).sigmoid()
    covariance = V.T @ torch.diag(rate * (1 - rate)) @ V
    scale = covariance.diag().sqrt()
    assert ((x.mean(0) - V.T @ rate) / scale).abs().max() < 5 / N**0.5
    assert_close(x.T.cov() / torch.outer(scale, scale), covariance / torch.outer(scale, scale), rtol=0, atol=0.05)


def test_bernoullis_design_matrix_is_the_benchmarks(data_dir):
    stored = np.loadtxt(data_dir / "sbibm" / "bernoulli_glm" / "design_matrix.csv", delimiter=",", dtype=np.float32)
    assert_close(bernoulli_glm.design_matrix(), torch.from_numpy(stored))
    file = data_dir / "sbibm" / "bernoulli_glm" / "num_observation_1" / "observation_raw.csv"
    spikes = np.loadtxt(file, delimiter=",", skiprows=1, dtype=np.float32)
    assert_close(torch.from_numpy(spikes @ stored), observation("bernoulli_glm", 1), atol=1e-4, rtol=0)


def test_bernoullis_prior_has_the_precision_of_second_differences():
    draws = bernoulli_glm.prior().draw(200_000, generator()).double()
    F = np.diag(np.ones(9)) - np.diag(np.ones(8), -1)
    F = F @ F + np.diag(np.sqrt(np.arange(9) / 9))
    assert draws[:, 0].var() == pytest.approx(2.0, rel=0.03)
    whitened = draws[:, 1:] @ torch.from_numpy(F).T
    assert_close(whitened.T.cov(), torch.eye(9, dtype=torch.float64), rtol=0, atol=0.02)


def test_epidemics_are_those_of_scipy():
    theta = torch.tensor([[0.6, 0.19], [0.2, 0.15], [0.4, 0.6]])
    ours = sir.infected(theta)

    def spread(t, y, beta, gamma):
        new = beta * y[0] * y[1] / 1e6
        return [-new, new - gamma * y[1]]

    for row, (beta, gamma) in zip(ours, theta.tolist(), strict=True):
        solution = solve_ivp(
            spread, (0, 160), [1e6 - 1, 1.0], "DOP853", sir.OBSERVED_DAYS, args=(beta, gamma), rtol=1e-10, atol=1e-8
        )
        np.testing.assert_allclose(row, solution.y[1] / 1e6, rtol=1e-3, atol=1e-8)


def test_tests_of_an_epidemic_are_binomial():
    theta = torch.tensor([[0.6, 0.19]]).expand(2000, 2)
    share, x = sir.infected(theta[:1])[0], sir.simulate(theta, generator())
    error = (1000 * share * (1 - share) / 2000).sqrt()
    assert ((x.mean(0) - 1000 * share).abs() <= 5 * error + 1e-3).all()
    assert ((x >= 0) & (x <= 1000) & (x == x.round())).all()


def test_populations_are_those_of_scipy():
    theta = torch.tensor([[0.7, 0.05, 0.6, 0.03], [1.5, 0.02, 0.9, 0.1]])
    ours = lotka_volterra.log_populations(theta).exp()

    def growth(t, y, alpha, beta, gamma, delta):
        return [alpha * y[0] - beta * y[0] * y[1], -gamma * y[1] + delta * y[0] * y[1]]

    for row, parameters in zip(ours, theta.tolist(), strict=True):
        solution = solve_ivp(
            growth, (0, 20), [30.0, 1.0], "DOP853", lotka_volterra.OBSERVED, args=parameters, rtol=1e-10, atol=1e-10
        )
        np.testing.assert_allclose(row.T, solution.y, rtol=2e-3, atol=1e-6)


def test_observed_populations_have_log_normal_noise():
    theta = torch.tensor([[0.7, 0.05, 0.6, 0.03]])
    noise = lotka_volterra.simulate(theta.expand(1000, 4), generator()).log()
    noise = noise - lotka_volterra.log_populations(theta).transpose(1, 2).flatten(1)
    assert_close(noise.mean(0), torch.zeros(20), rtol=0, atol=5 * 0.1 / 1000**0.5)
    assert_close(noise.std(0), torch.full((20,), 0.1), rtol=0.12, atol=0)


def test_populations_of_all_tasks_are_finite():
    for simulator in SIMULATORS.values():
        theta, x = simulator.joint(300, generator(5))
        assert theta.isfinite().all()
        assert x.isfinite().all()
        assert x.shape == (300, simulator.data)
        assert theta.dtype == x.dtype == torch.float32
