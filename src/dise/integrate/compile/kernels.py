"""Kernels and memory layouts for small fields on the CPU, written in torch's own operators for inductor to fuse.

`FAST` replaces operators by others that round differently: a polynomial tanh and written-out narrow products.
`LAYOUTS` changes only where values lie in memory. A replacement that does not apply returns NotImplemented, which
leaves the operator to torch.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dise.integrate.compile import private

# tanh(x) / x ≈ numerator(x²) / denominator(x²) up to saturation, fitted for the least relative error
TANH_NUMERATOR = (0.999999979, 0.133797147, 0.00349403076, 2.0583421e-05, 1.33189938e-08)
TANH_DENOMINATOR = (1.0, 0.4671303, 0.0258710587, 0.000328308671, 7.76198627e-07)
TANH_SATURATION = 9.02  # tanh is 1 in float32 from here on
TANH_ULPS = 6  # largest error, in units in the last place

MAX_UNROLLED_SIZE = 3  # columns up to which a fused product costs less than a library call
MAX_SUM_TERMS = 512  # terms up to which a sum in a plain loop is as accurate as a library's
MAX_NARROW_FEATURES = 8  # features up to which a state is stored feature by feature: its rows are shorter than vectors


def polynomial_tanh(x: Tensor) -> Tensor:
    """tanh of float32 to `TANH_ULPS` units in the last place, without an exponential.

    NotImplemented for other dtypes.
    """
    if x.dtype != torch.float32:
        return NotImplemented
    x = x.clamp(-TANH_SATURATION, TANH_SATURATION)
    square = x * x
    return (x * _polynomial(TANH_NUMERATOR, square) / _polynomial(TANH_DENOMINATOR, square)).clamp(-1, 1)


def _polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """Σ c_i xⁱ by Horner's rule."""
    *rest, value = coefficients
    total = torch.full_like(x, value)
    for c in reversed(rest):
        total = total * x + c
    return total


def narrow_mm(a: Tensor, b: Tensor) -> Tensor:
    """a [m, k] times b [k, n] as k products or n sums, which inductor fuses with the operators before and after.

    NotImplemented if both k and n are large, and for dtypes other than float32 and float64.
    """
    k, n = a.shape[1], b.shape[1]
    if a.dtype not in (torch.float32, torch.float64) or not isinstance(k, int) or k == 0:
        return NotImplemented
    if k <= MAX_UNROLLED_SIZE:
        b = private.with_contiguous_rows(b)
        products = [a[:, i, None] * b[i] for i in range(k)]
        return sum(products[1:], start=products[0])
    if k <= MAX_SUM_TERMS and isinstance(n, int) and 0 < n <= MAX_UNROLLED_SIZE and a.stride(1) == 1:
        columns = private.with_contiguous_rows(b.t())
        return torch.stack([(a * columns[j]).sum(1) for j in range(n)], 1)
    return NotImplemented


def narrow_addmm(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """c + a b by `narrow_mm`; NotImplemented where it is, and for scaled sums."""
    product = narrow_mm(a, b) if alpha == beta == 1 else NotImplemented
    return product if product is NotImplemented else c + product


def feature_major(x: Tensor) -> Tensor:
    """A narrow x [n, F] on the CPU, stored column by column, so that loops over rows use vectors; any other x as it is.

    With gradients enabled x is returned as it is too: the gain is smaller there and compilation much longer.
    """
    narrow = x.is_cpu and x.shape[1] <= MAX_NARROW_FEATURES and not torch.is_grad_enabled()
    return x.t().contiguous().t() if narrow else x


def feature_major_cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """A few columns side by side, stored as by `feature_major`.

    NotImplemented for other dimensions and wide results.
    """
    columns_joined = dim in (1, -1) and all(x.ndim == 2 for x in tensors)
    if not columns_joined or sum(x.shape[1] for x in tensors) > MAX_NARROW_FEATURES:
        return NotImplemented
    return torch.cat([x.t() for x in tensors]).t()


_aten = torch.ops.aten
FAST: Mapping[Any, Callable[..., Tensor]] = {
    _aten.tanh.default: polynomial_tanh,
    _aten.mm.default: narrow_mm,
    _aten.addmm.default: narrow_addmm,
}
LAYOUTS: Mapping[Any, Callable[..., Tensor]] = {_aten.cat.default: feature_major_cat}
