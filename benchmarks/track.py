"""Which ratios became worse from one committed measurement to the next?

    python benchmarks/track.py [--limit 1.05] [--all]

Benchmarks measure ratios in one run: dise beside torchdiffeq or diffrax, a step of a method beside another. Their JSON
files in results/ are committed, so the history of every ratio is git's. Printed are those whose last two revisions
differ by more than the limit, the worse ones first, or with `--all` every ratio. Smaller is better in all of them. Exit
status 1 says that one became worse. Files at revisions that had another form are left out.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from dise.select.deploy import strict_json

Ratios = dict[str, float]
REVISIONS = 20  # of a file, from the last one, that are looked at


class Entry(NamedTuple):
    """A ratio at a revision."""

    revision: str
    date: str
    ratio: float


def solver(data: Any) -> Ratios:
    """A step of each library's way beside torchdiffeq's."""
    return {
        f"{case}: {name} / torchdiffeq": row["ms_step"] / rows["torchdiffeq"]["ms_step"]
        for case, rows in data["results"].items()
        for name, row in rows.items()
        if name.startswith("dise")
    }


def ragged(data: Any) -> Ratios:
    """Spans of different lengths beside torchdiffeq."""
    return {"ragged spans: dise / torchdiffeq": data["ways"]["dise"]["ms"] / data["ways"]["torchdiffeq"]["ms"]}


def timing(data: Any) -> Ratios:
    """The ODE part of a model by each policy beside torchdiffeq."""
    theirs, *ours = data["ode_ms"].items()
    return {f"ODE part: {name} / {theirs[0]}": ms / theirs[1] for name, ms in ours}


def flows(data: Any) -> Ratios:
    """Steps of multistep methods beside a loop by hand, and exact log-densities beside the faster of two libraries."""
    steps = {
        f"step of {method}, {case} / by hand": ratio
        for case, row in data["speed"]["numbers"].items()
        for method, ratio in row["ratios"].items()
    }
    cases = data["density"]["numbers"] if "density" in data else {}
    return steps | {f"log p, {name} / the fastest other": 1 / case["factor"] for name, case in cases.items()}


def clients(data: Any) -> Ratios:
    """Calls of other libraries on dise beside their own."""
    return {
        f"{name}, {kind} / theirs": row[kind]["ratio"]
        for name, row in data.items()
        for kind in ("equal", "certified")
        if kind in row
    }


SOURCES: Mapping[str, Callable[[Any], Ratios]] = {
    "results/solver/solver.json": solver,
    "results/solver/ragged.json": ragged,
    "results/mnist-cpu/odenet-none-seed0/timing.json": timing,
    "results/mnist-cpu/odenet-error-seed0/timing.json": timing,
    "results/flows.json": flows,
    "results/clients.json": clients,
}


def history(root: Path, file: str, ratios_of: Callable[[Any], Ratios]) -> dict[str, list[Entry]]:
    """Each ratio of a file at its committed revisions, the oldest first, and last as it is in the working tree."""
    found: dict[str, list[Entry]] = {}
    log = _git(root, "log", f"--max-count={REVISIONS}", "--format=%h %as", "--", file).splitlines()
    versions = [(*line.split(), _git(root, "show", f"{line.split()[0]}:{file}")) for line in reversed(log)]
    if (root / file).exists():
        now = (root / file).read_text(encoding="utf-8")
        versions += [("now", "", now)] if not versions or now != versions[-1][2] else []
    for revision, date, text in versions:
        for name, ratio in _ratios(text, ratios_of).items():
            found.setdefault(name, []).append(Entry(revision, date, ratio))
    return found


def _ratios(text: str, ratios_of: Callable[[Any], Ratios]) -> Ratios:
    try:
        return ratios_of(strict_json.loads(text))
    except (KeyError, TypeError, AttributeError, ValueError):  # another form, or deleted at that revision
        return {}


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    return done.stdout


def changes(root: Path) -> list[tuple[str, list[Entry], float]]:
    """(ratio's name, its entries, last / last but one) of all files, the worst first; 1 where there is one entry."""
    rows = []
    for file, ratios_of in SOURCES.items():
        for name, entries in history(root, file, ratios_of).items():
            change = entries[-1].ratio / entries[-2].ratio if len(entries) > 1 else 1.0
            rows.append((f"{Path(file).parent.name}: {name}", entries, change))
    return sorted(rows, key=lambda row: -row[2])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, default=1.05, help="a change by more than this factor is printed")
    parser.add_argument("--all", action="store_true", help="print every ratio")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="the checkout")
    args = parser.parse_args()
    if args.limit <= 1:
        parser.error(f"argument --limit: expected a number above 1, got {args.limit}")
    found = changes(args.root)
    table = Table("ratio", "before", "last", "change", "revisions", title="Ratios of committed measurements")
    for name, entries, change in found:
        if args.all or not 1 / args.limit <= change <= args.limit:
            before = f"{entries[-2].ratio:.3f} ({entries[-2].revision})" if len(entries) > 1 else "–"
            last = f"{entries[-1].ratio:.3f} ({entries[-1].revision})"
            table.add_row(name, before, last, f"{change:.2f} ×", str(len(entries)))
    Console().print(table)
    return 1 if found and found[0][2] > args.limit else 0


if __name__ == "__main__":
    sys.exit(main())
