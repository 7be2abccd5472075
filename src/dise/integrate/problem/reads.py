"""Which tensors a function reads, operation by operation."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode  # private by name, tried with torch 2.6 and 2.13


class ReadError(Exception):
    """An operation reads one of the tensors."""


class NoReads(TorchDispatchMode):
    """A context in which operations must not read some tensors. What torch compiled runs eagerly in it.

    Attributes:
        read: the tensor that an operation was about to read when it raised a `ReadError`.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tensors = {id(x): x for x in tensors}
        self.read: Tensor | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operation's value."""
        kwargs = kwargs or {}
        for value in (*args, *kwargs.values()):
            for x in value if isinstance(value, list | tuple) else (value,):
                if id(x) in self._tensors:
                    self.read = x
                    raise ReadError
        return func(*args, **kwargs)
