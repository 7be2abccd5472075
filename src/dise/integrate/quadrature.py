"""Integrals along a solution on which its other tensors do not depend: Lobatto's rule along the steps."""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dise.integrate.clock import real_dtype
from dise.integrate.integrators import Adaptive, Integrator
from dise.integrate.output.interpolation import PiecewisePolynomial
from dise.integrate.output.lobatto import NODES, error_estimate, legendre_coefficients
from dise.integrate.problem.field import Field
from dise.integrate.problem.hooks import StepRecord
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Result
from dise.integrate.runge_kutta.step import within
from dise.integrate.status import Status
from dise.integrate.stepping.tolerance import ErrorTest, each, max_norm, rms_norm

AT_ONCE = {"cpu": 2**14}  # numbers in the states of one call of f: the derivatives of more leave the processor's cache
MANY = 2**20  # on other devices
HALVINGS = 50  # of a step, which is then as short as its time resolves
ROUNDING = 50  # machine epsilons of the integral of the absolute value, as in QUADPACK: more accurate no rule can be


class Separated(NamedTuple):
    """A problem of two tensors, the second an integral along the first: the first alone, and the integral."""

    field: Field
    problem: Problem
    integrator: Adaptive
    quadrature: "LobattoQuadrature"

    @classmethod
    def of(cls, field: Field, problem: Problem, integrator: Integrator) -> "Separated | None":
        """The parts of a problem; None: f has no `without_quadrature`, or the method has no such steps.

        A sample without a span would lack the integral's gradient in time, so times with gradients are not separated.

        Args:
            field: of f(t, (y, q), ...), whose `f.without_quadrature(t, y, ...)` returns dy/dt alone.
            problem: of both tensors.
            integrator: for both, which chooses its steps and has dense output.
        """
        f: Any = field.f
        if not hasattr(f, "without_quadrature") or not isinstance(integrator, Adaptive):
            return None
        if integrator.tableau.interpolant is None or integrator.norm not in (rms_norm, max_norm):
            return None
        if problem.t0.requires_grad or problem.t1.requires_grad:
            return None
        rtol, atol = (each(name, getattr(integrator, name), problem.layout) for name in ("rtol", "atol"))
        quadrature = LobattoQuadrature(
            field, problem, ErrorTest(rtol[1], atol[1], integrator.norm), integrator.max_steps
        )
        first = replace(problem, y0=problem.y0[:, : problem.layout.sizes[0]], layout=problem.layout.first)
        stand_ins = first.t0, first.y0
        alone = Field(f.without_quadrature, first.layout, stand_ins, field.args, field.sample_args, field.samples)
        return cls(alone, first, replace(integrator, rtol=rtol[0], atol=atol[0]), quadrature)


class StepParts(NamedTuple):
    """P parts of steps."""

    steps: PiecewisePolynomial  # of which they are parts
    start: Tensor  # [P] as a fraction of the step
    width: Tensor  # [P] as a fraction of the step
    bounds: Tensor | None  # [P, 2] smallest and largest time that f may receive

    @classmethod
    def of(cls, records: list[StepRecord], number: int) -> "StepParts":
        """The whole of the accepted steps; `number`: of samples in the solve."""
        accept, sample = (torch.cat(column) for column in zip(*((r.accept, r.sample) for r in records), strict=True))
        rows = accept.nonzero().flatten()
        steps = PiecewisePolynomial.of_rows(records, rows, sample[rows], number)
        bounds = [record.step.bounds for record in records if record.step.bounds is not None]
        start = torch.zeros_like(steps.dt)
        return cls(steps, start, torch.ones_like(start), torch.cat(bounds)[rows] if bounds else None)

    def halves(self, rows: Tensor) -> "StepParts":
        """Both halves of some of the parts, the first ones first."""
        both = torch.cat([rows, rows])
        width = self.width[both] / 2
        second = torch.cat([torch.zeros_like(rows), torch.ones_like(rows)])
        bounds = None if self.bounds is None else self.bounds[both]
        return StepParts(self.steps.take(both), torch.addcmul(self.start[both], second, width), width, bounds)

    def nodes(self) -> tuple[Tensor, Tensor]:
        """[M, P] time and [M, P, F] state of the rule's nodes."""
        nodes = torch.tensor(NODES, dtype=self.start.dtype).to(self.start.device)
        t, y = self.steps.within(torch.addcmul(self.start, nodes[:, None], self.width))
        t = t.to(real_dtype(y))
        return (t if self.bounds is None else torch.stack([within(time, self.bounds) for time in t])), y


