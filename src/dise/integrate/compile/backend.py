"""Backends of torch.compile for small fields on the CPU: kernels of `rowwise`, or torch's inductor."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from dise.integrate.compile import kernels, private

LOG = logging.getLogger(__name__)

WHILE_LOOP = "torch.ops.higher_order.while_loop"  # torch's cache on disk keeps graphs with it only if told to
CACHE_KEYS = "unsafe_marked_cacheable_functions"  # inductor's option: names of such operators, with keys of our own

# Graphs are called from C++. Headers are not compiled on their own: that takes longer than it saves in a few graphs.
CPU_OPTIONS = {"cpp_wrapper": True, "cpp_cache_precompile_headers": False}

# Backward passes may recompute the activations of a cheap f. Otherwise a graph of several rounds keeps many tensors.
RECOMPUTATION = {"ban_recompute_used_far_apart": False, "ban_recompute_materialized_backward": False}


def inductor(graph: GraphModule, inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None) -> Any:
    """A kernel of `rowwise`, or torch's "inductor", whose graphs are called from C++ and use `kernels.LAYOUTS`.

    The functions of f are torch's own. Backward passes recompute cheap activations.

    Args:
        graph, inputs, options: as torch.compile passes them.
    """
    return _compile_graph(graph, inputs, options or {}, {})


def fast_inductor(graph: GraphModule, inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None) -> Any:
    """`inductor` with `kernels.FAST` on the CPU: other roundings of tanh and of narrow products."""
    return _compile_graph(graph, inputs, options or {}, kernels.FAST)


def _compile_graph(
    graph: GraphModule,
    inputs: Sequence[Any],
    options: Mapping[str, Any],
    replacements: Mapping[Any, Callable[..., Tensor]],
) -> Any:
    kernel = _row_kernel(graph, inputs, options)
    if kernel is not None:
        return kernel
    generator = private.code_generator()
    if generator is None:
        return private.torchs_inductor()(graph, inputs)
    options = {name: value for name, value in options.items() if name != "guard_filter_fn"}  # torch 2.6 leaves it there
    if not all(x.is_cpu for x in inputs if isinstance(x, Tensor)):
        return generator.compile_fx(graph, inputs, config_patches=options)
    if not torch.is_grad_enabled():
        replacements = {**replacements, **kernels.LAYOUTS}
    key = " ".join((_source_hash(), *sorted(str(operator) for operator in replacements)))
    table = _Decompositions(generator.decompositions(), replacements, key)
    own = {**CPU_OPTIONS, CACHE_KEYS: {WHILE_LOOP: key}}
    if private.vectors_work():
        own["cpp.vec_isa_ok"] = True
    options = {**private.known_options(own), **options}
    # The autograd cache ignores decompositions. Options are part of its key, so the key above tells graphs apart; a
    # torch without that option must not use the cache.
    settings = RECOMPUTATION if CACHE_KEYS in options else {**RECOMPUTATION, "enable_autograd_cache": False}
    with private.functorch_settings(settings):
        return generator.compile_fx(graph, inputs, config_patches=options, decompositions=table)


def _row_kernel(graph: GraphModule, inputs: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """The graph with a kernel of `rowwise`; None: inductor must compile it."""
    if options.keys() - {"guard_filter_fn"} or not all(x.is_cpu for x in inputs if isinstance(x, Tensor)):
        return None
    try:
        from dise.integrate.compile.rowwise.graphs import with_kernel

        return with_kernel(graph)
    except Exception as reason:  # of any kind, since torch runs f: inductor knows more of torch, or says what is wrong
        LOG.debug("inductor compiles the graph: %s", reason)
        return None


class _Decompositions(dict[Any, Any]):
    """torch's table of decompositions with replacements, pickled as a key.

    torch's cache on disk keeps only graphs whose inputs can be pickled, which not all operators in the table can.
    """

    def __init__(self, table: Mapping[Any, Any], replacements: Mapping[Any, Any], key: str) -> None:
        super().__init__({**table, **replacements})
        self._key = key

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (self._key,)


@cache
def _source_hash() -> str:
    """A hash of the code that generated graphs depend on."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
