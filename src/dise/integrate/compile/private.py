"""The private and prototype parts of torch that compiled rounds use, each with a fallback.

Tried with torch 2.6 and 2.13. Without a part compiled solves still work; each function says what is lost.
"""

import getpass
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor

# compiler flags of the instruction sets for which torch has kernels of its own, by torch's names for them
VECTOR_FLAGS = {"AVX2": "-mavx2 -mfma -mf16c", "AVX512": "-mavx512f -mavx512dq -mavx512vl -mavx512bw -mfma"}


class CodeGenerator(NamedTuple):
    """Inductor, called with a table of decompositions and with options."""

    compile_fx: Callable[..., Any]  # (graph, inputs, config_patches=, decompositions=)
    decompositions: Callable[[], Mapping[Any, Any]]  # torch's own


def code_generator() -> CodeGenerator | None:
    """Inductor's entry point; None: use the backend by its name, without kernels, layouts and options of our own."""
    try:
        from torch._inductor.compile_fx import compile_fx
        from torch._inductor.decomposition import select_decomp_table
    except ImportError:
        return None
    if not {"config_patches", "decompositions"} <= signature(compile_fx).parameters.keys():
        return None
    return CodeGenerator(compile_fx, select_decomp_table)


def torchs_inductor() -> Callable[..., Any]:
    """Inductor by its name, for where `code_generator` is None.

    Raises:
        RuntimeError: this torch has no such backend.
    """
    try:
        from torch._dynamo.backends.registry import lookup_backend
    except ImportError as error:
        raise RuntimeError("this torch has no backend named inductor") from error
    backend: Callable[..., Any] = lookup_backend("inductor")
    return backend


def cache_folder() -> str:
    """The folder where torch's compiler keeps its files; without it a folder for temporary files of this user."""
    try:
        from torch._inductor.runtime.cache_dir_utils import cache_dir
    except ImportError:
        return os.path.join(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}")
    folder: str = cache_dir()
    return folder


def decomposition(operator: Any) -> Callable[..., Any] | None:
    """torch's formula for an operator in terms of simpler ones; None: there is none."""
    try:
        from torch._decomp import decomposition_table
    except ImportError:
        return None
    return decomposition_table.get(operator)


def known_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of inductor's options that this torch has; without an option graphs are called, or found, more slowly."""
    try:
        from torch._inductor import config
    except ImportError:
        return {}
    return {name: value for name, value in options.items() if hasattr(config, name)}


@cache
def vectors_work() -> bool:
    """Whether inductor may use the CPU's widest vectors without the programs by which it tests that.

    It builds, loads and runs one for each instruction set that the CPU has, which takes seconds. They are not needed
    where torch's own kernels use the widest vectors and the compiler knows their flags. False: inductor tests. Tried
    with torch 2.13.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    if sys.platform != "linux" or capability not in VECTOR_FLAGS:
        return False
    has_avx512 = getattr(torch.cpu, "_is_avx512_supported", None)
    if has_avx512 is None or has_avx512() != (capability == "AVX512"):
        return False
    try:
        from torch._inductor import config
        from torch._inductor.cpp_builder import get_cpp_compiler

        if config.cpp.vec_isa_ok is not None:  # the user's environment says it
            return False
        command = [get_cpp_compiler(), *VECTOR_FLAGS[capability].split(), "-fsyntax-only", "-x", "c++", os.devnull]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except Exception:  # inductor says what is wrong with the compiler
        return False


def functorch_settings(settings: Mapping[str, Any]) -> AbstractContextManager[Any]:
    """A context with those of functorch's settings that this torch has."""
    try:
        from torch._functorch import config
    except ImportError:
        return nullcontext()
    return config.patch({name: value for name, value in settings.items() if hasattr(config, name)})


def with_contiguous_rows(x: Tensor) -> Tensor:
    """x [m, n], or a copy with contiguous rows, made once for all products with x, since strided loads are slow.

    Without inductor's operator for it the copy may be fused into each of its uses.
    """
    if x.stride(1) == 1:
        return x
    try:
        from torch._inductor.inductor_prims import force_stride_order
    except ImportError:
        return x.contiguous()
    return force_stride_order(x, (x.shape[1], 1))


def mark_dynamic(x: Tensor, dim: int) -> None:
    """Hint that a dimension has many sizes; without the hint torch compiles a second graph for the second size."""
    try:
        from torch._dynamo import maybe_mark_dynamic
    except ImportError:
        return
    maybe_mark_dynamic(x, dim)


def assume(condition: bool) -> None:
    """State a fact about sizes to the tracer; without it more sizes are inputs of a graph."""
    check = getattr(torch, "_check", None)
    if check is not None:
        check(condition)


def while_loop() -> Callable[..., Any] | None:
    """torch's loop operator, a prototype; None: rounds run in graphs without a loop, several per graph."""
    try:
        from torch._higher_order_ops.while_loop import while_loop
    except ImportError:
        return None
    return while_loop


def compiler_error() -> type[Exception]:
    """The class of errors raised where torch cannot compile a function; without it their public base class."""
    try:
        from torch._dynamo.exc import TorchDynamoException
    except ImportError:
        return RuntimeError
    return TorchDynamoException
