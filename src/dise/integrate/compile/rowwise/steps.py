"""Graphs without a loop as kernels, and their gradients as others. A round's graph becomes one of several rounds."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from dise.integrate.compile.rowwise.function import Kernel, Rounds, is_per_row, spec_of
from dise.integrate.compile.rowwise.values import UnsupportedError
from dise.integrate.stepping.rows import CONSTANT_COLUMNS, RUNNING, LoopRows

LOG_BYTES = 2**23  # of what a call keeps of its rounds, if there are several


def with_step_kernels(graph: GraphModule) -> Callable[..., Any]:
    """A graph without a loop as a kernel, with another one for its gradients.

    That of `rounds.some_rounds` does as many rounds as its `limit` allows.
    """
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    inputs = [node.meta["example_value"] for node in placeholders]
    outputs = [node.meta["example_value"] for node in next(n for n in graph.graph.nodes if n.op == "output").args[0]]
    columns = _columns(placeholders)
    if not columns:
        raise UnsupportedError("a graph without rows")
    step = _Step(graph, inputs, outputs, columns)
    return step if step.given else lambda *values: tuple(step.run(values)[0])


def _columns(placeholders: Sequence[Node]) -> dict[str, int]:
    """The inputs that are columns of the rows, in the order of a round's results, and "limit"."""
    names = {node.name.removeprefix("l_").removeprefix("rows_").strip("_"): k for k, node in enumerate(placeholders)}
    return {name: names[name] for name in (*LoopRows._fields, "limit") if name in names}


