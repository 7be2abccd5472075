"""Tensors that are changed in place between a forward pass and a backward pass that calls f again.

The gradient would be that of another f. Autograd raises an error for the tensors that it keeps, but f may read others:
those without gradients, and all tensors of the steps that are taken again.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from dise.integrate.tracing import times_changed


class Changes:
    """The changes of some tensors since this object was made.

    Args:
        tensors: each with a subject for error messages.
    """

    def __init__(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        self._tensors = {id(x): (subject, x) for subject, x in tensors}
        self._before = self._counts()

    def end_forward(self) -> None:
        """Leave out tensors without gradients that f changed in the forward pass, such as statistics and counters.

        Such an f changes them in every call, so its value does not depend on them, or it is no function of (t, y).
        """
        now = self._counts()  # parameters of lazy modules have values since f's first call
        for key, count in now.items():
            if not self._tensors[key][1].requires_grad and self._before.get(key, count) != count:
                del self._tensors[key]
        self._before = {key: self._before.get(key, now[key]) for key in now if key in self._tensors}

    def check(self, tensors: Iterable[Tensor]) -> None:
        """Raise a RuntimeError if one of these tensors was changed."""
        keys = {id(x) for x in tensors}
        for x in self._changed():
            if id(x) in keys:
                raise self._error(x)

    def check_reads(self, evaluate: Callable[[], object]) -> None:
        """Raise a RuntimeError if an evaluation of f reads a changed tensor, or if that cannot be found out.

        Args:
            evaluate: evaluates f; not called if no tensor was changed.
        """
        changed = self._changed()
        if not changed:
            return
        try:
            from dise.integrate.problem.reads import NoReads
        except ImportError:  # then whether f reads it is unknown
            raise self._error(changed[0]) from None
        reads, devices = NoReads(changed), {x.device.index for x in changed if x.is_cuda}
        try:
            with torch.random.fork_rng(list(devices)), torch.no_grad(), reads:
                evaluate()
        except Exception as error:  # some functions that torch compiled cannot be called so
            raise self._error(changed[0] if reads.read is None else reads.read) from error

    def _counts(self) -> dict[int, int]:
        return {key: times_changed(x) for key, (_, x) in self._tensors.items() if not is_lazy(x)}

    def _changed(self) -> list[Tensor]:
        tensors = self._tensors
        return [tensors[key][1] for key, count in self._before.items() if times_changed(tensors[key][1]) != count]

    def _error(self, x: Tensor) -> RuntimeError:
        return RuntimeError(
            f"{self._tensors[id(x)][0]} of shape {tuple(x.shape)} was changed in place after the forward pass, but the "
            "backward pass calls f again; call backward() before such changes, for example before the optimizer's step"
        )
