"""A saved policy given to a model."""

import json
import os
from pathlib import Path
from typing import Any

from torch import nn

from dise.integrate import Integrator
from dise.nn import NeuralODE
from dise.select.deploy.fingerprint import fingerprint
from dise.select.deploy.forms import POLICIES
from dise.select.deploy.registry import PolicyJson
from dise.select.deploy.save import FORMAT, POLICY, WEIGHTS
from dise.select.deploy.weights import read_weights
from dise.select.make_dynamic.report import Report
from dise.select.model.adapt import adapt
from dise.select.model.block import device_of


def load_policy(model: nn.Module, folder: str | os.PathLike[str], *, check: bool = True) -> nn.Module:
    """Give a model the policy that `save_policy` wrote; a block on torchdiffeq is replaced as `make_dynamic` does.

    Args:
        model: with the weights that it had when the policy was made. It is changed in place.
        folder: what `save_policy` wrote.
        check: False accepts other weights, for which the policy guarantees nothing.

    Returns:
        the model.

    Raises:
        ValueError: files that are no policy, a model of another structure, or one with other weights.
        ImportError: the policy has networks, and safetensors is not installed.
    """
    path = Path(folder)
    try:
        policy = json.loads((path / POLICY).read_text(encoding="utf-8"))
        known = policy["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"folder: {path} holds no policy that can be read ({error})") from error
    if not known:
        raise ValueError(f"folder: {path} holds a policy of format {policy['format']!r}, expected {FORMAT}")
    if check and policy["weights"] != fingerprint(model):
        raise ValueError(
            "model: its weights are not those that the policy was made for; check=False takes it without a guarantee"
        )
    integrator = PolicyJson(POLICIES, model).read(policy["integrator"])
    block = _find(model, policy["block"], integrator)
    block.integrator = integrator
    block.report = None if policy["report"] is None else Report.of_json(policy["report"], integrator)
    networks = getattr(block, "policy", None)
    if networks is not None:
        networks.load_state_dict(read_weights(path / WEIGHTS))
        networks.to(device_of(model)).eval()
    return model


def _find(model: nn.Module, block: dict[str, Any], integrator: Integrator) -> NeuralODE:
    try:
        module = model.get_submodule(block["name"])
    except AttributeError as error:
        raise ValueError(f"model: expected a module {block['name']!r}, where the policy's block is") from error
    if isinstance(module, NeuralODE):
        return module
    if "f" not in block:
        raise ValueError(f"model: expected a dise.NeuralODE at {block['name']!r}, got {type(module).__name__}")
    adapted = adapt(module, integrator, f=block["f"], span=block["span"]).train(module.training)
    model.set_submodule(block["name"], adapted)
    return adapted
