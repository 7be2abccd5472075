"""Batches of data: inputs of a model, with their targets where there are any."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, cast

from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from dise.select.model.inputs import Inputs, Parameters, is_input, is_several

BATCH = 100  # samples per batch of tensors that are given whole

Data = Tensor | Mapping[str, Any] | Iterable[Any]  # batches, or all samples at once; see `as_batches`


class Batch(NamedTuple):
    """Inputs of a model, and their target; None without any."""

    inputs: Inputs
    target: Any


def as_batches(name: str, data: Data, model: nn.Module) -> Iterator[Batch]:
    """Batches of data in any of its forms.

    A batch is inputs, or a pair (inputs, target). Inputs are a tensor x, called as model(x); a tuple or list of
    tensors, called as model(*inputs); or a dict of tensors, called as model(**inputs). In place of ((x, c), target) a
    batch may be flat, (x, c, target), as a `DataLoader` of a `TensorDataset` gives it. The last tensor of a flat batch
    is the target if the model's `forward` takes one input fewer than there are tensors, and an input if it takes as
    many; a model that takes either needs a pair, ((x, c), None) or ((x,), target).

    Args:
        name: of the argument, for errors.
        data: batches, as a `DataLoader` gives them; or all samples in the form of one batch of tensors, which is split
            into batches of 100.
        model: is called with the inputs.

    Raises:
        ValueError: no batches, data of another form, inputs that the model does not take, different numbers of rows of
            inputs and targets, or a flat batch whose last tensor may be an input or the target.
    """
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        raise ValueError(f"{name}: expected batches, got the {type(data).__name__} itself; give a DataLoader of it")
    if not isinstance(data, Iterable) and not hasattr(data, "__getitem__"):
        raise ValueError(f"{name}: {EXPECTED}, got {type(data).__name__}")
    if isinstance(data, Tensor) and data.ndim == 0:
        raise ValueError(f"{name}: expected batches [B, ...] of samples, got a number")
    reader = _Reader(name, Parameters.of(model))
    empty = True
    for batch in reader.split(data) if reader.is_whole(data) else data:
        yield reader.read(batch)
        empty = False
    if empty:
        raise ValueError(f"{name}: {EXPECTED}, got none")


EXPECTED = "expected batches of inputs or (inputs, target)"


class _Reader(NamedTuple):
    """Reads batches for a model."""

    name: str
    takes: Parameters

    def read(self, batch: object) -> Batch:
        """The inputs and the target of a batch."""
        given, target = (batch.inputs, batch.target) if isinstance(batch, Batch) else self._parts(batch)
        inputs = Inputs.of(given, self.name)
        self.takes.check(inputs, self.name)
        if isinstance(target, Tensor) and (target.ndim == 0 or len(target) != len(inputs)):
            raise ValueError(
                f"{self.name}: expected a target per sample, got {len(inputs)} inputs and targets of shape "
                f"{tuple(target.shape)}"
            )
        return Batch(inputs, target.to(inputs.device) if isinstance(target, Tensor) else target)

    def split(self, data: Any) -> Iterator[Batch]:
        """Batches of data that are given whole."""
        inputs, target = self.read(data)
        if target is None:
            return (Batch(part, None) for part in inputs.split(BATCH))
        return map(Batch, inputs.split(BATCH), target.split(BATCH))

    def is_whole(self, data: object) -> bool:
        """Whether data are all samples, not batches.

        Raises:
            ValueError: they may be either.
        """
        if isinstance(data, Tensor) or (isinstance(data, Mapping) and is_several(data)):
            return True
        if type(data) not in (tuple, list) or not isinstance(data, tuple | list):
            return False
        parts = list(data)
        if len(parts) == 2 and is_several(parts[0]) and not isinstance(parts[0], Batch):
            inputs, target = parts
            if target is None:
                return True
            if isinstance(inputs, Mapping) or len(inputs) != 1:
                return isinstance(target, Tensor)
            parts = [inputs[0], target]
        if len(parts) < 2 or not all(isinstance(part, Tensor) for part in parts) or not self._may_be_flat(len(parts)):
            return False
        return not _may_be_batches(self.name, parts, in_list=isinstance(data, list))

    def _may_be_flat(self, number: int) -> bool:
        return self.takes.fit(number) or self.takes.fit(number - 1)

    def _parts(self, batch: object) -> tuple[object, object]:
        """What a batch has as inputs and as target."""
        if not is_several(batch) or isinstance(batch, Mapping):
            return batch, None
        parts = tuple(cast(Iterable[object], batch))
        if len(parts) == 1:
            return parts[0], None
        if len(parts) == 2 and (is_several(parts[0]) or not is_input(parts[1])):
            return parts[0], parts[1]
        if not parts or not is_input(parts[0]):
            got = f"one of {len(parts)} parts" if parts else "an empty one"
            raise ValueError(f"{self.name}: {EXPECTED} of tensors, got {got}, the first of them no tensor")
        if not is_input(parts[-1]):
            return parts[:-1], parts[-1]
        alone, with_target = self.takes.fit(len(parts)), self.takes.fit(len(parts) - 1)
        if alone and with_target:
            raise ValueError(
                f"{self.name}: the last of {len(parts)} tensors in a batch may be an input or the target, since the "
                f"model takes {self.takes}; give pairs (inputs, target), ((x, ...), None) or ((x, ...), target)"
            )
        if not alone and not with_target:
            raise ValueError(
                f"{self.name}: {EXPECTED}, got one of {len(parts)} parts, while the model takes {self.takes}"
            )
        return (parts, None) if alone else (parts[:-1], parts[-1])


def _may_be_batches(name: str, parts: list[Tensor], *, in_list: bool) -> bool:
    """Whether tensors are batches of inputs, not the inputs and targets of all samples.

    Raises:
        ValueError: they may be either.
    """
    first = parts[0]
    if any(part.shape[1:] != first.shape[1:] or part.dtype != first.dtype for part in parts):
        return False
    if in_list or any(part.shape != first.shape for part in parts):
        return True
    number = {2: "two"}.get(len(parts), str(len(parts)))
    raise ValueError(
        f"{name}: {number} tensors of the same shape {tuple(first.shape)} may be {number} batches, or inputs and their "
        "targets; give a list of batches, [x1, x2] or [((x,), target)]"
    )
