"""Frozen values, such as integrators and controllers, and the checks of their fields."""

import math
from dataclasses import MISSING, fields
from numbers import Integral
from typing import Any

from torch import Tensor


class Value:
    """Base of frozen dataclasses that print their name and the fields that differ from the defaults.

    For example `Dopri5`, `RK4(steps=2)`, `StepDoubling(RK4(steps=2), rtol=1e-05)`.
    """

    def __str__(self) -> str:
        dataclass: Any = self  # mypy cannot know that subclasses are dataclasses
        changed = [
            _text(value) if field.default is MISSING else f"{field.name}={_text(value)}"
            for field in fields(dataclass)
            if (value := getattr(self, field.name)) != field.default
        ]
        return type(self).__name__ + (f"({', '.join(changed)})" if changed else "")


def _text(value: object) -> str:
    """The name of a function, without its address; str of anything else."""
    if callable(value):
        return getattr(value, "__qualname__", type(value).__qualname__)
    return str(value)


def is_number(value: object) -> bool:
    """Whether it is a float, or an int that a float can hold, but no bool."""
    # a tuple, since torch 2.6 cannot compile isinstance with a union
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return isinstance(value, float) or abs(value) < 2**1023


def plain(value: Any) -> Any:
    """NumPy's numbers as Python's, and lists and arrays as tuples; anything else, also a tensor, as it is.

    torch's compiler and JSON know no other numbers, and lists have no hash.
    """
    if type(value) in (int, float, str) or isinstance(value, Tensor):
        return value
    if type(value) in (list, tuple):
        return tuple(map(plain, value))
    as_list = getattr(value, "tolist", None)
    return value if as_list is None else plain(as_list())


def keep_plain(dataclass: Any) -> None:
    """Make the fields of a frozen dataclass `plain`."""
    for field in fields(dataclass):
        if field.init:
            object.__setattr__(dataclass, field.name, plain(getattr(dataclass, field.name)))


def check_numbers(name: str, values: object) -> None:
    """Raise a ValueError unless it is a tuple of finite numbers."""
    if not isinstance(values, tuple) or not all(is_number(x) and math.isfinite(x) for x in values):
        raise ValueError(f"{name}: expected finite numbers, got {values!r:.100}")


def check_above(name: str, value: object, low: float, high: float = float("inf")) -> None:
    """Raise a ValueError unless it is a number with low < value < high."""
    if not (isinstance(value, int | float) and is_number(value) and low < value < high):
        limits = f"a number between {low} and {high}" if high < float("inf") else f"a finite number above {low}"
        raise ValueError(f"{name}: expected {limits}, got {value!r}")


def check_from_zero(name: str, value: object) -> None:
    """Raise a ValueError unless it is a finite number of at least 0."""
    if not (isinstance(value, int | float) and is_number(value) and 0 <= value < float("inf")):
        raise ValueError(f"{name}: expected a finite number of at least 0, got {value!r}")


def check_callable(name: str, value: object, expected: str = "a function", *, optional: bool = False) -> None:
    """Raise a TypeError unless it can be called (or is None, if it is optional)."""
    if not callable(value) and not (optional and value is None):
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")


def check_seed(seed: object) -> None:
    """Raise a TypeError unless it is a whole number."""
    if not is_whole(seed):
        raise TypeError(f"seed: expected a whole number, got {seed!r}")


def check_tensor(name: str, value: object, what: str = "") -> None:
    """Raise a TypeError unless it is a tensor, for example what a user's function returned."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor{what and ' of '}{what}, got {type(value).__name__}")


def check_sizes(**sizes: object) -> None:
    """Raise a ValueError unless all of these are whole numbers of at least 1."""
    for name, size in sizes.items():
        check_whole(name, size)


def check_whole(name: str, value: object) -> None:
    """Raise a ValueError unless it is a whole number of at least 1."""
    as_whole(name, value)


def is_whole(value: object) -> bool:
    """Whether it is an int, or a whole number of another library such as NumPy, but no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def as_whole(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """A whole number from `least` to `most` as an int.

    Raises:
        ValueError: it is none, or it does not fit into 64 bits.
    """
    if not is_whole(value) or not least <= value <= (2**63 - 1 if most is None else most):
        limits = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name}: expected a whole number {limits}, got {value!r}")
    return int(value)
