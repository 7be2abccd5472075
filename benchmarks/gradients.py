"""How exact are the gradients of each mode, and what do they cost?

    python benchmarks/gradients.py --out gradients.json

A batch of `--batch` samples follows a time-dependent network of two inputs from t0 to t1, with two save points. A loss
linear in the states at t1 and at the save points is differentiated in y0, the network's parameters,
an argument, t0, t1 and the save points, in float64.

Accuracy, with dopri5 at each `--tol`: the largest error of a gradient's components, relative to the largest component,
against two references. "tight solve": that of the equation itself, by Dopri8 at 1e-13, which ends a solve at each save
point, so that nothing is interpolated. "finite differences": of the same solve, central, in every component; they see
how steps change with the inputs, which modes that take the steps as constants leave out.

Cost, of `--steps` fixed steps of the 3/8 rule, which torchdiffeq calls rk4, forward and backward, gradients in y0 and
the parameters: bytes that tensors hold between the forward and the backward pass, the most that they hold at once,
calls of f forward and, where steps are taken again, backward, and the median time of `--runs` runs, taken in turns.
With `--compiled` compiled solves are timed too.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from memory import Memory
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchdiffeq import odeint, odeint_adjoint

from dise import RK38, Dopri5, Dopri8, Integrator, solve
from dise.select.deploy import strict_json

SPAN = (0.0, 2.0)
SAVE_AT = (0.7, 1.3)
TIGHT = Dopri8(rtol=1e-13, atol=1e-13)
DIFFERENCE = 1e-6  # of central differences: their own error is about 1e-10, of rounding


class Field(nn.Module):
    """dy/dt = net(y) cos(gain·t) − y / 2; counts its calls."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 2)).double()
        self.calls = 0
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(2)  # a field for which steps matter

    def forward(self, t: Tensor, y: Tensor, gain: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():  # each value would be another graph
            self.calls += 1
        return self.net(y) * torch.cos(gain * t) - y / 2


@dataclass(frozen=True)
class Inputs:
    """All that a loss is differentiated in."""

    f: Field
    y0: Tensor  # [B, 2]
    gain: Tensor  # []
    t0: Tensor  # []
    t1: Tensor  # []
    save_at: Tensor  # [T], may be empty

    @classmethod
    def draw(cls, batch: int, width: int) -> "Inputs":
        torch.manual_seed(0)
        f, y0 = Field(width), torch.randn(batch, 2, dtype=torch.float64)
        times = (torch.tensor(value, dtype=torch.float64) for value in (3.0, *SPAN, SAVE_AT))
        return cls(f, *(x.requires_grad_() for x in (y0, *times)))

    @property
    def groups(self) -> dict[str, tuple[Tensor, ...]]:
        return {
            "y0": (self.y0,),
            "parameters": tuple(self.f.parameters()),
            "args": (self.gain,),
            "t0": (self.t0,),
            "t1": (self.t1,),
            "save_at": (self.save_at,),
        }


class Method(NamedTuple):
    """One method, as each library names it."""

    ours: Integrator
    theirs: dict[str, Any]


def dopri5(tol: float) -> Method:
    return Method(Dopri5(rtol=tol, atol=tol), {"method": "dopri5", "rtol": tol, "atol": tol})


def fixed(steps: int) -> Method:
    return Method(RK38(steps), {"method": "rk4", "options": {"step_size": (SPAN[1] - SPAN[0]) / steps}})


States = tuple[Tensor, Tensor]  # at t1 [B, 2], at the save points [B, T, 2]
Way = Callable[[Inputs, Method], States]


def ours(**options: Any) -> Way:
    """dise, with options of `solve`."""

    def run(x: Inputs, method: Method) -> States:
        save_at = x.save_at if len(x.save_at) else None
        solution = solve(x.f, x.y0, x.t0, x.t1, method.ours, args=(x.gain,), save_at=save_at, **options)
        if solution.saved is None:
            return solution.y, x.y0[:, None][:, :0]
        return solution.y, solution.saved if options.get("batched", True) else solution.saved.transpose(0, 1)

    return run


def theirs(interface: Callable[..., Tensor]) -> Way:
    """torchdiffeq, with one of its functions."""

    def run(x: Inputs, method: Method) -> States:
        t = torch.cat([x.t0[None], x.save_at, x.t1[None]])
        adjoint = {"adjoint_params": (*x.f.parameters(), x.gain)} if interface is odeint_adjoint else {}
        states = interface(lambda t, y: x.f(t, y, x.gain), x.y0, t, **method.theirs, **adjoint)
        return states[-1], states[1:-1].transpose(0, 1)

    return run


WAYS = {
    "direct": ours(),
    "direct, differentiate_step_sizes": ours(differentiate_step_sizes=True),
    "checkpoint": ours(gradient="checkpoint"),
    "backsolve": ours(gradient="backsolve"),
    "backsolve, one system": ours(gradient="backsolve", batched=False),
    "torchdiffeq odeint": theirs(odeint),
    "torchdiffeq odeint_adjoint": theirs(odeint_adjoint),
}
COMPILED = {"direct, compiled": ours(compile=True), "direct, compiled fast": ours(compile="fast")}


def tight(x: Inputs, _: Method) -> States:
    """The equation's own solution: a solve from time to time, whose ends need no interpolation."""
    y, states = x.y0, []
    for start, end in pairwise([x.t0, *x.save_at, x.t1]):
        y = solve(x.f, y, start, end, TIGHT, args=(x.gain,)).y
        states.append(y)
    return states[-1], torch.stack(states[:-1], 1)


def loss(states: States) -> Tensor:
    """A linear function, all of whose weights differ."""
    return sum((x * torch.linspace(1, 2, x.numel(), dtype=x.dtype).reshape(x.shape)).sum() for x in states)  # type: ignore[return-value]


Gradients = dict[str, Tensor]  # of a group, all its components


def gradients(way: Way, x: Inputs, method: Method) -> Gradients:
    """By backpropagation."""
    tensors = [tensor for group in x.groups.values() for tensor in group]
    found = iter(torch.autograd.grad(loss(way(x, method)), tensors, materialize_grads=True))
    return {name: torch.cat([next(found).flatten() for _ in group]) for name, group in x.groups.items()}


@torch.no_grad()
def differences(way: Way, x: Inputs, method: Method) -> Gradients:
    """Central differences of the loss in every component."""
    result = {}
    for name, group in x.groups.items():
        slopes = []
        for tensor in group:
            flat = tensor.view(-1)
            for i, value in enumerate(flat.tolist()):
                ends = []
                for change in (DIFFERENCE, -DIFFERENCE):
                    flat[i] = value + change
                    ends.append(float(loss(way(x, method))))
                flat[i] = value
                slopes.append((ends[0] - ends[1]) / (2 * DIFFERENCE))
        result[name] = x.y0.new_tensor(slopes)
    return result


def error(found: Gradients, reference: Gradients) -> dict[str, float]:
    """The largest error of each group, relative to its largest component."""
    return {name: float((found[name] - truth).abs().max() / truth.abs().max()) for name, truth in reference.items()}


def accuracy(x: Inputs, tol: float) -> dict[str, dict[str, dict[str, float]]]:
    """The errors of all ways at one tolerance, against both references."""
    method = dopri5(tol)
    truth = gradients(tight, x, method)
    result = {}
    for name, way in WAYS.items():
        found = gradients(way, x, method)
        own = error(found, differences(way, x, method))
        result[name] = {"tight solve": error(found, truth), "finite differences": own}
    return result


def cost(x: Inputs, steps: int, runs: int, *, compiled: bool = False) -> dict[str, dict[str, float]]:
    """Memory, calls of f and time of all ways at a number of steps; compiled ones if asked for, which takes minutes."""
    method = fixed(steps)
    x = Inputs(x.f, x.y0, *(tensor.detach() for tensor in (x.gain, x.t0, x.t1, x.save_at[:0])))
    ways = {name: way for name, way in WAYS.items() if "differentiate_step_sizes" not in name}  # fixed steps have none
    if compiled:
        ways |= COMPILED
    wanted, result = (x.y0, *x.f.parameters()), {}
    for name, way in ways.items():
        if name in COMPILED:  # they cannot be looked into; the first run compiles
            torch.autograd.grad(loss(way(x, method)), wanted)
            result[name] = {}
            continue
        x.f.calls = 0
        with Memory() as memory:
            value = loss(way(x, method))
            kept = memory.held
            forward = x.f.calls
            torch.autograd.grad(value, wanted)
        calls = {"calls forward": forward, "calls backward": x.f.calls - forward}
        result[name] = {"kept bytes": kept, "peak bytes": memory.peak, **calls}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, way in ways.items():
            start = time.perf_counter()
            torch.autograd.grad(loss(way(x, method)), wanted)
            seconds[name].append(time.perf_counter() - start)
    return {name: {**row, "seconds": statistics.median(seconds[name])} for name, row in result.items()}


def show_accuracy(console: Console, tol: float, rows: dict[str, dict[str, dict[str, float]]]) -> None:
    for reference in ("tight solve", "finite differences"):
        table = Table(title=f"Error of the gradients against {reference}, dopri5 at {tol:g}")
        table.add_column("gradient", no_wrap=True)
        for name in next(iter(rows.values()))[reference]:
            table.add_column(name, justify="right")
        for name, row in rows.items():
            table.add_row(name, *(f"{value:.1e}" for value in row[reference].values()))
        console.print(table)


def show_cost(console: Console, steps: int, rows: dict[str, dict[str, float]]) -> None:
    table = Table(title=f"Forward and backward, {steps} steps of the 3/8 rule")
    table.add_column("gradient", no_wrap=True)
    for name in ("kept KiB", "peak KiB", "of direct's", "calls of f", "backward", "ms", "times direct's"):
        table.add_column(name, justify="right")
    direct = rows["direct"]
    for name, row in rows.items():
        seen = (
            (
                f"{row['kept bytes'] / 1024:.1f}",
                f"{row['peak bytes'] / 1024:.1f}",
                f"{row['peak bytes'] / direct['peak bytes']:.3f}",
                f"{row['calls forward']}",
                f"{row['calls backward']}",
            )
            if name not in COMPILED
            else ("–",) * 5
        )
        table.add_row(name, *seen, f"{1000 * row['seconds']:.1f}", f"{row['seconds'] / direct['seconds']:.2f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tol", type=float, nargs="+", default=[1e-3, 1e-6], help="rtol and atol of the accuracy")
    parser.add_argument("--steps", type=int, default=256, help="of the cost")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--width", type=int, default=32, help="of the network's hidden layer")
    parser.add_argument("--runs", type=int, default=5, help="timed, in turns")
    parser.add_argument("--compiled", action="store_true", help="compiled solves in the table of costs too")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    x, console = Inputs.draw(args.batch, args.width), Console(width=120)
    errors = {tol: accuracy(x, tol) for tol in args.tol}
    for tol, rows in errors.items():
        show_accuracy(console, tol, rows)
    costs = cost(x, args.steps, args.runs, compiled=args.compiled)
    show_cost(console, args.steps, costs)
    if args.out:
        about = {"batch": args.batch, "width": args.width, "steps": args.steps, "runs": args.runs}
        about |= {"threads": args.threads, "torch": torch.__version__}
        listed = [{"tol": tol, "ways": rows} for tol, rows in errors.items()]
        args.out.write_text(strict_json.dumps({"about": about, "accuracy": listed, "cost": costs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
