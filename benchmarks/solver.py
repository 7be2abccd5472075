"""How long does a step of Dopri5 take, against torchode, torchdiffeq and diffrax?

    python benchmarks/solver.py [--batch 256] [--repeats 15] [--out FILE.json]

Two fields: Van der Pol's (μ = 2, t from 0 to 10), which costs next to nothing, and a tanh network 2 → 64 → 2
(t from 0 to 10); tolerance 1e-5, one thread. All ways solve the same batch in turns, in one process; the median counts.
A step is a round of the solve's loop, an attempted step of all samples at once: in dise, torchode and diffrax of each
with its own size (as many rounds as the sample with the most steps takes), in torchdiffeq of all with one size. The
whole solve's time is divided by it, so that its beginning and end are in it; it stands beside. "with gradients" is
forward and backward. The first solve of a compiled way, which compiles, is not in the median; it has a column.
"""

import time
from typing import Any

import torch
from peers import Solve, TanhNetwork, Task, VanDerPol, Way, arguments, ways
from rich.console import Console
from rich.table import Table

from dise.select.deploy import strict_json
from dise.select.judging.profile import time_side_by_side

TOLERANCE = 1e-5
BASE = "torchdiffeq"  # whose time is 1


def compare(task: Task, repeats: int, *, gradients: bool) -> dict[str, dict[str, Any]]:
    """Each way's times, and how far its states (or gradients in y0) are from torchdiffeq's."""
    found = ways(task)
    calls = {name: way.backward if gradients else way.forward for name, way in found.items()}
    first = {name: _first(call, task) for name, call in calls.items()}
    times = time_side_by_side(calls, [task.y0] * repeats)
    expected = first[BASE][0]
    return {
        name: _row(way, times[name], first[name][1]) | {"difference": float((first[name][0] - expected).abs().max())}
        for name, way in found.items()
    }


def _first(call: Solve, task: Task) -> tuple[torch.Tensor, float]:
    start = time.perf_counter()
    return call(task.y0), time.perf_counter() - start


def _row(way: Way, milliseconds: float, first: float) -> dict[str, Any]:
    return {"rounds": way.rounds, "ms": milliseconds, "ms_step": milliseconds / way.rounds, "first_s": first}


def show(title: str, ways: dict[str, dict[str, Any]]) -> Table:
    table = Table(title=title)
    table.add_column("")
    for column in ("rounds", "ms", "ms per step", f"× {BASE}'s step", f"× {BASE}'s solve", "first solve, s"):
        table.add_column(column, justify="right")
    base = ways[BASE]
    for name, row in ways.items():
        ratios = (f"{row[key] / base[key]:.3f}" for key in ("ms_step", "ms"))
        table.add_row(
            name, str(row["rounds"]), f"{row['ms']:.1f}", f"{row['ms_step']:.3f}", *ratios, f"{row['first_s']:.1f}"
        )
    return table


def main() -> None:
    args = arguments(__doc__, repeats=15).parse_args()
    torch.set_num_threads(args.threads)
    y0 = torch.randn(args.batch, 2, generator=torch.Generator().manual_seed(1))
    results, console = {}, Console(width=120)
    for name, f in {"Van der Pol": VanDerPol(), "tanh network": TanhNetwork()}.items():
        for gradients in (False, True):
            title = f"{name}, {'with' if gradients else 'without'} gradients"
            found = compare(Task(f, y0, args.t1, TOLERANCE), args.repeats, gradients=gradients)
            results[title] = found
            console.print(show(f"{title}: B = {args.batch}, {args.threads} thread", found))
    if args.out:
        about = {"batch": args.batch, "repeats": args.repeats, "t1": args.t1, "tolerance": TOLERANCE}
        about |= {"threads": args.threads, "torch": torch.__version__}
        args.out.write_text(strict_json.dumps(about | {"results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
