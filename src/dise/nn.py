"""`NeuralODE`: a solve as a module, to be used as a block of a model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple, Unpack, cast

import torch
from torch import Tensor, nn

from dise.integrate import Integrator, Progress, Solution, SolveOptions, State, solve
from dise.integrate.arguments import check_options, check_state, check_time
from dise.integrate.clock import clock_dtype
from dise.integrate.exact import Exact, precision_of
from dise.integrate.integrator import check_integrator
from dise.integrate.options import SolveKeywords
from dise.integrate.output.events import EventArgument
from dise.integrate.output.functions import Values
from dise.integrate.problem.state import Layout, leaves
from dise.integrate.solve import end_state
from dise.integrate.stepping.statistics import Accumulate

OPTION_NAMES = frozenset(field.name for field in fields(SolveOptions))


class BlockSolve(NamedTuple):
    """One solve of a block: the initial value problem and its solution."""

    y0: State
    t0: float | Tensor
    t1: float | Tensor
    solution: Solution
    args: tuple[Any, ...] = ()  # of f
    sample_args: tuple[Tensor, ...] = ()


def check_lower_precision(dtype: object, *, optional: bool = False) -> None:
    """Raise an error unless autocast can run f in the dtype (or it is None, if it is optional)."""
    if dtype not in (torch.bfloat16, torch.float16) and not (optional and dtype is None):
        kind = ValueError if isinstance(dtype, torch.dtype) else TypeError
        raise kind(f"autocast: expected torch.bfloat16 or torch.float16, got {dtype!r}")


class NeuralODE(nn.Module):
    """h(t0) → h(t1) with dh/dt = f(t, h), by an integrator that can be exchanged at any time.

    Args:
        f: vector field, a module called as f(t, y, ...) (see `dise.solve`).
        integrator: how to solve; assign to `block.integrator` to change it. Modules in it, such as a selector, become
            part of the block as `block.policy`: they move with it and are in its `state_dict`. Weights saved with
            another integrator can still be loaded: a policy without saved weights keeps its own, and saved weights of a
            policy that the block lacks are ignored.
        t0, t1: span of the integration, numbers or [B] tensors.
        options: how the solve runs: `batched`, `drop_finished`, `gradient`, `differentiate_step_sizes` and `compile`,
            as in `dise.solve`. Kept as `block.options`, a frozen `dise.SolveOptions`; assign a changed copy to change
            them: `block.options = dataclasses.replace(block.options, compile=True)`.

    With `block.autocast = torch.bfloat16` or float16 all of the block's solves are under `torch.autocast`, but those of
    `Exact` integrators.

    Raises:
        TypeError, ValueError: an argument (named in the message) is not as described.
    """

    def __init__(
        self,
        f: nn.Module,
        integrator: Integrator,
        *,
        t0: float | Tensor = 0.0,
        t1: float | Tensor = 1.0,
        **options: Unpack[SolveKeywords],
    ) -> None:
        super().__init__()
        check_options({}, {"f": f})
        check_time("t0", t0)
        check_time("t1", t1)
        self.f, self.integrator, self.t0, self.t1 = f, integrator, t0, t1
        self.options = SolveOptions(**options)
        self.autocast: torch.dtype | None = None  # set by `dise.make_dynamic` and `dise.make_sampler`
        self.report: Any = None  # set by `dise.make_dynamic`
        self._records: list[BlockSolve] | None = None
        self._throw = True
        register: Callable[[Callable[..., None]], object] = self.register_load_state_dict_pre_hook  # untyped in torch
        register(_match_policy)

    @property
    def integrator(self) -> Integrator:
        """The integrator that solves."""
        return self._integrator

    @integrator.setter
    def integrator(self, integrator: Integrator) -> None:
        check_integrator(integrator)
        self._integrator = integrator
        self._modules.pop("policy", None)
        policy = _modules_of(integrator)
        if policy is not None:
            self.add_module("policy", policy)

    def __setattr__(self, name: str, value: Any) -> None:
        # nn.Module takes any attribute; a solve would ignore this one
        if name in OPTION_NAMES:
            raise AttributeError(
                f"{name}: an option of the block's solves; change it by "
                f"block.options = dataclasses.replace(block.options, {name}=...)"
            )
        if name == "options" and not isinstance(value, SolveOptions):
            raise TypeError(f"options: expected a dise.SolveOptions, got {value!r}")
        if name == "autocast":
            check_lower_precision(value, optional=True)
        super().__setattr__(name, value)

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
        jump_at: Tensor | Sequence[float] | None = None,
        jump_mask: Tensor | None = None,
        step_at: Tensor | Sequence[float] | None = None,
        step_mask: Tensor | None = None,
        save: Callable[..., Values] | None = None,
        save_every: int | None = None,
        dense: bool = False,
        event: EventArgument | None = None,
        accumulate: Accumulate | None = None,
        record: bool = False,
        progress: Callable[[Progress], object] | None = None,
        throw: bool = True,
    ) -> Solution:
        """Solve from y0 [B, ...] and return the `Solution`; arguments and errors as in `dise.solve`.

        The defaults of t0 and t1 are the block's.
        """
        t0, t1 = self.t0 if t0 is None else t0, self.t1 if t1 is None else t1
        with self._precision(y0):
            solution = solve(
                self.f,
                y0,
                t0,
                t1,
                self._integrator_for(t0, t1),
                args=args,
                sample_args=sample_args,
                save_at=save_at,
                save_mask=save_mask,
                jump_at=jump_at,
                jump_mask=jump_mask,
                step_at=step_at,
                step_mask=step_mask,
                save=save,
                save_every=save_every,
                dense=dense,
                event=event,
                accumulate=accumulate,
                record=record,
                progress=progress,
                throw=throw and self._throw,
                **self.options.keywords(),
            )
        return self._recorded(BlockSolve(y0, t0, t1, solution, tuple(args), tuple(sample_args)))

    def _integrator_for(self, t0: float | Tensor, t1: float | Tensor) -> Integrator:
        """The integrator that solves from t0 to t1; a flow's depends on the direction."""
        return self.integrator

    def _recorded(self, solve: BlockSolve) -> Solution:
        """The solution of a solve, which is added to the records if they are kept."""
        if self._records is not None:
            self._records.append(solve)
        return solve.solution

    def forward(
        self,
        y0: State,
        *,
        t0: float | Tensor | None = None,
        t1: float | Tensor | None = None,
        args: Sequence[Any] = (),
        sample_args: Sequence[Tensor] = (),
    ) -> State:
        """State at t1, shaped like y0 [B, ...]; the defaults of t0 and t1 are the block's, further arguments f's."""
        if self._records is not None or not self._throw or type(self).solve is not NeuralODE.solve:
            return self.solve(y0, t0=t0, t1=t1, args=args, sample_args=sample_args).y
        t0, t1 = self.t0 if t0 is None else t0, self.t1 if t1 is None else t1
        integrator = self._integrator_for(t0, t1)
        with self._precision(y0):
            return end_state(self.f, y0, t0, t1, integrator, self.options, args=args, sample_args=sample_args)

    def _precision(self, y0: State) -> AbstractContextManager[object]:
        """The context of solves from y0."""
        exact = isinstance(self.integrator, Exact)
        if self.autocast is None and not exact:
            return nullcontext()
        check_state("y0", y0, batched=self.options.batched)
        device = leaves(y0)[0].device.type
        return precision_of(self.integrator, device) if exact else torch.autocast(device, self.autocast)

    def first_stage(
        self,
        y0: State,
        *,
        t0: float | Tensor | None = None,
        args: Sequence[Any] = (),
        sample_args: Sequence[Tensor] = (),
    ) -> State:
        """k1 = f(t0, y0), shaped like y0 [B, ...]: the first stage of every integrator."""
        layout = Layout.of(y0, batched=self.options.batched)
        state = layout.pack(y0)
        t0 = torch.as_tensor(self.t0 if t0 is None else t0, dtype=clock_dtype(state.device), device=state.device)
        rows = state.shape[0]  # len would fix the size of a traced batch
        with self._precision(y0):
            return cast(State, self.f(layout.time(t0.expand(rows)), y0, *args, *sample_args))

    @contextmanager
    def recording(self, *, throw: bool = True) -> Iterator[list[BlockSolve]]:
        """A context that records the start, the span and the `Solution` of each of the block's solves in a list.

        With throw=False a failed sample raises no error: its state is the last good one, and its status says why.

        Use it to read NFE, errors and choices of a model that calls its block inside:

            with block.recording() as records:
                model(x)
            records[0].solution.nfe
        """
        outer = self._records, self._throw
        self._records, self._throw = [], throw and self._throw
        try:
            yield self._records
        finally:
            self._records, self._throw = outer

    @contextmanager
    def autocasting(self, dtype: torch.dtype | None) -> Iterator[None]:
        """A context in which `block.autocast` is another."""
        before, self.autocast = self.autocast, dtype
        try:
            yield
        finally:
            self.autocast = before

    @contextmanager
    def using(self, integrator: Integrator, *, batched: bool | None = None) -> Iterator[None]:
        """A context in which the block solves with another integrator (and with another `batched`, if given)."""
        before = self.integrator, self.options
        self.integrator = integrator
        if batched is not None:
            self.options = replace(self.options, batched=batched)
        try:
            yield
        finally:
            self.integrator, self.options = before

    def extra_repr(self) -> str:
        """Integrator, span, and options other than the defaults, for the printed module."""
        options = "" if self.options == SolveOptions() else f", options={self.options}"
        return f"integrator={self.integrator}, t0={self.t0}, t1={self.t1}{options}"


def _match_policy(module: nn.Module, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    """If only the block or only the state dict has a policy, match the state dict's policy entries to the block's."""
    policy = module._modules.get("policy")
    saved = [name for name in state if name.startswith(f"{prefix}policy.")]
    if policy is None:
        for name in saved:
            del state[name]
    elif not saved:
        state.update({f"{prefix}policy.{name}": value for name, value in policy.state_dict().items()})


def _modules_of(value: object) -> nn.Module | None:
    """The modules in an integrator's fields, as a tree with the names of the fields; None if there are none."""
    parts: dict[str, object] = {}
    if isinstance(value, nn.Module):
        return value
    if isinstance(value, Integrator) and is_dataclass(value):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
    elif isinstance(value, list | tuple):
        parts = {str(index): part for index, part in enumerate(value)}
    modules = {name: module for name, part in parts.items() if (module := _modules_of(part)) is not None}
    return nn.ModuleDict(modules) if modules else None
