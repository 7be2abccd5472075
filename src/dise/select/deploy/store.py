"""A policy as files: JSON for what it is, safetensors for its networks' weights."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dise.integrate import Integrator, State, max_norm, rms_norm
from dise.integrate.value import Value
from dise.nn import NeuralODE
from dise.select.deploy.atomic import atomic_write
from dise.select.judging.cost import device_of, find_block
from dise.select.learning.adequacy import AdequacySelector
from dise.select.learning.committee import Committee
from dise.select.learning.networks import ConfidenceNetwork, FeatureNetwork, PooledNetwork
from dise.select.learning.selector import CostSelector
from dise.select.make_dynamic.make import Report
from dise.select.model.adapt import AdaptedBlock, adapt
from dise.select.policies.cascade import Confidence
from dise.select.policies.dynamic import RandomSelector
from dise.select.policies.forecast import Forecast

POLICY, WEIGHTS = "policy.json", "policy.safetensors"
FORMAT = 2  # 1: forecasts of another form


def save_policy(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Write the policy of a model's block to a folder: `policy.json`, and `policy.safetensors` if it has networks.

    The model's own weights are not in it; save them as ever. Their hash is, since a guarantee is one for these weights.

    Args:
        model: contains one NeuralODE.
        folder: is made if it is not there; files of the same names are replaced.

    Raises:
        ValueError: a policy that holds something of which only Python knows what it is, such as a function.
    """
    block, path = find_block(model), Path(folder)
    policy = {
        "format": FORMAT,
        "block": _block(model, block),
        "integrator": _Writer(model).write(block.integrator, "integrator"),
        "report": None if block.report is None else block.report.to_json(),
        "weights": fingerprint(model),
    }
    path.mkdir(parents=True, exist_ok=True)
    held = getattr(block, "policy", None)
    if held is not None:
        tensors = {name: value.detach().cpu().contiguous() for name, value in held.state_dict().items()}
        with atomic_write(path / WEIGHTS) as file:
            _safetensors().save_file(tensors, file)
    with atomic_write(path / POLICY) as file:
        file.write_text(json.dumps(policy, indent=2) + "\n", encoding="utf-8")


def load_policy(model: nn.Module, folder: str | os.PathLike[str], *, check: bool = True) -> nn.Module:
    """Give a model the policy that `save_policy` wrote; a block on torchdiffeq is replaced as `make_dynamic` does.

    Args:
        model: with the weights that it had when the policy was made. It is changed in place.
        folder: what `save_policy` wrote.
        check: False accepts other weights, for which the policy guarantees nothing.

    Returns:
        the model.

    Raises:
        ValueError: files that are no policy, a model of another structure, or with other weights.
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
    integrator = _Reader(model).read(policy["integrator"])
    block = _find(model, policy["block"], integrator)
    block.integrator = integrator
    block.report = None if policy["report"] is None else Report.of_json(policy["report"], integrator)
    held = getattr(block, "policy", None)
    if held is not None:
        held.load_state_dict(_safetensors().load_file(path / WEIGHTS))
        held.to(device_of(model)).eval()
    return model


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of a model's parameters and buffers, without those of its policy."""
    policies = tuple(f"{name}.policy." for name, module in model.named_modules() if isinstance(module, NeuralODE))
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not name.startswith(policies):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("a policy with a network is saved with safetensors: pip install safetensors") from error
    return safetensors.torch


def _block(model: nn.Module, block: NeuralODE) -> dict[str, Any]:
    name = next(name for name, module in model.named_modules() if module is block)
    if isinstance(block, AdaptedBlock):
        return {"name": name, "f": block.name_of_f, "span": [float(block.t0), float(block.t1)]}
    return {"name": name}


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


# ---- values as JSON

_NORMS: dict[str, Callable[[State], torch.Tensor]] = {norm.__name__: norm for norm in (rms_norm, max_norm)}
_FUNCTIONS = {"max_norm": max_norm, "rms_norm": rms_norm}
_NETWORKS: dict[str, type[FeatureNetwork]] = {cls.__name__: cls for cls in (ConfidenceNetwork, PooledNetwork)}


