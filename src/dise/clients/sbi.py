"""sbi's posteriors from flow matching (FMPE) and scores (NPSE) on dise's solver.

import dise.clients.sbi

posterior = trainer.build_posterior(sample_with="ode")
dise.clients.sbi.use(posterior)  # sample, log_prob and map as before
"""

import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from sbi.samplers.ode_solvers import NeuralODE
from torch import Size, Tensor, nn
from torch.distributions import Distribution
from zuko.distributions import DiagNormal, NormalizingFlow

from dise.clients.transform import FlowTransform
from dise.flow import DiagonalNormal, Flow, HutchinsonDivergence
from dise.integrate import Dopri5, Integrator
from dise.integrate.integrator import check_integrator
from dise.integrate.value import check_above

ATOL, RTOL = 1e-6, 1e-5  # sbi's
LOG_PROB_TOLERANCE = 100.0  # of log-densities, in units of `atol`, as in zuko


def use(posterior: Any, integrator: Integrator | None = None, *, log_prob_tolerance: float | None = None) -> None:
    """Solve a posterior's probability flow with dise; each sample takes its own steps.

    `sample` with sample_with="ode", `log_prob`, `map` and their arguments stay as they are, tolerances in `ode_kwargs`
    too. Call it again to change the integrator, and after `posterior.to(device)`, which goes back to zuko.

    Args:
        posterior: sbi's `VectorFieldPosterior`, or an ensemble of these.
        integrator: how to solve, from noise to parameters; None: `dise.Dopri5` with sbi's tolerances.
        log_prob_tolerance: of log-densities, in nats; None: that of the integrator, or 100 times `atol` without one.

    Raises:
        TypeError: an argument (named in the message) is not as described.
    """
    check_integrator(integrator, optional=True)
    if log_prob_tolerance is not None:
        check_above("log_prob_tolerance", log_prob_tolerance, 0)
    for part in getattr(posterior, "posteriors", [posterior]):
        old, potential = _neural_ode(part), part.potential_fn
        known = {name: old.params[name] for name in ("atol", "rtol", "exact") if name in old.params}
        if integrator is not None:
            known = {"exact": known.get("exact", True), "integrator": integrator}
        potential.neural_ode = DiseNeuralODE(
            old.f,
            old.net,
            old.mean_base,
            old.std_base,
            old.condition_shape,
            old.t_min,
            old.t_max,
            **known,
            log_prob_tolerance=log_prob_tolerance,
        )
        if potential._x_o is not None:  # its flow was built by the old backend
            potential.set_x(potential._x_o, potential.x_is_iid)


def flow(posterior: Any, integrator: Integrator | None = None, *, x: Tensor | None = None) -> Flow:
    """A posterior as a `dise.Flow`, for example to fit or certify an integrator that `use` then takes.

    Its points are the parameters [B, D].

    Args:
        posterior: sbi's `VectorFieldPosterior`.
        integrator: how to solve, from noise to parameters; None: `dise.Dopri5` with sbi's tolerances.
        x: one observation [1, ...], under which the flow has no conditions; None: its conditions are observations
            [B, ...].

    Raises:
        TypeError, ValueError: an argument (named in the message) is not as described.
    """
    ode = _neural_ode(posterior)
    if x is not None:
        _check_condition(x, ode.condition_shape)
        if len(x) != 1 or x.ndim != 1 + len(ode.condition_shape):
            raise ValueError(f"x: expected one observation [1, ...], got shape {list(x.shape)}")
    base = DiagonalNormal(ode.mean_base.detach().flatten(), ode.std_base.detach().flatten())
    field = _Field(ode.f, ode.net, ode.condition_shape, x)
    return Flow(field, base, integrator or Dopri5(rtol=RTOL, atol=ATOL), t0=ode.t_max, t1=ode.t_min)


