"""What does a round of the eager loop cost beside f: operators of torch, and CPU time against another checkout?

    python benchmarks/rounds.py [--batch 256] [--out FILE.json]
    python benchmarks/rounds.py --places [--batch 256]
    python benchmarks/rounds.py --before ../before/src [--repeats 25] [--out FILE.json]

The fields, the batch and the tolerance are those of `solver.py`. The first command counts the operators that a solve
calls, f's own left out, and divides them by its rounds; "views" compute nothing. Counts repeat exactly. Those of
another checkout are printed with PYTHONPATH set to its `src`. The second command says which functions of dise call them
(Van der Pol, without gradients). The third command solves with both checkouts in turns,
each in a process of its own with one thread, and prints the medians of the CPU times (with gradients: forward and
backward) and of their ratios, torchdiffeq's beside them.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections import Counter as Counts
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peers import Counter, Solve, TanhNetwork, Task, VanDerPol, by_torchdiffeq
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import dise
from dise.select.deploy import strict_json

TOLERANCE = 1e-5
FIELDS = {"Van der Pol": VanDerPol, "tanh network": TanhNetwork}
SOURCE = Path(dise.__file__).parent
VIEWS = {"unsqueeze", "detach", "view", "select", "slice", "t", "expand", "unbind", "split", "alias", "permute"}
KINDS: dict[str, Callable[[float], dict[str, Any]]] = {
    "plain": lambda t1: {},
    "50 save points": lambda t1: {"save_at": torch.linspace(0.0, t1, 50)},
    "an event that does not happen": lambda t1: {"event": lambda t, y: y[:, 0] - 10.0},
    "an event that stops": lambda t1: {"event": lambda t, y: y[:, 0] - 1.0},
    "record": lambda t1: {"record": True},
}


class Operators(TorchDispatchMode):
    """Counts operators and the functions of dise that call them, except within f."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counts[tuple[str, str]] = Counts()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[function.overloadpacket.__name__, _place()] += 1
        return function(*args, **(kwargs or {}))

    def computing(self) -> Counts[str]:
        """How many operators that compute something each place has called."""
        places: Counts[str] = Counts()
        for (name, place), number in self.counts.items():
            places[place] += number * (name not in VIEWS)
        return places


def _place() -> str:
    """The innermost function of dise that is being called."""
    frame = sys._getframe(1)
    while frame.f_back is not None and not Path(frame.f_code.co_filename).is_relative_to(SOURCE):
        frame = frame.f_back
    code = frame.f_code
    return f"{Path(code.co_filename).stem}.{code.co_qualname}"


class Hidden(nn.Module):
    """A vector field whose own operators are not counted."""

    def __init__(self, f: nn.Module, operators: Operators) -> None:
        super().__init__()
        self.f, self.operators = f, operators

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        before = self.operators.counts.copy()
        value: Tensor = self.f(t, y)
        self.operators.counts = before
        return value


def solve(f: nn.Module, y0: Tensor, t1: float, kind: str) -> Tensor:
    """The states at the end, or at the save points."""
    integrator = dise.Dopri5(rtol=TOLERANCE, atol=TOLERANCE)
    solution = dise.solve(f, y0, 0.0, t1, integrator, **KINDS[kind](t1))
    return solution.y if solution.saved is None else solution.saved


def operators_per_round(f: nn.Module, y0: Tensor, t1: float, kind: str, *, gradients: bool) -> tuple[float, float]:
    """Operators per round that compute something, and views."""
    operators, rounds = counted(f, y0, t1, kind, gradients=gradients)
    computing = operators.computing().total()
    return computing / rounds, (operators.counts.total() - computing) / rounds


def counted(f: nn.Module, y0: Tensor, t1: float, kind: str, *, gradients: bool) -> tuple[Operators, int]:
    """The operators of a solve, and its rounds."""
    with torch.set_grad_enabled(gradients):
        start = y0.clone().requires_grad_(gradients)
        counter, operators = Counter(f), Operators()
        hidden = Hidden(counter, operators)
        solve(hidden, start, t1, kind)  # fills caches, and checks that f does not mix samples
        counter.calls = 0
        with operators:
            solve(hidden, start, t1, kind)
    return operators, counter.rounds


def places(y0: Tensor, t1: float) -> Table:
    """Operators per round that compute something, by the function that calls them, for each kind."""
    found = [counted(VanDerPol(), y0, t1, kind, gradients=False) for kind in KINDS]
    columns = [(operators.computing(), rounds) for operators, rounds in found]
    names = set[str]().union(*(places for places, _ in columns))
    rows = sorted(([places[name] / rounds for places, rounds in columns], name) for name in names)
    table = Table("function", *KINDS, title="operators per round by place, without gradients; from 0.2 on")
    for numbers, name in reversed(rows):
        if max(numbers) >= 0.2:
            table.add_row(name, *(f"{number:.1f}" for number in numbers))
    return table


