"""Conditions of a flow: what its field depends on per sample, such as labels or observations."""

from torch import Tensor

Condition = Tensor | tuple[Tensor, ...] | None


def as_conditions(condition: Condition, number: int, *, batched: bool) -> tuple[Tensor, ...]:
    """The conditions as a tuple of tensors with a row for each of `number` rows of points.

    Args:
        condition: one tensor, a tuple of tensors, or None. Each has a row per row of points, or one row for all.
        number: of rows of points.
        batched: False: the whole batch is one system, and conditions are passed as they are.

    Raises:
        TypeError, ValueError: it is something else.
    """
    parts = () if condition is None else (condition,) if isinstance(condition, Tensor) else condition
    if not isinstance(parts, tuple | list) or not all(isinstance(part, Tensor) for part in parts):
        raise TypeError(f"condition: expected a tensor or a tuple of tensors, got {type(condition).__name__}")
    if not batched:
        return tuple(parts)
    for part in parts:
        if part.ndim == 0 or part.shape[0] not in (1, number):  # len would fix the size of a traced batch
            raise ValueError(f"condition: expected {number} rows or one for all, got shape {list(part.shape)}")
    return tuple(part.expand(number, *part.shape[1:]) for part in parts)
