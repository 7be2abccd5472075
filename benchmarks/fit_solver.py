"""Solvers fitted to trained flows against the best classical table of as many evaluations, on fresh noise.

    python benchmarks/fit_solver.py [TASK ...] [--n 6 8] [--threads 2] [--out results/solver/fit_solver.json]
    python benchmarks/fit_solver.py --out results/solver/fit_solver.json --readme

The fields are those of results/flows-cpu (`python -m dise_experiments.flows`). The best of `classical(n)`, which is
Adams–Bashforth of order 1 to 4, Adams with a corrector of order 2 and 3, Midpoint and RK4 on seven grids, is chosen on
the draws for fitting; both are compared on draws of another seed. With points the loss is "mse" and the bar is on the
root mean square error; with digits it is "log", the rows are free, and the bar is on the mean PSNR in dB (range 2).
Seconds are CPU time of all threads, draws and references included. "--out" adds to the tasks that the file has, and
`--readme` writes them into benchmarks/README.md.
"""

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
from readme import write
from rich.console import Console
from rich.table import Table

import dise
from dise.flow import Flow
from dise.flow.fitting.draws import draw
from dise.flow.fitting.errors import SolverErrors, solver_errors
from dise.select.deploy import strict_json
from dise_experiments.flows.cases import cases

FIELDS = Path(__file__).parents[1] / "results" / "flows-cpu"
TASKS = ("checkerboard", "moons", "two_moons", "slcp", "digits")
GAIN_DB, REDUCTION = 4.0, 0.25  # the bars: digits, points


def flow_of(task: str) -> tuple[Flow, Any]:
    """The flow of a task, and what draws its conditions."""
    case = cases(FIELDS / f"{task}-seed0")[0]
    return case.flow, case.condition


def measure(task: str, n: int, scale: float) -> dict[str, Any]:
    """One fit, and both solvers on draws of another seed."""
    flow, condition = flow_of(task)
    digits = task == "digits"
    tight = dise.Adams(rtol=3e-4, atol=3e-4) if digits else dise.Dopri5(rtol=1e-6, atol=1e-6)
    draws, batch = (int(576 * scale), 32) if digits else (int(4096 * scale), 1024)
    began = time.process_time()
    fit = dise.fit_solver(
        flow,
        n,
        condition=condition,
        draws=draws,
        rows="free" if digits else "consistent",
        loss="log" if digits else "mse",
        reference=tight,
        iterations=60 if digits else 100,
        batch=batch,
    )
    seconds = time.process_time() - began
    fresh = draw(flow, 128 if digits else 4096, condition, tight, density=False, batch=batch, seed=1)
    before, after = (
        SolverErrors.of(solver_errors(flow, solver, fresh, (0.0, 1.0), batch)) for solver in (fit.start, fit.solver)
    )
    print(fit, flush=True)
    return {
        "task": task,
        "n": n,
        "start": str(fit.start),
        "before": before.__dict__,
        "after": after.__dict__,
        "cpu seconds": round(seconds, 1),
        "seconds": round(fit.seconds, 1),
        "draws": draws,
        "iterations": fit.iterations,
        "torch": torch.__version__,
        "times": fit.solver.table.times,
    } | verdict(task, before, after)


def verdict(task: str, before: SolverErrors, after: SolverErrors) -> dict[str, Any]:
    """The gain, in the bar's terms."""
    if task == "digits":
        gain = 20 * math.log10(before.geometric_mean / after.geometric_mean)
        return {"gain dB": gain, "holds": gain >= GAIN_DB}
    reduction = 1 - after.rms / before.rms
    return {"reduction": reduction, "holds": reduction >= REDUCTION}


def table(rows: list[dict[str, Any]]) -> Table:
    """The rows as a table."""
    shown = Table(title="Error on fresh draws: best classical table → fitted")
    for column in ("task", "NFE", "start", "RMSE", "median", "99 %", "gain", "CPU s", "bar"):
        shown.add_column(column, justify="left" if column in ("task", "start") else "right")
    for row in rows:
        pairs = [f"{row['before'][q]:.2g} → {row['after'][q]:.2g}" for q in ("rms", "median", "q99")]
        gain = f"{row['gain dB']:.1f} dB" if "gain dB" in row else f"{-row['reduction']:+.0%}"
        start = row["start"].split("(")[0]
        holds = "yes" if row["holds"] else "no"
        shown.add_row(row["task"], str(row["n"]), start, *pairs, gain, f"{row['cpu seconds']:.0f}", holds)
    return shown


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table in Markdown."""
    lines = [
        "| task | NFE | start | RMSE | median | 99 % | change of the RMSE, or gain | CPU s | holds |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        pairs = [f"{row['before'][q]:.2g} → {row['after'][q]:.2g}" for q in ("rms", "median", "q99")]
        gain = f"{row['gain dB']:.1f} dB" if "gain dB" in row else f"{-row['reduction']:+.0%}".replace("-", "−")
        cells = [row["task"], row["n"], row["start"].split("(")[0], *pairs, gain, f"{row['cpu seconds']:.0f}"]
        lines.append(f"| {' | '.join(map(str, cells))} | {'yes' if row['holds'] else '**no**'} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="*", help=", ".join(TASKS))
    parser.add_argument("--n", type=int, nargs="+", default=[6, 8], help="evaluations of f")
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the number of draws to fit on")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--readme", action="store_true", help="write the rows of --out into benchmarks/README.md")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = strict_json.loads(args.out.read_text()) if args.out and args.out.exists() else []
    if args.readme:
        write(markdown(rows), "fit_solver.py")
        return
    for task in args.task or TASKS:
        for n in args.n:
            rows = [row for row in rows if (row["task"], row["n"]) != (task, n)] + [measure(task, n, args.scale)]
            if args.out:
                args.out.write_text(strict_json.dumps(rows, indent=1) + "\n")
    Console(width=120).print(table(rows))


if __name__ == "__main__":
    main()
