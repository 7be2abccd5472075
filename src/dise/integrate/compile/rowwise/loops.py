"""Graphs with a loop of rounds, whose loop is a kernel."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from dise.integrate.compile.rowwise.function import Kernel, Rounds, is_per_row, spec_of
from dise.integrate.compile.rowwise.values import UnsupportedError


def with_loop_kernel(graph: GraphModule) -> Callable[..., Any]:
    """The graph of `rounds._rounds_until`, with a kernel in place of its loop."""
    loops = [node for node in graph.graph.nodes if getattr(node.target, "__name__", "") == "while_loop"]
    named = any(node.op == "placeholder" and "bounds" in node.name for node in graph.graph.nodes)
    if len(loops) != 1 or not named:
        raise UnsupportedError("a loop of another graph")
    loops[0].target = _LoopKernel(graph, loops[0])
    for node in list(graph.graph.nodes):
        if "assert_scalar" in str(node.target) and not node.users:
            graph.graph.erase_node(node)
    graph.recompile()
    return graph.forward


class _LoopKernel:
    """A loop's kernel, called with the arguments of torch's operator."""

    __name__ = "loop_kernel"

    def __init__(self, graph: GraphModule, loop: Node) -> None:
        arguments: Any = loop.args
        _, body, carried, others = arguments
        function, counters = getattr(graph, body.target), [torch.ones((), dtype=torch.int64)] * 2
        examples = [spec_of(x.meta["example_value"]) for x in (*carried[2:], *others)]
        if not all(is_per_row(x, examples[0].shape[0]) for x in examples[: len(carried) - 2]):
            raise UnsupportedError("a loop with other values")

        def one_round(*values: Any) -> tuple[Sequence[Tensor], Tensor]:
            with torch.no_grad():
                running, _, *columns = function(*counters, *values)
            return columns, running

        rounds = Rounds(range(len(carried) - 2))
        self._kernel = Kernel(one_round, examples, examples[0].shape[0], rounds)

    def __call__(self, condition: Any, body: Any, carried: Sequence[Tensor], others: Sequence[Any]) -> tuple[Any, ...]:
        """The loop's results; each block of rows ends by itself, or after as many rounds as are left."""
        _, left, *columns = carried
        results, (running, done) = self._kernel([*columns, *others], int(left), columns)
        return torch.tensor(running), left - done, *results
