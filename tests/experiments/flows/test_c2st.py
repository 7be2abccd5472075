import math

import pytest
import torch

from dise_experiments.flows.c2st import c2st


def normal(n, mean=0.0, dim=2, seed=0):
    return mean + torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def test_samples_of_one_distribution_are_not_told_apart():
    assert c2st(normal(1000), normal(1000, seed=1), epochs=15) == pytest.approx(0.5, abs=0.04)


def test_the_accuracy_on_two_normal_distributions_is_bayess():
    shift = torch.tensor([2.0, 0.0])
    best = 0.5 * (1 + math.erf(1 / 2**0.5))  # the nearer mean, at distance 1 from the middle
    assert c2st(normal(2000), shift + normal(2000, seed=1), epochs=20) == pytest.approx(best, abs=0.025)


def test_a_difference_in_the_dependence_alone_is_found():
    x = normal(1500)
    dependent = torch.stack([x[:, 0], 0.95 * x[:, 0] + (1 - 0.95**2) ** 0.5 * x[:, 1]], 1)
    assert c2st(normal(1500, seed=1), dependent, epochs=40) > 0.7


def test_units_do_not_matter():
    x, y = normal(300), 0.5 + normal(300, seed=1)
    scale = torch.tensor([1000.0, 0.01])
    assert c2st(x * scale, y * scale, epochs=5) == pytest.approx(c2st(x, y, epochs=5), abs=0.02)


def test_a_coordinate_that_does_not_vary_is_harmless():
    x, y = normal(500), normal(500, seed=1)
    x[:, 1] = y[:, 1] = 3.0
    assert c2st(x, y, epochs=5) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize(("x", "y"), [((10, 2), (10, 3)), ((4, 2), (10, 2)), ((10,), (10, 2))])
def test_what_cannot_be_compared_is_refused(x, y):
    with pytest.raises(ValueError, match="x, y: expected samples"):
        c2st(torch.zeros(x), torch.zeros(y))


def test_samples_that_are_not_finite_are_refused():
    y = normal(10)
    y[3, 1] = torch.nan
    with pytest.raises(ValueError, match="finite"):
        c2st(normal(10), y)
