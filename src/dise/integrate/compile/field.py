"""The user's vector field, compiled."""

from collections.abc import Callable, Hashable
from typing import TypeVar

from torch import Tensor

from dise.integrate.compile.cache import Setting, compiled
from dise.integrate.problem.field import BoundField, Field, call
from dise.integrate.problem.requests import Request
from dise.integrate.tracing import stops_recomputation

F = TypeVar("F", bound=Callable)


class CompiledField(Field):
    """A `Field` whose evaluations, and functions around them, are graphs of torch.compile.

    Args:
        plain: the field to compile.
        setting: True, "fast" or arguments of `torch.compile`.
    """

    def __init__(self, plain: Field, setting: Setting) -> None:
        own = plain.args, plain.sample_args, plain.samples
        super().__init__(plain.f, plain.layout, plain.stand_ins, *own, whole=plain.whole)
        self._setting = setting

    def compiled(self, function: F, *key: Hashable) -> F:
        """A function of a `BoundField` and of tensors, compiled; `key` is everything else its graph depends on."""
        layout = self.layout
        structure = (layout.is_tuple, layout.names, layout.batched, layout.dtype)
        return compiled(function, self.f, (*key, structure), self._setting)

    def evaluate(self, f: BoundField, t: Tensor, y: Tensor) -> Tensor:
        """f at times [n] and states [n, F], by its graph: [n, F]."""
        return self.compiled(call)(f, t, y)

    def explain(self, error: Exception, request: Request) -> None:
        """Raise f's own error instead, if it raises one; otherwise say that f cannot be compiled."""
        if stops_recomputation(error):
            return
        try:
            call(self.bound(request.rows), request.t, request.y)
        except Exception as own:
            super().explain(own, request)
            raise
        error.add_note("compile: f works, but torch.compile cannot make a single graph of it; the error above says why")
        super().explain(error, request)
