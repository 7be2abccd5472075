"""The parts of a dynamic model as modules that `torch.export` traces."""

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from dise.integrate import Euler, Integrator, SolveOptions
from dise.integrate.arguments import as_times
from dise.integrate.problem.field import Field
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import drive
from dise.integrate.problem.run import Run
from dise.integrate.problem.state import Layout
from dise.nn import NeuralODE
from dise.select.policies.confidence import Confidence
from dise.select.policies.dynamic import Dynamic, selector_inputs, without_nan
from dise.select.policies.forecast import Forecast

Rule = Confidence | Forecast  # has a score and a threshold


class Start(nn.Module):
    """Inputs [n, ...] → h(t0), k1, conditions: a copy of the model, called with a capture in place of the block.

    Modules after the block are called too, but `torch.export` leaves out what h(t0) does not depend on.

    Args:
        model: contains the block, and calls it once.
        block: integrates from a t0 that all samples share.
    """

    def __init__(self, model: nn.Module, block: NeuralODE) -> None:
        super().__init__()
        name = next(name for name, module in model.named_modules() if module is block)
        self.block = NeuralODE(block.f, Euler(), t0=float(block.t0))  # without the policy
        self.block.autocast = block.autocast
        self.capture = _Capture(block.options)
        if name:
            model = copy.deepcopy(model)
            model.set_submodule(name, self.capture)
        self.model = model if name else self.capture

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """[n, ...] each → [n, ...] each: the state, its derivative, and the block's `sample_args`."""
        self.model(*inputs)
        h0, *conditions = self.capture.calls.pop()
        return h0, cast(Tensor, self.block.first_stage(h0, sample_args=conditions)), *conditions


class _Capture(nn.Module):
    """Returns the state that it is called with, and keeps it with its conditions; has the block's options."""

    def __init__(self, options: SolveOptions) -> None:
        super().__init__()
        self.options = options
        self.calls: list[tuple[Tensor, ...]] = []

    def forward(self, h0: Tensor, *, sample_args: Sequence[Tensor] = (), **others: Any) -> Tensor:
        if any(value is not None and value != () for value in others.values()):
            raise ValueError(
                f"model: expected a block that is called with a state and sample_args alone, got {sorted(others)}"
            )
        self.calls.append((h0, *sample_args))
        return h0.clone()  # later modules may change it in place


class Candidate(nn.Module):
    """h(t0), k1, conditions → the model's output, and the score of the candidate's rule (0 without one).

    Args:
        block: the vector field and the span, which all samples share.
        integrator: makes a fixed number of steps.
        head: h(t1) → output.
        rule: accepts states at t1 by their scores.
    """

    def __init__(self, block: NeuralODE, integrator: Integrator, head: nn.Module, rule: Rule | None) -> None:
        super().__init__()
        self.f, self.t0, self.t1 = block.f, float(block.t0), float(block.t1)
        self.integrator, self.head, self.rule, self.autocast = integrator, head, rule, block.autocast

    def forward(self, h0: Tensor, k1: Tensor, *conditions: Tensor) -> tuple[Tensor, Tensor]:
        """[n, ...] each → output [n, ...], score [n]."""
        with nullcontext() if self.autocast is None else torch.autocast(h0.device.type, self.autocast):
            h1 = self.integrate(h0, k1, conditions)
            # a copy, since a head may change its input in place
            score = self.rule.score(h1.clone()) if self.rule is not None else torch.zeros_like(h1.flatten(1)[:, 0])
        return self.head(h1), score

    def integrate(self, h0: Tensor, k1: Tensor, conditions: tuple[Tensor, ...]) -> Tensor:
        """h(t1) [n, ...], as `dise.solve` finds it when f(t0, h0, *conditions) is known."""
        layout = Layout.of(h0, batched=True)
        y0 = layout.pack(h0)
        t0, t1 = (as_times(name, getattr(self, name), y0, batched=True) for name in ("t0", "t1"))
        span = self.t0, self.t1
        problem = Problem(y0=y0, t0=t0, t1=t1, layout=layout, k1=layout.pack(k1), span=span)
        result = drive(self.integrator.integrate(problem, Run()), Field(self.f, layout, sample_args=conditions))
        return cast(Tensor, layout.unpack(result.y))


class Scores(nn.Module):
    """h(t0), k1, conditions → scores [n, K] without NaN, of which the smallest decides."""

    def __init__(self, policy: Dynamic) -> None:
        super().__init__()
        self.selector = policy.selector

    def forward(self, h0: Tensor, k1: Tensor, *conditions: Tensor) -> Tensor:
        """[n, ...] each → [n, K]."""
        return without_nan(self.selector(*selector_inputs(self.selector, h0, k1, conditions)))
