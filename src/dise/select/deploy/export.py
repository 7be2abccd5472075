"""A dynamic model as graphs that torch alone runs: one for its start, one for each candidate, one for the selector."""

import copy
import json
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from dise.integrate import FixedStep, Integrator
from dise.integrate.runge_kutta.step import Attempt
from dise.nn import NeuralODE
from dise.select.model.block import find_block
from dise.select.model.head import find_head
from dise.select.policies.cascade import Cascade
from dise.select.policies.confidence import Confidence
from dise.select.policies.dynamic import Dynamic
from dise.select.policies.forecast import Forecast

SERVE = "serve.json"
Rule = Confidence | Forecast  # what has a score and a threshold


@torch.no_grad()
def export_policy(
    model: nn.Module, x: Tensor, folder: str | os.PathLike[str], *, head: nn.Module | None = None
) -> None:
    """Write a dynamic model as `torch.export` graphs, and what routes between them as JSON.

    `start.pt2` maps inputs to h(t0) and k1 = f(t0, h(t0)); `candidate-0.pt2`, … map those of some of the samples to the
    model's output and the confidence of it; `scores.pt2` gives a selector's scores. `serve.json` says how a cascade
    accepts or a selector chooses; `examples/serve.py` follows it in 30 lines that need torch alone. The graphs take
    batches of any size. Candidates share k1; a cascade's do not share the evaluation after it, as they do in dise.

    Args:
        model: contains one NeuralODE with a `Cascade` on `Confidence` or `Forecast`, or a `Dynamic` for samples, of
            candidates with a fixed number of steps; put it in evaluation mode before.
        x: inputs [B, ...] like those to come, B ≥ 2.
        folder: is made if it is not there; files of the same names are replaced.
        head: what the model does with h(t1); default: the modules after the block, if those are all.

    Raises:
        ValueError: a policy that cannot be exported (the message says why), an unknown head, or fewer than 2 inputs.
    """
    block, path = find_block(model), Path(folder)
    policy = block.integrator
    candidates = _candidates(policy)
    if len(x) < 2:
        raise ValueError(f"x: expected at least 2 inputs, so that a batch's size is seen to vary, got {len(x)}")
    head = head or find_head(model, block, x)
    if head is None:
        raise ValueError("head: the model's answer is not made of h(t1) by the modules after the block alone; give it")
    start = _Start(model, block)
    h0, k1 = start(x)
    path.mkdir(parents=True, exist_ok=True)
    _export(start, (x,), path / "start.pt2")
    for index, candidate in enumerate(candidates):
        measure = _measure(policy, index)
        _export(_Candidate(block, candidate, head, measure), (h0, k1), path / f"candidate-{index}.pt2")
    routing: dict[str, object] = {"candidates": [str(candidate) for candidate in candidates]}
    if isinstance(policy, Dynamic):
        _export(_Scores(policy), (h0, k1), path / "scores.pt2")
        routing["kind"] = "dynamic"
    else:
        routing |= {"kind": "cascade", "thresholds": [rule.threshold for rule in _rules(policy)]}
    (path / SERVE).write_text(json.dumps(routing, indent=2) + "\n", encoding="utf-8")


def _candidates(policy: Integrator) -> list[FixedStep]:
    """The policy's candidates, if all can be a graph."""
    if isinstance(policy, Dynamic):
        if policy.granularity != "sample" or not isinstance(policy.selector, nn.Module):
            raise ValueError("integrator: of Dynamic a selector that is a module, for samples, can be exported")
    elif not isinstance(policy, Cascade) or not _rules(policy):
        raise ValueError(f"integrator: expected a Cascade on Confidence or Forecast, or a Dynamic, got {policy}")
    fixed = [candidate for candidate in policy.candidates if isinstance(candidate, FixedStep)]
    if len(fixed) != len(policy.candidates):
        raise ValueError(
            f"integrator: a graph has a fixed number of steps, {policy} has candidates that choose theirs; make the "
            "policy with a reference of fixed steps, e.g. make_dynamic(..., reference=RK4(4))"
        )
    return fixed


