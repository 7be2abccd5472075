"""The tables of `late_decisions.py` in benchmarks/README.md."""

from collections.abc import Iterable, Mapping
from typing import Any

NONE = "–"


def text(found: Mapping[str, Any]) -> str:
    """All tables in Markdown."""
    fields = {task: row["tolerances"] for task, row in found.items()}
    return "\n\n".join([_chosen(fields, found), _late(fields), _ablation(fields)])


def _chosen(fields: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    rows = []
    for task, tolerances in fields.items():
        for tau, row in tolerances.items():
            single = min((_nfe(row[kind]) for kind in ("single", "other single")), default=None)
            early, gain = row["early"], single - row["oracle"]
            rows.append(
                [
                    task,
                    tau,
                    _shown(row["single"]),
                    _shown(row["other single"]),
                    _shown(early),
                    NONE if early is None else f"{100 * early['risk']:.2f}",
                    NONE if early is None else f"{early['macs'] / found[task]['macs']:.2f}",
                    f"{row['oracle']:.2f}",
                    NONE if early is None else f"{early['nfe'] / single:.2f}",
                    NONE if early is None else f"{(single - early['nfe']) / gain:.2f}",
                ]
            )
    head = ("field", "τ", "best table", "best other", "early", "risk, %", "overhead", "oracle", "÷ best", "of the gain")
    return _table(head, rows)


def _late(fields: Mapping[str, Any]) -> str:
    rows = []
    for task, tolerances in fields.items():
        for tau, row in tolerances.items():
            sets = {name: cells for name, cells in row.items() if name.startswith("after")}
            if sets:
                free = sets.pop("after []")
                cells = [_shown(free["early"])]
                for cell in sets.values():
                    cells += [_shown(cell["single"]), _shown(cell["early"]), _shown(cell["late"])]
                rows.append([task, tau, *cells])
                names = list(sets)
    head = ["field", "τ", "no common steps: early"]
    for name in names:
        where = name.removeprefix("after [").removesuffix("]")
        head += [f"common to {where}: best", "early", "late"]
    return _table(head, rows)


def _ablation(fields: Mapping[str, Any]) -> str:
    rows, names = [], ["early", "128 units", "equal steps"]
    for task, tolerances in fields.items():
        for tau, row in tolerances.items():
            if "128 units" in row:
                few = [name for name in row if name.endswith("draws")]
                rows.append([task, tau, *(_shown(row[name]) for name in [*names, *few])])
                head = ["field", "τ", *names, *few]
    return _table(head, rows)


def _nfe(row: Mapping[str, Any] | None) -> float:
    return float("inf") if row is None else row["nfe"]


def _shown(row: Mapping[str, Any] | None) -> str:
    return NONE if row is None else f"{row['nfe']:.2f}"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    right = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, right, *rows))
