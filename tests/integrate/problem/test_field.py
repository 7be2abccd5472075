"""f's own memory and the solver's."""

import math

import pytest
import torch

from dise import RK4, Dopri5, solve

INTEGRATORS = [RK4(50), Dopri5(rtol=1e-6, atol=1e-6)]


def scales_t(t, y):
    """y' = −y cos 2t, from a function that changes its t."""
    t *= 2
    return -y * torch.cos(t)


EXACT = math.exp((math.sin(1) - math.sin(3)) / 2)  # from 1 at t = 0.5 to t = 1.5


@pytest.mark.parametrize("integrator", INTEGRATORS, ids=str)
def test_a_change_of_t_is_an_error(integrator):
    with pytest.raises(RuntimeError, match="f: changed t in place; work on a copy"):
        solve(scales_t, torch.ones(3, 1), 0.5, 1.5, integrator)


@pytest.mark.parametrize("integrator", INTEGRATORS, ids=str)
@pytest.mark.parametrize("options", [{}, {"compile": {"backend": "aot_eager"}}], ids=["inference", "compiled"])
def test_where_changes_are_not_counted_f_has_a_copy_of_t(integrator, options):
    with torch.inference_mode(not options):
        y = solve(scales_t, torch.ones(3, 1), 0.5, 1.5, integrator, **options).y
    assert y.flatten().tolist() == pytest.approx([EXACT] * 3, rel=1e-5)