class _Step:
    """A graph and its gradients, which it computes from the graph's inputs.

    Args:
        graph: of a step, or of a round, whose results are the changed columns, what is logged, and the rounds left.
        inputs, outputs: of the graph, fake.
        columns: see `_columns`.

    Attributes:
        wanted, given: the inputs and the outputs that require gradients.
        used: those of the inputs on which outputs depend.
    """

    def __init__(
        self,
        graph: GraphModule,
        inputs: Sequence[Any],
        outputs: Sequence[Tensor],
        columns: dict[str, int],
    ) -> None:
        grad, rows = torch.is_grad_enabled(), inputs[next(iter(columns.values()))].shape[0]
        self.wanted = [k for k, x in enumerate(inputs) if grad and isinstance(x, Tensor) and x.requires_grad]
        self.given = [k for k, x in enumerate(outputs) if grad and x.requires_grad]
        self.used: list[int] = []
        self._graph, self._number, self._limit, self._status = graph, len(inputs), columns.pop("limit", None), -1
        changing = [k for name, k in columns.items() if name not in CONSTANT_COLUMNS]
        # backwards, gradients in a round's inputs become those in the results of the round before
        alike = all((k in self.wanted) == (j in self.given) for j, k in enumerate(changing))
        self._changing = changing if alike and self._limit is not None else []
        for k, x in zip(self._changing, outputs, strict=False):
            if (inputs[k].shape, inputs[k].dtype) != (x.shape, x.dtype):
                raise UnsupportedError("a round without one of the columns that it changes")
        specs = [spec_of(x) for x in inputs]
        # what gradients in these inputs of all rounds add up to is a value of a row
        self._summed = [k for k in self.wanted if k not in changing and self._changing and is_per_row(specs[k], rows)]
        rounds = None
        if self._changing:
            self._status = columns["status"]
            logged = len(outputs) - 1 - len(changing) + (len(changing) if self.given else 0)
            rounds = Rounds(self._changing, logged)
        self._forward = Kernel(self._values, specs, rows, rounds)
        if self.given:
            further = [*(spec_of(outputs[k]) for k in self.given), *(specs[k] for k in self._summed)]
            specs += [x._replace(requires_grad=False) for x in further]
            self._backward = Kernel(self._gradients, specs, rows, self._rounds_backwards())

    def _rounds_backwards(self) -> Rounds | None:
        if not self._changing:
            return None
        places = dict(zip(self.given, range(self._number, self._number + len(self.given)), strict=True))
        carried = [place for k, place in places.items() if k < len(self._changing)]
        sums = range(self._number + len(self.given), self._number + len(self.given) + len(self._summed))
        logged = [place for place in places.values() if place not in carried]
        return Rounds([*carried, *sums], given=[*self._changing, *logged], backwards=True)

    def _values(self, *inputs: Any) -> tuple[Sequence[Tensor], Tensor | None]:
        """The graph's results; of a round, with gradients, also the columns before it."""
        with torch.no_grad():
            outputs = self._graph(*inputs)
            if not self._changing:
                return outputs, None
            running = outputs[self._changing.index(self._status)] == RUNNING
        return [*outputs[:-1], *([inputs[k] for k in self._changing] if self.given else [])], running

    def _gradients(self, *values: Any) -> tuple[Sequence[Tensor], Tensor | None]:
        """Gradients in the graph's inputs, from the inputs, the gradients in results, and sums of later rounds."""
        inputs, further = values[: self._number], values[self._number :]
        # hooks around the solve, those of a checkpoint for example, must not see this
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
            outputs, wanted = self._graph(*inputs), [inputs[k] for k in self.wanted]
            found = torch.autograd.grad(
                [outputs[k] for k in self.given], wanted, further[: len(self.given)], allow_unused=True
            )
        gradients = {k: x for k, x in zip(self.wanted, found, strict=True) if x is not None}
        if not self._changing:
            self.used = list(gradients)
            return list(gradients.values()), None
        carried = [k for k in self._changing if k in self.wanted]
        shared = [k for k in gradients if k not in carried and k not in self._summed]
        self.used = [*carried, *self._summed, *shared]
        first = [gradients[k] if k in gradients else torch.zeros_like(inputs[k]) for k in carried]
        sums = zip(self._summed, further[len(self.given) :], strict=True)
        second = [total + gradients[k] if k in gradients else total for k, total in sums]
        return [*first, *second, *(gradients[k] for k in shared)], inputs[self._status]

    def __call__(self, *inputs: Any) -> tuple[Tensor, ...]:
        """The graph's results."""
        results: tuple[Tensor, ...] = _StepFunction.apply(self, *inputs)  # type: ignore[no-untyped-call]
        return results

    def run(self, inputs: Sequence[Any]) -> tuple[list[Tensor], list[Any], int]:
        """The graph's results, its inputs with the changing columns before each round, and the number of rounds."""
        if self._limit is None or not self._changing:
            return self._forward(inputs)[0], list(inputs), 1
        most, n = int(inputs[self._limit]), inputs[self._status].shape[0]
        limit = max(1, min(most, LOG_BYTES // max(1, n * self._forward.logged_bytes)))
        results, (_, done) = self._forward(inputs, limit)
        befores, seen = len(self._changing) if self.given else 0, list(inputs)
        for k, x in zip(self._changing, results[len(results) - befores :], strict=False):
            seen[k] = x
        return [*results[: len(results) - befores], torch.tensor(most - done)], seen, done

    def gradients(self, values: Sequence[Any], rounds: int) -> list[Tensor]:
        """Gradients in the inputs that are `used`.

        Args:
            values: the inputs as `run` returns them, and the gradients in its results.
            rounds: their number.
        """
        sums = [torch.zeros_like(values[k]) for k in self._summed]
        return self._backward([*values, *sums], rounds)[0]


class _StepFunction(torch.autograd.Function):
    """Calls the kernels."""

    @staticmethod
    def forward(ctx: Any, step: _Step, *inputs: Any) -> tuple[Tensor, ...]:
        """The results."""
        results, inputs, ctx.rounds = step.run(inputs)  # type: ignore[assignment]
        ctx.step, ctx.sizes = step, [None if isinstance(x, Tensor) else x for x in inputs]
        ctx.save_for_backward(*[x for x in inputs if isinstance(x, Tensor)])
        ctx.mark_non_differentiable(*[x for k, x in enumerate(results) if k not in step.given])
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the inputs."""
        step, saved = ctx.step, iter(ctx.saved_tensors)
        inputs = [next(saved) if size is None else size for size in ctx.sizes]
        values = *inputs, *(gradients[k] for k in step.given)
        found = _StepGradients.apply(step, ctx.rounds, *values)  # type: ignore[no-untyped-call]
        by_input = dict(zip(step.used, found, strict=True))
        return None, *(by_input.get(k) for k in range(len(inputs)))


class _StepGradients(torch.autograd.Function):
    """Calls the kernel of gradients. A node of its own: second derivatives must not leave this path out silently."""

    @staticmethod
    def forward(ctx: Any, step: _Step, rounds: int, *values: Any) -> tuple[Tensor, ...]:
        """The gradients."""
        return tuple(step.gradients(values, rounds))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """There is none."""
        raise RuntimeError("compiled solves have no second derivatives; use compile=False for them")
