"""A model with its policy as graphs that torch alone runs."""

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dise.integrate import Integrator, Multistep
from dise.integrate.exact import inner
from dise.nn import NeuralODE
from dise.select.deploy import strict_json
from dise.select.deploy.atomic import atomic_write
from dise.select.deploy.graphs import Candidate, Rule, Scores, Start
from dise.select.model.block import find_block, named_blocks
from dise.select.model.head import find_head
from dise.select.model.inputs import Inputs
from dise.select.policies.cascade import Cascade
from dise.select.policies.dynamic import Dynamic

SERVE = "serve.json"
FIXED_BATCH = ("specialized", "inferred to be a constant")  # words of torch's errors
Tensors = tuple[Tensor, ...]
Graphs = dict[str, tuple[nn.Module, Tensors]]  # by name, each with inputs to trace it with


@torch.no_grad()
def export_policy(
    model: nn.Module,
    x: Tensor | Tensors,
    folder: str | os.PathLike[str],
    *,
    head: nn.Module | None = None,
    block: NeuralODE | str | None = None,
) -> None:
    """Write a model with its policy as `torch.export` graphs, and the routing between them as JSON.

    A single integrator is one graph, `model.pt2`, of inputs → outputs. Otherwise `start.pt2` maps inputs to h(t0),
    k1 = f(t0, h(t0)) and the conditions, which are the block's `sample_args`; `candidate-0.pt2`, … map those of some of
    the samples to the model's output and its score;
    `scores.pt2` gives a selector's scores. `serve.json` says how a cascade accepts or a selector chooses;
    `examples/serve.py` follows it and needs torch alone. The graphs take batches of any size, and solve as
    `dise.solve` does. Candidates share k1; those of a cascade do not share the evaluation after it, as they do in dise.

    Args:
        model: contains a NeuralODE with what `make_dynamic` gave it: an integrator with a fixed number of steps; or,
            with such candidates, a `Cascade` on `Confidence` or `Forecast`, or a `Dynamic` for samples. Its other
            blocks have single integrators with a fixed number of steps. Put it in evaluation mode before.
        x: inputs [B, ...] like those to come, B ≥ 2; a tuple for a model of several inputs.
        folder: is made if it does not exist; files of the same names are replaced.
        head: what the model does with h(t1); default: the modules after the block, if those are all. A single
            integrator needs none.
        block: the NeuralODE or its name; default: the model's only one.

    Raises:
        ValueError: a policy that cannot be exported (the message says why), a model whose code fixes the batch's size,
            an unknown head, or fewer than 2 inputs.
    """
    own, path = find_block(model, block), Path(folder)
    policy = own.integrator
    _check_policy(policy)
    for name, other in named_blocks(model).items():
        if other is not own and not _has_fixed_steps(other.integrator):
            raise ValueError(
                f"model: its other block {name!r} needs a single method with a fixed number of steps, got "
                f"{other.integrator}"
            )
    given = Inputs.of(x)
    if given.named:
        raise ValueError("x: expected a tensor or a tuple, in the order of the model's forward, got a dict")
    if len(given) < 2:
        raise ValueError(f"x: expected at least 2 inputs, so that a batch's size is seen to vary, got {len(given)}")
    inputs = cast(Tensors, given.positional)
    with _plain_solves(model):
        if isinstance(policy, Cascade | Dynamic):
            graphs, routing = _routed(model, own, policy, inputs, head)
        else:
            graphs, routing = {"model": (model, inputs)}, {"kind": "single", "candidates": [str(policy)]}
        programs = {name: _exported(module, example) for name, (module, example) in graphs.items()}
    path.mkdir(parents=True, exist_ok=True)  # only now, since what cannot be exported leaves no files
    for name, program in programs.items():
        torch.export.save(program, path / f"{name}.pt2")
    with atomic_write(path / SERVE) as file:
        file.write_text(strict_json.dumps(routing, indent=2) + "\n", encoding="utf-8")


