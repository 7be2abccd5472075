"""zuko's continuous flows on dise's solver.

    import dise.clients.zuko

    flow = zuko.flows.CNF(features=2, context=5)
    dise.clients.zuko.use(flow)  # each point takes its own steps; flow(c).sample(), log_prob(x) as before

`odeint` is a function with the signature of `zuko.utils.odeint`, for code that calls that one.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributions import Transform
from zuko.flows.continuous import FFJTransform

from dise.clients.transform import FlowTransform
from dise.flow import Divergence, Flow, HutchinsonDivergence
from dise.flow.base import DiagonalNormal
from dise.integrate import Dopri5, Integrator, max_norm, solve
from dise.integrate.integrator import check_integrator
from dise.integrate.value import check_above

LOG_PROB_TOLERANCE = 100.0  # of log-densities, in units of the points'; zuko's `trace_scale`


def use(flow: nn.Module, integrator: Integrator | None = None, *, log_prob_tolerance: float | None = None) -> None:
    """Solve a zuko flow's free-form Jacobian transformations with dise, each point with its own steps.

    The flow's parameters, its `state_dict` and its methods stay as they are. Call it again to change the integrator.

    Args:
        flow: such as `zuko.flows.CNF`, or any module with `zuko.flows.FFJTransform` in it.
        integrator: how to solve, from the base to the data; None: `dise.Dopri5` with the transformation's tolerances.
        log_prob_tolerance: of log-densities, in nats; None: 100 times the transformation's `atol`, as in zuko.

    Raises:
        TypeError, ValueError: an argument (named in the message) is not as described.
    """
    if not isinstance(flow, nn.Module):
        raise TypeError(f"flow: expected a module such as zuko.flows.CNF, got {type(flow).__name__}")
    check_integrator(integrator, optional=True)
    if log_prob_tolerance is not None:
        check_above("log_prob_tolerance", log_prob_tolerance, 0)
    transforms = [module for module in flow.modules() if isinstance(module, FFJTransform)]
    if not transforms:
        raise ValueError("flow: expected a module with a zuko.flows.FFJTransform, got one without")
    for transform in transforms:
        vars(transform)["forward"] = partial(_transform, transform, integrator, log_prob_tolerance)


def odeint(
    f: Callable[..., Tensor | Sequence[Tensor]],
    x: Tensor | Sequence[Tensor],
    t0: float | Tensor,
    t1: float | Tensor,
    phi: Iterable[Tensor] = (),
    atol: float = 1e-6,
    rtol: float = 1e-5,
) -> Tensor | Sequence[Tensor]:
    """State at t1 of dx/dt = f(t, x) with x at t0, with the signature of `zuko.utils.odeint`.

    The whole state is one system with one step size, chosen by its largest error. Gradients are those of the steps
    taken, in x, t0, t1 and whatever f uses.

    Args:
        f: called as f(t, x) with a scalar t, or f(t, *x) for several tensors.
        x: tensor of any shape, or several.
        t0, t1: start and end.
        phi: not needed; zuko's names the tensors that get gradients.
        atol, rtol: tolerances.

    Raises:
        TypeError, ValueError, SolveError: see `dise.solve`.
    """
    integrator = Dopri5(rtol=rtol, atol=atol, norm=max_norm)
    if isinstance(x, Tensor):
        return solve(f, x, t0, t1, integrator, batched=False).y  # type: ignore[arg-type, return-value]
    several = solve(lambda t, x: tuple(f(t, *x)), tuple(x), t0, t1, integrator, batched=False)
    return several.y  # type: ignore[return-value]


class _Field(nn.Module):
    """The vector field of a zuko transformation, at times [n, 1]."""

    def __init__(self, transform: FFJTransform) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, t: Tensor, x: Tensor, *condition: Tensor) -> Tensor:
        """dx/dt [n, D]."""
        return self.transform.f(t[:, 0], x, *condition)


def _transform(
    transform: FFJTransform, integrator: Integrator | None, tolerance: float | None, c: Tensor | None = None
) -> Transform:
    """What `FFJTransform.forward` returns."""
    divergence: Divergence | None = None if transform.exact else HutchinsonDivergence(distribution="gaussian")
    features = transform.ode[-1].out_features
    start, end = transform.times
    flow = Flow(
        _Field(transform),
        DiagonalNormal(torch.zeros(features), torch.ones(features)),  # not used: a transform has no base
        integrator or Dopri5(rtol=transform.rtol, atol=transform.atol),
        t0=end,
        t1=start,
        divergence=divergence,
        log_prob_tolerance=LOG_PROB_TOLERANCE * transform.atol if tolerance is None else tolerance,
    )
    return FlowTransform(flow, () if c is None else (c,))
