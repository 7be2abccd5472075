"""`Flow`: a density on points that can be evaluated and sampled."""

from collections.abc import Callable, Sequence
from typing import Unpack, cast

import torch
from torch import Tensor, nn

from dise.flow.base import BaseDistribution, check_base
from dise.flow.divergences import AugmentedField
from dise.integrate import Integrator, Solution, Step, solve
from dise.integrate.annotations import Float
from dise.integrate.options import SolveKeywords
from dise.nn import NeuralODE


class Flow(nn.Module):
    """A continuous normalizing flow: a density on points of D dimensions that can be evaluated and sampled.

    Points are x [B, ..., D]. The first dimension is the solver's batch, whose rows have their own step sizes; further
    dimensions are points that share the step sizes of their row:

        x [B, D]                        one step size per point
        x [B, P, D]                     one step size per set of P points; the B sets are evaluated together
        x [..., D] with batched=False   one step size for all points, as in torchdiffeq

    `flow.block` is the `dise.NeuralODE` that takes data at t1 to the base at t0 (so its t0 and t1 are the flow's,
    swapped), with the state (z [B, ..., D], change of the log-density [B, ..., 1]). Its integrator and options apply to
    densities *and* to samples; `block.recording()` records the evaluations of densities.

    Args:
        f: vector field, a module called as f(t, z) with z [n, ..., D] and t [n, 1, …, 1] ([] with batched=False),
            which returns dz/dt in z's shape. The dz/dt of a point depends on that point alone. If f has a method
            `with_divergence(t, z) → (dz/dt, divergence [n, ..., 1])`, densities call it; otherwise the divergence
            takes D backward passes (see `divergence`).
        base: distribution at t0, with event_shape (D,). A module such as `DiagonalNormal` moves with the flow to
            another device; a `torch.distributions.Distribution` stays on the device it was made on.
        integrator: how to solve; assign to `flow.block.integrator` to change it.
        t0, t1: times at which the points follow the base distribution and the data distribution.
        options: how solves run, as in `dise.NeuralODE`; kept as `flow.block.options`, for densities and for samples.
            With `compile`, densities need `f.with_divergence`, since backward passes cannot be compiled into a step.

    Raises:
        ValueError: base is not a distribution over one dimension of size D.
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
        **options: Unpack[SolveKeywords],
    ) -> None:
        super().__init__()
        check_base(base)
        self.base = base
        self.block = NeuralODE(AugmentedField(f), integrator, t0=t1, t1=t0, **options)

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

    def forward(self, x: Tensor) -> Float[Tensor, "*B"]:
        """log p(x), as in `log_prob`."""
        return self.log_prob(x)

    def log_prob(self, x: Tensor) -> Float[Tensor, "*B"]:
        """log p(x) of x [B, ..., D] → [B, ...], in nats, with gradients to x and to f's parameters.

        Raises:
            TypeError, ValueError: x is not float32 or float64, or does not have a shape named in `Flow`.
            SolveError: a row could not be integrated.
        """
        self._check_points("x", x)
        return self._log_density(self.block(_with_zero(x)))

    def solve(self, x: Tensor, *, accumulate: Callable[[Step], Tensor] | None = None) -> tuple[Tensor, Solution]:
        """log p(x) [B, ...] and the `Solution` of its integration; arguments as in `dise.NeuralODE.solve`."""
        self._check_points("x", x)
        solution = self.block.solve(_with_zero(x), accumulate=accumulate)
        return self._log_density(cast(tuple[Tensor, Tensor], solution.y)), solution

    @torch.no_grad()
    def sample(self, shape: int | Sequence[int]) -> Tensor:
        """Points [*shape, D] distributed as the flow's data, without gradients; a number n is the shape (n,).

        Integrates f alone, which costs less than a density. Rows along the shape's first dimension have their own step
        sizes, so `sample((1, n))` draws n points that share one: the faster way to many points. Draws from torch's
        global generator, as `torch.distributions` does; for another random stream, draw z and `transport` it.

        Raises:
            ValueError: a shape that makes no points of a shape named in `Flow`.
        """
        return self._from_base(self.base.sample(_size(shape)))

    def rsample(self, shape: int | Sequence[int]) -> Tensor:
        """As `sample`, with gradients to f's parameters and to the base's, if it has any."""
        return self._from_base(self.base.rsample(_size(shape)))

    def transport(self, z: Tensor, t0: float | Tensor, t1: float | Tensor) -> Tensor:
        """Positions at t1 of points that are at z [B, ..., D] at time t0, with gradients.

        Times are numbers or [B] tensors, forwards or backwards, within [flow.t0, flow.t1] or beyond.
        """
        self._check_points("z", z)
        solution = solve(self.f, z, t0, t1, self.block.integrator, **self.block.options.keywords())
        return cast(Tensor, solution.y)

    def until(self, t1: float | Tensor) -> "Flow":
        """The flow up to time t1: densities and samples at that time, with the same f, base, integrator and options."""
        options = self.block.options.keywords()
        return Flow(self.f, self.base, self.block.integrator, t0=self.t0, t1=t1, **options)

    def extra_repr(self) -> str:
        """The base, for the printed module, if it is no module itself."""
        return "" if isinstance(self.base, nn.Module) else f"base={self.base}"

    def _log_density(self, end: tuple[Tensor, Tensor]) -> Tensor:
        """[B, ...] log p of the data from the state at the base: z [B, ..., D] and the change of log p [B, ..., 1]."""
        z, change = end
        return self.base.log_prob(z) - change.squeeze(-1)

    def _from_base(self, z: Tensor) -> Tensor:
        return self.transport(z, self.t0, self.t1)

    def _check_points(self, name: str, x: Tensor) -> None:
        batched = self.block.options.batched
        expected = f"[B, ..., {self.dim}]" if batched else f"[..., {self.dim}]"
        if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64):
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{name}: expected float32 or float64 points {expected}, got {got}")
        if x.ndim < 1 + batched or x.shape[-1] != self.dim:
            raise ValueError(f"{name}: expected points {expected}, got shape {list(x.shape)}")


def _with_zero(x: Tensor) -> tuple[Tensor, Tensor]:
    """Points and the change of their log-density, which starts at 0."""
    return x, x.new_zeros((*x.shape[:-1], 1))


def _size(shape: int | Sequence[int]) -> torch.Size:
    return torch.Size([shape] if isinstance(shape, int) else shape)
