"""A pytest plugin: tests with what they make on a device, so that one suite serves them all.

    PYTHONPATH=tools pytest -p on_device --device cuda tests/integrate
    PYTHONPATH=tools pytest -p on_device --device second tests/integrate

What a test makes without naming a device goes to that one. What the library makes does not: if it is to be where the
test's tensors are, the library has to say so, and operators refuse to mix devices.

`second` needs no hardware: it is a device of its own to torch, whose operators run on the CPU (`second_device.cpp`,
compiled here by g++). It says nothing of speed, nor of what a GPU's kernels compute. A test is marked `host` if it
takes to the device what was made on the host (a network that the library made, a file, NumPy's arrays), or counts
calls of torch's methods, which pass here once more.
"""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

SOURCE = Path(__file__).with_name("second_device.cpp")
TESTS = Path(__file__).parents[1] / "tests"
TORCH = Path(torch.__file__).parent
SECOND = "second"

FACTORIES = frozenset(
    {
        torch.arange, torch.as_tensor, torch.empty, torch.eye, torch.full, torch.linspace,
        torch.logspace, torch.ones, torch.rand, torch.randint, torch.randn, torch.randperm, torch.tensor, torch.zeros,
    }
)  # fmt: skip


class MadeByTests(TorchFunctionMode):
    """Moves to a device what tests make, and to the host what they look at by numpy."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, function: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is Tensor.numpy and _by_test():
            args = (args[0].cpu(), *args[1:])
        made = function(*args, **kwargs)
        if function not in FACTORIES:
            return made
        there = kwargs.get("device") is not None or made.device.type == self.device.type
        if there or not _by_test():
            return made
        return made.detach().to(self.device).requires_grad_(made.requires_grad)


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
    MadeByTests(torch.device(name)).__enter__()


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
