import dataclasses
import math
from functools import lru_cache
from itertools import combinations_with_replacement, groupby, product

import numpy as np
import pytest
import scipy.integrate
import torch
from torchdiffeq._impl import adaptive_heun, dopri5, dopri8, fehlberg2

from dise import Adaptive, ButcherTableau, FixedStep, solve
from dise.integrate.runge_kutta.chebyshev import chebyshev
from dise.integrate.runge_kutta.classical import (
    BOSH3,
    DOPRI5,
    EULER,
    FEHLBERG2,
    HEUN,
    MIDPOINT,
    RALSTON,
    RK4,
    RK38,
    TSIT5,
)
from dise.integrate.runge_kutta.dopri8 import DOPRI8

FIXED = {"euler": EULER, "midpoint": MIDPOINT, "heun": HEUN, "ralston": RALSTON, "rk4": RK4, "rk38": RK38}
FIXED |= {"rkc1": chebyshev(4, 0.1), "rkc1 (2)": chebyshev(2, 0.3)}
EMBEDDED = {"heun": HEUN, "fehlberg2": FEHLBERG2, "bosh3": BOSH3, "dopri5": DOPRI5, "tsit5": TSIT5, "dopri8": DOPRI8}
DOUBLED = {name: tableau.doubled() for name, tableau in FIXED.items()}
ALL = [*(FIXED | EMBEDDED).values(), *DOUBLED.values()]
NAMES = [*(FIXED | EMBEDDED), *(f"{name} doubled" for name in DOUBLED)]
every = pytest.mark.parametrize("tableau", ALL, ids=NAMES)


# ---- order conditions, one for each rooted tree (Butcher; Hairer, Nørsett, Wanner, II.2, Theorem 2.13)


def partitions(total, largest):
    """total as sums of numbers of at most `largest`, falling."""
    if total == 0:
        yield ()
    for first in range(min(total, largest), 0, -1):
        yield from ((first, *rest) for rest in partitions(total - first, first))


@lru_cache
def trees(order):
    """Rooted trees of `order` nodes; a tree is the sorted tuple of those at its root."""
    found = []
    for sizes in partitions(order - 1, order - 1):
        groups = [(size, len(list(same))) for size, same in groupby(sizes)]
        choices = product(*(combinations_with_replacement(trees(size), number) for size, number in groups))
        found += [tuple(sorted(tree for group in choice for tree in group)) for choice in choices]
    return found


def nodes(tree):
    return 1 + sum(map(nodes, tree))


def density(tree):
    return nodes(tree) * int(np.prod([density(child) for child in tree]))


def elementary_weights(tree, A):
    """[stages] the tree's derivative weights Φ_i."""
    weights = np.ones(len(A))
    for child in tree:
        weights = weights * (A @ elementary_weights(child, A))
    return weights


def order_of(tableau, b, theta=1.0, highest=9):
    """Order of the weights b of an approximation at t + θ dt: Σ b_i Φ_i(tree) = θ^nodes / density."""
    A = np.zeros((tableau.stages, tableau.stages))
    for i, row in enumerate(tableau.a):
        A[i, :i] = row
    for p in range(1, highest + 1):
        if any(abs(b @ elementary_weights(tree, A) - theta**p / density(tree)) > 2e-12 for tree in trees(p)):
            return p - 1
    return highest


def test_there_are_as_many_trees_as_there_should_be():
    """Hairer, Nørsett, Wanner, Table II.2.1."""
    assert [len(trees(order)) for order in range(1, 9)] == [1, 1, 2, 4, 9, 20, 48, 115]


@every
def test_solution_has_exactly_the_stated_order(tableau):
    assert order_of(tableau, np.array(tableau.b)) == tableau.order


@pytest.mark.parametrize("tableau", EMBEDDED.values(), ids=EMBEDDED.keys())
def test_the_embedded_method_is_of_the_next_lower_order(tableau):
    assert order_of(tableau, np.subtract(tableau.b, tableau.b_err)) == tableau.order - 1
    assert tableau.error_order is None


@pytest.mark.parametrize("tableau", DOUBLED.values(), ids=DOUBLED.keys())
def test_a_doubled_methods_estimate_is_that_of_richardson(tableau):
    """Adding the estimate to the solution is Richardson's extrapolation, of the next higher order."""
    assert order_of(tableau, np.add(tableau.b, tableau.b_err)) == tableau.order + 1 == tableau.error_order


INTERPOLANTS = {"euler": 1, "rk4": 3, "rk38": 3, "bosh3": 3, "dopri5": 4, "tsit5": 4, "dopri8": 5}
INTERPOLANTS |= {"rkc1": 1, "rkc1 (2)": 1}


