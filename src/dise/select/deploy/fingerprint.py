"""Which weights a policy was made for."""

import hashlib

import torch
from torch import nn

from dise.nn import NeuralODE


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of a model's parameters and buffers, without those of its policy."""
    blocks = [name for name, module in model.named_modules() if isinstance(module, NeuralODE)]
    policies = tuple(f"{name}.policy." if name else "policy." for name in blocks)
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not name.startswith(policies):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
