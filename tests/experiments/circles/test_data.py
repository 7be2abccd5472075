import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import ive

from dise_experiments.circles import data
from dise_experiments.circles.data import TARGETS

every_target = pytest.mark.parametrize("name", TARGETS)


def draw(name, n, seed=0):
    return TARGETS[name](n, torch.Generator().manual_seed(seed))


def assert_mean(values, expected, *, sigmas=4.0):
    """The mean of independent draws is the expected one."""
    error = values.std() / len(values) ** 0.5
    assert abs(values.mean() - expected) < sigmas * error


# ---- what all have in common


def test_names():
    assert list(TARGETS) == ["circles", "moons", "eight-gaussians", "pinwheel", "checkerboard"]


@every_target
@pytest.mark.parametrize("n", [0, 1, 7, 512])
def test_points_are_float32_pairs(name, n):
    x = draw(name, n)
    assert x.shape == (n, 2)
    assert x.dtype == torch.float32
    assert x.isfinite().all()


@every_target
def test_points_depend_on_the_generator_alone(name):
    before = torch.random.get_rng_state()
    generator = torch.Generator().manual_seed(1)
    first, second = TARGETS[name](100, generator), TARGETS[name](100, generator)
    assert torch.equal(draw(name, 100, seed=1), first)
    assert not torch.equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), before)


@every_target
def test_negative_numbers_are_refused(name):
    with pytest.raises(ValueError, match="n: expected 0 points or more, got -1"):
        draw(name, -1)


@every_target
def test_points_are_around_0_and_of_the_circles_size(name):
    x = draw(name, 20_000)
    assert (x.abs() < 1.5).all(1).float().mean() > 0.99
    for coordinate in x.T:
        assert_mean(coordinate, 0)
        assert 0.35 < coordinate.std() < 0.8


@every_target
def test_the_head_of_a_draw_is_like_the_whole(name):
    x = draw(name, 20_000)
    head, whole = x[:2000].square().sum(1), x.square().sum(1)
    assert_mean(head, whole.mean())


def test_single_points_have_the_targets_density_too():
    """An odd point is not always of the same circle."""
    generator = torch.Generator().manual_seed(0)
    outer = sum(int(TARGETS["circles"](1, generator).norm() > 0.75) for _ in range(400))
    assert abs(outer - 200) < 4 * (400 * 0.25) ** 0.5


# ---- circles: make_circles(noise=0.06, factor=0.5)


def circles_density(r):
    """Of a circle of radius R with normal noise σ: exp(−(r² + R²)/2σ²) I₀(rR/σ²) / 2πσ² (Rice); half of each."""
    variance = 0.06**2
    scaled = [np.exp(-((r - R) ** 2) / (2 * variance)) * ive(0, r * R / variance) for R in (1.0, 0.5)]
    return sum(scaled) / 2 / (2 * math.pi * variance)


def circles_entropy():
    def integrand(r):
        p = circles_density(r)
        return -2 * math.pi * r * p * np.log(p)

    return sum(quad(integrand, a, b)[0] for a, b in [(0.15, 0.5), (0.5, 0.75), (0.75, 1.0), (1.0, 1.4)])


def test_circles_have_the_entropy_of_make_circles():
    """0.788 nats, the floor of every flow's negative log-likelihood."""
    assert circles_entropy() == pytest.approx(0.788, abs=5e-4)
    radius = draw("circles", 20_000).double().norm(dim=1).numpy()
    assert_mean(-np.log(circles_density(radius)), circles_entropy())


