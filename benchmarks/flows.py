"""Samplers and densities of flows beside other libraries and their own bars.

    python benchmarks/flows.py [--only ROW ...] [--out results/flows.json] [--readme]

One row per bar; `--only` measures some of them, and keeps the others that the file of `--out` has. The fields are those
in results/flows-cpu, trained by `python -m dise_experiments.flows`. `--readme` writes the table of the file into
benchmarks/README.md. One thread; "speed" and "density" measure time, so nothing else should run. All loops keep the
memory of their tensors (`KEEP_MEMORY`).
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from flow_bars.seen import Seen
from readme import write

from dise.select.deploy import strict_json

# glibc gives large tensors back to the system after each use, and page faults would be a fifth of a loop's time
KEEP_MEMORY = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(2**32))


class Row(NamedTuple):
    what: str
    bar: str

    @staticmethod
    def measure(name: str) -> Callable[[], Seen]:
        """The function of a row's module."""
        return import_module(f"flow_bars.{name}").measure


ROWS: Mapping[str, Row] = {
    "parity": Row(
        "Euler, DPM++2M and UniPC beside diffusers' schedulers, step by step; sway and EPSS beside F5-TTS's formulas",
        "1e-5; 1e-12",
    ),
    "order": Row("order seen by halving, every method, equal and random grids", "k ± 0.15"),
    "draws": Row(
        "NFE for 99 % of 4,096 draws within τ = 0.03, 0.01: own-step Adams / best own-step Runge–Kutta",
        "mean of eight ratios ≤ 0.6",
    ),
    "images": Row("NFE of AB2 against Midpoint at 40 dB, digits", "≤ 0.75"),
    "alone": Row("a row alone and in its batch, float64", "1e-6, the same NFE"),
    "density": Row(
        "exact log p of closed-form Gaussian and mixture fields, D = 2 to 64; time beside zuko and flow_matching",
        "1e-5 nats; ≥ 2 ×",
    ),
    "guided": Row("guidance beside a hand-written loop; guidance in half of the steps", "1e-6; ≤ 1.5 model calls"),
    "trace": Row("peak memory of an exact trace at D = 784, U-Net", "bounded by the directions at once"),
    "speed": Row("time per step of AB2 and UniPC2 beside a hand-written Euler loop", "≤ 1.05 ×"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=[], help="rows to measure")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--readme", action="store_true", help="write the table of --out into benchmarks/README.md")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if args.readme and not (args.out and (args.out.exists() or args.only)):
        parser.error("--readme: give the file with the measurements as --out")
    torch.set_num_threads(args.threads)
    found: dict[str, Any] = strict_json.loads(args.out.read_text()) if args.out and args.out.exists() else {}
    if not args.readme or args.only:
        for name in args.only or ROWS:
            found[name] = timed(Row.measure(name)) | {"torch": torch.__version__, "threads": args.threads}
            print(f"{name}: {found[name]['text']} (bar: {ROWS[name].bar}): {verdict(found[name])}", flush=True)
            if args.out:
                args.out.write_text(strict_json.dumps(found, indent=1) + "\n")
    if args.readme:
        write(table(found), "flows.py")


def timed(measure: Callable[[], Seen]) -> dict[str, Any]:
    start = time.perf_counter()
    seen = measure().as_json()
    return seen | {"seconds": round(time.perf_counter() - start, 1)}


def verdict(row: Mapping[str, Any]) -> str:
    return {True: "yes", False: "**no**", None: "–"}[row["holds"]]


def table(found: Mapping[str, Any]) -> str:
    """The rows as a table in Markdown."""
    lines = ["| what | bar | seen | holds |", "| --- | --- | --- | --- |"]
    for name, row in ROWS.items():
        seen = found.get(name, {"text": "not measured", "holds": None})
        lines.append(f"| {row.what} (`{name}`) | {row.bar} | {seen['text']} | {verdict(seen)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if not KEEP_MEMORY.keys() <= os.environ.keys():  # glibc reads them when a process starts
        os.execve(sys.executable, sys.orig_argv, os.environ | KEEP_MEMORY)
    main()
