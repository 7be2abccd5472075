"""Continuous normalizing flows: densities of data, and samples, from an ordinary differential equation.

Points z move with dz/dt = f(t, z) from a base distribution at t0 to the data at t1, and along their way the density
changes by d log p(z(t))/dt = −div f(t, z(t)). So

    log p(x) = log p_base(z(t0)) − ∫ div f dt over [t0, t1], where z(t1) = x.

Sources: Chen, Rubanova, Bettencourt, Duvenaud, Neural Ordinary Differential Equations, 2018, section 4 (Theorem 1);
Grathwohl et al., FFJORD, 2019; conventions as in torchdiffeq's `examples/cnf.py`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from dise.integrate import Integrator, Solution, Step, solve
from dise.nn import NeuralODE
from dise.regularize import KineticEnergy, Regularizer


class Base(Protocol):
    """What a flow asks of its base distribution; every `torch.distributions.Distribution` has it."""

    @property
    def event_shape(self) -> torch.Size:
        """(D,)."""
        ...

    def log_prob(self, value: Tensor, /) -> Tensor:
        """[..., D] → [...]."""
        ...

    def sample(self, sample_shape: torch.Size, /) -> Tensor:
        """[*sample_shape, D], without gradients."""
        ...

    def rsample(self, sample_shape: torch.Size, /) -> Tensor:
        """[*sample_shape, D], with gradients to the distribution's parameters."""
        ...


class DiagonalNormal(nn.Module):
    """Normal distribution with independent components, as a module: `flow.to(...)` moves it, a checkpoint holds it.

    Args:
        loc: [D] mean.
        scale: [D] standard deviation, positive; of the same dtype and device.

    Raises:
        ValueError: shapes that are not one [D], or a scale that is not positive.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__()
        if loc.ndim != 1 or loc.shape != scale.shape:
            raise ValueError(f"loc, scale: expected two tensors [D], got {list(loc.shape)} and {list(scale.shape)}")
        if not (scale > 0).all():
            raise ValueError(f"scale: expected positive numbers, got {scale.tolist()}")
        self.register_buffer("loc", loc)
        self.register_buffer("scale", scale)

    @property
    def event_shape(self) -> torch.Size:
        """(D,)."""
        return self.loc.shape

    def log_prob(self, value: Tensor) -> Tensor:
        """[..., D] → [...]."""
        squares = ((value - self.loc) / self.scale).square().sum(-1)
        return -squares / 2 - self.scale.log().sum() - len(self.loc) * math.log(2 * math.pi) / 2

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """[*sample_shape, D] from torch's global generator."""
        noise = torch.randn(*sample_shape, *self.loc.shape, dtype=self.loc.dtype, device=self.loc.device)
        return torch.addcmul(self.loc, self.scale, noise)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """[*sample_shape, D] from torch's global generator, without gradients."""
        return self.rsample(sample_shape)

    def extra_repr(self) -> str:
        """What a printed flow says of its base."""
        return f"loc={self.loc.tolist()}, scale={self.scale.tolist()}"


