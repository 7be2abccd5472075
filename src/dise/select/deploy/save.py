"""A policy as files: JSON for what it is, safetensors for its networks' weights."""

import json
import os
from pathlib import Path
from typing import Any

from torch import nn

from dise.nn import NeuralODE
from dise.select.deploy.atomic import atomic_write
from dise.select.deploy.fingerprint import fingerprint
from dise.select.deploy.forms import POLICIES
from dise.select.deploy.registry import PolicyJson
from dise.select.deploy.weights import weights_of, write_weights
from dise.select.model.adapt import AdaptedBlock
from dise.select.model.block import find_block

POLICY, WEIGHTS = "policy.json", "policy.safetensors"
FORMAT = 2  # 1: forecasts of another form


def save_policy(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Write the policy of a model's block to a folder: `policy.json`, and `policy.safetensors` if it has networks.

    The model's own weights are not in it; save them separately. Their hash is, since a guarantee holds for these
    weights alone.

    Args:
        model: contains one NeuralODE.
        folder: is made if it does not exist; files of the same names are replaced.

    Raises:
        ValueError: a part of the policy has no JSON form, e.g. a function of your own.
        ImportError: the policy has networks, and safetensors is not installed.
    """
    block, path = find_block(model), Path(folder)
    policy = {
        "format": FORMAT,
        "block": _block(model, block),
        "integrator": PolicyJson(POLICIES, model).write(block.integrator, "integrator"),
        "report": None if block.report is None else block.report.to_json(),
        "weights": fingerprint(model),
    }
    path.mkdir(parents=True, exist_ok=True)
    networks = getattr(block, "policy", None)
    if networks is not None:
        with atomic_write(path / WEIGHTS) as file:
            write_weights(weights_of(networks), file)
    with atomic_write(path / POLICY) as file:
        file.write_text(json.dumps(policy, indent=2) + "\n", encoding="utf-8")


def _block(model: nn.Module, block: NeuralODE) -> dict[str, Any]:
    name = next(name for name, module in model.named_modules() if module is block)
    if isinstance(block, AdaptedBlock):
        return {"name": name, "f": block.field_name, "span": [float(block.t0), float(block.t1)]}
    return {"name": name}
