"""Wall-clock times of all policies, beside torchdiffeq's dopri5."""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchdiffeq import odeint

from dise.integrate import Adaptive, Euler, Integrator, State
from dise.integrate.problem.state import leaves
from dise.nn import BlockSolve, NeuralODE
from dise.select import Dynamic, Input, concatenate_state, find_block, time_side_by_side

TORCHDIFFEQ = "torchdiffeq dopri5"


class TorchdiffeqBlock(NeuralODE):
    """A block whose `forward` is torchdiffeq's dopri5, with one step size for the batch: the reference of times.

    torchdiffeq has one time for all samples. For samples with different spans y(t0 + s·(t1 − t0)) is integrated over s
    from 0 to 1, so a step is the same fraction of each span.
    """

    def __init__(self, block: NeuralODE, tolerance: Adaptive) -> None:
        super().__init__(block.f, tolerance, t0=block.t0, t1=block.t1, batched=block.options.batched)
        self.rtol, self.atol = tolerance.rtol, tolerance.atol

    def forward(
        self,
        y0: State,
        *,
        t0: float | Tensor | None = None,
        t1: float | Tensor | None = None,
        args: Sequence[Any] = (),
        sample_args: Sequence[Tensor] = (),
    ) -> State:
        """State at t1; t0 and t1 are numbers or [B], by default those of the block."""
        first = leaves(y0)[0]
        ends = (self.t0 if t0 is None else t0, self.t1 if t1 is None else t1)
        start, end = (torch.as_tensor(t, dtype=first.dtype, device=first.device) for t in ends)
        f: Callable[[Tensor, Any], Any] = self.f
        if args or sample_args:
            f = partial(_with_arguments, self.f, (*args, *sample_args))
        if start.ndim or end.ndim:
            f, start, end = _over_parts(f, start, end), start.new_zeros(()), start.new_ones(())
        y = odeint(f, y0, torch.stack([start, end]), rtol=self.rtol, atol=self.atol, method="dopri5")
        return tuple(part[-1] for part in y) if isinstance(y, tuple) else y[-1]


def _with_arguments(f: nn.Module, arguments: tuple[Any, ...], t: Tensor, y: Any) -> Any:
    return f(t, y, *arguments)


def _over_parts(f: Callable[[Tensor, Any], Any], t0: Tensor, t1: Tensor) -> Callable[[Tensor, Any], Any]:
    """dy/ds for s in [0, 1], the fraction of each sample's span [B]."""

    def derivative(s: Tensor, y: State) -> State:
        dy = f(_column(torch.lerp(t0, t1, s), leaves(y)[0]), y)
        slopes = dy if isinstance(dy, tuple) else (dy,)
        scaled = tuple(_column(t1 - t0, slope) * slope for slope in slopes)
        return scaled if isinstance(dy, tuple) else scaled[0]

    return derivative


def _column(t: Tensor, like: Tensor) -> Tensor:
    """[B] → [B, 1, …, 1], with the number of dimensions of `like` [B, ...]."""
    return t.expand(len(like)).reshape(-1, *(1 for _ in like.shape[1:]))


def with_torchdiffeq(model: nn.Module, tolerance: Adaptive) -> nn.Module:
    """A copy of the model whose NeuralODE is integrated by torchdiffeq, at the integrator's tolerance."""
    changed = copy.deepcopy(model)
    block = find_block(changed)
    name = next(name for name, module in changed.named_modules() if module is block)
    changed.set_submodule(name, TorchdiffeqBlock(block, tolerance))
    return changed


def time_policies(
    model: nn.Module,
    integrators: Sequence[Integrator],
    dynamics: Mapping[str, Dynamic],
    inputs: Sequence[Input],
    *,
    tolerance: Adaptive,
) -> dict[str, Any]:
    """Median milliseconds per batch of f, of the selectors, of the ODE part and of the whole model under each policy.

    Args:
        model: a model with one NeuralODE.
        integrators: integrators that are timed alone.
        dynamics: selectors by name.
        inputs: batches x.
        tolerance: the adaptive integrator whose rtol and atol torchdiffeq uses.
    """
    block = find_block(model)
    device = inputs[0].device
    problems = [_problem(model, block, x) for x in inputs]
    policies: dict[str, Integrator] = {str(integrator): integrator for integrator in integrators}
    policies |= {f"DISE ({name})": dynamic for name, dynamic in dynamics.items()}
    reference = with_torchdiffeq(model, tolerance)
    ode: dict[str, Callable[[Any], Any]] = {TORCHDIFFEQ: _solved(TorchdiffeqBlock(block, tolerance))}
    whole: dict[str, Callable[[Any], Any]] = {TORCHDIFFEQ: reference}
    for name, policy in policies.items():
        ode[name], whole[name] = _using(block, policy, _solved(block)), _using(block, policy, model)
    parts: dict[str, Callable[[Any], Any]] = {"f": lambda problem: block.first_stage(problem.y0, t0=problem.t0)}
    for name, dynamic in dynamics.items():
        parts[name] = _scores(dynamic)
    return {
        "batch": len(inputs[0]),
        "batches": len(inputs),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "parts_ms": time_side_by_side(parts, problems, device=device),
        "ode_ms": time_side_by_side(ode, problems, device=device),
        "model_ms": time_side_by_side(whole, inputs, device=device),
    }


@torch.no_grad()
def _problem(model: nn.Module, block: NeuralODE, x: Input) -> BlockSolve:
    """The block's initial value problem for an input: initial value and span."""
    with block.using(Euler()), block.recording() as records:
        model(x)
    return records[0]


def _solved(block: NeuralODE) -> Callable[[BlockSolve], State]:
    return lambda problem: block(problem.y0, t0=problem.t0, t1=problem.t1)


def _using(block: NeuralODE, policy: Integrator, call: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def run(x: Any) -> Any:
        with block.using(policy):
            return call(x)

    return run


def _scores(dynamic: Dynamic) -> Callable[[BlockSolve], Tensor]:
    # the time does not depend on the values of k1
    return lambda problem: dynamic.selector(concatenate_state(problem.y0), concatenate_state(problem.y0))