@pytest.mark.parametrize("name", NAMES)
def test_order_of_the_interpolant(name):
    tableau = ALL[NAMES.index(name)]
    order = min(tableau.order, 4) if "doubled" in name else INTERPOLANTS.get(name, 2)
    for theta in (0.2, 0.5, 0.9):
        b = np.array(tableau.interpolant) @ theta ** np.arange(1, len(tableau.interpolant[0]) + 1)
        assert order_of(tableau, b, theta) == order


def test_no_interpolant_of_dopri8s_stages_is_of_order_6():
    A = np.zeros((14, 14))
    for i, row in enumerate(DOPRI8.a):
        A[i, :i] = row
    conditions = [tree for order in range(1, 7) for tree in trees(order)]
    weights = np.stack([elementary_weights(tree, A) for tree in conditions])
    wanted = np.array([0.5 ** nodes(tree) / density(tree) for tree in conditions])
    best = np.linalg.lstsq(weights, wanted, rcond=1e-11)[0]
    assert np.abs(weights @ best - wanted).max() > 1e-7


# ---- coefficients that others have written down too


@pytest.mark.parametrize(
    ("tableau", "theirs"),
    [
        (HEUN, adaptive_heun._ADAPTIVE_HEUN_TABLEAU),
        (FEHLBERG2, fehlberg2._FEHLBERG2_TABLEAU),
        (DOPRI5, dopri5._DORMAND_PRINCE_SHAMPINE_TABLEAU),
        (DOPRI8, dopri8._DOPRI8_TABLEAU),
    ],
    ids=["heun", "fehlberg2", "dopri5", "dopri8"],
)
def test_tableaus_are_torchdiffeqs(tableau, theirs):
    np.testing.assert_allclose(tableau.c[1:], theirs.alpha, rtol=1e-15)
    np.testing.assert_allclose(tableau.b, theirs.c_sol, rtol=1e-15)
    for ours, row in zip(tableau.a[1:], theirs.beta, strict=True):
        np.testing.assert_allclose(ours, row, rtol=1e-15)
    sign = -1 if tableau is HEUN else 1  # of an error that is squared
    np.testing.assert_allclose(np.multiply(sign, tableau.b_err), theirs.c_error, rtol=1e-13)


def test_dopri8s_interpolant_is_torchdiffeqs_in_the_middle():
    middle = np.array(DOPRI8.interpolant) @ 0.5 ** np.arange(1, 7)
    np.testing.assert_allclose(middle, dopri8._C_mid, atol=1e-14)


def test_dopri5_is_scipys():
    RK45 = scipy.integrate.RK45
    np.testing.assert_allclose(DOPRI5.c[:-1], RK45.C, rtol=1e-15)
    np.testing.assert_allclose(DOPRI5.b[:-1], RK45.B, rtol=1e-15)
    for ours, theirs in zip(DOPRI5.a[:-1], RK45.A, strict=True):
        np.testing.assert_allclose(ours, theirs[: len(ours)], rtol=1e-15)


def test_rk4_is_the_classical_method_not_the_3_8_rule():
    assert RK4.c == (0, 1 / 2, 1 / 2, 1)
    assert RK4.a == ((), (1 / 2,), (0, 1 / 2), (0, 0, 1))
    assert RK4.b == (1 / 6, 1 / 3, 1 / 3, 1 / 6)


def test_rk38_is_kuttas():
    assert RK38.c == (0, 1 / 3, 2 / 3, 1)
    assert RK38.a == ((), (1 / 3,), (-1 / 3, 1), (1, -1, 1))
    assert RK38.b == (1 / 8, 3 / 8, 3 / 8, 1 / 8)


def test_bosh3_is_scipys():
    RK23 = scipy.integrate.RK23
    np.testing.assert_allclose(BOSH3.c[:-1], RK23.C, rtol=1e-15)
    np.testing.assert_allclose(BOSH3.b[:-1], RK23.B, rtol=1e-15)
    np.testing.assert_allclose(np.negative(BOSH3.b_err), RK23.E, atol=1e-15)


def test_dopri5s_interpolant_is_scipys():
    np.testing.assert_allclose(DOPRI5.interpolant, scipy.integrate.RK45.P, rtol=1e-15)


def test_bosh3s_interpolant_is_scipys():
    np.testing.assert_allclose(BOSH3.interpolant, scipy.integrate.RK23.P, rtol=1e-14, atol=1e-15)


