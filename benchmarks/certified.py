"""Samplers and densities of flows with a guarantee, beside their bars.

    python benchmarks/certified.py [TASK ...] [--only samples log_prob] [--scale 1.0] [--out results/certified.json]
    python benchmarks/certified.py --out results/certified.json --readme

Six tasks: two distributions in the plane, three amortized posteriors, digits with labels; the fields are those in
results/flows-cpu. ε = 1 %, δ = 5 %, τ = 0.03 (root mean square distance per draw, in the data's unit) or 0.01 nats.
Tables are fitted to points as by default, to digits none; "unfitted" is the same without them. Rows of this scale that
the file of `--out` has are kept; `--again` measures them, too. `--scale` multiplies numbers of draws. Each row takes
minutes, digits a quarter of an hour on one core. `--readme` measures nothing: it writes the file's rows and the bars
into benchmarks/README.md.
"""

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fit_solver import flow_of
from flow_bars.seen import Seen
from readme import write
from rich.console import Console
from rich.table import Table
from torch import Tensor

from dise import Adams, Dopri5, Integrator, Multistep, grids
from dise.flow import Flow
from dise.flow.certified.candidates import default_candidates
from dise.flow.certified.families import FAMILIES
from dise.flow.certified.fitted_tables import EVALUATIONS
from dise.flow.certified.make_sampler import share_draws
from dise.flow.certified.prepare import Prepared, draw_inputs, prepare
from dise.select import LogProbDeviation, OutputDeviation, calibrate, exact_binomial
from dise.select.deploy import strict_json
from dise.select.guarantee.risk import Risk, losses
from dise.select.model.run import run_model
from dise_experiments.flows.c2st import c2st

PLANE, POSTERIORS = ("checkerboard", "moons"), ("two_moons", "slcp", "gaussian_mixture")
TASKS = (*PLANE, *POSTERIORS, "digits")
EPSILON, DELTA, TAU, NATS = 0.01, 0.05, 0.03, 0.01
DRAWS, FRESH = {"points": 60_000, "digits": 2000}, {"points": 100_000, "digits": 500}
RECALIBRATIONS, COMPARED, EPOCHS = 200, 2000, 100
RATIO, SHARE, LOG_PROB = 0.75, 0.5, 1 / 3  # the bars
DIGITS = (
    *(Multistep.adams(n, corrector=True) for n in (6, 8, 10, 12, 14)),
    *(Multistep.adams(n, 3) for n in (6, 24)),
    *(Multistep.adams(grids.sway(n, -0.3), 3) for n in (8, 12)),
    *(Multistep.adams(grids.sway(n, -0.5), 3) for n in (16, 20)),
    *(Adams(rtol=t, atol=t) for t in (0.02, 0.005, 0.00125)),
)
TIGHT = {"points": Dopri5(rtol=1e-6, atol=1e-6), "digits": Adams(rtol=3e-4, atol=3e-4)}


class Outcomes(NamedTuple):
    """Each setting on N fresh draws."""

    lost: Tensor  # [N, S] losses
    nfe: Tensor  # [N, S]


def samples(task: str, scale: float) -> dict[str, Any]:
    """The row of one task's samples."""
    kind = "digits" if task == "digits" else "points"
    flow, condition = flow_of(task)
    tight, risk = TIGHT[kind], OutputDeviation(TAU)
    candidates = DIGITS if kind == "digits" else default_candidates(risk)
    fitted = () if kind == "digits" else EVALUATIONS
    draws = int(DRAWS[kind] * scale)
    prepared, row = certified(flow, condition, risk, tight, candidates, fitted, draws, kind)
    fresh = outcomes(prepared, flow, condition, int(FRESH[kind] * scale), batch_of(kind))
    row |= recalibrated(prepared, fresh)
    if kind == "points":
        row |= compared(prepared, flow, condition, tight)
    return row


def unfitted(task: str, scale: float) -> dict[str, Any]:
    """The row of one task's samples without fitted tables."""
    flow, condition = flow_of(task)
    risk, tight = OutputDeviation(TAU), TIGHT["points"]
    draws = int(DRAWS["points"] * scale)
    prepared, row = certified(flow, condition, risk, tight, default_candidates(risk), (), draws, "points")
    fresh = outcomes(prepared, flow, condition, int(FRESH["points"] * scale), batch_of("points"))
    return row | recalibrated(prepared, fresh)