class DiseNeuralODE(NeuralODE):
    """sbi's probability flow of a posterior, solved by dise: the backend that `use` sets.

    Args:
        f, net, mean_base, std_base, condition_shape, t_min, t_max: see sbi's `NeuralODE`.
        options: defaults of `get_distribution`.
    """

    def __init__(
        self,
        f: Callable[..., Tensor],
        net: nn.Module,
        mean_base: Tensor,
        std_base: Tensor,
        condition_shape: Size,
        t_min: float = 0.0,
        t_max: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(f, net, mean_base, std_base, condition_shape, t_min, t_max, **options)

    def get_distribution(
        self,
        condition: Tensor,
        *,
        integrator: Integrator | None = None,
        atol: float | None = None,
        rtol: float | None = None,
        exact: bool = True,
        log_prob_tolerance: float | None = None,
    ) -> Distribution:
        """The posterior under a condition [..., *condition_shape], which has `sample` and `log_prob`.

        Args:
            condition: observations; one, or one for each posterior of a batch.
            integrator: how to solve; None: `dise.Dopri5`.
            atol, rtol: tolerances, in place of the integrator's if it has any.
            exact: whether the divergence is exact or Hutchinson's estimate.
            log_prob_tolerance: see `use`.

        Raises:
            ValueError: the condition has another shape.
        """
        shape, batch = tuple(self.condition_shape), _check_condition(condition, self.condition_shape)
        if integrator is None:
            atol, rtol = ATOL if atol is None else atol, RTOL if rtol is None else rtol
            log_prob_tolerance = LOG_PROB_TOLERANCE * atol if log_prob_tolerance is None else log_prob_tolerance
            integrator = Dopri5(rtol=rtol, atol=atol)
        one = batch.numel() == 1  # then it is given as it is, and embedded once per evaluation
        flow = Flow(
            _Field(self.f, self.net, self.condition_shape, condition.reshape(1, *shape) if one else None),
            DiagonalNormal(torch.zeros_like(self.mean_base[0]), torch.ones_like(self.std_base[0])),  # not used
            integrator.mapped(lambda method: _with_tolerances(method, atol, rtol)),
            t0=self.t_max,
            t1=self.t_min,
            divergence=None if exact else HutchinsonDivergence(distribution="gaussian"),
            log_prob_tolerance=log_prob_tolerance,
        )
        conditions = () if one else (condition.reshape(*batch, math.prod(shape)),)
        base = DiagNormal(self.mean_base, self.std_base).expand(batch)
        return NormalizingFlow(FlowTransform(flow, conditions), base)


class _Field(nn.Module):
    """sbi's field f(input, condition, times) as f(t, z, condition), under rows of conditions or one of its own."""

    def __init__(self, f: Callable[..., Tensor], net: nn.Module, shape: Size, condition: Tensor | None = None) -> None:
        super().__init__()
        self.f, self.net, self.shape, self.condition = f, net, tuple(shape), condition

    def forward(self, t: Tensor, z: Tensor, *rows: Tensor) -> Tensor:
        """dz/dt [n, D] at times [n, 1]; rows are one tensor of conditions [n, ...]."""
        condition = self.condition if self.condition is not None else rows[0].reshape(len(z), *self.shape)
        return self.f(input=z, condition=condition, times=t[:, 0])


def _check_condition(condition: Tensor, expected: Size) -> Size:
    """The leading dimensions of a condition [..., *expected]."""
    batch = condition.shape[: max(condition.ndim - len(expected), 0)]
    if condition.shape[len(batch) :] != expected:
        raise ValueError(
            f"condition: expected shape [..., {', '.join(map(str, expected))}], got {list(condition.shape)}"
        )
    return batch


def _neural_ode(posterior: Any) -> NeuralODE:
    ode = getattr(getattr(posterior, "potential_fn", None), "neural_ode", None)
    if not isinstance(ode, NeuralODE):
        kind = type(posterior).__name__
        raise TypeError(f"posterior: expected a VectorFieldPosterior, as FMPE and NPSE build it, got {kind}")
    return ode


def _with_tolerances(method: Integrator, atol: float | None, rtol: float | None) -> Integrator:
    names: set[str] = {field.name for field in fields(method)} if is_dataclass(method) else set()
    changes = {name: x for name, x in (("atol", atol), ("rtol", rtol)) if x is not None and name in names}
    changed: Any = method
    return replace(changed, **changes) if changes else method
