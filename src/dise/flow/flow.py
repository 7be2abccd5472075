"""`Flow`: a density on points that can be evaluated and sampled."""

from collections.abc import Callable, Sequence
from typing import Literal, Unpack, cast, overload

import torch
from torch import Tensor, nn

from dise.flow.base import BaseDistribution, base_log_prob, check_base
from dise.flow.block import FlowBlock
from dise.flow.conditions import Condition, as_conditions
from dise.flow.divergences import AugmentedField, Divergence, Quadrature
from dise.integrate import Integrator, Solution, State, Step, solve
from dise.integrate.annotations import Float
from dise.integrate.arguments import check_time
from dise.integrate.options import SolveKeywords
from dise.integrate.value import as_whole, check_callable, is_whole


class Flow(nn.Module):
    """A continuous normalizing flow: a density on points that can be evaluated and sampled.

    Points are x [B, ..., D], or [B, ..., C, H, W] if the base's event_shape is (C, H, W). The first dimension is the
    solver's batch, whose rows have their own step sizes; further dimensions before a point's own are points that share
    the step sizes of their row:

        x [B, D]                        one step size per point
        x [B, P, D]                     one step size per set of P points; the B sets are evaluated together
        x [..., D] with batched=False   one step size for all points, as in torchdiffeq

    `flow.block` is the `dise.NeuralODE` that takes data at t1 to the base at t0 (so its t0 and t1 are the flow's,
    swapped), with the state (z [B, ..., D], change of the log-density [B, ..., 1]). Its integrator and options apply to
    densities *and* to samples; `block.recording()` records the evaluations of densities. A time grid counts from the
    base to the data; solves in the other direction, such as densities, use the same times, reversed.

    A conditional flow has a field f(t, z, *conditions). Its conditions are given to each method, one tensor or a tuple
    of tensors with a row per row of points, or with one row for all; `flow.at(condition)` is the flow under one.

    Args:
        f: vector field, a module called as f(t, z, *conditions) with z [n, ..., D] and t [n, 1, …, 1] ([] with
            batched=False), which returns dz/dt in z's shape. The dz/dt of a point depends on that point alone. If f has
            a method `with_divergence(t, z, *conditions) → (dz/dt, divergence [n, ..., 1])`, densities call it.
        base: distribution at t0; its event_shape is the shape of a point. A module such as `DiagonalNormal` moves with
            the flow to another device; a `torch.distributions.Distribution` stays on the device it was made on.
        integrator: how to solve; assign to `flow.block.integrator` to change it. Its tolerances are those of points
            and of log-densities.
        t0, t1: times at which the points follow the base distribution and the data distribution.
        divergence: `ExactDivergence()`, the default where f has no `with_divergence`, or `HutchinsonDivergence()`.
        log_prob_tolerance: tolerance of the log-density in nats, an absolute one, in place of the integrator's: rows
            take the steps that the points and the log-density need, each by its own error test. Kept as
            `flow.block.log_prob_tolerance`. Samples without log-densities do not use it.
        quadrature: how log-densities are integrated. "stages": with the points, by one divergence in each stage of the
            integrator. "lobatto": along the points, which are solved for alone, by six divergences in each step (and
            one at the start), at the nodes of Lobatto's rule on the dense output, those of several steps in one call.
            Steps whose estimated quadrature error exceeds the tolerance are halved for the log-density alone. It is the
            faster way, best with `Dopri8`. For methods with error control and dense output, without `compile`; see the
            guide for the other solves that use the stages. The divergences are counted as evaluations of f.
        jump_at, step_at: times at which f jumps, such as the ends of a guidance interval, and at which steps end; see
            `dise.solve`.
        options: how solves run, as in `dise.NeuralODE`; kept as `flow.block.options`, for densities and for samples.
            With `compile`, densities need `f.with_divergence`, since derivatives cannot be compiled into a step.

    Raises:
        ValueError: base is not one distribution over points.
        TypeError, ValueError: an option (named in the message) is not as described.
    """

    base: BaseDistribution

    def __init__(
        self,
        f: nn.Module,
        base: BaseDistribution,
        integrator: Integrator,
        *,
        t0: float | Tensor = 0.0,
        t1: float | Tensor = 1.0,
        divergence: Divergence | None = None,
        log_prob_tolerance: float | None = None,
        quadrature: Quadrature = "stages",
        jump_at: Tensor | Sequence[float] | None = None,
        step_at: Tensor | Sequence[float] | None = None,
        **options: Unpack[SolveKeywords],
    ) -> None:
        super().__init__()
        check_callable("f", f, "a vector field, called as f(t, z)")
        check_base(base)
        check_callable("divergence", divergence, "a divergence", optional=True)
        check_time("t0", t0)
        check_time("t1", t1)
        self.base = base
        augmented = AugmentedField(f, divergence, len(base.event_shape), quadrature)
        self.block = FlowBlock(augmented, integrator, t0=t1, t1=t0, log_prob_tolerance=log_prob_tolerance, **options)
        self.jump_at, self.step_at = jump_at, step_at

    @property
    def f(self) -> nn.Module:
        """The vector field of the points."""
        return self._augmented.f

    @property
    def divergence(self) -> Divergence | None:
        """How densities compute the divergence; None: by f's own method, or exactly."""
        return self._augmented.divergence

    @property
    def quadrature(self) -> Quadrature:
        """How log-densities are integrated."""
        return self._augmented.quadrature

    @property
    def _augmented(self) -> AugmentedField:
        return cast(AugmentedField, self.block.f)

    @property
    def dim(self) -> int:
        """Number of coordinates of a point, D."""
        return self.base.event_shape.numel()

    @property
    def t0(self) -> float | Tensor:
        """Time of the base."""
        return self.block.t1

    @property
    def t1(self) -> float | Tensor:
        """Time of the data."""
        return self.block.t0

    def forward(self, x: Tensor, condition: Condition = None) -> Float[Tensor, "*B"]:
        """log p(x), as in `log_prob`."""
        return self.log_prob(x, condition)

    def log_prob(self, x: Tensor, condition: Condition = None) -> Float[Tensor, "*B"]:
        """log p(x) of x [B, ..., D] → [B, ...], in nats, with gradients to x, to the conditions and to f's parameters.

        Raises:
            TypeError, ValueError: x is not float32 or float64, or does not have a shape named in `Flow`.
            SolveError: a row could not be integrated.
        """
        self._check_points("x", x)
        return self.solve(x, condition)[0]

    def solve(
        self, x: Tensor, condition: Condition = None, *, accumulate: Callable[[Step], Tensor] | None = None
    ) -> tuple[Tensor, Solution]:
        """log p(x) [B, ...] and the `Solution` of its integration; arguments as in `dise.NeuralODE.solve`."""
        self._check_points("x", x)
        solution = self.block.solve(
            self._with_zero(x),
            sample_args=self._further(x, condition),
            jump_at=self.jump_at,
            step_at=self.step_at,
            accumulate=accumulate,
        )
        return self._log_density(solution.y), solution

    @overload
    def sample(self, shape: int | Sequence[int], condition: Condition = None) -> Tensor: ...

    @overload
    def sample(
        self, shape: int | Sequence[int], condition: Condition = None, *, with_log_prob: Literal[True]
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def sample(
        self, shape: int | Sequence[int], condition: Condition = None, *, with_log_prob: bool
    ) -> Tensor | tuple[Tensor, Tensor]: ...

    @torch.no_grad()
    def sample(
        self, shape: int | Sequence[int], condition: Condition = None, *, with_log_prob: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Points [*shape, D] distributed as the flow's data, without gradients; a number n is the shape (n,).

        Integrates f alone, which costs less than a density. Rows along the shape's first dimension have their own step
        sizes, so `sample((1, n))` draws n points that share one: the faster way to many points. Draws from torch's
        global generator, as `torch.distributions` does; for another random stream, draw z and `transport` it.

        Args:
            shape: of the sample.
            condition: see `Flow`.
            with_log_prob: return the pair of the points and their log p(x) [*shape], from one solve of both.

        Raises:
            ValueError: a shape that makes no points of a shape named in `Flow`.
        """
        return self._from_base(self.base.sample(_size(shape)), condition, with_log_prob=with_log_prob)

    def rsample(
        self, shape: int | Sequence[int], condition: Condition = None, *, with_log_prob: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """As `sample`, with gradients to f's parameters and to the base's, if it has any."""
        return self._from_base(self.base.rsample(_size(shape)), condition, with_log_prob=with_log_prob)

    def transport(self, z: Tensor, t0: float | Tensor, t1: float | Tensor, condition: Condition = None) -> Tensor:
        """Positions at t1 of points that are at z [B, ..., D] at time t0, with gradients.

        Times are numbers or [B] tensors, forwards or backwards, within [flow.t0, flow.t1] or beyond.
        """
        self._check_points("z", z)
        conditions = as_conditions(condition, len(z), batched=self.block.options.batched)
        solution = solve(
            self.f,
            z,
            t0,
            t1,
            self.block.integrator_of_points(t0, t1),
            sample_args=conditions,
            jump_at=self.jump_at,
            step_at=self.step_at,
            **self.block.options.keywords(),
        )
        return cast(Tensor, solution.y)

    def transport_with_log_det(
        self, z: Tensor, t0: float | Tensor, t1: float | Tensor, condition: Condition = None
    ) -> tuple[Tensor, Tensor]:
        """Positions y at t1 as in `transport`, and log |det ∂y/∂z| [B, ...] of each point, from one solve."""
        self._check_points("z", z)
        solution = self.block.solve(
            self._with_zero(z),
            t0=t0,
            t1=t1,
            sample_args=self._further(z, condition),
            jump_at=self.jump_at,
            step_at=self.step_at,
        )
        y, change = cast(tuple[Tensor, Tensor], solution.y)
        return y, -change.squeeze(-1)

    def until(self, t1: float | Tensor) -> "Flow":
        """The flow up to time t1: densities and samples at that time, with the same f, base, integrator and options."""
        options = self.block.options.keywords()
        return Flow(
            self.f,
            self.base,
            self.block.integrator,
            t0=self.t0,
            t1=t1,
            divergence=self.divergence,
            log_prob_tolerance=self.block.log_prob_tolerance,
            quadrature=self.quadrature,
            jump_at=self.jump_at,
            step_at=self.step_at,
            **options,
        )

    def at(self, condition: Condition) -> "ConditionedFlow":
        """The flow under a condition: the same methods without that argument."""
        return ConditionedFlow(self, condition)

    def extra_repr(self) -> str:
        """The base, for the printed module, if it is no module itself."""
        return "" if isinstance(self.base, nn.Module) else f"base={self.base}"

    def _log_density(self, end: State) -> Tensor:
        """[B, ...] log p of the data from the state at the base: z [B, ..., D] and the change of log p [B, ..., 1]."""
        z, change = cast(tuple[Tensor, Tensor], end)
        return base_log_prob(self.base, z) - change.squeeze(-1)

    def _from_base(self, z: Tensor, condition: Condition, *, with_log_prob: bool) -> Tensor | tuple[Tensor, Tensor]:
        if not with_log_prob:
            return self.transport(z, self.t0, self.t1, condition)
        self._check_points("shape", z)
        x, log_det = self.transport_with_log_det(z, self.t0, self.t1, condition)
        return x, base_log_prob(self.base, z) - log_det

    def _further(self, x: Tensor, condition: Condition) -> tuple[Tensor, ...]:
        """The field's conditions and the divergence's random numbers, a row for each row of points."""
        conditions = as_conditions(condition, len(x), batched=self.block.options.batched)
        return (*conditions, *self._augmented.probes(x))

    def _with_zero(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Points and the change of their log-density, which starts at 0."""
        return x, x.new_zeros((*x.shape[: x.ndim - len(self.base.event_shape)], 1))

    def _check_points(self, name: str, x: Tensor) -> None:
        batched, event = self.block.options.batched, tuple(self.base.event_shape)
        sizes = ", ".join(map(str, event))
        expected = f"[B, ..., {sizes}]" if batched else f"[..., {sizes}]"
        if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64):
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{name}: expected float32 or float64 points {expected}, got {got}")
        if x.ndim < len(event) + batched or tuple(x.shape[-len(event) :]) != event:
            raise ValueError(f"{name}: expected points {expected}, got shape {list(x.shape)}")


def _size(shape: int | Sequence[int]) -> torch.Size:
    numbers = (shape,) if is_whole(shape) else shape
    if not isinstance(numbers, Sequence) or not all(is_whole(number) for number in numbers):
        raise TypeError(f"shape: expected a number of points or a tuple of numbers, got {shape!r}")
    return torch.Size([as_whole("shape", number, 0) for number in numbers])


class ConditionedFlow:
    """A flow under one condition, as `Flow.at` returns it: its methods, without the argument `condition`.

    Args:
        flow: the conditional flow.
        condition: of all points, with one row, or with a row per row of points.
    """

    def __init__(self, flow: Flow, condition: Condition) -> None:
        self.flow, self.condition = flow, condition

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) of x [B, ..., D] → [B, ...]; see `Flow.log_prob`."""
        return self.flow.log_prob(x, self.condition)

    @overload
    def sample(self, shape: int | Sequence[int]) -> Tensor: ...

    @overload
    def sample(self, shape: int | Sequence[int], *, with_log_prob: Literal[True]) -> tuple[Tensor, Tensor]: ...

    @overload
    def sample(self, shape: int | Sequence[int], *, with_log_prob: bool) -> Tensor | tuple[Tensor, Tensor]: ...

    def sample(self, shape: int | Sequence[int], *, with_log_prob: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Points [*shape, D], with their log p(x) [*shape] if asked for; see `Flow.sample`."""
        return self.flow.sample(shape, self.condition, with_log_prob=with_log_prob)

    def rsample(self, shape: int | Sequence[int], *, with_log_prob: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Points [*shape, D] with gradients, with their log p(x) if asked for; see `Flow.rsample`."""
        return self.flow.rsample(shape, self.condition, with_log_prob=with_log_prob)

    def transport(self, z: Tensor, t0: float | Tensor, t1: float | Tensor) -> Tensor:
        """Positions at t1 of points that are at z [B, ..., D] at time t0; see `Flow.transport`."""
        return self.flow.transport(z, t0, t1, self.condition)

    def transport_with_log_det(self, z: Tensor, t0: float | Tensor, t1: float | Tensor) -> tuple[Tensor, Tensor]:
        """Positions at t1 and log-determinants; see `Flow.transport_with_log_det`."""
        return self.flow.transport_with_log_det(z, t0, t1, self.condition)

    def until(self, t1: float | Tensor) -> "ConditionedFlow":
        """The flow up to time t1, under the same condition."""
        return ConditionedFlow(self.flow.until(t1), self.condition)