def log_prob(task: str, scale: float) -> dict[str, Any]:
    """The row of one task's log-densities."""
    flow, condition = flow_of(task)
    risk, tight = LogProbDeviation(NATS), TIGHT["points"]
    draws = int(DRAWS["points"] * scale / 2)  # with divergences an evaluation costs several
    prepared, row = certified(flow, condition, risk, tight, default_candidates(risk), (), draws, "points")
    fresh = outcomes(prepared, flow, condition, int(FRESH["points"] * scale / 4), 1024)
    row |= recalibrated(prepared, fresh)
    return row | {"ratio to the reference": row["nfe"] / row["reference nfe"]}


def batch_of(kind: str) -> int:
    return 32 if kind == "digits" else 1024


def certified(
    flow: Flow,
    condition: Any,
    risk: Risk,
    tight: Integrator,
    candidates: Any,
    fitted: tuple[int, ...],
    draws: int,
    kind: str,
) -> tuple[Prepared, dict[str, Any]]:
    """What `make_sampler` makes, and the cheapest single candidate that a test of its own certifies with all of δ."""
    began = time.process_time()
    prepared = prepare(
        flow,
        share_draws(draws, EPSILON, DELTA),
        risk=risk,
        condition=condition,
        reference=tight,
        candidates=candidates,
        fitted=fitted,
        families=FAMILIES,
        epsilon=EPSILON,
        batch=batch_of(kind),
        seed=0,
        log=lambda line: print(f"[{time.process_time() - began:.0f} s] {line}", flush=True),
    )
    found = prepared.certify(EPSILON, DELTA)
    prepared.block.integrator = found.integrator
    report = prepared.report(found)
    print(report, flush=True)
    common = {"reference": tight, "epsilon": EPSILON, "risk": risk, "p_value": exact_binomial, "block": prepared.block}
    alone = calibrate(prepared.model, prepared.choice.singles, prepared.test, delta=DELTA, **common)
    single = min((t for t in alone.tests if t.certified), key=lambda t: t.nfe, default=None)
    single_nfe = alone.reference_nfe if single is None else single.nfe
    comparison = report.comparison
    nfe = report.nfe
    return prepared, {
        "policy": str(found.integrator),
        "family": report.family,
        "families": {name: round(value, 3) for name, value in report.families.items()},
        "nfe": nfe,
        "decisions": comparison.overhead,
        "single": "the reference" if single is None else str(single.integrator),
        "single nfe": single_nfe,
        "oracle": comparison.oracle,
        "reference nfe": report.reference_nfe,
        "ratio": nfe / single_nfe,
        "ratio without decisions": (nfe - comparison.overhead) / single_nfe,
        "share": (single_nfe - nfe) / (single_nfe - comparison.oracle),
        "risk": report.risk,
        "milliseconds": None if report.timing is None else vars(report.timing),
        "draws": comparison.draws,
        "fitted": {"tables": comparison.fitted, "draws": comparison.fit_draws},
        "cpu seconds": round(time.process_time() - began, 1),
        "torch": torch.__version__,
    }


@torch.no_grad()
def outcomes(prepared: Prepared, flow: Flow, condition: Any, number: int, batch: int) -> Outcomes:
    """All settings that are tested, on fresh draws."""
    density = isinstance(prepared.risk, LogProbDeviation)
    inputs = draw_inputs(flow, number, condition, prepared.reference, density=density, batch=batch, seed=1)
    lost, nfe = [], []
    for part in inputs.split(batch):
        expected = run_model(prepared.model, prepared.block, prepared.reference, part).output
        runs = [run_model(prepared.model, prepared.block, s, part) for s in settings(prepared)]
        lost.append(torch.stack([losses(prepared.risk, run.output, expected, None) for run in runs], 1))
        nfe.append(torch.stack([run.solves[0].solution.nfe for run in runs], 1))
    return Outcomes(torch.cat(lost).double(), torch.cat(nfe).double())