def test_half_of_the_points_are_on_each_circle():
    x = draw("circles", 1000)
    assert (x.norm(dim=1) > 0.75).sum() == 500
    assert_mean(x.square().sum(1), (1 + 0.5**2) / 2 + 2 * 0.06**2)


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_angles_are_equally_spaced_on_each_circle(monkeypatch, n):
    monkeypatch.setattr(data, "NOISE", 0.0)
    x = draw("circles", n).double()
    outer = x.norm(dim=1) > 0.75
    assert int(outer.sum()) in (n // 2, n - n // 2)
    for circle in (x[outer], x[~outer]):
        angle = torch.atan2(circle[:, 1], circle[:, 0]).sort().values
        expected = torch.full((max(len(angle) - 1, 0),), 2 * math.pi / max(len(angle), 1), dtype=torch.float64)
        torch.testing.assert_close(angle.diff(), expected, rtol=0, atol=1e-5)


def test_each_circle_is_turned_at_random(monkeypatch):
    """The turn of 8 points is their angle up to an eighth."""
    monkeypatch.setattr(data, "NOISE", 0.0)
    generator, turns = torch.Generator().manual_seed(0), []
    for _ in range(400):
        x = data.circles(16, generator)
        outer = x.norm(dim=1) > 0.75
        turns.append(torch.stack([8 * torch.atan2(x[rows][0, 1], x[rows][0, 0]) for rows in (outer, ~outer)]))
    first, second = torch.stack(turns).T
    for angle in (first, second, first - second):
        assert_mean(angle.cos(), 0)
        assert_mean(angle.sin(), 0)


def test_points_of_circles_are_in_random_order():
    head = draw("circles", 20_000)[:2000]
    angle = torch.atan2(head[:, 1], head[:, 0])
    assert_mean(angle.cos(), 0)
    assert_mean(angle.sin(), 0)


def test_circles_have_no_preferred_angle():
    x = draw("circles", 20_000)
    angle = torch.atan2(x[:, 1], x[:, 0])
    for k in (1, 2, 3, 8):
        assert_mean((k * angle).cos(), 0)
        assert_mean((k * angle).sin(), 0)


# ---- moons: 0.8 · (make_moons(noise=0.1) − (1/2, 1/4))


def test_moments_of_moons():
    """The upper moon is (cos θ − 1/2, sin θ − 1/4), θ uniform on [0, π]; the lower one its negative."""
    x, y = draw("moons", 20_000).T
    noise = 0.1**2
    assert_mean(x.square() / 0.64, 1 / 2 + 1 / 4 + noise)
    assert_mean(y.square() / 0.64, 1 / 2 - 2 * (2 / math.pi) / 4 + 1 / 16 + noise)
    assert_mean(x * y / 0.64, -1 / 2 * (2 / math.pi) + 1 / 8)


def test_moons_are_two_half_circles():
    """Without the noise every point would be at distance 0.8 of one of the two centres, above or below it."""
    x = draw("moons", 5000) / 0.8
    upper, lower = x + torch.tensor([0.5, 0.25]), x - torch.tensor([0.5, 0.25])
    distances = [
        torch.where(sign * moon[:, 1] > -0.4, (moon.norm(dim=1) - 1).abs(), torch.inf)
        for sign, moon in ((1, upper), (-1, lower))
    ]
    assert torch.stack(distances).amin(0).max() < 0.5
    assert torch.stack(distances).amin(0).median() < 0.08


# ---- eight Gaussians


def test_eight_gaussians():
    x = draw("eight-gaussians", 16_000).double()
    angles = torch.arange(8, dtype=torch.float64) * math.pi / 4
    centres = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert_mean(x.square().sum(1), 1 + 2 * 0.125**2)
    squares = torch.cdist(x, centres).square()
    nearest = squares.argmin(1)
    counts = torch.bincount(nearest, minlength=8)
    assert (counts - 2000).abs().max() < 20  # a point in 500 is nearer to a neighbour's centre
    assert_mean(squares.amin(1), 2 * 0.125**2, sigmas=6)  # those make it a little smaller
    # the mixture's entropy: log 8 and a normal's, less what neighbours 6 σ apart overlap
    log_p = torch.logsumexp(-squares / (2 * 0.125**2), 1) - math.log(8 * 2 * math.pi * 0.125**2)
    assert -log_p.mean().item() == pytest.approx(math.log(8) + math.log(2 * math.pi * math.e * 0.125**2), abs=0.03)


# ---- pinwheel


def test_pinwheel_has_five_bent_arms():
    x = draw("pinwheel", 20_000).double()
    radius = x.norm(dim=1) / 0.75
    assert_mean(radius.square(), 1 + 0.3**2 + 0.1**2)
    # turned back by exp(r)/4, an arm is straight: 5 times its angle is 0 up to the noise across it
    straight = torch.atan2(x[:, 1], x[:, 0]) + radius.exp() / 4
    assert (5 * straight).cos().mean() > 0.8
    assert (5 * straight).sin().mean().abs() < 0.05
    # and there are five, equally filled
    arm = (straight / (2 * math.pi / 5)).round().long() % 5
    assert (torch.bincount(arm, minlength=5) - 4000).abs().max() < 100


# ---- checkerboard


def test_checkerboard_fills_every_other_cell_evenly():
    x = draw("checkerboard", 16_000)
    assert (x.abs() <= 1).all()
    cell = ((x + 1) * 2).floor().long().clamp(max=3)
    assert (cell.sum(1) % 2 == 0).all()
    counts = torch.bincount(4 * cell[:, 0] + cell[:, 1], minlength=16)
    assert sorted(counts.tolist()) == [0] * 8 + [2000] * 8
    # uniform within a cell of width 1/2
    within = (x + 1) * 2 % 1
    for coordinate in within.T:
        assert_mean(coordinate, 0.5)
        assert_mean(coordinate.square(), 1 / 3)
