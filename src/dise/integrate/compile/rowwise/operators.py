"""torch's operators in C++: expressions of single elements, and functions of whole vectors."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

_aten = torch.ops.aten
Arguments = Mapping[str, Any]  # operands as C++ by the operator's argument names; None where not given


class Elementwise(NamedTuple):
    """An operator on single elements.

    Attributes:
        expression: C++, from the operands; numbers stay Python's in `plain`.
        compares: its operands are promoted with each other, since the result's dtype is another.
        plain: arguments that are passed as Python values.
    """

    expression: Callable[[Arguments], str]
    compares: bool = False
    plain: tuple[str, ...] = ()


class Call(NamedTuple):
    """An operator that a function of whole vectors computes.

    Attributes:
        name: of the function.
        accuracy: Sleef's name for that of its function; None: the function is in `functions.cpp`.
    """

    name: str
    accuracy: str | None = "u10"


def _sum(sign: str) -> Callable[[Arguments], str]:
    def expression(a: Arguments) -> str:
        scaled = a["other"] if a.get("alpha", 1) == 1 else f"T({float(a['alpha'])!r}) * {a['other']}"
        return f"{a['self']} {sign} {scaled}"

    return expression


def _clamp(a: Arguments) -> str:
    x = a["self"]
    if a.get("min") is not None:
        x = f"at_least({x}, {a['min']})"
    return x if a.get("max") is None else f"at_most({x}, {a['max']})"


def _lerp(a: Arguments) -> str:
    start, end, weight = a["self"], a["end"], float(a["weight"])
    if abs(weight) < 0.5:
        return f"{start} + T({weight!r}) * ({end} - {start})"
    return f"{end} - ({end} - {start}) * T({1 - weight!r})"


def _nan_to_num(a: Arguments) -> str:
    x = a["self"]
    nan, high, low = a["nan"] or 0.0, a["posinf"], a["neginf"]
    high = "largest<T>()" if high is None else f"T({float(high)!r})"
    low = "-largest<T>()" if low is None else f"T({float(low)!r})"
    return f"({x} != {x} ? T({float(nan)!r}) : {x} > largest<T>() ? {high} : {x} < -largest<T>() ? {low} : {x})"


def _product(a: Arguments, sign: str) -> str:
    value = "" if a["value"] == 1 else f"T({float(a['value'])!r}) * "
    return f"{a['self']} + {value}({a['tensor1']} {sign} {a['tensor2']})"


def _binary(sign: str, *, compares: bool = False) -> Elementwise:
    return Elementwise(lambda a: f"{a['self']} {sign} {a['other']}", compares=compares)


def _unary(text: str) -> Elementwise:
    return Elementwise(lambda a: text.format(x=a["self"]))


def _compared(text: str) -> Elementwise:
    return Elementwise(lambda a: text.format(x=a["self"]), compares=True)


ELEMENTWISE: dict[Any, Elementwise] = {
    _aten.add.Tensor: Elementwise(_sum("+"), plain=("alpha",)),
    _aten.sub.Tensor: Elementwise(_sum("-"), plain=("alpha",)),
    _aten.mul.Tensor: _binary("*"),
    _aten.div.Tensor: _binary("/"),
    _aten.bitwise_and.Tensor: _binary("&"),
    _aten.bitwise_or.Tensor: _binary("|"),
    _aten.bitwise_xor.Tensor: _binary("^"),
    _aten.logical_and.default: _binary("&&", compares=True),
    _aten.logical_or.default: _binary("||", compares=True),
    _aten.logical_not.default: _compared("!{x}"),
    _aten.maximum.default: Elementwise(lambda a: f"larger({a['self']}, {a['other']})"),
    _aten.minimum.default: Elementwise(lambda a: f"smaller({a['self']}, {a['other']})"),
    _aten.neg.default: _unary("-{x}"),
    _aten.abs.default: _unary("magnitude({x})"),
    _aten.relu.default: _unary("at_least({x}, T(0))"),
    _aten.reciprocal.default: _unary("T(1) / {x}"),
    _aten.sqrt.default: _unary("root({x})"),
    _aten.rsqrt.default: _unary("T(1) / root({x})"),
    _aten.sgn.default: _unary("T({x} > 0) - T({x} < 0)"),
    _aten.sign.default: _unary("T({x} > 0) - T({x} < 0)"),
    _aten.clone.default: _unary("{x}"),
    _aten.contiguous.default: _unary("{x}"),
    _aten._to_copy.default: _unary("{x}"),
    _aten.isnan.default: _compared("{x} != {x}"),
    _aten.isinf.default: _compared("magnitude({x}) > largest<T>()"),
    _aten.bitwise_not.default: _unary("inverted({x})"),
    _aten.clamp.default: Elementwise(_clamp),
    _aten.clamp_min.default: Elementwise(_clamp),
    _aten.clamp_max.default: Elementwise(_clamp),
    _aten.lerp.Scalar: Elementwise(_lerp, plain=("weight",)),
    _aten.nan_to_num.default: Elementwise(_nan_to_num, plain=("nan", "posinf", "neginf")),
    _aten.addcmul.default: Elementwise(lambda a: _product(a, "*"), plain=("value",)),
    _aten.addcdiv.default: Elementwise(lambda a: _product(a, "/"), plain=("value",)),
    _aten.where.self: Elementwise(lambda a: f"{a['condition']} ? {a['self']} : {a['other']}"),
    _aten.masked_fill.Scalar: Elementwise(lambda a: f"{a['mask']} ? {a['value']} : {a['self']}"),
}
for _name, _sign in {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}.items():
    for _overload in ("Tensor", "Scalar"):
        ELEMENTWISE[getattr(getattr(_aten, _name), _overload)] = _binary(_sign, compares=True)

ELEMENTWISE[_aten.rsub.Scalar] = ELEMENTWISE[_aten.rsub.Tensor] = Elementwise(
    lambda a: f"{a['other']} - T({float(a['alpha'])!r}) * {a['self']}", plain=("alpha",)
)
for _name in ("add", "sub", "mul", "div"):
    ELEMENTWISE[getattr(_aten, _name).Scalar] = ELEMENTWISE[getattr(_aten, _name).Tensor]

MASKS = ("condition", "mask")  # operands that keep their dtype

CALLS: dict[Any, Call] = {
    _aten.tanh.default: Call("tanh", None),
    _aten.exp.default: Call("exp"),
    _aten.expm1.default: Call("expm1"),
    _aten.exp2.default: Call("exp2"),
    _aten.log.default: Call("log"),
    _aten.log1p.default: Call("log1p"),
    _aten.sin.default: Call("sin", "u35"),
    _aten.cos.default: Call("cos", "u35"),
    _aten.tan.default: Call("tan"),
    _aten.atan.default: Call("atan"),
    _aten.sinh.default: Call("sinh"),
    _aten.cosh.default: Call("cosh"),
    _aten.erf.default: Call("erf"),
    _aten.pow.Tensor_Tensor: Call("pow"),
    _aten.pow.Tensor_Scalar: Call("pow"),
    _aten.pow.Scalar: Call("pow"),
}

# torch's formulas for other operators use a second set of these
_prims = torch.ops.prims
_tables: list[dict[Any, Any]] = [ELEMENTWISE, CALLS]
for _table in _tables:
    for _operator in list(_table):
        _packet = getattr(_prims, _operator.overloadpacket.__name__, None)
        if _packet is not None and _operator._overloadname in ("default", "Tensor"):
            _table[_packet.default] = _table[_operator]

SIMPLE_POWERS = {
    1: "{x}",
    2: "{x} * {x}",
    3: "{x} * {x} * {x}",
    -1: "T(1) / {x}",
    0.5: "root({x})",
    -0.5: "T(1) / root({x})",
}


def simple_power(operator: Any, exponent: Any) -> Elementwise | None:
    """A power that needs no function."""
    if operator is not _aten.pow.Tensor_Scalar or exponent not in SIMPLE_POWERS:
        return None
    return _unary(SIMPLE_POWERS[exponent])


# of the elements of a row: the start, and how one element changes the result
REDUCTIONS: dict[Any, tuple[str, str, str]] = {
    _aten.sum.dim_IntList: ("T(0)", "{total} + {x}", "{total}"),
    _aten.mean.dim: ("T(0)", "{total} + {x}", "{total} / T({number})"),
    _aten.amax.default: ("-T(__builtin_inf())", "larger({total}, {x})", "{total}"),
    _aten.amin.default: ("T(__builtin_inf())", "smaller({total}, {x})", "{total}"),
    _aten.linalg_vector_norm.default: ("T(0)", "{total} + {x} * {x}", "root({total})"),
    _aten.any.dim: ("false", "{total} | bool({x})", "{total}"),
    _aten.all.dim: ("true", "{total} & bool({x})", "{total}"),
}
# of all rows, into one number
EXTREMA = {_aten.max.default: "larger", _aten.min.default: "smaller"}
CONSTANTS = {
    _aten.zeros_like.default: 0,
    _aten.ones_like.default: 1,
    _aten.full_like.default: None,
    _aten.full.default: None,
    _aten.zeros.default: 0,
    _aten.ones.default: 1,
    _aten.new_zeros.default: 0,
    _aten.new_ones.default: 1,
    _aten.new_full.default: None,
    _aten.scalar_tensor.default: None,
}  # operators whose results have one number everywhere; None: their argument
# operators whose results depend on no tensor and no chance
DATA = (_aten.lift_fresh.default, _aten.lift_fresh_copy.default, _aten.arange.default, _aten.arange.start,
        _aten.arange.start_step, _aten.linspace.default, _aten.eye.default)  # fmt: skip
