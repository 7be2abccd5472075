"""A pytest plugin: tests with what they make on a device, so that one suite serves them all.

    PYTHONPATH=tools pytest -p on_device --device cuda tests/integrate
    PYTHONPATH=tools pytest -p on_device --device second tests/integrate

What a test makes without naming a device goes to that one. What the library makes does not: if it is to be where the
test's tensors are, the library has to say so, and operators refuse to mix devices.

`second` needs no hardware: it is a device of its own to torch, whose operators run on the CPU (`second_device.cpp`,
compiled here by g++). It says nothing of speed, nor of what a GPU's kernels compute. A test is marked `host` if it
takes to the device what was made on the host (a network that the library made, a file, NumPy's arrays).
"""

import importlib
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from functools import wraps
from hashlib import sha256
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("second_device.cpp")
TESTS = Path(__file__).parents[1] / "tests"
TORCH = Path(torch.__file__).parent
SECOND = "second"

FACTORIES = (
    "arange", "as_tensor", "empty", "eye", "full", "linspace", "logspace", "ones", "rand", "randint", "randn",
    "randperm", "tensor", "zeros",
)  # fmt: skip


def _moved(factory: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
    """A function of torch's that makes tensors: on the device, if a test calls it and names no other."""

    @wraps(factory)
    def make(*args: Any, **kwargs: Any) -> Tensor:
        made = factory(*args, **kwargs)
        if kwargs.get("device") is not None or made.device.type == device.type or not _by_test():
            return made
        return made.detach().to(device).requires_grad_(made.requires_grad)

    return make


def _on_host(numpy: Callable[..., Any]) -> Callable[..., Any]:
    """Tensor.numpy, which takes what tests look at to the host."""

    @wraps(numpy)
    def look(x: Tensor, **kwargs: Any) -> Any:
        return numpy(x.cpu() if _by_test() else x, **kwargs)

    return look


def _by_test() -> bool:
    """Whether a test calls torch now, itself or by a module of torch's."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith(str(TORCH)):
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename.startswith(str(TESTS))


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--device`."""
    parser.addoption("--device", default=SECOND, help="where what tests make goes: second, cuda, …")


def pytest_configure(config: pytest.Config) -> None:
    """From here on, module-level constants included."""
    name = config.getoption("--device")
    if name == SECOND:
        _register(_built(config.cache.mkdir("second_device")))  # type: ignore[union-attr]
    importlib.import_module("torch._decomp.decompositions_for_jvp")  # scripts functions that call torch's factories
    device = torch.device(name)
    for factory in FACTORIES:
        setattr(torch, factory, _moved(getattr(torch, factory), device))
    Tensor.numpy = _on_host(Tensor.numpy)  # type: ignore[method-assign]


def _built(folder: Path) -> Path:
    """The compiled device: kept for this source, version of torch and platform."""
    key = sha256(SOURCE.read_bytes() + f"{torch.__version__} {sysconfig.get_platform()}".encode()).hexdigest()[:16]
    library = folder / f"{key}.so"
    if not library.exists():
        part = library.with_suffix(f".{os.getpid()}")  # several processes may be at it
        command = ["g++", "-std=c++20", "-O1", "-shared", "-fPIC", str(SOURCE), "-o", str(part)]
        command += [f"-I{TORCH / 'include'}", f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-lc10"]
        subprocess.run(command, check=True)
        part.rename(library)
    return library


def _register(library: Path) -> None:
    """Tell torch of the device."""
    torch.ops.load_library(library)
    torch.utils.rename_privateuse1_backend(SECOND)
    module = ModuleType(SECOND)
    state = {"is_available": True, "device_count": 1, "current_device": 0, "_is_in_bad_fork": False}
    for name, value in state.items():
        setattr(module, name, lambda value=value: value)
    # it draws from the host's generator
    for name in ("manual_seed_all", "set_rng_state"):
        setattr(module, name, lambda *_: None)
    module.get_rng_state = lambda *_: torch.get_rng_state()  # type: ignore[attr-defined]
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]  # type: ignore[attr-defined]
    torch._register_device_module(SECOND, module)
