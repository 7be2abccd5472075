"""Integrals along a solution on which its other tensors do not depend: Lobatto's rule along the steps."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from dise.integrate.clock import real_dtype
from dise.integrate.integrator import Integrator
from dise.integrate.integrators import Adaptive
from dise.integrate.output.lobatto import NODES, error_estimate, legendre_coefficients
from dise.integrate.output.step_parts import INNER, Points, StepEnds, StepParts, WholeSteps
from dise.integrate.problem.field import Field
from dise.integrate.problem.hooks import StepRecord
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Result
from dise.integrate.status import Status
from dise.integrate.stepping.tolerance import ErrorTest, each, max_norm, rms_norm
from dise.integrate.tracing import known_all

AT_ONCE = {"cpu": 2**14}  # numbers in the states of one call of f: the derivatives of more leave the processor's cache
MANY = 2**20  # on other devices
SHORTEST = 2.0**-50  # part of a step, which is then as short as its time resolves
ROUNDING = 50  # machine epsilons of the integral of the absolute value, as in QUADPACK: more accurate no rule can be


class Separated(NamedTuple):
    """A problem of two tensors, the second an integral along the first: the first alone, and the integral."""

    field: Field
    problem: Problem
    integrator: Adaptive
    quadrature: "LobattoQuadrature"

    @classmethod
    def of(cls, field: Field, problem: Problem, integrator: Integrator) -> "Separated | None":
        """The parts of a problem; None: f has no field `without_quadrature`, or the method has no such steps.

        A sample without a span would lack the integral's gradient in time, so times with gradients are not separated.

        Args:
            field: of f(t, (y, q), ...), whose `f.without_quadrature(t, y, ...)` returns dy/dt alone.
            problem: of both tensors.
            integrator: for both, which chooses its steps and has dense output.
        """
        if not isinstance(integrator, Adaptive):
            return None
        f = getattr(field.f, "without_quadrature", None)
        if f is None:
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
        alone = Field(f, first.layout, stand_ins, field.args, field.sample_args, field.samples)
        return cls(alone, first, replace(integrator, rtol=rtol[0], atol=atol[0]), quadrature)


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
        self._others = problem.y0.shape[1] - self._layout.sizes[0]  # columns of the other tensors
        self._total = problem.y0[:, self._others :]
        self._error = torch.zeros_like(problem.t0, dtype=real_dtype(problem.y0))
        self._parts = torch.zeros_like(problem.t0, dtype=torch.int64)
        self._nfe = self._parts
        self._status = torch.full_like(self._parts, int(Status.SUCCESS))
        self._at_once = AT_ONCE.get(problem.y0.device.type, MANY)
        self._ends = StepEnds(self._total)
        self._waiting: list[StepRecord] = []
        self._size = 0  # numbers in the states at the nodes of the records that wait
        self._halves: list[StepParts] = []  # of the parts that did not pass

    def see(self, record: StepRecord) -> None:
        """Take note of a step, and evaluate f where enough of them wait."""
        self._waiting.append(record)
        self._size += len(NODES) * record.step.y.numel()
        while self._size >= self._at_once:
            self._integrate()

    def start_over(self, sample: Tensor) -> None:
        """Never called: integrators that choose integrate the whole state."""
        raise NotImplementedError

    def finish(self, result: Result) -> Result:
        """The result for all tensors from that for the others."""
        while self._waiting or self._halves:
            self._integrate()
        status = torch.where(result.outcome == int(Status.SUCCESS), self._status, result.outcome)
        return result._replace(
            y=torch.cat([result.y, self._total], 1),
            nfe=None if result.nfe is None else result.nfe + self._nfe,
            error=None if result.error is None else result.error + self._error,
            status=status,
            k1=None,  # the last tensor's is unknown
        )

    def _integrate(self) -> None:
        """Integrate the steps that wait, and the halves that wait with them; those that do not pass are halved."""
        waiting: list[WholeSteps | StepParts] = [WholeSteps.of(self._waiting)] if self._waiting else []
        parts = [some for some in (*waiting, *self._halves) if len(some.sample)]
        self._waiting, self._size, self._halves = [], 0, []
        if not parts:
            return
        sample, length, width = (
            torch.cat([getattr(some, name) for some in parts]) for name in ("sample", "length", "width")
        )
        slopes = self._slopes(parts)
        values, ratio = self._integrals(length, torch.cat(slopes, 1))
        self._parts = self._parts + torch.bincount(sample, minlength=len(self._parts))
        done = ratio <= 1
        self._total = self._total.index_add(0, sample, torch.where(done[:, None], values, 0))
        self._error = self._error.index_add(0, sample, torch.where(done, ratio, 0))
        if known_all(done):
            return
        self._stop(sample[~done & (width <= SHORTEST)], Status.STEP_UNDERFLOW)
        self._stop(sample[~done & (self._parts[sample] >= self._max_steps)], Status.MAX_STEPS)
        self._stop(sample[~ratio.isfinite()], Status.NON_FINITE)
        again = (~done & (self._status[sample] == int(Status.SUCCESS))).split([len(some.sample) for some in parts])
        failed = [(some, which.nonzero().flatten(), at) for some, which, at in zip(parts, again, slopes, strict=True)]
        halves = [some.halves(rows, at) for some, rows, at in failed if len(rows)]
        if halves:
            self._halves = [StepParts.joined(halves)]
            self._size = len(INNER) * len(self._halves[0].sample) * self._others

    def _stop(self, sample: Tensor, status: Status) -> None:
        """Mark samples as failed."""
        self._status = self._status.index_fill(0, sample, int(status))

    def _integrals(self, length: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        """[P, columns] integrals over parts of lengths [P], and their [P] scaled error estimates.

        `slopes` [M, P, columns] are those at the nodes.
        """
        length = length.to(real_dtype(slopes))[:, None]
        coefficients = legendre_coefficients(slopes)
        with torch.no_grad():
            values = (coefficients[0] * length).abs()
            rounding = ROUNDING * torch.finfo(length.dtype).eps * slopes.abs().mean(0)
            scale = self._test.scale(values, self._layout) + rounding * length.abs()
            scale = scale.clamp(min=torch.finfo(scale.dtype).tiny)
            ratio = self._test.size(error_estimate(coefficients) * length.abs() / scale, self._layout)
        return coefficients[0] * length, ratio

    def _slopes(self, parts: Sequence[WholeSteps | StepParts]) -> list[Tensor]:
        """[M, P, columns] the last tensor's slopes at the nodes of each of the parts, from one call of f.

        A step begins where the sample's last one ended, and the ends of a half are nodes of the whole.
        """
        steps = parts[0] if isinstance(parts[0], WholeSteps) else None
        points, links = [some.inner() for some in parts], None
        if steps is not None:
            # at a jump the slopes of the steps before and after it differ
            links = None if steps.step.bounds is not None else self._ends.links(steps.sample)
            points += [steps.starts(None if links is None else links.first), steps.ends()]
        values = self._evaluate(Points.joined(points)).split([len(some.t) for some in points])
        ends = [some.ends for some in parts if isinstance(some, StepParts)]
        if steps is not None:
            starts, last = values[-2:]
            starts = starts if links is None else self._ends.starts(links, starts, last)
            ends = [torch.stack([starts, last]), *ends]
        return [
            torch.cat([both[:1], inner.view(len(INNER), *both[0].shape), both[1:]])
            for inner, both in zip(values, ends, strict=False)
        ]

    def _evaluate(self, points: Points) -> Tensor:
        """[n, columns] the last tensor's slopes at n points."""
        sample, t, y = points
        self._nfe = self._nfe + torch.bincount(sample, minlength=len(self._nfe))
        y = torch.cat([y, y.new_zeros(len(y), self._layout.sizes[0])], 1)
        if self._layout.batched:
            self.calls += 1
            return self._field.bound(sample)(t, y)[:, self._others :]
        self.calls += len(t)  # one system; f takes one time
        field = self._field.bound(None)
        return torch.cat([field(*point)[:, self._others :] for point in zip(t[:, None], y[:, None], strict=True)])