def seconds(task: Task, kind: str, *, gradients: bool) -> float:
    """CPU time of a solve, with gradients forward and backward."""
    start = task.y0.clone().requires_grad_(gradients)
    before = time.process_time()
    with torch.set_grad_enabled(gradients):
        y = solve(task.f, start, task.t1, kind)
        if gradients:
            torch.autograd.grad(y.square().sum(), (start, *task.f.parameters()))
    return time.process_time() - before


def serve(tasks: dict[str, Task]) -> None:
    """Answer requests from standard input: the seconds of a solve, by this checkout or by torchdiffeq."""
    theirs = {name: by_torchdiffeq(task) for name, task in tasks.items()}
    for line in sys.stdin:
        name, kind, gradients = strict_json.loads(line)
        if kind == "torchdiffeq":
            call: Solve = theirs[name].backward if gradients else theirs[name].forward
            start = time.process_time()
            call(tasks[name].y0)
            spent = time.process_time() - start
        else:
            spent = seconds(tasks[name], kind, gradients=gradients)
        print(strict_json.dumps(spent), flush=True)


class Checkout:
    """A process that solves with the library in a folder."""

    def __init__(self, source: Path, arguments: argparse.Namespace) -> None:
        command = [sys.executable, __file__, "--serve", "--batch", str(arguments.batch), "--t1", str(arguments.t1)]
        environment = os.environ | {"PYTHONPATH": str(source.resolve()), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def seconds(self, *request: Any) -> float:
        """CPU time of a solve."""
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the process has no pipes")
        print(strict_json.dumps(request), file=self._process.stdin, flush=True)
        return float(strict_json.loads(self._process.stdout.readline()))

    def end(self) -> None:
        """Let the process end."""
        self._process.communicate()


def pairs(before: Checkout, after: Checkout, request: tuple[str, str, bool], repeats: int) -> dict[str, float]:
    """Medians of the CPU times in ms, and of the ratios of neighbouring solves."""
    name, _, gradients = request
    rows = []
    for repeat in range(repeats + 1):
        ways = [lambda: before.seconds(*request), lambda: after.seconds(*request)]
        times = [way() for way in ways] if repeat % 2 else [way() for way in reversed(ways)][::-1]
        rows.append((*times, after.seconds(name, "torchdiffeq", gradients)))
    old, new, theirs = zip(*rows[1:], strict=True)  # the first solves warm up
    median = statistics.median
    return {
        "before_ms": 1e3 * median(old),
        "after_ms": 1e3 * median(new),
        "torchdiffeq_ms": 1e3 * median(theirs),
        "after_to_before": median(b / a for a, b in zip(old, new, strict=True)),
        "after_to_torchdiffeq": median(b / c for b, c in zip(new, theirs, strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--t1", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--before", type=Path, help="the `src` of another checkout, to compare CPU times with")
    parser.add_argument("--places", action="store_true", help="count by the function that calls an operator")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    y0 = torch.randn(args.batch, 2, generator=torch.Generator().manual_seed(1))
    tasks = {name: Task(make(), y0, args.t1, TOLERANCE) for name, make in FIELDS.items()}
    if args.serve:
        serve(tasks)
        return
    if args.places:
        Console(width=140).print(places(y0, args.t1))
        return
    cases = [(name, kind, gradients) for gradients in (False, True) for name in FIELDS for kind in KINDS]
    results = []
    if args.before is None:
        for name, kind, gradients in cases:
            task = tasks[name]
            computing, views = operators_per_round(task.f, y0, task.t1, kind, gradients=gradients)
            row = {"computing": computing, "views": views, "all": computing + views}
            results.append({"field": name, "kind": kind, "gradients": gradients} | row)
    else:
        checkouts = Checkout(args.before, args), Checkout(Path(dise.__file__).parents[1], args)
        for case in cases:
            row = pairs(*checkouts, case, args.repeats)
            results.append(dict(zip(("field", "kind", "gradients"), case, strict=True)) | row)
        for checkout in checkouts:
            checkout.end()
    table = Table(*results[0], title=f"B = {args.batch}, t from 0 to {args.t1:g}, float32")
    for row in results:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=140).print(table)
    if args.out:
        about = {"batch": args.batch, "t1": args.t1, "torch": torch.__version__}
        args.out.write_text(strict_json.dumps(about | {"results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
