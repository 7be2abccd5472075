"""The cheapest integrator for sets of 32 points of trained flows that keeps the likelihood to 0.01 nats.

    python benchmarks/circles_policy.py RUN... [--sets 256] [--bound 0.01] [--out FILE.json]

RUNs are trained by `dise train circles`. On selection sets, of which none is a test point, each candidate's negative
log-likelihood is compared with the reference's (a solve at 1e-7 on the same points). The cheapest is taken for which
the mean difference of 16 fresh sets lies within the bound with confidence 95 %. It meets the 512 test points in 16
sets, and a larger test. The selector `set` stands beside it if the run was evaluated.
"""

import argparse
from pathlib import Path
from statistics import NormalDist
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import dise
from dise.integrate import FixedStep, Integrator
from dise.integrate.runge_kutta import classical
from dise.select import run_candidates
from dise.select.deploy import strict_json
from dise_experiments.circles.evaluate import SMALL, batches
from dise_experiments.circles.points import sets
from dise_experiments.circles.task import CirclesTask
from dise_experiments.run.rundir import load_model, open_run


class FixedBosh3(FixedStep):
    """Bogacki–Shampine's method of order 3 with equal steps, whose last stage is the next step's first."""

    tableau = classical.BOSH3


CANDIDATES = (
    *CirclesTask.candidates[:-1],
    *(dise.RK38(steps) for steps in (5, 8, 10, 16)),
    *(FixedBosh3(steps) for steps in (5, 8, 10, 12, 14, 16, 20, 30)),
    CirclesTask.candidates[-1],
)


@torch.no_grad()
def differences(model: nn.Module, x: Tensor, candidates: tuple[Integrator, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """NLL minus the reference's [N, K], NFE [N, K], and the reference's NLL [N] of sets [N, 32, 2]."""
    pairs = [((sets,), target) for sets, target in batches(model, x, "set")]
    outcomes = run_candidates(model, pairs, candidates)
    reference = -outcomes.target.double().mean(-1)
    return -outcomes.output.double().mean(-1) - reference[:, None], outcomes.nfe.double(), reference


def choose(off: Tensor, nfe: Tensor, bound: float) -> int:
    """Index of the cheapest candidate whose difference, of 16 fresh sets, is within the bound; else the last one's."""
    # 95 % prediction interval of the mean of 16 more draws
    half_width = NormalDist().inv_cdf(0.975) * off.std(0) * (1 / len(off) + 1 / SMALL) ** 0.5
    price = torch.where(off.mean(0).abs() + half_width <= bound, nfe.mean(0), torch.inf)
    return int(price.argmin()) if price.isfinite().any() else off.shape[1] - 1


def score(path: Path, number: int, bound: float) -> dict[str, Any]:
    """What is chosen for a run, and what it does on the test sets."""
    config = open_run(path)
    settings = config.found[1]
    model = load_model(path, config)
    off, nfe, _ = differences(model, sets(settings.target, number, "selection"), CANDIDATES)
    index = choose(off, nfe, bound)
    policy = CANDIDATES[index]
    row: dict[str, Any] = {
        "run": config.name,
        "policy": str(policy),
        "on selection sets": float(off[:, index].mean()),
    }
    tests = {"test": SMALL, "large test": settings.test_sets}
    for name, count in tests.items():
        there, cost, reference = differences(model, sets(settings.target, count, name), (policy, CANDIDATES[-1]))
        row[name] = {
            "sets": count,
            "nfe": float(cost[:, 0].sum()),
            "reference_nfe": float(cost[:, 1].sum()),
            "reference_nll": float(reference.mean()),
            "difference": float(there[:, 0].mean()),
            "difference_of_dopri": float(there[:, 1].mean()),
        }
    return row | {"DISE": _selected(path)}


def _selected(path: Path) -> dict[str, float] | None:
    """What `dise evaluate` found for the selector `set` on the 16 sets, its multiply–adds included."""
    file = path / "metrics.json"
    if not file.exists():
        return None
    for row in strict_json.loads(file.read_text())["policies"]:
        if row["policy"] == "DISE (set)" and row["unit"] == "set":
            small = row["small"]
            nfe = small["nfe_sum"] + SMALL * row["selector_macs"]
            return {"nfe": nfe, "difference": small["nll"] - small["reference"]}
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run directories of flows")
    parser.add_argument("--sets", type=int, default=256, help="selection sets to choose on")
    parser.add_argument("--bound", type=float, default=0.01, help="nats")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    rows = [score(path, args.sets, args.bound) for path in args.runs]
    table = Table(title=f"16 sets of 32 points: NFE, and NLL minus the reference's, chosen for at most {args.bound:g}")
    for name in ("run", "policy", "NFE", "difference", "large test", "DOPRI 1e-5", "DISE (set)", "difference"):
        table.add_column(name)
    for row in rows:
        test, selected = row["test"], row["DISE"]
        values = [f"{test['nfe']:.0f}", f"{test['difference']:+.4f}", f"{row['large test']['difference']:+.4f}"]
        values.append(f"{test['reference_nfe']:.0f}")
        values += [f"{selected['nfe']:.0f}", f"{selected['difference']:+.4f}"] if selected else ["–", "–"]
        table.add_row(row["run"], row["policy"], *values)
    Console(width=130).print(table)
    if args.out:
        about = {"bound": args.bound, "selection sets": args.sets, "runs": rows}
        args.out.write_text(strict_json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
