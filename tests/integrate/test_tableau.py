import dataclasses

import numpy as np
import pytest
import scipy.integrate
from torchdiffeq._impl.dopri5 import _DORMAND_PRINCE_SHAMPINE_TABLEAU as SHAMPINE

from dise import ButcherTableau
from dise.integrate.tableau import BOSH3, DOPRI5, EULER, MIDPOINT, RK4


def order_conditions(tableau, b):
    """{order: defects} of the weights b, one for each rooted tree (Hairer, Nørsett, Wanner, Table II.2.2)."""
    n = tableau.stages
    A, b, c = np.zeros((n, n)), np.array(b), np.array(tableau.c)
    for i, row in enumerate(tableau.a):
        A[i, :i] = row
    Ac = A @ c
    return {
        1: [b.sum() - 1],
        2: [b @ c - 1 / 2],
        3: [b @ c**2 - 1 / 3, b @ Ac - 1 / 6],
        4: [b @ c**3 - 1 / 4, b @ (c * Ac) - 1 / 8, b @ A @ c**2 - 1 / 12, b @ A @ Ac - 1 / 24],
        5: [
            b @ c**4 - 1 / 5,
            b @ (c**2 * Ac) - 1 / 10,
            b @ Ac**2 - 1 / 20,
            b @ (c * (A @ c**2)) - 1 / 15,
            b @ A @ c**3 - 1 / 20,
            b @ (c * (A @ Ac)) - 1 / 30,
            b @ A @ (c * Ac) - 1 / 40,
            b @ A @ A @ c**2 - 1 / 60,
            b @ A @ A @ Ac - 1 / 120,
        ],
    }


def order_of(tableau, b):
    conditions = order_conditions(tableau, b)
    return next((p - 1 for p in conditions if np.abs(conditions[p]).max() > 1e-12), 5)


@pytest.mark.parametrize("tableau", [EULER, MIDPOINT, RK4, BOSH3, DOPRI5])
def test_solution_has_the_stated_order(tableau):
    assert order_of(tableau, tableau.b) == tableau.order


def test_dopri5_embeds_a_method_of_order_exactly_4():
    assert order_of(DOPRI5, np.subtract(DOPRI5.b, DOPRI5.b_err)) == 4


def test_dopri5_is_scipys_with_torchdiffeqs_error_weights():
    RK45 = scipy.integrate.RK45
    np.testing.assert_allclose(DOPRI5.c[:-1], RK45.C, rtol=1e-15)
    np.testing.assert_allclose(DOPRI5.b[:-1], RK45.B, rtol=1e-15)
    for ours, theirs in zip(DOPRI5.a[:-1], RK45.A, strict=True):
        np.testing.assert_allclose(ours, theirs[: len(ours)], rtol=1e-15)
    np.testing.assert_allclose(DOPRI5.b_err, SHAMPINE.c_error, rtol=1e-13)


def test_rk4_is_the_classical_method_not_the_3_8_rule():
    assert RK4.c == (0, 1 / 2, 1 / 2, 1)
    assert RK4.a == ((), (1 / 2,), (0, 1 / 2), (0, 0, 1))
    assert RK4.b == (1 / 6, 1 / 3, 1 / 3, 1 / 6)


def test_bosh3_is_scipys_and_embeds_order_exactly_2():
    RK23 = scipy.integrate.RK23
    np.testing.assert_allclose(BOSH3.c[:-1], RK23.C, rtol=1e-15)
    np.testing.assert_allclose(BOSH3.b[:-1], RK23.B, rtol=1e-15)
    np.testing.assert_allclose(np.negative(BOSH3.b_err), RK23.E, atol=1e-15)
    assert order_of(BOSH3, np.subtract(BOSH3.b, BOSH3.b_err)) == 2


def test_dopri5s_interpolant_is_scipys():
    np.testing.assert_allclose(DOPRI5.interpolant, scipy.integrate.RK45.P, rtol=1e-15)


def test_bosh3s_interpolant_is_scipys():
    np.testing.assert_allclose(BOSH3.interpolant, scipy.integrate.RK23.P, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize(("tableau", "order"), [(EULER, 1), (MIDPOINT, 2), (RK4, 3), (BOSH3, 3), (DOPRI5, 4)], ids=str)
def test_order_of_the_interpolant(tableau, order):
    """At θ the conditions are those of the solution, with θ^(number of nodes) in place of 1."""
    for theta in (0.2, 0.5, 0.9):
        b = np.array(tableau.interpolant) @ theta ** np.arange(1, len(tableau.interpolant[0]) + 1)
        defects = order_conditions(tableau, b)
        for p in range(1, order + 1):
            constants = np.array(TREES[p])
            np.testing.assert_allclose(defects[p] + constants, constants * theta**p, atol=1e-12)


TREES = {1: [1], 2: [1 / 2], 3: [1 / 3, 1 / 6], 4: [1 / 4, 1 / 8, 1 / 12, 1 / 24]}


@pytest.mark.parametrize(
    ("tableau", "fsal"), [(EULER, False), (MIDPOINT, False), (RK4, False), (BOSH3, True), (DOPRI5, True)]
)
def test_fsal_is_derived(tableau, fsal):
    assert tableau.fsal is fsal


TWO_STAGES = {"c": (0.0, 0.5), "a": ((), (0.5,)), "b": (0.0, 1.0), "order": 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
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
    ],
)
def test_a_wrong_coefficient_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ButcherTableau(**(TWO_STAGES | change))


def test_a_tableau_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        EULER.order = 2
