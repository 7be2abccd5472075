"""Flows whose densities are known, and runs whose numbers are made up."""

import pytest
import torch
from torch import nn

from dise import Dopri5
from dise.flow import DiagonalNormal, Flow
from dise_experiments.common.task import Run

REFERENCE = Dopri5(rtol=1e-5, atol=1e-5)


class Linear(nn.Module):
    """dz/dt = A z."""

    def __init__(self, A):
        super().__init__()
        self.A = nn.Parameter(torch.as_tensor(A))

    def forward(self, t, z):
        return z @ self.A.T


class Sine(nn.Module):
    """dz/dt = rate · sin z, each coordinate for itself; its divergence depends on z."""

    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.ones(()))

    def forward(self, t, z):
        return self.rate * z.sin()


@pytest.fixture(scope="session")
def linear_flow():
    """linear_flow(A or a number, t1=, variance=, loc=): data are N(e^(A·t1) loc, variance · e^(A·t1) e^(A·t1)ᵀ)."""

    def make(A, *, t1=2.0, variance=0.1, loc=(0.0, 0.0)):
        A = torch.eye(2) * A if isinstance(A, float) else torch.tensor(A)
        base = DiagonalNormal(torch.tensor(loc), torch.full((2,), variance**0.5))
        return Flow(Linear(A), base, REFERENCE, t1=t1)

    return make


@pytest.fixture(scope="session")
def sine_flow():
    """Data at t = 1 of a standard normal distribution moved by dz/dt = sin z."""
    return Flow(Sine(), DiagonalNormal(torch.zeros(2), torch.ones(2)), REFERENCE)


def measures(nll, nfe, *, above=0.0, count=16):
    """A row's numbers on one of the tests; `above`: what its NLL is above the reference's."""
    reference = nll - above
    measured = {"nll": nll, "reference": reference, "nfe": nfe, "nfe_sum": nfe * count}
    return measured | {"largest_gap": 2 * abs(above), "flagged": above < -1e-3}


@pytest.fixture(scope="session")
def row():
    """row(policy, nll, nfe, ...): a row of an evaluation; on the large test NLL is 0.1 above, and NFE 1."""

    def make(policy, nll, nfe, *, unit="set", above=0.0, large=0.0, **more):
        parts = {"small": measures(nll, nfe, above=above), "large": measures(nll + 0.1, nfe + 1, above=large)}
        return {"policy": policy, "unit": unit, "nfe": nfe} | parts | more

    return make


@pytest.fixture(scope="session")
def run(row):
    """run(reg, seed=, nll=, nfe=, dise=, target=, name=): a run of DOPRI, RK4 and, if `dise`, two selectors."""

    def make(reg="none", *, seed=0, nll=0.875, nfe=150.0, dise=True, target="circles", name=None):
        selected = {"Dopri5(rtol=1e-05, atol=1e-05)": 0.5, "Dopri5": 0.125, "RK4(steps=5)": 0.25, "Midpoint": 0.125}
        rows = [
            row("RK4(steps=5)", nll + 0.25, 20.0, above=0.25, large=0.5),
            row("Midpoint", nll - 0.5, 2.0, above=-0.5, large=-0.25),
            row(str(REFERENCE), nll, nfe),
            row("DISE (set)", nll + 0.0625, 64.0, above=0.0625, selector_macs=0.2959, shares=selected),
            row("random, mix of set", nll + 0.5, 64.0, above=0.5),
            row("RK4(steps=5)", nll + 0.25, 20.0, unit="point"),
            row(str(REFERENCE), nll + 1, nfe + 20, unit="point"),
            row("DISE (point)", nll, 32.25, unit="point", large=-0.5, selector_macs=0.167, shares={"Euler": 1.0}),
        ]
        rows = [one for one in rows if dise or not one["policy"].startswith(("DISE", "random"))]
        metrics = {"target": target, "samples": 21024, "policies": rows}
        return Run(name or f"flow-{reg}-seed{seed}", "flow", reg, 0.0, seed, metrics, {}, None)

    return make
