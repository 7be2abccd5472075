"""A saved policy given to a model, whole or not at all."""

import os
from pathlib import Path

import torch
from torch import nn

from dise.integrate import Euler, Integrator
from dise.nn import NeuralODE, check_lower_precision
from dise.select.deploy.binding import fingerprint, other_blocks, reference_of, span_of
from dise.select.deploy.forms import POLICIES
from dise.select.deploy.registry import PolicyJson
from dise.select.deploy.unit import Content, Weights, read_unit, unreadable
from dise.select.make_dynamic.report import Report
from dise.select.model.adapt import AdaptedBlock, adapt
from dise.select.model.block import device_of

UNCHECKED = "check=False takes it without a guarantee"


def load_policy(model: nn.Module, folder: str | os.PathLike[str], *, check: bool = True) -> nn.Module:
    """Give a model the policy that `save_policy` wrote; a block on torchdiffeq is replaced as `make_dynamic` does.

    Args:
        model: with the weights, the span and the reference integrator that it had when the policy was made. It is
            changed in place and put in evaluation mode. On an error it is left as it was.
        folder: what `save_policy` wrote; the policy goes to the block that it was saved from.
        check: False accepts other weights, other spans or references, for which the policy guarantees nothing.

    Returns:
        the model.

    Raises:
        ValueError: files that are damaged or hold no policy, a model of another structure, or one that the policy was
            not made for.
        ImportError: the policy has networks, and safetensors is not installed.
    """
    path = Path(folder)
    content, weights = read_unit(path)
    try:
        integrator, reference, report = _policy(model, content)
        networks, autocast = _networks(integrator, weights), _autocast(content.get("autocast"))
        name = content["block"]["name"]
        module, block = _block(model, content["block"], integrator)
        if check:
            _check_weights(model, block, name, content["weights"])
            _check_span(module, content["block"])
            _check_reference(module, reference)
            _check_others(model, module, content.get("others", {}))
    except ValueError:
        raise
    except Exception as error:  # constructors may raise anything for values that no policy has
        raise unreadable(path, error) from error
    if networks is not None:
        networks.to(device_of(model)).eval()
    if module is not block:
        model.set_submodule(name, block)
    block.integrator, block.autocast, block.report = integrator, autocast, report
    return model.eval()


def _policy(model: nn.Module, content: Content) -> tuple[Integrator, Integrator | None, Report | None]:
    """The integrator, the reference of its guarantee, and the report."""
    json = PolicyJson(POLICIES, model)
    integrator, reference = json.read(content["integrator"]), json.read(content["reference"])
    if not isinstance(integrator, Integrator):
        raise TypeError(f"expected an integrator, got {integrator!r}")
    report = content["report"]
    return integrator, reference, None if report is None else Report.of_json(report, integrator, reference)


def _autocast(name: str | None) -> torch.dtype | None:
    """The precision of a policy's solves; files of older versions name none."""
    dtype: torch.dtype | None = None if name is None else getattr(torch, name)
    check_lower_precision(dtype, optional=True)
    return dtype


def _networks(integrator: Integrator, weights: Weights | None) -> nn.Module | None:
    """The modules of a policy, as a block would hold them, with their weights."""
    networks: nn.Module | None = getattr(NeuralODE(nn.Identity(), integrator), "policy", None)
    if (networks is None) != (weights is None):
        raise TypeError("it has either networks without weights, or weights without networks")
    if networks is None or weights is None:
        return None
    networks.load_state_dict(weights, assign=True)  # assigned, so that they keep their dtype
    return networks


def _block(model: nn.Module, saved: Content, integrator: Integrator) -> tuple[nn.Module, NeuralODE]:
    """The module at the block's place, and the block: the same, or one to replace a module on torchdiffeq."""
    try:
        module = model.get_submodule(saved["name"])
    except AttributeError as error:
        raise ValueError(f"model: expected a module {saved['name']!r}, where the policy's block is") from error
    if isinstance(module, NeuralODE):
        return module, module
    if saved["f"] is None:
        raise ValueError(f"model: expected a dise.NeuralODE at {saved['name']!r}, got {type(module).__name__}")
    return module, adapt(module, integrator, f=saved["f"], span=saved["span"])


def _check_weights(model: nn.Module, block: NeuralODE, name: str, expected: str) -> None:
    dropped = block.dropped_keys if isinstance(block, AdaptedBlock) else ()
    if fingerprint(model, without=[f"{name}.{key}" if name else key for key in dropped]) != expected:
        raise ValueError(f"model: its weights are not those that the policy was made for; {UNCHECKED}")


def _check_span(module: nn.Module, saved: Content) -> None:
    try:
        # a module on torchdiffeq may not say what its span is
        found = span_of(module if isinstance(module, NeuralODE) else adapt(module, Euler(), f=saved["f"]))
    except ValueError:
        return
    if found != saved["span"]:
        ends, expected = (" to ".join(map(str, span)) for span in (found, saved["span"]))
        raise ValueError(f"model: its block integrates from {ends}, the policy was made for {expected}; {UNCHECKED}")


def _check_reference(module: nn.Module, expected: Integrator | None) -> None:
    if expected is None or not isinstance(module, NeuralODE):
        return
    found = reference_of(module)
    if found != expected and not found.chooses:
        raise ValueError(f"model: its integrator is {found}, the policy's reference is {expected}; {UNCHECKED}")


def _check_others(model: nn.Module, module: nn.Module, expected: Content) -> None:
    """Raise unless the other blocks have the spans and references that they had, as far as these are known."""
    for name, other in other_blocks(model, module, PolicyJson(POLICIES, model)).items():
        for part, value in expected.get(name, {}).items():
            if value != other[part] and None not in (value, other[part]):
                raise ValueError(
                    f"model: the {part} of its block {name!r} is {other[part]}, the policy was made beside {value}; "
                    f"{UNCHECKED}"
                )