FSAL = ("bosh3", "dopri5", "tsit5", "dopri8")


@pytest.mark.parametrize("name", NAMES)
def test_fsal_is_derived(name):
    assert ALL[NAMES.index(name)].fsal is (name in FSAL)


# ---- a doubled method


def test_heun_that_reuses_its_last_stage_by_hand():
    """y' = λy: the next step starts with f of the Euler prediction, one evaluation per step instead of two."""

    class PEC(Adaptive):
        tableau = dataclasses.replace(HEUN, reuse_last=True)

    z, y0, calls = -0.3, torch.ones(1, 1, dtype=torch.float64), []

    def f(t, y):
        calls.append(t)
        return z * y

    solution = solve(f, y0, 0.0, 2.0, PEC(rtol=1e3, atol=1e3, first_step=1.0, dt_max=1.0))
    first = 1 + (z + z * (1 + z)) / 2  # k1 = z, k2 = z (1 + z)
    second = first + (z * (1 + z) + z * (first + z * (1 + z))) / 2
    assert solution.y.item() == pytest.approx(second, rel=1e-14)
    assert len(calls) == solution.nfe.item() == 3


def test_doubled_euler_by_hand():
    """Half steps k1 = f(t, y), k2 = f(t + ½, y + ½ k1); y = y + (k1 + k2) / 2, and y + k1 for the whole step."""
    tableau = EULER.doubled()
    assert tableau.c == (0, 1 / 2)
    assert tableau.a == ((), (1 / 2,))
    assert tableau.b == (1 / 2, 1 / 2)
    assert tableau.b_err == (-1 / 2, 1 / 2)


# ---- what is refused


TWO_STAGES = {"c": (0.0, 0.5), "a": ((), (0.5,)), "b": (0.0, 1.0), "order": 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"c": ("0", 0.5)}, "c: expected finite numbers"),
        ({"a": ((), 0.5)}, "a: row 1: expected finite numbers, got 0.5"),
        ({"b": (0.0, math.nan)}, "b: expected finite numbers"),
        ({"a": ((),)}, "a: expected 2 entries"),
        ({"b": (1.0,)}, "b: expected 2 entries"),
        ({"b_err": (0.0,)}, "b_err: expected 2 entries"),
        ({"a": ((), (0.5, 0.0))}, "a: row 1 .* has 1 entries, got 2"),
        ({"a": ((), (0.4,))}, r"a: row 1 sums to 0.4, but c\[1\] is 0.5"),
        ({"c": (0.1, 0.5)}, r"a: row 0 sums to 0, but c\[0\] is 0.1"),
        ({"b": (0.1, 1.0)}, "b: must sum to 1"),
        ({"b_err": (1.0, -0.9)}, "b_err: must sum to 0"),
        ({"interpolant": ((1.0, -1.0),)}, "interpolant: expected 2 entries"),
        ({"interpolant": ((1.0, -1.0), (1.0,))}, "interpolant: rows need one length"),
        ({"interpolant": ((), ())}, "interpolant: rows need one length"),
        ({"interpolant": ((1.0, -1.0), (0.5, 0.0))}, r"interpolant: row 1 sums to 0.5, but b\[1\] is 1"),
        ({"interpolant": ((0.5, -0.5), (0.0, 1.0))}, "interpolant: column 0 must sum to 1, sums to 0.5"),
        ({"reuse_last": True}, "reuse_last: needs a last stage at the end of the step"),
    ],
)
def test_a_wrong_coefficient_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ButcherTableau(**(TWO_STAGES | change))


def test_lists_and_arrays_are_a_tableau_like_tuples():
    made = ButcherTableau(c=np.array([0.0, 0.5]), a=[[], [np.float64(0.5)]], b=[0.0, 1.0], order=np.int64(2))
    expected = ButcherTableau(**TWO_STAGES)
    assert (made, hash(made), repr(made)) == (expected, hash(expected), repr(expected))


def test_a_tableau_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        EULER.order = 2


def test_a_tiny_weight_does_no_harm():
    """Dividing by it would overflow."""
    tiny = 7e-312

    class Odd(FixedStep):
        tableau = ButcherTableau(c=(0.0, 0.0, 1.0), a=((), (0.0,), (tiny, 1.0)), b=(tiny, 0.5, 0.5), order=1)

    f = lambda t, y: torch.full_like(y, 1e3)  # noqa: E731
    y = solve(f, torch.zeros(1, 1, dtype=torch.float64), 0.0, 1.0, Odd(1)).y
    assert y.item() == pytest.approx(1e3, rel=1e-12)
