"""Early or late: does a draw get its budget from its noise alone, or after its first evaluations?

    python benchmarks/late_decisions.py [TASK ...] [--learn 12000] [--out results/late.json] [--readme]

Every candidate is a table, run on all draws of a trained field (results/flows-cpu); posteriors have an observation for
each draw, from the simulator. A selector predicts the probability that a table is adequate, from the noise, f there and
the observation ("early"), or from the first two or three values of f too, which all of its tables share ("late"). Its
dial is certified by Learn then Test at ε = 1 %, δ = 5 %; NFE and risk are those of fresh draws, with all evaluations of
f counted, and do not depend on the machine. `--readme` writes the tables of the file of `--out` into
benchmarks/README.md.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from flow_bars.fields import POINTS, Draws
from flow_budgets.outcomes import (
    PREFIXES,
    Outcomes,
    draws_of,
    outcomes,
    reference,
    single_candidates,
    tables,
    velocities,
)
from flow_budgets.readme import text
from flow_budgets.selectors import Field, Split, best_single, oracle, policy
from readme import write
from torch import Tensor

from dise import Multistep
from dise.flow.certified.varied_tables import STEPS, varied_tables
from dise.select.deploy import strict_json
from dise.select.policies.overhead import count_macs

TAUS = (0.1, 0.03, 0.01)
LATE_TAUS = (0.03, 0.01)
ABLATION = 0.03
EQUAL_STEPS = [Multistep.adams(n, order) for n in STEPS for order in (2, 3)]
FEW = 4000  # draws to learn from, in a comparison


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="*", choices=[*POINTS, []], default=[], help="tasks to measure")
    parser.add_argument("--learn", type=int, default=12_000, help="draws to learn from")
    parser.add_argument("--test", type=int, default=3000, help="draws to certify on, and as many fresh ones")
    parser.add_argument("--out", type=Path, help="JSON file, to which tasks are added")
    parser.add_argument("--readme", action="store_true", help="write the tables of --out into benchmarks/README.md")
    args = parser.parse_args()
    if args.readme and not args.out:
        parser.error("--readme: give the file with the measurements as --out")
    torch.set_num_threads(1)
    for task in args.task or (() if args.readme else POINTS):
        began = time.process_time()
        found = points(task, Split(args.learn, args.test, args.test))
        found |= {"cpu seconds": round(time.process_time() - began), "torch": torch.__version__}
        print(task, strict_json.dumps(found, indent=1), flush=True)
        if args.out:
            args.out.write_text(strict_json.dumps(stored(args.out) | {task: found}, indent=1) + "\n")
    if args.readme:
        write(text(stored(args.out)), "late_decisions.py")


def stored(path: Path) -> dict[str, Any]:
    """What a file has of earlier runs."""
    return strict_json.loads(path.read_text()) if path.exists() else {}


def points(task: str, split: Split) -> dict[str, Any]:
    """Early and late choices on a field of points."""
    draws = draws_of(task, split.total)
    ends, tight = reference(draws)
    one = draws.rows(slice(1))
    found = outcomes(draws, ends, varied_tables())
    field = Field(draws, velocities(draws, varied_tables()[0], 1)[0], tight, split)
    others = _singles(draws, ends, split)
    rows = {str(tau): early(field, found, tau) | {"other single": others[tau]} for tau in TAUS}
    same = found.take(range(len(tables())))
    for tau in LATE_TAUS:
        rows[str(tau)]["after []"] = compared(field, same, tau)
    rows[str(ABLATION)] |= ablation(field, found, ABLATION)
    for prefix in PREFIXES:
        found = outcomes(draws, ends, tables(prefix))
        values = velocities(draws, tables(prefix)[-1], len(prefix) + 1)[1:]
        for tau in LATE_TAUS:
            rows[str(tau)][f"after {list(prefix)}"] = compared(field, found, tau, values)
    return {
        "split": split.__dict__,
        "reference nfe": float(tight.double().mean()),
        "macs": count_macs(lambda: draws.f(torch.zeros(1, 1), one.noise, *one.conditions)),
        "tolerances": rows,
    }


def early(field: Field, found: Outcomes, tau: float) -> dict[str, Any]:
    """The early choice among all tables, the best one, and the oracle."""
    return {
        "single": best_single(found, tau, field.split),
        "oracle": oracle(found, field.tight, tau, field.split),
        "early": policy(field, found, tau),
    }


def ablation(field: Field, found: Outcomes, tau: float) -> dict[str, Any]:
    """The early choice by a wider network, from fewer draws, and among tables of equal steps alone."""
    split = field.split
    few = Split(min(FEW, split.learn), split.certify, split.fresh)
    last = slice(split.learn - few.learn, None)  # the same draws to certify on, and fresh ones
    equal = [i for i, table in enumerate(found.candidates) if table in EQUAL_STEPS]
    return {
        "128 units": policy(field, found, tau, hidden=128),
        f"{few.learn} draws": policy(field.rows(last, few), found.rows(last), tau),
        "equal steps": policy(field, found.take(equal), tau),
    }


def compared(field: Field, found: Outcomes, tau: float, values: Sequence[Tensor] = ()) -> dict[str, Any]:
    """Early and late choices among the same tables, whose first values of f are the late ones' to see."""
    row = early(field, found, tau)
    return row | {"late": policy(field.seeing(values), found, tau)} if values else row


def _singles(draws: Draws, ends: Tensor, split: Split) -> dict[float, dict[str, Any] | None]:
    """The best of the other single candidates for each tolerance, on the draws that nothing is learnt from."""
    rest = slice(split.learn, None)
    found = outcomes(draws.rows(rest), ends[rest], single_candidates())
    return {tau: best_single(found, tau, Split(0, split.certify, split.fresh)) for tau in TAUS}


if __name__ == "__main__":
    main()
