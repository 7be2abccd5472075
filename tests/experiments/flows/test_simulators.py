import math

import pytest
import torch

from dise_experiments.common.errors import DataError
from dise_experiments.flows.simulators.reference import observation, reference_posterior
from dise_experiments.flows.simulators.slcp import SLCP
from dise_experiments.flows.simulators.tasks import SIMULATORS
from dise_experiments.flows.simulators.two_moons import TWO_MOONS

N = 20_000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", SIMULATORS)
def test_standardized_parameters_have_mean_0_and_variance_1(name):
    simulator = SIMULATORS[name]
    theta = simulator.standardized(simulator.prior.draw(N, generator()))
    assert simulator.data == len(observation(name, 1))
    assert theta.mean(0).abs().max() < 5 / N**0.5
    assert (theta.std(0) - 1).abs().max() < 15 / N**0.5  # log-normal priors have large fourth moments


@pytest.mark.parametrize("name", SIMULATORS)
def test_data_depend_on_the_generator_alone(name):
    first, second, third = (SIMULATORS[name].joint(5, generator(seed))[1] for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def crescent(theta, x):
    """Radius and cosine of the angle of the point on the half circle that makes x of θ."""
    centre = torch.stack([0.25 - theta.sum(1).abs() / math.sqrt(2), (theta[:, 1] - theta[:, 0]) / math.sqrt(2)], dim=1)
    radius = (x - centre).norm(dim=1)
    return radius, (x - centre)[:, 0] / radius


def test_two_moons_lie_on_a_half_circle():
    theta = TWO_MOONS.prior.draw(N, generator())
    radius, cosine = crescent(theta, TWO_MOONS.simulate(theta, generator(1)))
    assert radius.mean() == pytest.approx(0.1, abs=5e-4)
    assert radius.std() == pytest.approx(0.01, abs=5e-4)
    assert (cosine > -1e-4).all()
    assert cosine.mean() == pytest.approx(2 / math.pi, abs=0.01)  # of angles uniform on a half circle


@pytest.mark.parametrize("index", [1, 7])
def test_reference_posterior_of_two_moons_fits_the_simulator(index, reference):
    # the prior is uniform, so θ and x differ by a point of the half circle, whose density does not depend on θ
    theta = reference("two_moons", index)
    radius, cosine = crescent(theta, observation("two_moons", index))
    assert theta.shape == (10_000, 2)
    assert radius.mean() == pytest.approx(0.1, abs=2e-3)
    assert radius.std() == pytest.approx(0.01, abs=2e-3)
    assert (cosine > -0.05).all()


def test_slcp_has_the_moments_of_its_normal_distribution():
    theta = torch.tensor([0.5, -1.0, 1.2, -0.7, 0.6])
    points = SLCP.simulate(theta.expand(N, 5), generator()).reshape(-1, 2)
    first, second, correlation = 1.2**2, 0.7**2, math.tanh(0.6)
    expected = torch.tensor([[first**2, correlation * first * second], [correlation * first * second, second**2]])
    torch.testing.assert_close(points.mean(0), theta[:2], rtol=0, atol=0.03)
    torch.testing.assert_close(points.T.cov(), expected, rtol=0.03, atol=0)


def test_slcp_draws_four_different_points():
    x = SLCP.simulate(torch.tensor([[0.5, -1.0, 1.2, -0.7, 0.6]]).expand(N, 5), generator())
    across = x[:, :2].T @ x[:, 2:4] / N - torch.outer(x[:, :2].mean(0), x[:, 2:4].mean(0))
    assert across.abs().max() < 0.06


def test_slcp_without_spread_is_its_mean():
    x = SLCP.simulate(torch.tensor([[1.0, 2.0, 0.0, 0.0, 3.0]]), generator())
    torch.testing.assert_close(x.reshape(4, 2), torch.tensor([1.0, 2.0]).expand(4, 2), rtol=0, atol=0.01)


def test_reference_posterior_of_slcp_fits_the_simulator(reference):
    theta = reference("slcp", 1)
    x = SLCP.simulate(theta, generator())
    observed = observation("slcp", 1)
    # the observation lies well within the posterior's predictions
    rank = (x < observed).float().mean(0)
    assert ((rank > 0.02) & (rank < 0.98)).all()


@pytest.mark.parametrize(
    ("task", "index", "name"), [("three_moons", 1, "task"), ("slcp", 0, "index"), ("slcp", 11, "index")]
)
def test_unknown_observations_are_refused(task, index, name):
    with pytest.raises(ValueError, match=name):
        observation(task, index)


def test_missing_reference_posteriors_are_reported(tmp_path):
    with pytest.raises(DataError, match="two_moons"):
        reference_posterior("two_moons", 1, tmp_path)
