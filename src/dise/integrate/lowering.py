"""How torch.compile is told to generate code for the CPU, where its defaults leave much of a small step's time."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

# tanh(x) / x ≈ P(x²) / Q(x²) up to where tanh is 1 in float32, fitted for the least relative error
P = (0.999999979, 0.133797147, 0.00349403076, 2.0583421e-05, 1.33189938e-08)
Q = (1.0, 0.4671303, 0.0258710587, 0.000328308671, 7.76198627e-07)
ONE = 9.02


def inductor(graph: GraphModule, inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None) -> Any:
    """torch.compile's backend "inductor"; graphs of the CPU are called from C++ and have a fast `tanh`.

    Args:
        graph, inputs, options: as torch.compile gives them.
    """
    from torch._inductor.compile_fx import compile_fx  # takes seconds to import
    from torch._inductor.decomposition import select_decomp_table

    options = dict(options or {})
    options.pop("guard_filter_fn", None)  # torch took it, unless it is too old to know it
    if not all(x.is_cpu for x in inputs if isinstance(x, Tensor)):
        return compile_fx(graph, inputs, config_patches=options)
    decompositions = {**select_decomp_table(), torch.ops.aten.tanh.default: tanh}
    return compile_fx(graph, inputs, config_patches={"cpp_wrapper": True, **options}, decompositions=decompositions)


def tanh(x: Tensor) -> Tensor:
    """tanh of float32 to 6 units in the last place, without an exponential.

    NotImplemented, which leaves it to torch, for other dtypes.
    """
    if x.dtype != torch.float32:
        return NotImplemented
    x = x.clamp(-ONE, ONE)
    square = x * x
    return (x * _polynomial(P, square) / _polynomial(Q, square)).clamp(-1, 1)


def _polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """Σ c_i xⁱ by Horner's rule."""
    *rest, value = coefficients
    total = torch.full_like(x, value)
    for c in reversed(rest):
        total = total * x + c
    return total
