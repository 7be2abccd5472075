"""Graphs of torch.compile as kernels."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from dise.integrate.compile.rowwise.build import VECTOR_BYTES
from dise.integrate.compile.rowwise.loops import with_loop_kernel
from dise.integrate.compile.rowwise.steps import with_step_kernels
from dise.integrate.compile.rowwise.values import UnsupportedError


def with_kernel(graph: GraphModule) -> Callable[..., Any]:
    """A graph of `rounds` as a kernel.

    Raises:
        UnsupportedError: there is no code for it.
    """
    if torch.backends.cpu.get_cpu_capability() not in VECTOR_BYTES or not sys.platform.startswith("linux"):
        raise UnsupportedError("another CPU")
    placeholders = [node.meta.get("example_value") for node in graph.graph.nodes if node.op == "placeholder"]
    if any(is_traceable_wrapper_subclass(x) for x in placeholders):
        raise UnsupportedError("a tensor without memory of its own")
    if any(getattr(node.target, "__name__", "") == "while_loop" for node in graph.graph.nodes):
        return with_loop_kernel(graph)
    return with_step_kernels(graph)
