"""The block that users put in a model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from dise.integrate import Integrator, Solution, State, Step, solve


class NeuralODE(nn.Module):
    """h(t0) → h(t1) with dh/dt = f(t, h), integrated by an integrator that can be exchanged at any time.

    Args:
        f: vector field, a module called as f(t, y, ...) (see `dise.solve`).
        integrator: how to solve; assign to `block.integrator` to change it.
        t0, t1: span of the integration.
        batched: False treats the whole batch as one system with one step size (torchdiffeq's meaning).
        compact: False calls f on all samples always (see `dise.solve`).
    """

    def __init__(
        self,
        f: nn.Module,
        integrator: Integrator,
        *,
        t0: float | Tensor = 0.0,
        t1: float | Tensor = 1.0,
        batched: bool = True,
        compact: bool = True,
    ) -> None:
        super().__init__()
        self.f, self.integrator, self.t0, self.t1 = f, integrator, t0, t1
        self.batched, self.compact = batched, compact
        self._record: list[Solution] | None = None

    def solve(
        self,
        y0: State,
        *,
        args: Sequence[Any] = (),
        sample_args: Sequence[Tensor] = (),
        accumulate: Callable[[Step], Tensor] | None = None,
    ) -> Solution:
        """Integrate y0 [B, ...] and return everything known of it; arguments as of `dise.solve`."""
        solution = solve(
            self.f,
            y0,
            self.t0,
            self.t1,
            self.integrator,
            args=args,
            sample_args=sample_args,
            batched=self.batched,
            compact=self.compact,
            accumulate=accumulate,
        )
        if self._record is not None:
            self._record.append(solution)
        return solution

    def forward(self, y0: State) -> State:
        """State at t1, shaped like y0 [B, ...]."""
        return self.solve(y0).y

    @contextmanager
    def recording(self) -> Iterator[list[Solution]]:
        """Within the context, every solve's Solution is appended to the list that it gives.

        It is how NFE, errors and choices are read from a model that calls its block somewhere inside:

            with block.recording() as solutions:
                model(x)
            solutions[0].nfe
        """
        outer, self._record = self._record, []
        try:
            yield self._record
        finally:
            self._record = outer

    @contextmanager
    def using(self, integrator: Integrator, *, batched: bool | None = None) -> Iterator[None]:
        """Within the context, integrate with another integrator (and another meaning of the batch)."""
        before = self.integrator, self.batched
        self.integrator = integrator
        self.batched = self.batched if batched is None else batched
        try:
            yield
        finally:
            self.integrator, self.batched = before

    def extra_repr(self) -> str:
        """What a printed model says of this block."""
        return f"integrator={self.integrator}, t0={self.t0}, t1={self.t1}" + ("" if self.batched else ", batched=False")
