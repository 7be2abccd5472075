"""The block that users put in a model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from dise.integrate import Backsolve, Event, Integrator, Progress, Solution, State, Step, solve
from dise.integrate.problem.state import Layout


class BlockSolve(NamedTuple):
    """One integration of a block: the problem that was solved, and what came of it."""

    y0: State
    t0: float | Tensor
    t1: float | Tensor
    solution: Solution


class NeuralODE(nn.Module):
    """h(t0) → h(t1) with dh/dt = f(t, h), integrated by an integrator that can be exchanged at any time.

    Args:
        f: vector field, a module called as f(t, y, ...) (see `dise.solve`).
        integrator: how to solve; assign to `block.integrator` to change it. Modules that it holds, such as a
            selector, become part of the block, as `block.policy`: they move with it and are in its `state_dict`.
            Weights saved with another integrator can be loaded all the same: a policy that they lack stays as it is,
            one that the block lacks is left out.
        t0, t1: span of the integration.
        batched: False treats the whole batch as one system with one step size (torchdiffeq's meaning).
        drop_finished: False calls f on all samples always (see `dise.solve`).
        gradient, differentiate_step_sizes: how gradients are found (see `dise.solve`).
        compile: whether steps are compiled, and how (see `dise.solve`); assign to `block.compiled` to change it.
    """

    def __init__(
        self,
        f: nn.Module,
        integrator: Integrator,
        *,
        t0: float | Tensor = 0.0,
        t1: float | Tensor = 1.0,
        batched: bool = True,
        drop_finished: bool = True,
        gradient: Literal["direct", "checkpoint", "backsolve"] | Backsolve = "direct",
        differentiate_step_sizes: bool = False,
        compile: bool | Mapping[str, Any] = False,
    ) -> None:
        super().__init__()
        self.f, self.integrator, self.t0, self.t1 = f, integrator, t0, t1
        self.batched, self.drop_finished, self.gradient = batched, drop_finished, gradient
        self.differentiate_step_sizes, self.compiled = (
            differentiate_step_sizes,
            compile,
        )  # nn.Module has a method compile
        self.report: Any = None  # of `dise.make_dynamic`
        self._records: list[BlockSolve] | None = None
        self.register_load_state_dict_pre_hook(_match_policy)

    @property
    def integrator(self) -> Integrator:
        """How to solve."""
        return self._integrator

    @integrator.setter
    def integrator(self, integrator: Integrator) -> None:
        self._integrator = integrator
        self._modules.pop("policy", None)
        held = _held_modules(integrator)
        if held is not None:
            self.add_module("policy", held)

    def solve(
        self,
        y0: State,
        *,
        t0: float | Tensor | None = None,
        t1: float | Tensor | None = None,
        args: Sequence[Any] = (),
        sample_args: Sequence[Tensor] = (),
        save_at: Tensor | Sequence[float] | None = None,
        save_mask: Tensor | None = None,
        dense: bool = False,
        event: Event | Callable[..., Tensor] | None = None,
        accumulate: Callable[[Step], Tensor] | None = None,
        record: bool = False,
        progress: Callable[[Progress], object] | None = None,
        throw: bool = True,
    ) -> Solution:
        """Integrate y0 [B, ...] and return everything known of it; arguments as of `dise.solve`.

        t0 and t1 are the block's unless given.
        """
        t0, t1 = self.t0 if t0 is None else t0, self.t1 if t1 is None else t1
        solution = solve(
            self.f,
            y0,
            t0,
            t1,
            self.integrator,
            args=args,
            sample_args=sample_args,
            save_at=save_at,
            save_mask=save_mask,
            dense=dense,
            event=event,
            batched=self.batched,
            drop_finished=self.drop_finished,
            gradient=self.gradient,
            differentiate_step_sizes=self.differentiate_step_sizes,
            compile=self.compiled,
            accumulate=accumulate,
            record=record,
            progress=progress,
            throw=throw,
        )
        if self._records is not None:
            self._records.append(BlockSolve(y0, t0, t1, solution))
        return solution

    def forward(self, y0: State, *, t0: float | Tensor | None = None, t1: float | Tensor | None = None) -> State:
        """State at t1, shaped like y0 [B, ...]; t0 and t1 are the block's unless given."""
        return self.solve(y0, t0=t0, t1=t1).y

    def first_stage(self, y0: State, *, t0: float | Tensor | None = None) -> State:
        """k1 = f(t0, y0), shaped like y0 [B, ...]: what every integrator evaluates first."""
        layout = Layout.of(y0, batched=self.batched)
        state = layout.pack(y0)
        t0 = torch.as_tensor(self.t0 if t0 is None else t0, dtype=state.dtype.to_real(), device=state.device)
        return self.f(layout.time(t0.expand(len(state))), y0)

    @contextmanager
    def recording(self) -> Iterator[list[BlockSolve]]:
        """Within the context, every solve's start, span and Solution are appended to the list that it gives.

        It is how NFE, errors and choices are read from a model that calls its block somewhere inside:

            with block.recording() as records:
                model(x)
            records[0].solution.nfe
        """
        outer, self._records = self._records, []
        try:
            yield self._records
        finally:
            self._records = outer

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


def _match_policy(module: nn.Module, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    """Make the entries of a policy in a state dict those that the block has, if only one of both has a policy."""
    own = module._modules.get("policy")
    saved = [name for name in state if name.startswith(f"{prefix}policy.")]
    if own is None:
        for name in saved:
            del state[name]
    elif not saved:
        state.update({f"{prefix}policy.{name}": value for name, value in own.state_dict().items()})


def _held_modules(value: object) -> nn.Module | None:
    """The modules that an integrator holds in its fields, as a tree named like them; None if it holds none."""
    parts: dict[str, object] = {}
    if isinstance(value, nn.Module):
        return value
    if isinstance(value, Integrator) and is_dataclass(value):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
    elif isinstance(value, list | tuple):
        parts = {str(index): part for index, part in enumerate(value)}
    held = {name: module for name, part in parts.items() if (module := _held_modules(part)) is not None}
    return nn.ModuleDict(held) if held else None