def _rules(policy: Integrator) -> list[Rule]:
    """A cascade's rules, one for each candidate but the last; none if one has no score."""
    if not isinstance(policy, Cascade):
        return []
    number = len(policy.candidates) - 1
    accept = list(policy.accept) if isinstance(policy.accept, list | tuple) else [policy.accept] * number
    rules = [rule for rule in accept if isinstance(rule, Rule)]
    return rules if len(rules) == number else []


def _measure(policy: Integrator, index: int) -> Rule | None:
    rules = _rules(policy)
    return rules[index] if index < len(rules) else None


def _export(module: nn.Module, inputs: tuple[Tensor, ...], file: Path) -> None:
    # a batch dimension of 1 stays dynamic if the example's is not 1
    batch = torch.export.Dim("batch", min=1)
    shapes = tuple({0: batch} for _ in inputs)
    program = torch.export.export(module.eval(), inputs, dynamic_shapes=shapes, strict=False)
    torch.export.save(program, file)


class _Start(nn.Module):
    """x → h(t0), k1. A copy of the model is called with nothing where the block was; what follows is left out."""

    def __init__(self, model: nn.Module, block: NeuralODE) -> None:
        super().__init__()
        name = next(name for name, module in model.named_modules() if module is block)
        self.f, self.t0, self.seen = block.f, float(block.t0), _Seen()
        if name:
            model = copy.deepcopy(model)
            model.set_submodule(name, self.seen)
        self.model = model if name else self.seen

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.model(x)
        h0 = self.seen.states.pop()
        t0 = torch.full_like(h0.flatten(1)[:, 0], self.t0)
        return h0, self.f(t0.reshape(-1, *(1 for _ in h0.shape[1:])), h0)


class _Seen(nn.Module):
    """Returns its input, and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[Tensor] = []

    def forward(self, h0: Tensor) -> Tensor:
        self.states.append(h0)
        return h0.clone()  # what follows may change it in place


class _Candidate(nn.Module):
    """h(t0), k1 → output, and how sure it is (0 where nobody asks)."""

    def __init__(self, block: NeuralODE, candidate: FixedStep, head: nn.Module, rule: Rule | None) -> None:
        super().__init__()
        self.f, self.span, self.candidate = block.f, (float(block.t0), float(block.t1)), candidate
        self.head, self.rule = head, rule

    def forward(self, h0: Tensor, k1: Tensor) -> tuple[Tensor, Tensor]:
        h1 = self.integrate(h0, k1)
        # a head may change its input in place
        score = self.rule.score(h1.clone()) if self.rule is not None else torch.zeros_like(h1.flatten(1)[:, 0])
        return self.head(h1), score

    def integrate(self, h0: Tensor, k1: Tensor) -> Tensor:
        """h(t1): the same steps as `dise.solve` makes."""
        shape, tableau, steps = h0.shape[1:], self.candidate.tableau, self.candidate.steps
        y, (t0, t1) = h0.flatten(1), self.span

        def f(t: Tensor, y: Tensor) -> Tensor:
            return self.f(t.reshape(-1, *(1 for _ in shape)), y.unflatten(1, shape)).flatten(1)

        ends = [torch.full_like(y[:, 0], t0 + (t1 - t0) * i / steps) for i in range(steps + 1)]
        for index in range(steps):
            attempt = Attempt(tableau, ends[index], ends[index + 1], y, k1.flatten(1) if index == 0 else None)
            while attempt.pending:
                attempt.stages.append(f(*attempt.point()))
            y = attempt.finish().y_next
        return y.unflatten(1, shape)


class _Scores(nn.Module):
    """h(t0), k1 → scores [n, K], the smallest of which is to be taken; NaN is the largest."""

    def __init__(self, policy: Dynamic) -> None:
        super().__init__()
        self.selector = policy.selector

    def forward(self, h0: Tensor, k1: Tensor) -> Tensor:
        return self.selector(h0, k1).nan_to_num(nan=torch.inf)
