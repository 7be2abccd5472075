"""What a policy is for: the weights of a model, and the span of its block."""

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dise.nn import NeuralODE


def fingerprint(model: nn.Module, *, without: Iterable[str] = ()) -> str:
    """SHA-256 of a model's parameters and buffers and their dtypes, without those of its policy.

    Args:
        model: may contain `dise.NeuralODE`s.
        without: names of further parameters and buffers to leave out.
    """
    blocks = [name for name, module in model.named_modules() if isinstance(module, NeuralODE)]
    policies = tuple(f"{name}.policy." if name else "policy." for name in blocks)
    left_out, digest = set(without), hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not name.startswith(policies) and name not in left_out:
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def span_of(block: NeuralODE) -> list[Any]:
    """t0 and t1 as numbers, or lists of them if samples have their own."""
    return [t.tolist() if isinstance(t, Tensor) else float(t) for t in (block.t0, block.t1)]
