"""DETEST: the 25 problems of Hull, Enright, Fellen, Sedgwick, Comparing numerical methods for ordinary differential
equations, SIAM J. Numer. Anal. 9, 1972, each on [0, 20], beside SciPy's DOP853."""

import math
from functools import lru_cache

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from dise import Bosh3, Dopri5, Dopri8, PIController, Tsit5, solve

END = 20.0


def columns(f):
    """f(t, y₁, y₂, …) → (y₁′, y₂′, …) as a field on rows."""
    return lambda t, y: torch.stack(torch.broadcast_tensors(*f(t[:, 0], *y.unbind(1))), 1)


def linear(matrix):
    return lambda t, y: y @ torch.as_tensor(matrix, dtype=y.dtype).T


def chain(rates):
    """Decay from each species to the next; the last is stable."""
    matrix = np.diag([*(-rate for rate in rates), 0.0])
    return linear(matrix + np.diag(rates, -1))


def diffusion(size):
    return linear(np.diag([-2.0] * size) + np.diag([1.0] * (size - 1), 1) + np.diag([1.0] * (size - 1), -1))


def first(size):
    """1 for the first of `size` components, 0 for the others."""
    return [1.0] + [0.0] * (size - 1)


# ---- C5: five outer planets; masses in the sun's, its own with the inner planets', distances in astronomical units

GRAVITY, SUN = 2.95912208286, 1.00000597682
MASSES = [0.000954786104043, 0.000285583733151, 0.0000437273164546, 0.0000517759138449, 0.00000277777777778]
POSITIONS = [
    (3.42947415189, 3.35386959711, 1.35494901715),
    (6.64145542550, 5.97156957878, 2.18231499728),
    (11.2630437207, 14.6952576794, 6.27960525067),
    (-30.1552268759, 1.65699966404, 1.43785752721),
    (-21.1238353380, 28.4465098142, 15.3882659679),
]
VELOCITIES = [
    (-0.557160570446, 0.505696783289, 0.230578543901),
    (-0.415570776342, 0.365682722812, 0.169143213293),
    (-0.325325669158, 0.189706021964, 0.087726532278),
    (-0.024047625417, -0.287659532608, -0.117219543175),
    (-0.176860753121, -0.216393453025, -0.014864789309),
]


def five_bodies(t, y):
    position, velocity = y.view(-1, 2, 5, 3).unbind(1)
    mass = torch.tensor(MASSES, dtype=y.dtype)[:, None]
    pull = position / position.norm(dim=2, keepdim=True) ** 3  # towards the sun
    apart = position[:, None] - position[:, :, None]  # [n, j, k, 3] from planet j to k
    cubed = apart.norm(dim=3, keepdim=True) ** 3 + torch.eye(5, dtype=y.dtype)[:, :, None]  # of itself 0 / 1
    others = mass * (apart / cubed - pull[:, None])
    others = others.sum(2) + mass * pull  # but for the planet itself
    return torch.stack([velocity, GRAVITY * (others - (SUN + mass) * pull)], 1).flatten(1)


# ---- D: two bodies; the eccentricity is the problem's


def orbit(t, y):
    return torch.cat([y[:, 2:], -y[:, :2] / y[:, :2].norm(dim=1, keepdim=True) ** 3], 1)


def ellipse(eccentricity):
    return [1 - eccentricity, 0.0, 0.0, math.sqrt((1 + eccentricity) / (1 - eccentricity))]


def torus(t, a, b, c):
    r = (a**2 + b**2).sqrt()
    return -b - a * c / r, a - b * c / r, a / r


