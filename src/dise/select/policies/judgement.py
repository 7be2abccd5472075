"""An acceptance rule's judgement of h(t1), which leaves the result of the solve as it is."""

from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from dise.integrate.problem.state import Layout, State
from dise.integrate.tracing import times_changed
from dise.integrate.value import check_tensor

_IN_PLACE: WeakKeyDictionary[Callable[[State], Tensor], bool] = WeakKeyDictionary()
"""Whether a rule worked in place when it was called first."""


def judgement(rule: Callable[[State], Tensor], layout: Layout, y: Tensor) -> Tensor:
    """rule(states), which may work in place, as heads do whose first layer has `inplace=True`.

    A rule's first call, on a copy, shows whether it does; then it gets a copy each time, as in inference mode and in
    graphs, where torch does not count changes.

    Args:
        rule: states at t1 [n, ...] → [n].
        layout: of the state.
        y: [n, D] states, which are not changed.

    Raises:
        TypeError: it returned no tensor.
        RuntimeError: the rule works in place, which it did not when it was called first.
    """
    counted = not (y.is_inference() or torch.compiler.is_compiling())
    known = _IN_PLACE.get(rule) if counted and _is_key(rule) else None
    states = y if known is False else y.clone()
    before = times_changed(states) if counted else 0
    answer = rule(layout.unpack(states))
    check_tensor("accept", answer, "bool")
    if counted and known is not True:
        in_place = times_changed(states) != before
        if known is False and in_place:
            raise RuntimeError("accept: changed h(t1) in place, which it did not at its first call; work on a copy")
        if known is None and _is_key(rule):
            _IN_PLACE[rule] = in_place
    return answer


def _is_key(rule: object) -> bool:
    """Whether a dictionary of weak references can hold a rule."""
    return type(rule).__hash__ is not None and type(rule).__weakrefoffset__ != 0
