"""Exact log p of closed-form fields: how far off, and how long against zuko and flow_matching at equal error."""

import importlib.util
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

import dise
from dise import DiagonalNormal, ExactDivergence, Flow
from dise.select.judging.profile import time_side_by_side
from flow_bars.seen import Seen

ERROR, TIMES = 1e-5, 2.0  # nats; factor
SIZES = {2: 256, 8: 128, 64: 32}  # D → points
TOLERANCES = [10 ** (-k / 2) for k in range(6, 25)]
REPEATS = 3
CONTROLLER = dise.PIController(proportional=0.1, integral=0.7)
Way = Callable[[float], Tensor]  # tolerance → log p


def measure() -> Seen:
    """For each field the loosest tolerance with all log p within 1e-5 nats, and the times there, in turns."""
    missing = [name for name in ("zuko", "flow_matching") if importlib.util.find_spec(name) is None]
    if missing:
        return Seen(f"not installed: {', '.join(missing)}", None)
    cases = {
        f"{name}, D = {dim}": _compare(MixtureField(dim, components), points)
        for name, components in (("Gaussian", 1), ("mixture", 5))
        for dim, points in SIZES.items()
    }
    errors = [case["dise"]["error"] for case in cases.values()]
    factors = [case["factor"] for case in cases.values()]
    return Seen(
        f"{max(errors):.1e} nats; {min(factors):.1f} to {max(factors):.1f} × faster",
        max(errors) <= ERROR and min(factors) >= TIMES,
        cases,
    )


class MixtureField(nn.Module):
    """The velocity of a straight path to a mixture of normal distributions, in double precision.

    All components have the same standard deviations, 0.3 to 1.2 along the coordinates. Along the path component i is
    N(t c_i, t² s² + (1 − t)²), whose velocity at x is c_i + (t s² − (1 − t)) / variance · (x − t c_i).
    """

    def __init__(self, dim: int, components: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.centres = 1.5 * torch.randn(components, dim, generator=generator, dtype=torch.float64)
        self.variances = torch.linspace(0.3, 1.2, dim, dtype=torch.float64) ** 2

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        t = t.reshape(-1, 1, 1).to(x)  # a number per point, or one for all
        variance = t**2 * self.variances + (1 - t) ** 2
        distance = x.unsqueeze(1) - t * self.centres
        weights = (-(distance**2 / variance).sum(-1) / 2).softmax(-1)
        velocity = self.centres + (t * self.variances - (1 - t)) / variance * distance
        return (weights.unsqueeze(-1) * velocity).sum(1)

    def log_prob(self, x: Tensor) -> Tensor:
        squares = ((x.unsqueeze(1) - self.centres) ** 2 / self.variances).sum(-1)
        constant = (2 * math.pi * self.variances).log().sum() / 2 + math.log(len(self.centres))
        return (-squares / 2).logsumexp(1) - constant

    def draw(self, n: int) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        component = torch.randint(len(self.centres), (n,), generator=generator)
        noise = torch.randn(n, len(self.variances), generator=generator, dtype=torch.float64)
        return self.centres[component] + self.variances.sqrt() * noise


def _compare(f: MixtureField, points: int) -> dict[str, Any]:
    x = f.draw(points)
    exact, dim = f.log_prob(x), x.shape[1]
    base = DiagonalNormal(torch.zeros(dim, dtype=torch.float64), torch.ones(dim, dtype=torch.float64))
    found, calls = {}, {}
    for name, way in _ways(f, base, x).items():
        loosest = _loosest(way, exact)
        if loosest is not None:
            found[name], calls[name] = loosest, lambda _, way=way, at=loosest["tolerance"]: way(at)
    times = time_side_by_side(calls, [None] * REPEATS)
    for name, row in found.items():
        row["milliseconds"] = times[name]
    ours = min((name for name in found if name.startswith("dise")), key=lambda name: times[name])
    theirs = min((name for name in found if not name.startswith("dise")), key=lambda name: times[name])
    return {**found, "dise": found[ours], "factor": times[theirs] / times[ours], "fastest": [ours, theirs]}


def _ways(f: MixtureField, base: DiagonalNormal, x: Tensor) -> dict[str, Way]:
    from flow_matching.solver import ODESolver
    from zuko.transforms import FreeFormJacobianTransform

    def by_dise(
        method: type[dise.Adaptive],
        quadrature: Literal["stages", "lobatto"] = "stages",
        controller: dise.IController | None = None,
    ) -> Way:
        how: dict[str, Any] = {"divergence": ExactDivergence(), "quadrature": quadrature}
        steps = {"controller": controller or dise.IController()}
        return lambda tol: Flow(f, base, method(rtol=tol, atol=tol, **steps), **how).log_prob(x)

    def by_zuko(tol: float) -> Tensor:
        y, change = FreeFormJacobianTransform(f, 1.0, 0.0, atol=tol, rtol=tol, exact=True).call_and_ladj(x)
        return base.log_prob(y) + change

    def by_flow_matching(method: str) -> Way:
        solver = ODESolver(velocity_model=lambda x, t: f(t, x))
        options: dict[str, Any] = {"step_size": None, "exact_divergence": True, "method": method}
        return lambda tol: solver.compute_likelihood(x, base.log_prob, atol=tol, rtol=tol, **options)[1]

    return {
        "dise, Dopri5": _without_gradients(by_dise(dise.Dopri5)),
        "dise, Dopri8": _without_gradients(by_dise(dise.Dopri8)),
        "dise, Dopri5, lobatto": _without_gradients(by_dise(dise.Dopri5, "lobatto")),
        "dise, Dopri8, lobatto": _without_gradients(by_dise(dise.Dopri8, "lobatto")),
        "dise, Dopri8, lobatto, PI": _without_gradients(by_dise(dise.Dopri8, "lobatto", CONTROLLER)),
        "zuko": _without_gradients(by_zuko),
        "flow_matching, dopri5": _without_gradients(by_flow_matching("dopri5")),
        "flow_matching, dopri8": _without_gradients(by_flow_matching("dopri8")),
    }


def _without_gradients(way: Way) -> Way:
    def run(tolerance: float) -> Tensor:
        with torch.no_grad():
            return way(tolerance).detach()

    return run


def _loosest(way: Way, exact: Tensor) -> dict[str, float] | None:
    """The loosest tolerance at which all log p are within the bar, and the error there."""
    for tolerance in TOLERANCES:
        error = float((way(tolerance) - exact).abs().max())
        if error <= ERROR:
            return {"tolerance": tolerance, "error": error}
    return None
