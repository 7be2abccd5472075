"""What an evaluation costs: multiply–adds, and milliseconds on this machine."""

import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchdiffeq import odeint

from dise.integrate import Adaptive, Euler, Integrator, State
from dise.nn import NeuralODE
from dise.select import Dynamic, find_block, joined

REFERENCE = "torchdiffeq dopri5"


@torch.no_grad()
def count_macs(call: Callable[[], Any]) -> int:
    """Multiply–adds of the matrix products and convolutions in a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() // 2


@torch.no_grad()
def time_side_by_side(calls: Mapping[str, Callable[[Any], Any]], inputs: Sequence[State]) -> dict[str, float]:
    """Median milliseconds of each call on one input, all measured in one run.

    The calls take turns on each input, so that whatever else the machine does falls on all of them.

    Args:
        calls: functions of an input.
        inputs: what to call them on, e.g. batches; the first also warms up.
    """
    for call in calls.values():
        call(inputs[0])
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for x in inputs:
        for name, call in calls.items():
            _synchronize(x)
            start = time.perf_counter()
            call(x)
            _synchronize(x)
            seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(values) for name, values in seconds.items()}


def _synchronize(x: State) -> None:
    device = (x if isinstance(x, Tensor) else x[0]).device
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class TorchdiffeqBlock(NeuralODE):
    """A block whose `forward` is torchdiffeq's dopri5, one step size for the batch: what DISE is measured against."""

    def __init__(self, block: NeuralODE, tolerance: Adaptive) -> None:
        super().__init__(block.f, tolerance, t0=block.t0, t1=block.t1, batched=block.batched)
        self.rtol, self.atol = tolerance.rtol, tolerance.atol
        self.register_buffer("span", torch.tensor([float(block.t0), float(block.t1)]))

    def forward(self, y0: State) -> State:
        """State at t1."""
        y = odeint(self.f, y0, self.span, rtol=self.rtol, atol=self.atol, method="dopri5")
        return tuple(part[-1] for part in y) if isinstance(y, tuple) else y[-1]


def with_torchdiffeq(model: nn.Module, tolerance: Adaptive) -> nn.Module:
    """A copy of the model whose NeuralODE is integrated by torchdiffeq, at the integrator's tolerance."""
    changed = copy.deepcopy(model)
    block = find_block(changed)
    name = next(name for name, module in changed.named_modules() if module is block)
    changed.set_submodule(name, TorchdiffeqBlock(block, tolerance).to(next(block.parameters()).device))
    return changed


def time_policies(
    model: nn.Module,
    integrators: Sequence[Integrator],
    dynamics: Mapping[str, Dynamic],
    inputs: list[Tensor],
    *,
    tolerance: Adaptive,
) -> dict[str, Any]:
    """Median milliseconds a batch of f, of the selectors, of the ODE part and of the whole model under each policy.

    Args:
        model: contains one NeuralODE.
        integrators: each timed alone.
        dynamics: selectors by name.
        inputs: batches x.
        tolerance: the adaptive integrator whose rtol and atol torchdiffeq gets.
    """
    block = find_block(model)
    states = [_state(model, block, x) for x in inputs]
    policies: dict[str, Integrator] = {str(integrator): integrator for integrator in integrators}
    policies |= {f"DISE ({name})": dynamic for name, dynamic in dynamics.items()}
    reference = with_torchdiffeq(model, tolerance)
    ode: dict[str, Callable[[Any], Any]] = {REFERENCE: TorchdiffeqBlock(block, tolerance).to(inputs[0].device)}
    whole: dict[str, Callable[[Any], Any]] = {REFERENCE: reference}
    for name, policy in policies.items():
        ode[name], whole[name] = _using(block, policy, block), _using(block, policy, model)
    parts: dict[str, Callable[[Any], Any]] = {"f": block.first_stage}
    for name, dynamic in dynamics.items():
        parts[name] = _scores(dynamic)
    return {
        "batch": len(inputs[0]),
        "batches": len(inputs),
        "threads": torch.get_num_threads(),
        "device": str(inputs[0].device),
        "parts_ms": time_side_by_side(parts, states),
        "ode_ms": time_side_by_side(ode, states),
        "model_ms": time_side_by_side(whole, inputs),
    }


@torch.no_grad()
def _state(model: nn.Module, block: NeuralODE, x: Tensor) -> State:
    """The block's start h0 for an input."""
    with block.using(Euler()), block.recording() as records:
        model(x)
    return records[0].y0


def _using(block: NeuralODE, policy: Integrator, call: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def run(x: State) -> Any:
        with block.using(policy):
            return call(x)

    return run


def _scores(dynamic: Dynamic) -> Callable[[State], Tensor]:
    # k1's values do not matter for the time
    return lambda h0: dynamic.selector(joined(h0), joined(h0))
