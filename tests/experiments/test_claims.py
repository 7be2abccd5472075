"""The page of the paper's claims: arithmetic by hand, fits of made-up times, and the committed page."""

import numpy as np
import pytest

from dise_experiments.claims.arithmetic import break_even, findings
from dise_experiments.claims.claims import Own, _improved
from dise_experiments.claims.page import PAGE, page
from dise_experiments.claims.results import Results
from dise_experiments.common.task import Run
from dise_experiments.common.time_fits import time_fits

BY_HAND = [6.83, 7.63, 34.75, 44.4, 0.960, 0.910, 0.571, 0.63, 0.875, 0.8914]


def test_what_does_not_add_up():
    """.37·14 + .34·4 + .29; with 0.8; .875·39.71; (1984 − .875·2166)/.125/16; Eq. 4's break-even shares."""
    assert [finding.implied for finding in findings()] == [pytest.approx(value, abs=5e-3) for value in BY_HAND[:3]] + [
        pytest.approx(44.4, abs=0.05),
        *(pytest.approx(value, abs=6e-4) for value in BY_HAND[4:]),
    ]


@pytest.mark.parametrize(("cheap", "dear"), [(1, 4), (1, 14), (4, 14)])
def test_at_break_even_both_integrators_cost_the_same(cheap, dear):
    M, alpha, right = 1000.0, 0.3, 0.98
    cheaper = right * break_even(cheap, dear, M=M, alpha=alpha)
    cost = [p * delta**alpha + (1 - p) * M**alpha for p, delta in ((cheaper, cheap), (right, dear))]
    assert cost[0] == pytest.approx(cost[1])


def test_a_fit_of_times():
    """0.5 ms and 2 ms per evaluation; a routed batch of 3 NFE that takes 12 ms is 3 times NFE × f."""
    nfe = {"Euler": 1.0, "RK4": 4.0, "Dopri5": 20.0, "DISE (a)": 3.0}
    times = {name: 0.5 + 2 * spent for name, spent in nfe.items()} | {"DISE (a)": 12.0, "torchdiffeq dopri5": 1e3}
    timing = {"parts_ms": {"f": 4 / 3}, "ode_ms": times}
    rows = [{"policy": name, "nfe": spent} for name, spent in nfe.items()]
    (fit,) = time_fits([Run("r", "m", "none", 0.0, 0, {"policies": rows}, {}, timing)])
    assert fit.slope == pytest.approx(1.5)
    assert fit.r2 == pytest.approx(1)
    assert np.allclose(fit.routed, 3)


@pytest.mark.parametrize(
    ("own", "verdict"),
    [
        ((0.805, 40.0), "NFE yes, AUROC no difference"),
        ((0.85, 40.0), "NFE yes, AUROC yes"),
        ((0.75, 60.0), "NFE no, AUROC no"),
    ],
)
def test_an_improvement_is_one_of_all_models(own, verdict):
    better = Own(0.85, 40.0, 1) if own[0] != 0.805 else Own(0.8, 40.0, 1)
    assert _improved(Own(0.8, 50.0, 1), {"l1": Own(*own, 1), "l2": better}) == verdict


def test_the_page_is_what_the_results_give():
    assert PAGE.read_text() == page(Results.read())
