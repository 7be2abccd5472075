"""How long does the first compiled solve take, in a new process with an empty cache?

    python benchmarks/first_call.py [--repeats 3] [--batch 256] --out results/solver/first_call.json [--readme]

The fields, the batch and the tolerance are those of `solver.py`. Each solve is the first of a process of its own, which
has imported torch and dise (or jax and diffrax) but compiled nothing, and whose folder for temporary files, torch's
cache and precompiled headers in it, is new. The clock runs from the call to the result, with gradients forward and
backward; imports of the compiler count, since the call makes them. "again" is the process's second solve, and "on disk"
the first one of another process which finds the first one's files. Medians. `--readme` writes the table of the file of
`--out` into benchmarks/README.md.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peers import JittedDiffrax, Solve, TanhNetwork, Task, VanDerPol, arguments, installed
from readme import write
from rich.console import Console
from rich.table import Table

import dise
from dise.select.deploy import strict_json

TOLERANCE = 1e-5
FIELDS = {"Van der Pol": VanDerPol, "tanh network": TanhNetwork}
COMPILED = {"dise, compiled": True, "dise, compiled fast": "fast"}
BARS = {False: 5.0, True: 12.0}  # seconds of dise's first call on the network, without and with gradients


def first_call(
    field: str, way: str, batch: int = 256, t1: float = 10.0, threads: int = 1, *, gradients: bool
) -> dict[str, float]:
    """Seconds of this process's first and second solve; of the first one also CPU seconds, its compilers included."""
    torch.set_num_threads(threads)
    y0 = torch.randn(batch, 2, generator=torch.Generator().manual_seed(1))
    task = Task(FIELDS[field](), y0, t1, TOLERANCE)
    call = _by_diffrax(task, gradients=gradients) if way == "diffrax, jit" else _by_dise(task, way, gradients=gradients)
    start, cpu = time.perf_counter(), _cpu_seconds()
    call(y0)
    first, used = time.perf_counter() - start, _cpu_seconds() - cpu
    start = time.perf_counter()
    call(y0)
    return {"first_s": first, "first_cpu_s": used, "again_s": time.perf_counter() - start}


def _by_dise(task: Task, way: str, *, gradients: bool) -> Solve:
    integrator = dise.Dopri5(rtol=task.tolerance, atol=task.tolerance)

    def call(y0: torch.Tensor) -> torch.Tensor:
        with torch.set_grad_enabled(gradients):
            start = y0.clone().requires_grad_(gradients)
            y = dise.solve(task.f, start, 0.0, task.t1, integrator, compile=COMPILED[way]).y
            return torch.autograd.grad(y.square().sum(), (start, *task.f.parameters()))[0] if gradients else y

    return call


def _by_diffrax(task: Task, *, gradients: bool) -> Solve:
    jitted = JittedDiffrax(task)
    return jitted.backward if gradients else jitted.forward


def _cpu_seconds() -> float:
    """CPU time of this process and of the processes that it has waited for."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, kinds))


def in_new_process(folder: str, request: dict[str, Any]) -> dict[str, float]:
    """`first_call` in a process of its own, with a folder for its temporary files."""
    folders = {"TMPDIR": folder, "TORCHINDUCTOR_CACHE_DIR": str(Path(folder) / "torch")}
    command = [sys.executable, __file__, "--serve", strict_json.dumps(request)]
    done = subprocess.run(command, env=os.environ | folders, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{request}: {done.stderr}")
    result: dict[str, float] = strict_json.loads(done.stdout.splitlines()[-1])
    return result


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each field, way, and whether there are gradients."""
    ways = [*COMPILED, *(["diffrax, jit"] if installed("diffrax") else [])]
    cases = [(field, gradients, way) for field in FIELDS for gradients in (False, True) for way in ways]
    seen: dict[tuple[str, bool, str], list[dict[str, float]]] = {case: [] for case in cases}
    for _ in range(args.repeats):
        for field, gradients, way in cases:
            request = {"field": field, "way": way, "gradients": gradients, "batch": args.batch, "t1": args.t1}
            request["threads"] = args.threads
            with tempfile.TemporaryDirectory() as folder:
                row = in_new_process(folder, request)
                row["on_disk_s"] = in_new_process(folder, request)["first_s"]
            seen[field, gradients, way].append(row)
    return [
        {"field": field, "gradients": gradients, "way": way, **_medians(seen[field, gradients, way])}
        for field, gradients, way in cases
    ]


def _medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def table(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The rows as texts, with a header."""
    header = ("field", "gradients", "way", "first, s", "of CPU, s", "again, s", "on disk, s", "bar, s", "holds")
    lines = [header]
    for row in rows:
        gradients, bar = row["gradients"], None
        if row["field"] == "tanh network" and row["way"] in COMPILED:
            bar = BARS[gradients]
        numbers = [f"{row[name]:.2f}" for name in ("first_s", "first_cpu_s", "again_s", "on_disk_s")]
        verdict = ("", "") if bar is None else (f"{bar:g}", "yes" if row["first_s"] <= bar else "no")
        lines.append((row["field"], "yes" if gradients else "no", row["way"], *numbers, *verdict))
    return lines


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table for benchmarks/README.md."""
    header, *lines = table(rows)
    rule = ["---"] * 3 + ["---:"] * 5 + ["---"]
    return "\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *lines)) + "\n"


def main() -> None:
    parser = arguments(__doc__, repeats=3)
    parser.add_argument("--readme", action="store_true", help="write the table of --out into benchmarks/README.md")
    parser.add_argument("--serve", type=strict_json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        print(strict_json.dumps(first_call(**args.serve)))
        return
    if args.readme:
        if not (args.out and args.out.exists()):
            parser.error("--readme: give the file with the measurements as --out")
        write(markdown(strict_json.loads(args.out.read_text())["results"]), "first_call.py")
        return
    rows = measure(args)
    header, *lines = table(rows)
    shown = Table(
        *header, title=f"First solve of a process with an empty cache: B = {args.batch}, {args.threads} thread"
    )
    for line in lines:
        shown.add_row(*line)
    Console(width=120).print(shown)
    if args.out:
        about = {"batch": args.batch, "repeats": args.repeats, "t1": args.t1, "threads": args.threads}
        about |= {"tolerance": TOLERANCE, "torch": torch.__version__}
        args.out.write_text(strict_json.dumps(about | {"results": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
