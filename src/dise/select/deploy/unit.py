"""The two files of a policy, read and written as one checksummed unit."""

import hashlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from dise.select.deploy import strict_json
from dise.select.deploy.atomic import atomic_write

POLICY, WEIGHTS = "policy.json", "policy.safetensors"
FORMAT = 3  # 1: forecasts of another form; 2: without checksums, span and reference

Content = dict[str, Any]  # the policy as JSON
Weights = dict[str, Tensor]  # the parameters and buffers of its networks, by name


def write_unit(folder: Path, content: Content, weights: Weights | None) -> None:
    """Write the content and the weights, if there are any; files of an earlier policy are replaced or removed.

    Raises:
        ImportError: there are weights, and safetensors is not installed.
    """
    packed = None if weights is None else _safetensors().save(weights)
    signed = strict_json.to_json({"format": FORMAT, "networks": None if packed is None else _digest(packed), **content})
    text = json.dumps({**signed, "checksum": checksum(signed)}, indent=2, allow_nan=False) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / POLICY) as file:
        file.write_text(text, encoding="utf-8")
        if packed is not None:
            with atomic_write(folder / WEIGHTS) as weights_file:
                weights_file.write_bytes(packed)
    if packed is None:
        (folder / WEIGHTS).unlink(missing_ok=True)


def read_unit(folder: Path) -> tuple[Content, Weights | None]:
    """What `write_unit` wrote.

    Raises:
        ValueError: a file is missing, damaged, of another policy, or of another format.
        ImportError: there are weights, and safetensors is not installed.
    """
    try:
        signed = json.loads((folder / POLICY).read_text(encoding="utf-8"))
        found, expected, networks = signed["format"], signed.pop("checksum", None), signed.get("networks")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise unreadable(folder, error) from error
    if found != FORMAT:
        raise ValueError(f"folder: {folder} holds a policy of format {found!r}, expected {FORMAT}")
    if expected != checksum(signed):
        raise unreadable(folder, f"{POLICY} is damaged: its checksum is another")
    content = strict_json.of_json(signed)
    if networks is None:
        return content, None
    try:
        packed = (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise unreadable(folder, error) from error
    if _digest(packed) != networks:
        raise unreadable(folder, f"{WEIGHTS} is damaged or of another policy: its checksum is another")
    load = _safetensors().load
    try:
        return content, load(packed)
    except Exception as error:  # of safetensors' own classes
        raise unreadable(folder, error) from error


def unreadable(folder: Path, why: object) -> ValueError:
    """The error for a folder without a policy that can be read."""
    return ValueError(f"folder: {folder} holds no policy that can be read ({why})")


def checksum(signed: Content) -> str:
    """SHA-256 of JSON, whatever its spaces and the order of its keys."""
    return _digest(json.dumps(signed, sort_keys=True, separators=(",", ":")).encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _safetensors() -> ModuleType:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("a policy with networks is saved as safetensors: pip install safetensors") from error
    return safetensors.torch
