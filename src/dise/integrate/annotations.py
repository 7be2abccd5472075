"""Shape annotations of tensors, e.g. `Float[Tensor, "n F"]`: n samples, F features.

A letter is the same size in all arguments of a call, `*C` stands for the same sizes, `...` for any, and a digit for
itself. `checked_arguments` checks the arguments of its functions; this project's tests check all functions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor

KINDS: Mapping[str, tuple[str, Callable[[torch.dtype], bool]]] = {  # in words, and whether a dtype is of the kind
    "Bool": ("bool", lambda dtype: dtype is torch.bool),
    "Int": (
        "whole numbers",
        lambda dtype: not (dtype.is_floating_point or dtype.is_complex or dtype is torch.bool),
    ),
    "Float": ("floating-point numbers", lambda dtype: dtype.is_floating_point),
    "Inexact": ("floating-point or complex numbers", lambda dtype: dtype.is_floating_point or dtype.is_complex),
    "Num": ("numbers", lambda dtype: dtype is not torch.bool),
    "Shaped": ("values", lambda dtype: True),
}


@dataclass(frozen=True)
class Shape:
    """What an annotation says of a tensor.

    Attributes:
        kind: of its values, in `KINDS`.
        dims: letters and digits, separated by spaces.
    """

    kind: str
    dims: str

    def fits(self, tensor: Tensor, sizes: dict[str, Any]) -> bool:
        """Whether a tensor is as annotated, with the letters' `sizes`, to which those of new letters are added."""
        names, parts = self.dims.split(), list[Any](tensor.shape)
        start = next((i for i, name in enumerate(names) if name[0] in "*."), None)
        if start is not None and len(parts) >= len(names) - 1:
            stop = len(parts) - len(names) + start + 1
            parts[start:stop] = [tuple(parts[start:stop])]
        if len(parts) != len(names) or not KINDS[self.kind][1](tensor.dtype):
            return False
        pairs = [(name, part) for name, part in zip(names, parts, strict=True) if name != "..."]
        return all(part == (int(name) if name.isdigit() else sizes.setdefault(name, part)) for name, part in pairs)

    def described(self, sizes: dict[str, Any]) -> str:
        """The annotation in words, with the sizes of the letters that are known."""
        names = self.dims.split()
        known = ", ".join(f"{name} = {sizes[name]}" for name in names if name in sizes)
        return f"{KINDS[self.kind][0]} [{', '.join(names)}]{known and f' with {known}'}"


if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Inexact, Int, Num, Shaped
else:

    class _Kind:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, item: tuple[Any, str]) -> Any:
            return Annotated[item[0], Shape(self.name, item[1])]

    Bool, Float, Inexact, Int, Num, Shaped = map(_Kind, ("Bool", "Float", "Inexact", "Int", "Num", "Shaped"))

__all__ = ["Bool", "Float", "Inexact", "Int", "Num", "Shaped"]