class _Writer:
    """Integrators, rules and selectors of a model as JSON."""

    def __init__(self, model: nn.Module) -> None:
        self.names = {id(module): name for name, module in model.named_modules()}

    def write(self, value: object, where: str) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, list | tuple):
            return [self.write(part, f"{where}[{i}]") for i, part in enumerate(value)]
        if isinstance(value, Confidence):
            parts = {"threshold": value.threshold, "measure": value.measure}
            return {"kind": "Confidence", "head": self._modules(value.head, where), **parts}
        if isinstance(value, Forecast):
            parts = {"threshold": value.threshold, "classes": len(value.bias), "channels": value.channels}
            return {"kind": "Forecast", "head": self._modules(value.head, where), **parts}
        if isinstance(value, AdequacySelector):
            return self._selector(value, where) | {"dial": value.dial}
        if isinstance(value, CostSelector):
            return self._selector(value, where)
        if isinstance(value, Committee):
            return {"kind": "Committee", "members": [self.write(member, where) for member in value.members]}
        if isinstance(value, RandomSelector):
            return {"kind": "RandomSelector", "shares": value.shares.tolist()}
        name = getattr(value, "__name__", "")
        if _NORMS.get(name) is value:
            return {"kind": name}
        if isinstance(value, Integrator | Value) and is_dataclass(value):
            parts = {f.name: self.write(getattr(value, f.name), f"{where}.{f.name}") for f in fields(value)}
            return {"kind": type(value).__name__, **parts}
        raise ValueError(f"{where}: {value!r} cannot be saved, as only Python knows what it is")

    def _selector(self, selector: CostSelector, where: str) -> dict[str, Any]:
        network = selector.network
        if not isinstance(network, FeatureNetwork) or type(network).__name__ not in _NETWORKS:
            raise ValueError(f"{where}: a network of {type(network).__name__} cannot be saved")
        settings = dict(network.settings)
        if isinstance(network, ConfidenceNetwork):
            settings["head"] = self._modules(network.original, where)
        return {
            "kind": type(selector).__name__,
            "candidates": len(selector.mean),
            "network": {"kind": type(network).__name__, **settings},
        }

    def _modules(self, head: nn.Module, where: str) -> list[str] | str:
        """Names of the model's modules that a head is made of, one after the other."""
        if id(head) in self.names:
            return self.names[id(head)]
        if isinstance(head, nn.Sequential) and all(id(part) in self.names for part in head):
            return [self.names[id(part)] for part in head]
        raise ValueError(f"{where}: the head is not made of modules of the model, so it cannot be saved")


class _Reader:
    """What `_Writer` wrote, for a model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def read(self, value: Any) -> Any:
        if isinstance(value, list):
            return tuple(self.read(part) for part in value)
        if not isinstance(value, dict):
            return value
        kind, parts = value["kind"], {key: part for key, part in value.items() if key != "kind"}
        if kind in _NORMS:
            return _NORMS[kind]
        if kind in ("Confidence", "Forecast"):
            rule = Confidence if kind == "Confidence" else Forecast
            return rule(self._head(parts.pop("head")), **parts)
        if kind in ("CostSelector", "AdequacySelector"):
            selector = AdequacySelector if kind == "AdequacySelector" else CostSelector
            return selector(self._network(parts.pop("network")), **parts)
        if kind == "Committee":
            return Committee(self.read(parts["members"]))
        if kind == "RandomSelector":
            return RandomSelector(parts["shares"])
        for cls in (*_kinds(Integrator), *_kinds(Value)):
            if cls.__name__ == kind:
                return cls(**{key: self.read(part) for key, part in parts.items()})
        raise ValueError(f"folder: the policy has an integrator {kind!r}, which is not known here")

    def _network(self, value: dict[str, Any]) -> nn.Module:
        settings = {key: part for key, part in value.items() if key != "kind"}
        if "head" in settings:
            settings["head"] = self._head(settings["head"])
        return _NETWORKS[value["kind"]](**settings)

    def _head(self, names: str | Sequence[str]) -> nn.Module:
        try:
            if isinstance(names, str):
                return self.model.get_submodule(names)
            return nn.Sequential(*(self.model.get_submodule(name) for name in names))
        except AttributeError as error:
            raise ValueError(f"model: expected modules {names}, which the policy's head is made of") from error


def _kinds(cls: Any) -> Iterator[Any]:
    """All classes below a class."""
    for sub in cls.__subclasses__():
        yield sub
        yield from _kinds(sub)