def settings(prepared: Prepared) -> list[Integrator]:
    return [setting for sequence in prepared.choice.sequences for setting in sequence]


def recalibrated(prepared: Prepared, fresh: Outcomes) -> dict[str, Any]:
    """How often the test takes a setting whose risk is above ε, with the fresh draws as the population.

    The sets to test on are drawn from it with replacement, so the risk of each setting is known exactly.
    """
    sequences = prepared.choice.sequences
    columns = torch.arange(len(settings(prepared))).split([len(s) for s in sequences])
    risks, prices, number = fresh.lost.mean(0), fresh.nfe.mean(0), prepared.numbers[2]
    generator = torch.Generator().manual_seed(0)
    violations, taken = 0, []
    for _ in range(RECALIBRATIONS):
        rows = torch.randint(len(fresh.lost), (number,), generator=generator)
        means = fresh.lost[rows].mean(0)
        passed = []
        for sequence in columns:
            for i in sequence.tolist():
                if exact_binomial(float(means[i]), number, EPSILON) > DELTA / len(sequences):
                    break
                passed.append(i)
        best = min(passed, key=lambda i: float(prices[i]), default=None)
        violations += best is not None and float(risks[best]) > EPSILON
        taken.append(float(prices[best]) if best is not None else float("nan"))
    every = settings(prepared)
    chosen = next((i for i, s in enumerate(every) if s is prepared.block.integrator), None)
    return {
        "fresh draws": len(fresh.lost),
        "fresh risk": None if chosen is None else float(risks[chosen]),
        "violations": violations / RECALIBRATIONS,
        "recalibrations": RECALIBRATIONS,
        "mean nfe taken": float(torch.tensor(taken).nanmean()),
    }


def compared(prepared: Prepared, flow: Flow, condition: Any, tight: Integrator) -> dict[str, float]:
    """C2ST of draws with their conditions: policy and reference, and two seeds of the reference."""
    model, block, policy = prepared.model, prepared.block, prepared.block.integrator

    @torch.no_grad()
    def drawn(seed: int, integrator: Integrator) -> Tensor:
        inputs = draw_inputs(flow, COMPARED, condition, tight, density=False, batch=1024, seed=seed)
        run = run_model(model, block, integrator, inputs)
        return torch.cat([run.output, *(c for c in inputs.positional[1:])], dim=1)

    reference = drawn(2, tight)
    other = {"c2st": drawn(3, policy), "c2st floor": drawn(3, tight)}
    return {name: c2st(reference, points, epochs=EPOCHS) for name, points in other.items()}


# ---- the bars


def bars(rows: dict[str, Any]) -> dict[str, Seen]:
    """The bars, as far as the rows have been measured."""
    seen = {task: row for task in TASKS if (row := rows.get(f"samples {task}"))}
    densities = {task: row for task in POSTERIORS if (row := rows.get(f"log_prob {task}"))}
    everything = list(rows.values())
    allowed = DELTA + 2 * (DELTA * (1 - DELTA) / RECALIBRATIONS) ** 0.5
    shares = [row["share"] >= SHARE for row in seen.values()]
    apart = [row["c2st"] - row["c2st floor"] for row in seen.values() if "c2st" in row]
    cheap = [row["ratio to the reference"] <= LOG_PROB for row in densities.values()]
    classical = {
        task: {"ratio": row["nfe"] / other["single nfe"]}
        for task, row in seen.items()
        if (other := rows.get(f"unfitted {task}"))
    }
    return {
        f"NFE ≤ {RATIO} × the best single on ≥ 4 of 6, never above 1 ×": _cheaper(seen),
        "the same beside the best single that is not fitted": _cheaper(classical),
        f"share of the oracle's gain ≥ {SHARE} on ≥ 3 of 6": Seen(_values(seen, "share"), sum(shares) >= 3),
        f"violations ≤ {allowed:.1%} of {RECALIBRATIONS}": Seen(
            f"at most {max((r['violations'] for r in everything), default=1):.1%} in {len(everything)} rows",
            all(row["violations"] <= allowed for row in everything) and bool(everything),
        ),
        "log p certified at ≤ 1/3 of Dopri5 1e-6's NFE on ≥ 3 posteriors": Seen(
            _values(densities, "ratio to the reference") or "not measured",
            sum(cheap) >= 3 if len(cheap) == len(POSTERIORS) else None,
        ),
        "C2ST within 0.01 of that of two seeds of the reference": Seen(
            f"at most {max(apart, default=1):+.4f}", max(apart, default=1) <= 0.01
        ),
    }


