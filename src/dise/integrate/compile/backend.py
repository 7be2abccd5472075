"""How torch.compile is told to generate code for the CPU, where its defaults leave much of a small step's time."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

# tanh(x) / x ≈ P(x²) / Q(x²) up to where tanh is 1 in float32, fitted for the least relative error
P = (0.999999979, 0.133797147, 0.00349403076, 2.0583421e-05, 1.33189938e-08)
Q = (1.0, 0.4671303, 0.0258710587, 0.000328308671, 7.76198627e-07)
ONE = 9.02

NARROW = 8  # features up to which a state lies in memory feature by feature: rows are shorter than vectors
FEW = 3  # columns up to which a product costs less in a loop with others than as the call of a library
LONG = 512  # terms up to which such a sum is as good in a plain loop as in a library's

SOURCE = sha256(Path(__file__).read_bytes()).hexdigest()  # as this file changes, so do the graphs made with it

CACHEABLE = "unsafe_marked_cacheable_functions"  # torch's option: of what its cache keeps graphs, though it would not
LOOP = "torch.ops.higher_order.while_loop"  # its body is part of the graph by whose pickle the cache knows it

# the backward pass may compute a cheap f's activations again: keeping them would be many tensors a graph
AGAIN = {"ban_recompute_used_far_apart": False, "ban_recompute_materialized_backward": False}


def inductor(graph: GraphModule, inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None) -> Any:
    """torch.compile's backend "inductor"; graphs of the CPU are called from C++ and made for a small f.

    That is: they have a fast `tanh`, write out products with few columns, keep little for the backward pass, and
    without gradients join columns as `by_feature` has them.

    Args:
        graph, inputs, options: as torch.compile gives them.
    """
    from torch._functorch import config
    from torch._inductor import config as defaults  # these take seconds to import
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.decomposition import select_decomp_table

    options = dict(options or {})
    options.pop("guard_filter_fn", None)  # torch took it, unless it is too old to know it
    if not all(x.is_cpu for x in inputs if isinstance(x, Tensor)):
        return compile_fx(graph, inputs, config_patches=options)
    aten = torch.ops.aten
    own: dict[Any, Any] = {aten.tanh.default: tanh, aten.mm.default: mm, aten.addmm.default: addmm}
    if not torch.is_grad_enabled():
        own[aten.cat.default] = cat
    patches = {"cpp_wrapper": True, **options}
    if hasattr(defaults, CACHEABLE):
        patches.setdefault(CACHEABLE, {LOOP: SOURCE})
    with config.patch(AGAIN):
        return compile_fx(graph, inputs, config_patches=patches, decompositions=_Table(select_decomp_table(), own))


class _Table(dict[Any, Any]):
    """torch's table of decompositions with our own, which torch's cache of compiled graphs knows by a key.

    Without one, it would not keep graphs: it knows inputs by their pickle, and not all operators have one.
    """

    def __init__(self, table: Mapping[Any, Any], own: Mapping[Any, Any]) -> None:
        super().__init__({**table, **own})
        self.key = "dise", SOURCE, *sorted(str(op) for op in own)  # torch's table is part of torch, which has its key

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (self.key,)


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


def mm(a: Tensor, b: Tensor) -> Tensor:
    """a [m, k] times b [k, n] as k products or n sums, which share a loop with what comes before and after.

    NotImplemented, which leaves it to torch, if both k and n are large, and for other dtypes.
    """
    k, n = a.shape[1], b.shape[1]
    if a.dtype not in (torch.float32, torch.float64) or not isinstance(k, int) or k == 0:
        return NotImplemented
    if k <= FEW:
        b = _with_contiguous_rows(b)
        products = [a[:, i, None] * b[i] for i in range(k)]
        return sum(products[1:], start=products[0])
    if k <= LONG and isinstance(n, int) and 0 < n <= FEW and a.stride(1) == 1:
        columns = _with_contiguous_rows(b.t())
        return torch.stack([(a * columns[j]).sum(1) for j in range(n)], 1)
    return NotImplemented


def addmm(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """c + a b, where `mm` has a product to offer; else NotImplemented."""
    product = mm(a, b) if alpha == beta == 1 else NotImplemented
    return product if product is NotImplemented else c + product


def _with_contiguous_rows(x: Tensor) -> Tensor:
    """x, or a copy with contiguous rows, which all products with x share: loads with strides are slow."""
    from torch._inductor.inductor_prims import force_stride_order  # a clone would be made anew wherever it is read

    return x if x.stride(1) == 1 else force_stride_order(x, (x.shape[1], 1))


def by_feature(x: Tensor) -> Tensor:
    """A narrow x [n, F] on the CPU with contiguous columns; others as they are.

    Not with gradients, where it gains less and compiles much longer.
    """
    narrow = x.is_cpu and x.shape[1] <= NARROW and not torch.is_grad_enabled()
    return x.t().contiguous().t() if narrow else x


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Columns next to one another as `by_feature` has them; NotImplemented, which leaves it to torch, if many."""
    if dim not in (1, -1) or any(x.ndim != 2 for x in tensors) or sum(x.shape[1] for x in tensors) > NARROW:
        return NotImplemented
    return torch.cat([x.t() for x in tensors]).t()
