"""The user's vector field, compiled."""

from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor

from dise.integrate.compile.cache import Graph, Setting, compiled
from dise.integrate.problem.field import BoundField, Field, call
from dise.integrate.problem.forward_context import hooks
from dise.integrate.problem.requests import Request
from dise.integrate.tracing import stops_recomputation

# Evaluations of f for which no graph of f alone is made: those before the first step, which has a graph of its own,
EAGER_PER_SOLVE = 2
EAGER_IN_ALL = 100  # as long as there are few of them; one-step methods have no others


class CompiledField(Field):
    """A `Field` whose evaluations, and functions around them, are graphs of torch.compile.

    A graph of f alone is made where f is requested often, in a solve or in all of them.

    Args:
        plain: the field to compile.
        setting: True, "fast" or arguments of `torch.compile`.
    """

    def __init__(self, plain: Field, setting: Setting) -> None:
        own = plain.args, plain.sample_args, plain.samples
        super().__init__(plain.f, plain.layout, plain.stand_ins, *own, whole=plain.whole)
        self._setting = setting
        self._evaluated = 0  # evaluations of f alone
        self._hooks = hooks((plain.f, *plain.args))  # graphs contain them, and do not notice others

    def compiled(self, function: Callable[..., Any], *key: Hashable, name: str) -> Graph:
        """A function of a `BoundField` and of tensors, compiled.

        Args:
            function: pure.
            key: everything else that its graph depends on.
            name: what it computes, for the log.
        """
        layout = self.layout
        structure = (layout.is_tuple, layout.names, layout.batched, layout.dtype, *self._hooks)
        f_name = getattr(self.f, "__qualname__", type(self.f).__qualname__)
        return compiled(function, self.f, (*key, structure), self._setting, f"{name} of {f_name}")

    def evaluate(self, f: BoundField, t: Tensor, y: Tensor) -> Tensor:
        """f at times [n] and states [n, F]: [n, F]."""
        graph = self.compiled(call, name="evaluations")
        self._evaluated += 1
        graph.requests += 1
        rare = self._evaluated <= EAGER_PER_SOLVE and graph.requests <= EAGER_IN_ALL
        if rare and not graph.calls:
            return call(f, t.clone(), y)  # f may change its t, as in a graph
        value: Tensor = graph(f, t, y)
        return value

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