def _cheaper(rows: dict[str, Any]) -> Seen:
    """Four tasks that save enough hold the bar, three that do not miss it; between them it is open."""
    ratios = [row["ratio"] for row in rows.values()]
    saved, largest = sum(ratio <= RATIO for ratio in ratios), max(ratios, default=2.0)
    missed = largest > 1 or len(ratios) - saved > len(TASKS) - 4
    return Seen(_values(rows, "ratio") or "not measured", False if missed else True if saved >= 4 else None)


def _values(rows: dict[str, Any], name: str) -> str:
    return ", ".join(f"{task} {row[name]:.2f}" for task, row in rows.items())


def verdict(found: Seen) -> str:
    return {True: "yes", False: "**no**", None: "–"}[found.holds]


def show(rows: dict[str, Any]) -> None:
    table = Table(title="Mean NFE per draw; ratios count decisions")
    names = (
        "row",
        "reference",
        "single",
        "NFE",
        "decisions",
        "oracle",
        "ratio",
        "share",
        "risk",
        "fresh",
        "violations",
    )
    for name in names:
        table.add_column(name, justify="left" if name == "row" else "right")
    for name, row in rows.items():
        keys = ("reference nfe", "single nfe", "nfe", "decisions", "oracle", "ratio", "share")
        fresh = "–" if row["fresh risk"] is None else f"{row['fresh risk']:.2%}"
        risks = (f"{row['risk']:.2%}", fresh, f"{row['violations']:.1%}")
        table.add_row(name, *(f"{row[key]:.2f}" for key in keys), *risks)
    console = Console(width=130)
    console.print(table)
    for name, found in bars(rows).items():
        console.print(f"{name}: {found.text}: {verdict(found)}")


def markdown(rows: dict[str, Any]) -> str:
    """The rows and the bars as tables."""
    lines = ["| row | draws | reference | single | policy | oracle | ratio | share of the gain | risk on fresh draws |"]
    lines.append("| --- " + "| ---: " * 8 + "|")
    for name, row in rows.items():
        keys = ("reference nfe", "single nfe", "nfe", "oracle", "ratio", "share")
        fresh = "–" if row["fresh risk"] is None else f"{row['fresh risk']:.2%}"
        lines.append(f"| {name} | {sum(row['draws']):,} | {' | '.join(f'{row[key]:.2f}' for key in keys)} | {fresh} |")
    lines += ["", "| bar | seen | holds |", "| --- | --- | --- |"]
    lines += [f"| {name} | {found.text} | {verdict(found)} |" for name, found in bars(rows).items()]
    return "\n".join(lines)


MEASURES = {
    "samples": (samples, TASKS),
    "unfitted": (unfitted, (*PLANE, *POSTERIORS)),
    "log_prob": (log_prob, POSTERIORS),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="*", help=", ".join(TASKS))
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the numbers of draws")
    parser.add_argument("--again", action="store_true", help="measure rows that the file has, too")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file to add rows to")
    parser.add_argument("--readme", action="store_true", help="write the rows of --out into benchmarks/README.md")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows: dict[str, Any] = strict_json.loads(args.out.read_text()) if args.out and args.out.exists() else {}
    if args.readme:
        write(markdown(rows), "certified.py")
        return
    for what in args.only:
        measure, tasks = MEASURES[what]
        for task in args.task or tasks:
            name = f"{what} {task}"
            known = name in rows and rows[name]["scale"] == args.scale
            if task not in tasks or (known and not args.again):
                continue
            rows[name] = measure(task, args.scale) | {"scale": args.scale, "threads": args.threads}
            if args.out:
                args.out.write_text(strict_json.dumps(rows, indent=1) + "\n")
    show(rows)


if __name__ == "__main__":
    main()