class Flow(nn.Module):
    """A continuous normalizing flow: a density on points of D dimensions that can be evaluated and sampled.

    Points come as x [B, ..., D]. The first dimension is the solver's batch, whose rows have step sizes of their own;
    further dimensions are points that share their row's:

        x [B, D]                        steps of its own for every point
        x [B, P, D]                     one step size for each set of P points: B batches, evaluated all at once
        x [..., D] with batched=False   one step size for all points, as torchdiffeq

    `flow.block` is the `dise.NeuralODE` that takes data at t1 to the base at t0 (so its t0 and t1 are the flow's,
    swapped), with the state (z [B, ..., D], change of the log-density [B, ..., 1]). `block.using(integrator)` sets how
    densities are evaluated *and* samples are drawn; `block.recording()` sees the evaluations of densities.

    Args:
        f: vector field, a module called as f(t, z) with z [n, ..., D] and t [n, 1, …, 1] ([] with batched=False),
            which returns dz/dt of z's shape. Each point's dz/dt depends on this point alone. If f has a method
            `with_divergence(t, z) → (dz/dt, divergence [n, ..., 1])`, that is called for densities; else the
            divergence takes D backward passes (see `divergence`).
        base: distribution at t0, with event_shape (D,). A module such as `DiagonalNormal` moves with the flow to
            another device; a `torch.distributions.Distribution` stays on the device it was made on.
        integrator: how to solve; assign to `flow.block.integrator` to change it.
        t0, t1: when points are distributed as the base, and as the data.
        batched, drop_finished: as of `dise.NeuralODE`.

    Raises:
        ValueError: a base that is not a distribution over one dimension of size D.
    """

    base: Base

    def __init__(
        self,
        f: nn.Module,
        base: Base,
        integrator: Integrator,
        *,
        t0: float | Tensor = 0.0,
        t1: float | Tensor = 1.0,
        batched: bool = True,
        drop_finished: bool = True,
    ) -> None:
        super().__init__()
        _check_base(base)
        self.base = base
        self.block = NeuralODE(Augmented(f), integrator, t0=t1, t1=t0, batched=batched, drop_finished=drop_finished)

    @property
    def f(self) -> nn.Module:
        """The vector field of the points."""
        return self.block.f.get_submodule("f")

    @property
    def dim(self) -> int:
        """D."""
        return self.base.event_shape[0]

    @property
    def t0(self) -> float | Tensor:
        """Time of the base."""
        return self.block.t1

    @property
    def t1(self) -> float | Tensor:
        """Time of the data."""
        return self.block.t0

    def forward(self, x: Tensor) -> Tensor:
        """log p(x), as `log_prob`."""
        return self.log_prob(x)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) of x [B, ..., D] → [B, ...], in nats, with gradients to x and to f's parameters.

        Raises:
            TypeError, ValueError: x is not float32 or float64, or not of the shape above.
            SolveError: a row could not be integrated.
        """
        self._check_points("x", x)
        return self._score(self.block(_with_zero(x)))

    def solve(self, x: Tensor, *, accumulate: Callable[[Step], Tensor] | None = None) -> tuple[Tensor, Solution]:
        """log p(x) [B, ...] and everything known of its integration; arguments as of `dise.NeuralODE.solve`."""
        self._check_points("x", x)
        solution = self.block.solve(_with_zero(x), accumulate=accumulate)
        return self._score(cast(tuple[Tensor, Tensor], solution.y)), solution

    @torch.no_grad()
    def sample(self, shape: int | Sequence[int]) -> Tensor:
        """Points [*shape, D] distributed as the flow's data, without gradients; a number n is the shape (n,).

        Integrates f alone, which is cheaper than a density. The shape's first dimension has steps of its own, so
        `sample((1, n))` draws n points that share theirs: the faster way to many. Draws from torch's global
        generator, as `torch.distributions` do; for a stream of your own, draw z and `transport` it.

        Raises:
            ValueError: a shape that does not make points as of `log_prob`.
        """
        return self._from_base(self.base.sample(_size(shape)))

    def rsample(self, shape: int | Sequence[int]) -> Tensor:
        """As `sample`, with gradients to f's parameters and to the base's, where it has some."""
        return self._from_base(self.base.rsample(_size(shape)))

    def transport(self, z: Tensor, t0: float | Tensor, t1: float | Tensor) -> Tensor:
        """Where points z [B, ..., D] of time t0 are at t1, with gradients.

        Times are numbers or [B] tensors, forwards or backwards; of [flow.t0, flow.t1] or beyond.
        """
        self._check_points("z", z)
        block = self.block
        solution = solve(self.f, z, t0, t1, block.integrator, batched=block.batched, drop_finished=block.drop_finished)
        return cast(Tensor, solution.y)

    def until(self, t1: float | Tensor) -> "Flow":
        """The flow up to time t1: densities and samples as they are then. It shares this flow's f and base."""
        block = self.block
        return Flow(
            self.f,
            self.base,
            block.integrator,
            t0=self.t0,
            t1=t1,
            batched=block.batched,
            drop_finished=block.drop_finished,
        )

    def extra_repr(self) -> str:
        """What a printed flow says of a base that is not a module."""
        return "" if isinstance(self.base, nn.Module) else f"base={self.base}"

    def _score(self, end: tuple[Tensor, Tensor]) -> Tensor:
        z, change = end
        return self.base.log_prob(z) - change.squeeze(-1)

    def _from_base(self, z: Tensor) -> Tensor:
        return self.transport(z, self.t0, self.t1)

    def _check_points(self, name: str, x: Tensor) -> None:
        batched = self.block.batched
        expected = f"[B, ..., {self.dim}]" if batched else f"[..., {self.dim}]"
        if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64):
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{name}: expected float32 or float64 points {expected}, got {got}")
        if x.ndim < 1 + batched or x.shape[-1] != self.dim:
            raise ValueError(f"{name}: expected points {expected}, got shape {list(x.shape)}")


