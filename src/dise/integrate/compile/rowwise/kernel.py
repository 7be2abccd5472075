"""The C++ source of a kernel: a trace, and perhaps a loop of it, for one block of rows after the other."""

from collections.abc import Iterator, Sequence
from importlib import resources
from math import prod
from typing import NamedTuple

from dise.integrate.compile.rowwise.source import Writer, declaration
from dise.integrate.compile.rowwise.trace import Trace, needed
from dise.integrate.compile.rowwise.values import Section, UnsupportedError, Value, View
from dise.integrate.stepping.rows import RUNNING

MAX_BYTES = 3 * 2**20  # of a block's values and totals and of shared values, which lie on the stack, of 8 MiB mostly

# data: inputs, then results. strides: of each, between rows and between the elements of a row.
KERNEL = """
extern "C" void kernel(char** data, const long* strides, long n, long limit, int threads, long* counts) {{
{shared}
  long running = 0, rounds = 0;
#pragma omp parallel num_threads(threads) reduction(+ : running) reduction(max : rounds) if (threads > 1)
  {{
{totals}
#pragma omp for
  for (long first = 0; first < n; first += W) {{
    const int lanes = n - first < W ? n - first : W;
    bool live[W];
    EACH live[w] = w < lanes;
{load}
{body}
{store}
  }}
#pragma omp critical
  {{
{fold}
  }}
  }}
{sums}
}}
"""
LOOP = """
    long done = 0;
    int left = 1;
    for (long r = 0; r < limit && (left || {logs});) {{
      const bool frozen = !left;  // no row runs: all further rounds are the same
{body}
      left = 0;
      EACH left += live[w] && {running};
      for (const long until = frozen ? limit : r + 1; r < until; r++) {{
{log}
      }}
{carry}
      done += !frozen;
    }}
    running += left;
    rounds = rounds > done ? rounds : done;
"""
LOOP_BACKWARDS = """
    for (long r = limit; r-- > 0;) {{
{load}
      int left = 0;
      EACH left += live[w] && {running};
      if (!left) continue;
{body}
{carry}
    }}
"""
AFTER_LOOP = "  counts[0] = running;\n  counts[1] = rounds;"


class Loop(NamedTuple):
    """A trace that is repeated for each block of rows until none of them runs; it leaves those as they are.

    Attributes:
        carried: pairs of an input and a result, which is its value in the next round. They begin the results.
        running: [n] whether a row runs after the round, or `backwards` before it: bool, or a status.
        logged: the number of results after the carried ones that are kept of each round, [rounds · n, ...].
        given: inputs of which each round has its own, [rounds · n, ...].
        backwards: from the last round to the first one.
    """

    carried: Sequence[tuple[View, View]]
    running: View
    logged: int = 0
    given: Sequence[View] = ()
    backwards: bool = False


