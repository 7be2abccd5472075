"""The yardstick: the same method as a loop in C++, written by hand for the benchmarks' two fields (floor.cpp)."""

import ctypes
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("floor.cpp")
COMPILER = "g++"
FLAGS = ("-std=c++17", "-Ofast", "-march=native", "-fPIC", "-c")
NAMES = {"VanDerPol": "van_der_pol", "TanhNetwork": "tanh_network"}


@cache
def library() -> Any:
    """The compiled loop; None, with a line that says so, where it cannot be compiled."""
    if shutil.which(COMPILER) is None:
        print(f"{COMPILER} is not installed: the loop in C++ is left out")
        return None
    with TemporaryDirectory() as folder:
        code, path = Path(folder) / "floor.o", Path(folder) / "floor.so"
        subprocess.run([COMPILER, *FLAGS, str(SOURCE), "-o", str(code)], check=True)
        # linked without -Ofast, which would make the whole process round subnormal numbers to 0
        subprocess.run([COMPILER, "-shared", str(code), "-o", str(path), "-lmvec", "-lm"], check=True)
        return ctypes.CDLL(str(path))


def solve(f: torch.nn.Module, y0: Tensor, t1: float, tolerance: float) -> tuple[Tensor, int]:
    """States [B, 2] of y0 [B, 2], float32, at t1, and the rounds of the sample that takes the most."""
    function = getattr(library(), NAMES[type(f).__name__])
    function.argtypes = [ctypes.c_void_p, ctypes.c_long, ctypes.c_double, ctypes.c_float, ctypes.c_void_p]
    function.restype = ctypes.c_long
    states, weights = y0.clone(memory_format=torch.contiguous_format), [p.detach() for p in f.parameters()]
    pointers = (ctypes.c_void_p * max(1, len(weights)))(*[p.data_ptr() for p in weights])
    rounds = function(states.data_ptr(), len(states), t1, tolerance, pointers)
    return states, rounds
