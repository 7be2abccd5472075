"""How long does a step of Dopri5 take, against torchode, torchdiffeq, diffrax and a loop in C++?

    python benchmarks/solver.py [--batch 256] [--repeats 15] --out results/solver/solver.json [--readme]

Two fields: Van der Pol's (μ = 2, t from 0 to 10), which costs next to nothing, and a tanh network 2 → 64 → 2
(t from 0 to 10); tolerance 1e-5, one thread. The states at the end are wanted, or those at 50 save points, or the end
is an event (see `peers`), or the steps are recorded. All ways solve the same batch in turns, in one process; the median
counts. A step is a round of the solve's loop, an attempted step of all samples at once: in dise, torchode and diffrax
of each with its own size (as many rounds as the sample with the most steps takes), in torchdiffeq of all with one size.
The whole solve's time is divided by it, so that its beginning and end are in it. "with gradients" is forward and
backward. "f alone" is the calls of f in dise's solve, on the same states, with nothing around them: what a step of an
eager solver takes at least. The first solve of a compiled way, which compiles, is not in the median; it has a column.
`--readme` writes the table of ratios of the file of `--out` into benchmarks/README.md.
"""

import json
import time
from typing import Any

import torch
from peers import F_ALONE, FLOOR, KINDS, Solve, TanhNetwork, Task, VanDerPol, Way, arguments, ways
from readme import write
from rich.console import Console
from rich.table import Table

from dise.select.deploy import strict_json
from dise.select.judging.profile import time_side_by_side

TOLERANCE = 1e-5
BASE = "torchdiffeq"  # whose time is 1
FIELDS = {"Van der Pol": VanDerPol, "tanh network": TanhNetwork}
EAGER, COMPILED, FAST, DIFFRAX = "dise", "dise, compiled", "dise, compiled fast", "diffrax, jit"
CASES = [(kind, gradients) for kind in KINDS for gradients in (False, True) if not (kind == "record" and gradients)]

# bars of a step's ratio, by kind: eager to torchdiffeq's, by field; compiled to torchdiffeq's; the better of the
# compiled ways to diffrax's, by field and by whether there are gradients
EAGER_BARS = {"end": (0.45, 0.5), "save points": (0.5, 0.5), "event": (0.5, 0.5)}
COMPILED_BARS = {"save points": 0.2, "event": 0.2}
DIFFRAX_BARS = {False: (1.5, 1.2), True: (1.0, 1.0)}


def compare(task: Task, repeats: int, *, gradients: bool) -> dict[str, dict[str, Any]]:
    """Each way's times, and how far its states (or gradients in y0) are from torchdiffeq's."""
    found = ways(task)
    calls = {name: way.backward if gradients else way.forward for name, way in found.items()}
    calls = {name: call for name, call in calls.items() if call is not None}
    first = {name: _first(call, task) for name, call in calls.items()}
    times = time_side_by_side(calls, [task.y0] * repeats)
    expected = first[BASE][0]
    return {
        name: _row(found[name], times[name], first[name][1])
        | {"difference": float((first[name][0] - expected).abs().max())}
        for name in calls
    }


def _first(call: Solve, task: Task) -> tuple[torch.Tensor, float]:
    start = time.perf_counter()
    return call(task.y0), time.perf_counter() - start


def _row(way: Way, milliseconds: float, first: float) -> dict[str, Any]:
    return {"rounds": way.rounds, "ms": milliseconds, "ms_step": milliseconds / way.rounds, "first_s": first}


def title(field: str, kind: str, *, gradients: bool) -> str:
    """A case's name in the file."""
    what = "" if kind == "end" else f"{kind}, "
    return f"{field}, {what}{'with' if gradients else 'without'} gradients"


def show(title: str, ways: dict[str, dict[str, Any]]) -> Table:
    """A case's table."""
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


def markdown(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The tables for benchmarks/README.md: a step's ratio to torchdiffeq's, and compiled ones to diffrax's."""
    names = [F_ALONE, EAGER, COMPILED, FAST, "torchode", "torchode, compiled", DIFFRAX, FLOOR]
    header = ["field", "end", "gradients", f"{BASE}, ms", *names]
    lines = [header, ["---"] * 3 + ["---:"] * (len(header) - 3)]
    bars = [
        ["field", "end", "gradients", "ratio of steps", "seen", "bar", "holds"],
        ["---"] * 4 + ["---:"] * 2 + ["---"],
    ]
    for number, field in enumerate(FIELDS):
        for kind, gradients in CASES:
            rows = results.get(title(field, kind, gradients=gradients))
            if rows is None:
                continue
            case = [field, kind, "yes" if gradients else "no"]
            ratios = {name: row["ms_step"] / rows[BASE]["ms_step"] for name, row in rows.items()}
            seen = (f"{ratios[name]:.3f}" if name in ratios else "–" for name in names)
            lines.append([*case, f"{rows[BASE]['ms_step']:.3f}", *seen])
            found = _bars(number, kind, ratios, gradients=gradients)
            bars += [[*case, what, f"{x:.2f}", f"≤ {bar:g}", "yes" if x <= bar else "no"] for what, x, bar in found]
    return "\n" + "\n\n".join("\n".join(f"| {' | '.join(cells)} |" for cells in part) for part in (lines, bars)) + "\n"


def _bars(field: int, kind: str, ratios: dict[str, float], *, gradients: bool) -> list[tuple[str, float, float]]:
    """What is compared, its ratio, and its bar."""
    found = []
    if kind in EAGER_BARS and not gradients:
        found.append((f"{EAGER} / {BASE}", ratios[EAGER], EAGER_BARS[kind][field]))
    if kind in COMPILED_BARS and not gradients and COMPILED in ratios:
        found.append((f"{COMPILED} / {BASE}", ratios[COMPILED], COMPILED_BARS[kind]))
    if kind == "end" and DIFFRAX in ratios:
        bar = DIFFRAX_BARS[gradients][field]
        found += [
            (f"{name} / {DIFFRAX}", ratios[name] / ratios[DIFFRAX], bar) for name in (COMPILED, FAST) if name in ratios
        ]
    return found


def main() -> None:
    parser = arguments(__doc__, repeats=15)
    parser.add_argument("--readme", action="store_true", help="write the table of --out into benchmarks/README.md")
    args = parser.parse_args()
    if args.readme:
        if not (args.out and args.out.exists()):
            parser.error("--readme: give the file with the measurements as --out")
        write(markdown(json.loads(args.out.read_text())["results"]), "solver.py")
        return
    torch.set_num_threads(args.threads)
    y0 = torch.randn(args.batch, 2, generator=torch.Generator().manual_seed(1))
    results, console = {}, Console(width=120)
    for field, make in FIELDS.items():
        f = make()
        for kind, gradients in CASES:
            name = title(field, kind, gradients=gradients)
            found = compare(Task(f, y0, args.t1, TOLERANCE, kind), args.repeats, gradients=gradients)
            results[name] = found
            console.print(show(f"{name}: B = {args.batch}, {args.threads} thread", found))
    if args.out:
        about = {"batch": args.batch, "repeats": args.repeats, "t1": args.t1, "tolerance": TOLERANCE}
        about |= {"threads": args.threads, "torch": torch.__version__}
        args.out.write_text(strict_json.dumps(about | {"results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