def kernel_source(trace: Trace, results: Sequence[View], loop: Loop | None, vector: int) -> str:
    """The source of a kernel with vectors of so many bytes.

    Raises:
        UnsupportedError: the rows of a loop depend on each other, or a block's values take too much memory.
    """
    carried = loop.carried if loop else ()
    ends = [*results, *([loop.running] if loop else [])]
    writer, nodes = Writer(), needed(trace.nodes, ends)
    for node in nodes:
        writer.write(node)
    lines = writer.lines
    if loop and not loop.backwards and (lines[Section.SUM] or any(x.row != 0 for x in ends)):
        raise UnsupportedError("a loop whose rows depend on each other")
    used = {x.value for node in nodes for x in node.operands()} | {x.value for x in ends}
    used |= {old.value for old, _ in carried}
    inputs = [(index, x) for index, x in enumerate(trace.inputs) if x.value in used]
    values = [*(node.value for node in nodes), *(x.value for _, x in inputs if x.row is not None)]
    if _bytes(values, writer, vector // 4) > MAX_BYTES:
        raise UnsupportedError("values too large")
    shared = [f"const {x.value.c_type}* {x.value.name} = (const {x.value.c_type}*)data[{index}];"
              for index, x in inputs if x.row is None]  # fmt: skip
    own = [(index, x) for index, x in inputs if x.row is not None]
    each_round = [(index, x) for index, x in own if loop and x in loop.given]
    stored = [old for old, _ in carried] + list(results[len(carried) :])
    logged = range(len(carried), len(carried) + (loop.logged if loop else 0))
    store = [_stored(x, len(trace.inputs) + k, "r * n + " if k in logged else "") for k, x in enumerate(stored)]
    once = [
        text for k, (x, text) in enumerate(zip(stored, store, strict=True)) if x.row is not None and k not in logged
    ]
    code = KERNEL.format(
        shared="\n".join([*shared, *lines[Section.SHARED]]),
        load="\n".join(_load([pair for pair in own if pair not in each_round])),
        body=_body(trace, lines[Section.ROW], loop, each_round, [store[k] for k in logged]),
        store="\n".join(once),
        totals="\n".join(writer.totals),
        fold="\n".join(writer.folds),
        sums="\n".join([
            *lines[Section.SUM],
            *(text for x, text in zip(stored, store, strict=True) if x.row is None),
            AFTER_LOOP if loop else "",
        ]),
    )  # fmt: skip
    return _functions(writer, vector) + code


def _body(
    trace: Trace,
    lines: Sequence[str],
    loop: Loop | None,
    given: Sequence[tuple[int, View]],
    log: Sequence[str],
) -> str:
    """The operators on a block of rows, in their loop if there is one."""
    body = "\n".join(lines)
    if loop is None:
        return body
    running = f"{loop.running.value.name}[{loop.running.offset}][w]"
    if loop.running.value.c_type != "bool":
        running += f" == {RUNNING}"
    carry = "\n".join(_carry(trace, loop.carried))
    if loop.backwards:
        return LOOP_BACKWARDS.format(load="\n".join(_load(given, "r * n + ")), body=body, running=running, carry=carry)
    return LOOP.format(body=body, running=running, carry=carry, log="\n".join(log), logs=int(bool(log)))


def _load(inputs: Sequence[tuple[int, View]], before: str = "") -> Iterator[str]:
    """A block of inputs; `before`: what is added to the number of its first row."""
    for index, x in inputs:
        yield declaration(x)
        yield _loaded(x, index, before)


def _bytes(values: Sequence[Value], writer: Writer, rows: int) -> int:
    """Memory of values and totals for so many rows."""
    lanes = {Section.SHARED: 1, Section.ROW: rows, Section.SUM: 1}
    return sum(x.count * x.dtype.itemsize * lanes[x.section] for x in values) + writer.summed * rows


def _carry(trace: Trace, carried: Sequence[tuple[View, View]]) -> Iterator[str]:
    """Results become inputs of the next round; first those that are inputs, before these change."""
    inputs = {x.value for x in trace.inputs}
    copies = []
    for k, (old, new) in enumerate(carried):
        source, each = f"{new.value.name}[{_place(new)}][w]", f"for (int i = 0; i < {old.value.count}; i++) EACH"
        if new == old:
            continue
        if new.row is None:
            source = source.removesuffix("[w]")
        if new.value in inputs:
            yield f"{new.value.c_type} next{k}[{old.value.count}][W]; {each} next{k}[i][w] = {source};"
            source = f"next{k}[i][w]"
        copies.append(f"{each} {old.value.name}[i][w] = {source};")
    yield from copies


def _place(x: View) -> str:
    """Element number i of x, or of its row, in the order of the dimensions, in x's value."""
    sizes, strides = x.tail, [stride for dim, stride in enumerate(x.strides) if dim != x.row]
    after = [prod(sizes[dim + 1 :]) for dim in range(len(sizes))]
    return " + ".join([*(f"i / {a} % {s} * {t}" for a, s, t in zip(after, sizes, strides, strict=True)), str(x.offset)])


def _loaded(x: View, index: int, before: str) -> str:
    """A block of an input; rows after the last one are copies of it."""
    there = f"((const {x.value.c_type}*)data[{index}])[row * strides[{2 * index}] + i * strides[{2 * index + 1}]]"
    return (
        f"for (int i = 0; i < {x.value.count}; i++) EACH "
        f"{{ const long row = {before}first + (w < lanes ? w : lanes - 1); {x.value.name}[i][w] = {there}; }}"
    )


def _stored(x: View, index: int, before: str) -> str:
    """A block of a result, or a result that is not per row."""
    T, count = x.value.c_type, prod(x.tail)
    if x.row is None:
        return f"for (int i = 0; i < {count}; i++) (({T}*)data[{index}])[i] = {x.value.name}[{_place(x)}];"
    there = f"(({T}*)data[{index}])[({before}first + w) * strides[{2 * index}] + i * strides[{2 * index + 1}]]"
    return (
        f"for (int i = 0; i < {count}; i++) for (int w = 0; w < lanes; w++) {there} = {x.value.name}[{_place(x)}][w];"
    )


def _functions(writer: Writer, vector: int) -> str:
    """What operators use."""
    texts = [f"enum {{ W = {vector // 4}, BYTES = {vector} }};", _text("preamble.cpp")]
    if any(call.accuracy is None for call, _ in writer.functions):
        texts.append(_text("functions.cpp"))
    for call, c_type in sorted((x for x in writer.functions if x[0].accuracy is not None), key=str):
        size, letter = (4, "f") if c_type == "float" else (8, "d")
        macro = "SLEEF_POWER" if call.name == "pow" else "SLEEF"
        texts.append(f"{macro}({call.name}, {c_type}, Sleef_{call.name}{letter}{vector // size}_{call.accuracy})")
    return "\n".join(texts)


def _text(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
