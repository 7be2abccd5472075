"""Graphs without a loop as kernels, and their gradients as others."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from dise.integrate.compile.rowwise.function import Kernel, spec_of
from dise.integrate.compile.rowwise.trace import Replacements
from dise.integrate.compile.rowwise.values import UnsupportedError


def with_step_kernels(graph: GraphModule, replacements: Replacements) -> Callable[..., Any]:
    """A graph without a loop as a kernel, with another one for its gradients."""
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    inputs = [node.meta["example_value"] for node in placeholders]
    outputs = [node.meta["example_value"] for node in next(n for n in graph.graph.nodes if n.op == "output").args[0]]
    named = [x for node, x in zip(placeholders, inputs, strict=True) if "rows_" in node.name and isinstance(x, Tensor)]
    if not named:
        raise UnsupportedError("a graph without rows")
    step = _Step(graph, inputs, outputs, named[0].shape[0], replacements)
    return step if step.given else lambda *values: tuple(step.forward(values)[0])


class _Step:
    """A graph and its gradients, which it computes from the graph's inputs."""

    def __init__(
        self,
        graph: GraphModule,
        inputs: Sequence[Any],
        outputs: Sequence[Tensor],
        rows: Any,
        replacements: Replacements,
    ) -> None:
        grad = torch.is_grad_enabled()
        self.wanted = [k for k, x in enumerate(inputs) if grad and isinstance(x, Tensor) and x.requires_grad]
        self.given = [k for k, x in enumerate(outputs) if grad and x.requires_grad]
        self.used: list[int] = []  # of the inputs that want gradients, those on which results depend
        inputs, gradients = (
            [spec_of(x) for x in inputs],
            [spec_of(outputs[k])._replace(requires_grad=False) for k in self.given],
        )

        def values(*inputs: Any) -> tuple[Any, None]:
            with torch.no_grad():
                return graph(*inputs), None

        def backward(*values: Any) -> tuple[Any, None]:
            # hooks around the solve, those of a checkpoint for example, must not see this
            with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
                outputs, wanted = graph(*values[: len(inputs)]), [values[k] for k in self.wanted]
                found = torch.autograd.grad(
                    [outputs[k] for k in self.given], wanted, values[len(inputs) :], allow_unused=True
                )
            self.used = [k for k, x in zip(self.wanted, found, strict=True) if x is not None]
            return [x for x in found if x is not None], None

        self.forward = Kernel(values, inputs, rows, replacements)
        self.backward = Kernel(backward, [*inputs, *gradients], rows, replacements) if self.given else None

    def __call__(self, *inputs: Any) -> tuple[Tensor, ...]:
        """The graph's results."""
        results: tuple[Tensor, ...] = _StepFunction.apply(self, *inputs)  # type: ignore[no-untyped-call]
        return results


class _StepFunction(torch.autograd.Function):
    """Calls the kernels."""

    @staticmethod
    def forward(ctx: Any, step: _Step, *inputs: Any) -> tuple[Tensor, ...]:
        """The results."""
        results, _ = step.forward(inputs)
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
        by_input = dict(zip(step.used, _StepGradients.apply(step, *values), strict=True))  # type: ignore[no-untyped-call]
        return None, *(by_input.get(k) for k in range(len(inputs)))


class _StepGradients(torch.autograd.Function):
    """Calls the kernel of gradients. A node of its own: second derivatives must not leave this path out silently."""

    @staticmethod
    def forward(ctx: Any, step: Any, *values: Any) -> tuple[Tensor, ...]:
        """The gradients."""
        return tuple(step.backward(values)[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """There is none."""
        raise RuntimeError("compiled solves have no second derivatives; use compile=False for them")
