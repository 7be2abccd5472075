"""Overhead of a policy's own decisions (selector network, cascade head), in evaluations of f."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.profiler import profile

from dise.integrate import Integrator, State
from dise.integrate.exact import inner
from dise.integrate.problem.state import leaves
from dise.nn import BlockSolve, NeuralODE
from dise.select.model.states import concatenate_state
from dise.select.policies.cascade import AcceptanceRule, Cascade
from dise.select.policies.dynamic import Dynamic, Selector, selector_inputs

_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::conv2d")  # of torch's profiler


@torch.no_grad()
def count_macs(call: Callable[[], Any]) -> int:
    """Number of multiply–adds in the matrix products and convolutions of a call."""
    try:
        from torch.utils.flop_counter import FlopCounterMode
    except ImportError:  # it imports torch._higher_order_ops; tried without it on torch 2.6 and 2.13
        with profile(with_flops=True) as profiler:
            call()
        return int(sum(event.flops for event in profiler.key_averages() if event.key in _PRODUCTS)) // 2
    with FlopCounterMode(display=False) as counter:
        # it counts by module, with hooks that refuse autograd.grad inside of the call; only the total is needed
        counter.mod_tracker.__exit__(None, None, None)
        call()
    return int(counter.get_total_flops()) // 2


def nfe_with_overhead(block: NeuralODE, integrator: Integrator, records: Sequence[BlockSolve]) -> Tensor:
    """[N] NFE of each sample of recorded solves, plus the overhead of the policy's decisions in evaluations of f.

    A `Dynamic` calls its selector once per sample, a `Cascade` its rule once per answer that it judges; the overhead
    of a call is its multiply–adds divided by those of f. Decisions of candidates that are policies themselves are not
    counted. If f has no multiply–adds, no overhead is counted.

    Args:
        block: the recorded block.
        integrator: the policy of the records.
        records: at least one.
    """
    total = torch.cat([torch.atleast_1d(record.solution.nfe) for record in records]).double()
    choices = [record.solution.choice for record in records if record.solution.choice is not None]
    calls = _decisions(integrator)
    if not calls or not choices or total.numel() == 0:
        return total
    choice = torch.atleast_1d(torch.cat([torch.atleast_1d(c) for c in choices]))
    start = next(record for record in records if record.solution.nfe.numel())
    one = _first_sample(start.y0) if block.options.batched else start.y0
    t0 = start.t0[:1] if isinstance(start.t0, Tensor) and start.t0.ndim else start.t0
    rows = tuple(arg[:1] if block.options.batched else arg for arg in start.sample_args)
    of_f = count_macs(lambda: block.first_stage(one, t0=t0, args=start.args, sample_args=rows))
    for call, least in calls:
        if of_f > 0:
            total += (choice >= least) * (count_macs(partial(call, one, rows)) / of_f)
    return total


Decision = Callable[[State, tuple[Tensor, ...]], Any]


def _decisions(integrator: Integrator) -> list[tuple[Decision, int]]:
    """Functions of a state and of conditions by which a policy decides.

    Each comes with the smallest choice of the samples that it is called on.
    """
    integrator = inner(integrator)
    if isinstance(integrator, Dynamic):
        return [(partial(_score, integrator.selector), 0)]
    if isinstance(integrator, Cascade) and integrator.accept is not None:
        accept, number = integrator.accept, len(integrator.candidates) - 1
        rules = list(accept) if isinstance(accept, Sequence) else [accept] * number
        return [(partial(_judge, rule), index) for index, rule in enumerate(rules)]
    return []


def _score(selector: Selector, h: State, conditions: tuple[Tensor, ...]) -> Tensor:
    h0 = concatenate_state(h)
    return selector(*selector_inputs(selector, h0, h0, conditions))


def _judge(rule: AcceptanceRule, h: State, conditions: tuple[Tensor, ...]) -> Tensor:
    return rule(h)


def _first_sample(state: State) -> State:
    """The first sample of a state."""
    if isinstance(state, Tensor):
        return state[:1]
    if isinstance(state, dict):
        return {name: part[:1] for name, part in state.items()}
    return tuple(part[:1] for part in leaves(state))