PROBLEMS = {
    # single equations
    "A1": (lambda t, y: -y, [1.0]),
    "A2": (lambda t, y: -(y**3) / 2, [1.0]),
    "A3": (lambda t, y: y * torch.cos(t), [1.0]),
    "A4": (lambda t, y: y / 4 * (1 - y / 20), [1.0]),
    "A5": (lambda t, y: (y - t) / (y + t), [4.0]),
    # small systems: conflicting populations, a linear and a nonlinear reaction, a torus, a rigid body
    "B1": (columns(lambda t, a, b: (2 * (a - a * b), -(b - a * b))), [1.0, 3.0]),
    "B2": (columns(lambda t, a, b, c: (-a + b, a - 2 * b + c, b - c)), [2.0, 0.0, 1.0]),
    "B3": (columns(lambda t, a, b, c: (-a, a - b**2, b**2)), [1.0, 0.0, 0.0]),
    "B4": (columns(torus), [3.0, 0.0, 0.0]),
    "B5": (columns(lambda t, a, b, c: (b * c, -a * c, -0.51 * a * b)), [0.0, 1.0, 1.0]),
    # moderate systems: two decay chains, two diffusions, five bodies
    "C1": (chain([1.0] * 9), first(10)),
    "C2": (chain([float(rate) for rate in range(1, 10)]), first(10)),
    "C3": (diffusion(10), first(10)),
    "C4": (diffusion(51), first(51)),
    "C5": (five_bodies, [x for state in (POSITIONS, VELOCITIES) for body in state for x in body]),
    # orbits
    **{f"D{i + 1}": (orbit, ellipse(eccentricity)) for i, eccentricity in enumerate((0.1, 0.3, 0.5, 0.7, 0.9))},
    # higher-order equations: Bessel's, van der Pol's, Duffing's, a falling body, a pursuit
    "E1": (
        columns(lambda t, y, v: (v, -(v / (t + 1) + (1 - 0.25 / (t + 1) ** 2) * y))),
        [0.6713967071418030, 0.09540051444747446],
    ),
    "E2": (columns(lambda t, y, v: (v, (1 - y**2) * v - y)), [2.0, 0.0]),
    "E3": (columns(lambda t, y, v: (v, y**3 / 6 - y + 2 * torch.sin(2.78535 * t))), [0.0, 0.0]),
    "E4": (columns(lambda t, y, v: (v, 0.032 - 0.4 * v**2)), [30.0, 0.0]),
    "E5": (columns(lambda t, y, v: (v, (1 + v**2).sqrt() / (25 - t))), [0.0, 0.0]),
}
every = pytest.mark.parametrize("name", PROBLEMS)


@lru_cache
def scipys(name):
    f, y0 = PROBLEMS[name]
    rows = lambda t, y: f(torch.tensor([[t]], dtype=torch.float64), torch.tensor(y)[None])[0].numpy()  # noqa: E731
    return solve_ivp(rows, (0.0, END), y0, method="DOP853", rtol=1e-11, atol=1e-11).y[:, -1]


def ours(name, integrator):
    f, y0 = PROBLEMS[name]
    with torch.no_grad():
        return solve(f, torch.tensor([y0], dtype=torch.float64), 0.0, END, integrator).y[0].numpy()


def test_there_are_25():
    assert list(PROBLEMS) == [f"{letter}{i}" for letter in "ABCDE" for i in range(1, 6)]


@every
@pytest.mark.parametrize("method", [Dopri5, Tsit5, Dopri8])
def test_high_orders(name, method):
    np.testing.assert_allclose(ours(name, method(rtol=1e-8, atol=1e-8)), scipys(name), rtol=4e-5, atol=4e-5)


@every
def test_low_order(name):
    """D5, the most eccentric orbit, forgives nothing."""
    tol = 1e-7 if name == "D5" else 1e-6
    np.testing.assert_allclose(ours(name, Bosh3(rtol=tol, atol=tol)), scipys(name), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["A4", "B1", "C5", "D4", "E2"])
def test_with_the_pi_controller(name):
    integrator = Tsit5(rtol=1e-8, atol=1e-8, controller=PIController())
    np.testing.assert_allclose(ours(name, integrator), scipys(name), rtol=4e-5, atol=4e-5)


CLOSED_FORMS = {
    "A1": lambda t: math.exp(-t),
    "A2": lambda t: 1 / math.sqrt(t + 1),
    "A3": lambda t: math.exp(math.sin(t)),
    "A4": lambda t: 20 / (1 + 19 * math.exp(-t / 4)),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_the_problems_are_those_meant(name):
    np.testing.assert_allclose(scipys(name), CLOSED_FORMS[name](END), rtol=1e-8, atol=1e-10)
