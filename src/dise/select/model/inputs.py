"""Inputs of a model: one tensor or several, by position or by name, with a row per sample."""

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, Self, cast

import torch
from torch import Tensor, nn


class Input(Protocol):
    """Input of a model: a tensor [B, ...], or an object of B samples with `len`, `device` and `to` like a tensor's."""

    @property
    def device(self) -> torch.device:
        """Device of the input."""
        ...

    def __len__(self) -> int: ...

    def to(self, device: torch.device | str, /) -> Self:
        """The same input on another device."""
        ...


def is_input(value: object) -> bool:
    """Whether a value is an `Input`."""
    return all(hasattr(value, attribute) for attribute in ("to", "device", "__len__"))


def is_several(value: object) -> bool:
    """Whether a value is a tuple, list or dict that may hold several inputs."""
    return isinstance(value, tuple | list | Mapping) and not is_input(value)


@dataclass(frozen=True)
class Inputs:
    """Inputs of a model for B samples, which is called as model(*positional, **named).

    Attributes:
        positional, named: at least one input, each with B rows; each may have its own shape, dtype and device.
    """

    positional: tuple[Input, ...] = ()
    named: Mapping[str, Input] = field(default_factory=dict)

    @classmethod
    def of(cls, inputs: Any, name: str = "x") -> "Inputs":
        """The inputs in a tensor, a tuple or list of tensors, or a dict of tensors.

        Args:
            inputs: as a model gets them; `Inputs` are returned as they are.
            name: of the argument, for errors.

        Raises:
            ValueError: none, an input that is not a tensor, a number, or different numbers of rows.
        """
        if isinstance(inputs, cls):
            return inputs
        if isinstance(inputs, Mapping) and is_several(inputs):
            found = cls(named=dict(inputs))
        else:
            found = cls(tuple(inputs) if is_several(inputs) else (inputs,))
        parts = found._parts()
        for place, part in parts.items():
            if not is_input(part):
                array = hasattr(part, "__array__")
                hint = "torch.as_tensor makes it one" if array else "what all samples share belongs in the model"
                raise ValueError(
                    f"{name}: expected inputs that are tensors [B, ...] with a row per sample, got "
                    f"{type(part).__name__} as {place}; {hint}"
                )
            if isinstance(part, Tensor) and part.ndim == 0:
                raise ValueError(f"{name}: expected inputs [B, ...] with a row per sample, got a number as {place}")
        lengths = {place: len(part) for place, part in parts.items()}
        if len(set(lengths.values())) != 1:
            got = ", ".join(f"{length} in {place}" for place, length in lengths.items()) or "no inputs"
            raise ValueError(f"{name}: expected inputs with the same number of rows, got {got}")
        return found

    @classmethod
    def concatenate(cls, parts: Sequence["Inputs"], name: str) -> "Inputs":
        """The samples of several inputs of tensors as one, on the first one's device.

        Raises:
            ValueError: inputs that are not tensors, or not of the same number, names and shapes in all parts.
        """
        whole = parts[0]
        columns = {place: [part._parts().get(place) for part in parts] for place in whole._parts()}
        if any(set(part._parts()) != set(columns) for part in parts):
            found = sorted({", ".join(part._parts()) for part in parts})
            raise ValueError(f"{name}: expected the same inputs in all batches, got {found}")
        tensors = [concatenate_batches(f"{name}: expected {p}", column) for p, column in columns.items()]
        return whole._with(tensors)

    def call(self, model: nn.Module) -> Any:
        """The model's output."""
        return model(*self.positional, **self.named)

    def to(self, device: torch.device) -> "Inputs":
        """The inputs on a device."""
        return self._with([part.to(device) for part in self._parts().values()])

    def take(self, rows: Tensor | slice) -> "Inputs":
        """Some of the samples, of inputs that are tensors."""
        return self._with([cast(Tensor, part)[rows] for part in self._parts().values()])

    def split(self, size: int) -> list["Inputs"]:
        """Batches of `size` samples, of inputs that are tensors."""
        return [self.take(slice(start, start + size)) for start in range(0, len(self), size)]

    @property
    def device(self) -> torch.device:
        """Device of the first input."""
        return next(iter(self._parts().values())).device

    def __len__(self) -> int:
        return len(next(iter(self._parts().values())))

    def __str__(self) -> str:
        return ", ".join(self._parts())

    def _parts(self) -> dict[str, Input]:
        """The inputs by what errors call them."""
        alone = len(self.positional) == 1 and not self.named
        positional = {"x" if alone else f"input {index}": part for index, part in enumerate(self.positional, 1)}
        return positional | {f"input {name!r}": part for name, part in self.named.items()}

    def _with(self, parts: Iterable[Any]) -> "Inputs":
        """Other inputs in the places of these."""
        values = list(parts)
        number = len(self.positional)
        return Inputs(tuple(values[:number]), dict(zip(self.named, values[number:], strict=True)))


def concatenate_batches(expected: str, parts: Sequence[object]) -> Tensor:
    """Tensors of all batches as one, on the first one's device; an error says what was expected."""
    tensors = [part for part in parts if isinstance(part, Tensor)]
    shapes = {tuple(part.shape[1:]) for part in tensors}
    if len(tensors) < len(parts):
        other = next(part for part in parts if not isinstance(part, Tensor))
        raise ValueError(f"{expected} that are tensors in all batches, got {type(other).__name__}")
    if len(shapes) > 1:
        raise ValueError(f"{expected} of one shape in all batches, got samples of {sorted(shapes)}")
    return torch.cat([part.to(tensors[0].device) for part in tensors])


class Parameters(NamedTuple):
    """How many inputs a model takes by position, by the signature of its `forward`.

    Parameters with defaults other than None are settings, not inputs.
    """

    least: int
    most: float
    signature: inspect.Signature

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """The parameters of a model, also of one in `torch.compile` or `DataParallel`."""
        while hasattr(model, "_orig_mod") or isinstance(model, nn.DataParallel):
            model = cast(nn.Module, model.module if isinstance(model, nn.DataParallel) else model._orig_mod)
        signature = inspect.signature(model.forward)
        least, most = 0, 0.0
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.VAR_POSITIONAL:
                most = math.inf
            by_position = parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
            if not by_position or not (parameter.default is None or parameter.default is parameter.empty):
                break
            most += 1
            least += parameter.default is parameter.empty
        return cls(max(least, 1), most, signature)

    def fit(self, number: int) -> bool:
        """Whether the model takes this number of inputs."""
        return self.least <= number <= self.most

    def check(self, inputs: Inputs, name: str) -> None:
        """Raise a ValueError unless the model can be called with the inputs."""
        try:
            self.signature.bind(*inputs.positional, **inputs.named)
        except TypeError as error:
            raise ValueError(
                f"{name}: the model's forward{self.signature} cannot be called with {inputs}: {error}"
            ) from error

    def __str__(self) -> str:
        if self.most == math.inf:
            return f"{self.least} or more inputs"
        numbers = f"{self.least}" if self.least == self.most else f"{self.least} to {self.most:.0f}"
        return f"{numbers} input{'' if self.most == 1 else 's'}"
