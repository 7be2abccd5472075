"""Kernels for small fields: as accurate as they promise, and torch's own operators where they do not apply."""

import pytest
import torch
from torch.testing import assert_close

from dise.integrate.compile.kernels import (
    TANH_ULPS,
    feature_major,
    feature_major_cat,
    narrow_addmm,
    narrow_mm,
    polynomial_tanh,
)


def test_tanh_is_exact_to_some_units_in_the_last_place():
    tiny = 10.0 ** torch.linspace(-37, 1, 100_000, dtype=torch.float64)
    x = torch.cat([torch.linspace(-12, 12, 1_000_001, dtype=torch.float64), tiny, -tiny]).float()
    exact = torch.tanh(x.double())
    unit = torch.nextafter(exact.abs().float(), torch.tensor(torch.inf)).double() - exact.abs().float().double()
    value = polynomial_tanh(x)
    assert TANH_ULPS == 6  # as the guide says
    assert ((value.double() - exact).abs() / unit).max() <= TANH_ULPS
    assert value.abs().max() <= 1


def test_tanh_of_nan_infinity_and_zero():
    value = polynomial_tanh(torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0]))
    assert value[0].isnan()
    assert value[1:].tolist() == [1.0, -1.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64])
def test_tanh_of_other_dtypes_is_left_to_torch(dtype):
    assert polynomial_tanh(torch.zeros(2, dtype=dtype)) is NotImplemented


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("m", "k", "n"), [(5, 1, 7), (5, 3, 7), (5, 3, 2), (5, 9, 1), (5, 40, 3), (1, 40, 2)])
def test_products_with_few_columns(m, k, n, dtype):
    a, b, c = torch.randn(m, k, dtype=dtype), torch.randn(k, n, dtype=dtype), torch.randn(n, dtype=dtype)
    for right in (b, b.t().contiguous().t(), torch.randn(k, 2 * n, dtype=dtype)[:, ::2]):
        assert_close(narrow_mm(a, right), torch.mm(a, right))
        assert_close(narrow_addmm(c, a, right), torch.addmm(c, a, right))
        assert narrow_mm(a, right).is_contiguous()


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.zeros(5, 4), torch.zeros(4, 4)),  # k and n are large
        (torch.zeros(5, 4096), torch.zeros(4096, 2)),  # sums are long
        (torch.zeros(8, 5).t(), torch.zeros(8, 2)),  # sums are across rows
        (torch.zeros(5, 0), torch.zeros(0, 3)),
        (torch.zeros(5, 2).bfloat16(), torch.zeros(2, 3).bfloat16()),
    ],
)
def test_other_products_are_left_to_torch(a, b):
    assert narrow_mm(a, b) is NotImplemented
    assert narrow_addmm(b[:1], a, b) is NotImplemented


def test_scaled_products_are_left_to_torch():
    a, b, c = torch.zeros(5, 2), torch.zeros(2, 3), torch.zeros(3)
    assert narrow_addmm(c, a, b, beta=0.5) is NotImplemented
    assert narrow_addmm(c, a, b, alpha=2) is NotImplemented


def test_narrow_states_are_stored_feature_by_feature():
    x, wide = torch.randn(5, 2), torch.randn(5, 9)
    assert feature_major(x) is x  # with gradients
    with torch.no_grad():
        assert torch.equal(feature_major(x), x)
        assert feature_major(x).t().is_contiguous()
        assert feature_major(wide) is wide


def test_joined_columns_are_stored_feature_by_feature():
    x, y = torch.randn(5, 2), torch.randn(5, 1)
    joined = feature_major_cat([x, y], 1)
    assert torch.equal(joined, torch.cat([x, y], 1))
    assert joined.t().is_contiguous()
    assert feature_major_cat([x, y], -1).t().is_contiguous()


@pytest.mark.parametrize(
    ("tensors", "dim"),
    [
        ([torch.zeros(2, 3)] * 2, 0),
        ([torch.zeros(2, 5)] * 2, 1),
        ([torch.zeros(2, 3, 1)] * 2, 1),
        ([torch.zeros(3)], 0),
    ],
)
def test_other_joins_are_left_to_torch(tensors, dim):
    assert feature_major_cat(tensors, dim) is NotImplemented
