"""The tensors that a value depends on, read from its autograd graph."""

from collections.abc import Iterable

from torch import Tensor
from torch.autograd.graph import Node


def auxiliary_leaf(x: Tensor) -> Tensor:
    """The values of x as a leaf for derivatives within f, which is no dependency of what is computed from it."""
    leaf = x.detach().requires_grad_()
    leaf._dise_auxiliary = True  # type: ignore[attr-defined]
    return leaf


def dependencies(value: Tensor, known: Iterable[Tensor]) -> dict[int, Tensor]:
    """The tensors on which a value depends, by their ids: `known` ones, and leaves that are not behind a known one.

    Args:
        value: any tensor; it depends on nothing if it requires no gradient.
        known: leaves or calculated tensors.
    """
    if value.grad_fn is None:
        return {id(value): value} if value.requires_grad else {}
    inner: dict[tuple[Node | None, int], Tensor] = {(x.grad_fn, x.output_nr): x for x in known if x.grad_fn is not None}
    found: dict[int, Tensor] = {}
    stack: list[tuple[Node | None, int]] = [(value.grad_fn, value.output_nr)]
    seen = set()
    while stack:
        place = stack.pop()
        node, _ = place
        if node is None or place in seen:
            continue
        seen.add(place)
        tensor = inner.get(place)
        if tensor is None:
            tensor = getattr(node, "variable", None)  # of a leaf's node
            stack.extend(node.next_functions)
        if tensor is not None and not getattr(tensor, "_dise_auxiliary", False):
            found[id(tensor)] = tensor
    return found