class Augmented(nn.Module):
    """The vector field of points and of their log-density, of f(t, z) alone the one of the points.

    Args:
        f: as of `Flow`.
    """

    def __init__(self, f: nn.Module) -> None:
        super().__init__()
        self.f = f

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """(dz/dt [n, ..., D], d log p/dt = −div f [n, ..., 1]) at (z, log p), which does not depend on log p."""
        with_divergence = getattr(self.f, "with_divergence", None)
        dz, div = _with_trace(self.f, t, state[0]) if with_divergence is None else with_divergence(t, state[0])
        return dz, -div


def divergence(f: Callable[[Tensor, Tensor], Tensor], t: Tensor, z: Tensor) -> Tensor:
    """div f(t, z) = Σ_i ∂f_i/∂z_i of every point, exactly: one evaluation of f and D backward passes.

    Differentiable to f's parameters, t and z where gradients are on; works where they are off, too.

    Args:
        f: (t, z) → dz/dt of z's shape, each point's from this point alone: what f_i of one point owes to another
            would be counted as its own.
        t: what f takes.
        z: [..., D].

    Returns:
        [..., 1].

    Raises:
        ValueError: f returned another shape.
    """
    return _with_trace(f, t, z)[1]


def _with_trace(f: Callable[[Tensor, Tensor], Tensor], t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """f(t, z) and its divergence."""
    wanted = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        # autograd does not take tensors of inference mode, but copies of them
        t, z = (x.clone() if x.is_inference() else x for x in (t, z))
        z = z if z.requires_grad else z.detach().requires_grad_()
        dz = f(t, z)
        if dz.shape != z.shape:
            raise ValueError(f"f: expected dz/dt of shape {list(z.shape)} like z, got {list(dz.shape)}")
        if not dz.requires_grad:  # f is constant
            return dz, torch.zeros_like(dz[..., :1])
        trace = torch.zeros_like(dz[..., :1])
        for i in range(z.shape[-1]):
            # points are independent, so the gradient of their sum has each point's own
            (gradient,) = torch.autograd.grad(
                dz[..., i].sum(), z, retain_graph=True, create_graph=wanted, materialize_grads=True
            )
            trace = trace + gradient[..., i : i + 1]
    return (dz, trace) if wanted else (dz.detach(), trace.detach())


class TransportCost(Regularizer):
    """R = ∫ ‖f(t, z)‖² dt of a flow's points, mean over points: kinetic energy without the log-density's share.

    `KineticEnergy` of a flow's solve would add ∫ (div f)² dt, and sum over points that share a row. Small costs make
    straight paths, which few steps follow: the first regularizer of Finlay et al., How to Train Your Neural ODE, 2020.
    Computed by the solver's quadrature on stages it has anyway:

        cost = TransportCost(flow.dim)
        log_prob, solution = flow.solve(x, accumulate=cost.accumulate)
        loss = -log_prob.mean() + weight * cost(solution, flow.f)

    Args:
        dim: D of the flow's points.

    Raises:
        ValueError: dim is not a positive whole number; when solving: the state is not points of D dimensions with
            their log-densities.
    """

    def __init__(self, dim: int) -> None:
        if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
            raise ValueError(f"dim: expected a whole number of at least 1, got {dim!r}")
        self.dim = dim

    def accumulate(self, step: Step) -> Tensor:
        """[n] the step's share of the integral, mean over each row's points."""
        features = step.y.shape[1]
        points, rest = divmod(features, self.dim + 1)
        if rest:
            raise ValueError(
                f"dim: expected the D of points that, with their log-densities, are {features} numbers a row, "
                f"got {self.dim}"
            )
        # a row holds all coordinates of its points, then their log-densities
        coordinates = tuple(stage[:, : points * self.dim] for stage in step.stages)
        return KineticEnergy.accumulate(step._replace(stages=coordinates)) / max(points, 1)

    def __call__(self, solution: Solution | None, f: nn.Module) -> Tensor:
        """Mean over points."""
        return self._accumulated(solution)


def _with_zero(x: Tensor) -> tuple[Tensor, Tensor]:
    """Points with the change of their log-density, which begins at 0."""
    return x, x.new_zeros((*x.shape[:-1], 1))


def _size(shape: int | Sequence[int]) -> torch.Size:
    return torch.Size([shape] if isinstance(shape, int) else shape)


def _check_base(base: Base) -> None:
    shapes = [tuple(getattr(base, name, ())) for name in ("event_shape", "batch_shape")]
    if len(shapes[0]) != 1 or shapes[1]:
        raise ValueError(
            "base: expected a distribution with event_shape (D,) and batch_shape (), got "
            f"{shapes[0]} and {shapes[1]}; torch.distributions.Independent(base, 1) makes a batch of D an event"
        )
