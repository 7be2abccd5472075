"""What a policy pays for looking, beside its evaluations of f: a selector's network, a cascade's head."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.profiler import profile

from dise.integrate import Integrator, State
from dise.integrate.problem.state import leaves
from dise.nn import BlockSolve, NeuralODE
from dise.select.model.states import joined
from dise.select.policies.cascade import Cascade
from dise.select.policies.dynamic import Dynamic

_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::conv2d")  # of torch's profiler


@torch.no_grad()
def count_macs(call: Callable[[], Any]) -> int:
    """Multiply–adds of the matrix products and convolutions in a call."""
    try:
        from torch.utils.flop_counter import FlopCounterMode
    except ImportError:  # it imports torch._higher_order_ops; tried without it on torch 2.13
        with profile(with_flops=True) as profiler:
            call()
        return sum(event.flops for event in profiler.key_averages() if event.key in _PRODUCTS) // 2
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() // 2


def spent(block: NeuralODE, integrator: Integrator, records: Sequence[BlockSolve]) -> Tensor:
    """[N] what each sample of recorded solves cost: its NFE, and what looked at it, in evaluations of f.

    A `Dynamic` looks once at each sample, a `Cascade` with rules once at each answer that it judges; the price of a
    look is its multiply–adds. What a candidate that chooses looks at itself is not counted; nor is anything where f has
    no multiply–adds.

    Args:
        block: what was recorded.
        integrator: with which.
        records: at least one.
    """
    total = torch.cat([torch.atleast_1d(record.solution.nfe) for record in records]).double()
    choices = [record.solution.choice for record in records if record.solution.choice is not None]
    calls = _looks(integrator)
    if not calls or not choices or total.numel() == 0:
        return total
    choice = torch.atleast_1d(torch.cat([torch.atleast_1d(c) for c in choices]))
    start = next(record for record in records if record.solution.nfe.numel())
    one = _first(start.y0) if block.options.batched else start.y0
    t0 = start.t0[:1] if isinstance(start.t0, Tensor) and start.t0.ndim else start.t0
    of_f = count_macs(lambda: block.first_stage(one, t0=t0))
    for call, least in calls:
        if of_f > 0:
            total += (choice >= least) * (count_macs(partial(call, one)) / of_f)
    return total


def _looks(integrator: Integrator) -> list[tuple[Callable[[State], Any], int]]:
    """What is called on states, and the smallest choice of the samples for which it is."""
    if isinstance(integrator, Dynamic):
        return [(lambda h: integrator.selector(joined(h), joined(h)), 0)]
    if isinstance(integrator, Cascade) and integrator.accept is not None:
        accept, number = integrator.accept, len(integrator.candidates) - 1
        rules = list(accept) if isinstance(accept, Sequence) else [accept] * number
        return [(rule, index) for index, rule in enumerate(rules)]
    return []


def _first(state: State) -> State:
    """The first sample of a state."""
    if isinstance(state, Tensor):
        return state[:1]
    if isinstance(state, dict):
        return {name: part[:1] for name, part in state.items()}
    return tuple(part[:1] for part in leaves(state))