def _routed(
    model: nn.Module, block: NeuralODE, policy: Cascade | Dynamic, inputs: Tensors, head: nn.Module | None
) -> tuple[Graphs, dict[str, Any]]:
    """Graphs of a policy that gives each sample an integrator of its own, and the routing between them."""
    head = head or find_head(model, block, inputs)
    if head is None:
        raise ValueError("head: the model's answer is not made of h(t1) by the modules after the block alone; give it")
    if any(isinstance(t, Tensor) and t.ndim > 0 for t in (block.t0, block.t1)):
        raise ValueError("model: expected a block whose samples share t0 and t1, got one time per sample")
    start, rules = Start(model, block), _rules(policy)
    states = start(*inputs)
    graphs: Graphs = {"start": (start, inputs)}
    for index, candidate in enumerate(policy.candidates):
        rule = rules[index] if index < len(rules) else None
        graphs[f"candidate-{index}"] = Candidate(block, candidate, head, rule), states
    routing: dict[str, Any] = {"candidates": [str(candidate) for candidate in policy.candidates]}
    if isinstance(policy, Dynamic):
        graphs["scores"] = Scores(policy), states
        return graphs, routing | {"kind": "dynamic"}
    return graphs, routing | {"kind": "cascade", "thresholds": [rule.threshold for rule in rules]}


@contextmanager
def _plain_solves(model: nn.Module) -> Iterator[None]:
    """A context in which the model's solves are neither compiled nor made for gradients."""
    before = {block: block.options for block in named_blocks(model).values()}
    for block, options in before.items():
        block.options = replace(options, compile=False, gradient="direct")
    try:
        yield
    finally:
        for block, options in before.items():
            block.options = options


def _check_policy(policy: Integrator) -> None:
    """Raise a ValueError unless the policy can be graphs."""
    candidates: list[Integrator] = [policy]
    if isinstance(policy, Dynamic):
        if policy.granularity != "sample" or not isinstance(policy.selector, nn.Module):
            raise ValueError("integrator: expected a Dynamic whose selector is a module and decides for samples")
        candidates = list(policy.candidates)
    elif isinstance(policy, Cascade):
        if len(_rules(policy)) < len(policy.candidates) - 1:
            raise ValueError(f"integrator: expected a Cascade on Confidence or Forecast, got {policy}")
        candidates = list(policy.candidates)
    for candidate in candidates:
        if not _has_fixed_steps(candidate):
            raise ValueError(
                f"integrator: only methods with a fixed number of steps can be graphs, got {candidate}; make the "
                "policy with such a reference, e.g. make_dynamic(..., reference=RK4(4))"
            )


def _has_fixed_steps(integrator: Integrator) -> bool:
    integrator = inner(integrator)
    if isinstance(integrator, Multistep):
        return True
    control = getattr(integrator, "control", None)  # only methods have one, policies do not
    return control is not None and control.rounds is not None


def _rules(policy: Integrator) -> list[Rule]:
    """The scored rules of a cascade, one for each candidate but the last; none if one has no score."""
    if not isinstance(policy, Cascade):
        return []
    number = len(policy.candidates) - 1
    accept = list(policy.accept) if isinstance(policy.accept, list | tuple) else [policy.accept] * number
    rules = [rule for rule in accept if isinstance(rule, Rule)]
    return rules if len(rules) == number else []


def _exported(module: nn.Module, inputs: Tensors) -> torch.export.ExportedProgram:
    # The example's batch is not 1, so that a batch of 1 stays possible; torch 2.6 needs a largest size.
    batch = torch.export.Dim("batch", min=1, max=2**31 - 1)
    given = inspect.signature(module.forward).bind(*inputs).arguments
    shapes = {name: tuple({0: batch} for _ in x) if isinstance(x, tuple) else {0: batch} for name, x in given.items()}
    try:
        program = torch.export.export(module.eval(), inputs, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        if not any(words in str(error) for words in FIXED_BATCH):
            raise
        raise ValueError(
            "model: its code fixes the number of samples while it is traced, as len(x) does; take x.shape[0] there"
        ) from error
    # torch keeps operations that no output depends on: step counts, and in the start what follows the block
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program