class LobattoQuadrature:
    """The last tensor of a state as an integral along the others, which are solved for without it.

    An observer of their steps. It evaluates f at the nodes of Lobatto's rule on the dense output of the accepted steps,
    of several steps in one call. Where the error estimate of a step is over the tolerance, its two halves take its
    place, and so on: the last tensor shortens no step of the others.

    Args:
        field: f, with the last tensor's slope.
        problem: with the last tensor.
        test: tolerance and norm of the last tensor.
        max_steps: largest number of parts of a sample's steps that are integrated.

    Sources: Hindmarsh et al., SUNDIALS, 2005 (pure quadrature variables); see `error_estimate`.
    """

    def __init__(self, field: Field, problem: Problem, test: ErrorTest, max_steps: int) -> None:
        self.calls = 0  # of f
        self._field, self._layout, self._test, self._max_steps = field, problem.layout.last, test, max_steps
        self._total = problem.y0[:, -self._layout.sizes[0] :]
        self._error = torch.zeros_like(problem.t0, dtype=real_dtype(problem.y0))
        self._parts = torch.zeros_like(problem.t0, dtype=torch.int64)
        self._status = torch.full_like(self._parts, int(Status.SUCCESS))
        self._at_once = AT_ONCE.get(problem.y0.device.type, MANY)
        self._waiting: list[StepRecord] = []
        self._size = 0  # numbers in the states at the nodes of the records that wait

    def see(self, record: StepRecord) -> None:
        """Take note of a step, and evaluate f where enough of them wait."""
        self._waiting.append(record)
        self._size += len(NODES) * record.step.y.numel()
        if self._size >= self._at_once:
            self._integrate()

    def start_over(self, sample: Tensor) -> None:
        """Never called: integrators that choose integrate the whole state."""
        raise NotImplementedError

    def finish(self, result: Result) -> Result:
        """The result for all tensors from that for the others."""
        self._integrate()
        status = torch.where(result.status == int(Status.SUCCESS), self._status, result.status)
        return result._replace(
            y=torch.cat([result.y, self._total], 1),
            nfe=result.nfe + len(NODES) * self._parts,
            error=result.error + self._error,
            status=status,
            k1=None,  # the last tensor's is unknown
        )

    def _integrate(self) -> None:
        """Add the integrals of the steps that wait."""
        if not self._waiting:
            return
        parts = StepParts.of(self._waiting, len(self._parts))
        self._waiting, self._size = [], 0
        for _ in range(HALVINGS):
            if len(parts.width) == 0:
                return
            sample, (values, ratio) = parts.steps.sample, self._integrals(parts)
            self._parts = self._parts.index_add(0, sample, torch.ones_like(sample))
            done = ratio <= 1
            self._total = self._total.index_add(0, sample, torch.where(done[:, None], values, 0))
            self._error = self._error.index_add(0, sample, torch.where(done, ratio, 0))
            self._stop(sample[~ratio.isfinite()], Status.NON_FINITE)
            self._stop(sample[~done & (self._parts[sample] >= self._max_steps)], Status.MAX_STEPS)
            parts = parts.halves((~done & (self._status[sample] == int(Status.SUCCESS))).nonzero().flatten())
        self._stop(parts.steps.sample, Status.STEP_UNDERFLOW)

    def _stop(self, sample: Tensor, status: Status) -> None:
        """Mark samples as failed."""
        self._status = self._status.index_fill(0, sample, int(status))

    def _integrals(self, parts: StepParts) -> tuple[Tensor, Tensor]:
        """[P, columns] integrals over the parts, and their [P] scaled error estimates."""
        slopes = self._slopes(parts)  # [M, P, columns]
        length = (parts.width * parts.steps.dt).to(real_dtype(slopes))[:, None]
        coefficients = legendre_coefficients(slopes)
        with torch.no_grad():
            values = (coefficients[0] * length).abs()
            rounding = ROUNDING * torch.finfo(length.dtype).eps * slopes.abs().mean(0)
            scale = self._test.scale(values, self._layout) + rounding * length.abs()
            scale = scale.clamp(min=torch.finfo(scale.dtype).tiny)
            ratio = self._test.size(error_estimate(coefficients) * length.abs() / scale, self._layout)
        return coefficients[0] * length, ratio

    def _slopes(self, parts: StepParts) -> Tensor:
        """[M, P, columns] the last tensor's slopes at the nodes of each part."""
        t, states = parts.nodes()
        others, columns = states.shape[-1], self._layout.sizes[0]
        states = torch.cat([states, states.new_zeros(*states.shape[:-1], columns)], -1)
        if not self._layout.batched:  # one system; f takes one time
            times, rows = t.flatten()[:, None], states.flatten(0, 1)[:, None]
            field = self._field.bound(None)
            self.calls += len(times)
            slopes = torch.cat([field(time, row) for time, row in zip(times, rows, strict=True)])
        else:
            self.calls += 1
            field = self._field.bound(parts.steps.sample.repeat(len(t)))
            slopes = field(t.flatten(), states.flatten(0, 1))
        return slopes[:, others:].view(*t.shape, columns)
