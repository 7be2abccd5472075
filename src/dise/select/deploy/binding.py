"""What a policy is for: the weights of a model, the span of its block, and its other blocks."""

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dise.integrate import Integrator
from dise.nn import NeuralODE
from dise.select.deploy.registry import PolicyJson
from dise.select.model.block import named_blocks


def fingerprint(model: nn.Module, *, without: Iterable[str] = ()) -> str:
    """SHA-256 of a model's parameters and buffers and their dtypes, without those of its policy.

    Args:
        model: may contain `dise.NeuralODE`s.
        without: names of further parameters and buffers to leave out.
    """
    policies = tuple(f"{name}.policy." if name else "policy." for name in named_blocks(model))
    left_out, digest = set(without), hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not name.startswith(policies) and name not in left_out:
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def span_of(block: NeuralODE) -> list[Any]:
    """t0 and t1 as numbers, or lists of them if samples have their own."""
    return [t.tolist() if isinstance(t, Tensor) else float(t) for t in (block.t0, block.t1)]


def reference_of(block: NeuralODE) -> Integrator:
    """The integrator that a block's answers are compared with: its own, unless a policy's report names another."""
    report = block.report
    own: Integrator = block.integrator if report is None or report.reference is None else report.reference
    return own


def other_blocks(model: nn.Module, block: nn.Module, json: PolicyJson) -> dict[str, Any]:
    """Span and reference of a model's other blocks, by name; a reference without a JSON form is None.

    Policies of several blocks can then be saved and loaded in any order.
    """
    others = {name: other for name, other in named_blocks(model).items() if other is not block}
    return {name: {"span": span_of(other), "reference": _or_none(json, other)} for name, other in others.items()}


def _or_none(json: PolicyJson, block: NeuralODE) -> Any:
    reference = reference_of(block)
    try:
        return None if reference.chooses else json.write(reference, "reference")
    except ValueError:
        return None
