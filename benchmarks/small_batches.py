"""How long does a dynamic model take on small batches, beside what its evaluations of f take and beside torchdiffeq?

    python benchmarks/small_batches.py [RUN ...] [--data-dir DIR] [--images 2000] [--out FILE.json] [--readme]
    python benchmarks/small_batches.py --from FILE.json --readme

Policies are what `make_dynamic` certifies at ε = 0.002, against the reference, on held-out images among cascades of
Euler, Midpoint, RK4 and two steps of RK4: by the gap between the two largest logits, and by forecasts of the last
candidate's logits. The last candidate is not the reference, which would take 23 calls of f for the one sample in a
thousand that gets there. The ODE part of test images is timed, all policies, f and torchdiffeq's dopri5 at 1e-3 in
turns, in one process: let nothing else run.
The unit time is that of f on the batch, divided by its rows; Σ NFE are all evaluations of the samples. Times are
medians.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from readme import write
from states import Samples, Trained, load
from torch import Tensor

import dise
from dise.select import find_block, run_candidates, time_side_by_side
from dise.select.deploy import strict_json
from dise.select.make_dynamic.families import forecast_cascades, gap_cascades
from dise_experiments.run.timing import TORCHDIFFEQ, TorchdiffeqBlock

ROOT = Path(__file__).parents[1]
RUNS = (ROOT / "results/mnist-long/odenet-error-seed0", ROOT / "results/mnist-cpu/odenet-none-seed0")
REFERENCE = dise.Dopri5(rtol=1e-3, atol=1e-3)
CANDIDATES = (dise.Euler(1), dise.Midpoint(1), dise.RK4(1), dise.RK4(2))
EPSILON = 0.002
REPEATS = {1: 300, 32: 60, 100: 30, 1000: 8}  # by batch size
IDEAL = {1: 2.0, 32: 1.8, 100: 1.5, 1000: 1.3}  # bars: the most that a cascade may take, in units of Σ NFE × unit time
FASTER = {1: 12.0, 32: 16.0, 100: 20.0, 1000: 35.0}  # and how many times faster than torchdiffeq it is at least


def policies(trained: Trained) -> dict[str, dise.Integrator]:
    """The certified cascades by their rules, which are fitted to training images."""
    block, head = find_block(trained.part), trained.part[1]
    outcomes = run_candidates(trained.part, trained.learn.batches(), CANDIDATES)
    families = {"gap": gap_cascades(outcomes, head), "forecast": forecast_cascades(outcomes, head, torch.device("cpu"))}
    found = {}
    for name, family in families.items():
        with block.using(REFERENCE):
            held_out, settings = trained.held_out.batches(), family.settings
            dise.make_dynamic(trained.part, held_out, epsilon=EPSILON, settings=settings, log=print)
            found[name] = block.integrator
    return found


@torch.no_grad()
def measure(
    block: dise.NeuralODE, policies: dict[str, dise.Integrator], samples: Samples, repeats: dict[int, int]
) -> list[dict[str, Any]]:
    """A row per policy and batch size, all policies of a size in turns."""
    rows = []
    # a block each, since exchanging an integrator takes as long as an evaluation of f on one sample
    own = {name: dise.NeuralODE(block.f, policy).eval() for name, policy in policies.items()}
    calls = {TORCHDIFFEQ: TorchdiffeqBlock(block, REFERENCE), "f": block.first_stage}
    for size, number in repeats.items():
        states = [_round(samples, turn * size, size) for turn in range(number)]
        ms = time_side_by_side(calls | own, states)
        for name, solved in own.items():
            nfe = _mean_nfe(solved, states)
            rows.append(
                {
                    "policy": name,
                    "integrator": str(policies[name]),
                    "batch": size,
                    "nfe": nfe,
                    "ms": ms[name],
                    "f_ms": ms["f"],
                    "torchdiffeq_ms": ms[TORCHDIFFEQ],
                    "times_ideal": ms[name] / (ms["f"] * nfe),
                    "times_faster": ms[TORCHDIFFEQ] / ms[name],
                }
            )
    return rows


def _round(samples: Samples, start: int, size: int) -> Tensor:
    """`size` states from `start` on, beginning again after the last."""
    return samples.h0[torch.arange(start, start + size) % len(samples.h0)]


def _mean_nfe(block: dise.NeuralODE, states: list[Tensor]) -> float:
    return float(torch.cat([block.solve(h0).nfe for h0 in states]).double().mean())


def table(report: dict[str, Any]) -> str:
    """The rows and their bars as Markdown."""
    lines = [
        f"{report['threads']} threads; ms per batch of the ODE part. × ideal: time over Σ NFE × unit time; "
        "× faster: than torchdiffeq's dopri5.",
        "",
        "| model | policy | batch | NFE | ms | f, ms | × ideal (bar) | × faster (bar) | holds |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for name, rows in report["runs"].items():
        for row in rows:
            size = int(row["batch"])
            ideal, faster = IDEAL[size], FASTER[size]
            held = [row["times_ideal"] <= ideal, row["times_faster"] >= faster]
            cells = (
                name,
                f"{row['policy']}: {row['integrator']}",
                str(size),
                f"{row['nfe']:.3f}",
                f"{row['ms']:.2f}",
                f"{row['f_ms']:.2f}",
                f"{row['times_ideal']:.2f} (≤ {ideal:g})",
                f"{row['times_faster']:.1f} (≥ {faster:g})",
                "yes" if all(held) else "one" if any(held) else "no",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", default=RUNS, help="run directories of ODE-Nets")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--images", type=int, default=2000, help="training, held-out and test images, so many of each")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--from", type=Path, dest="given", help="JSON file to read instead of measuring")
    parser.add_argument("--readme", action="store_true", help="write the table into benchmarks/README.md")
    args = parser.parse_args()
    if args.given:
        report = strict_json.loads(args.given.read_text(encoding="utf-8"))
    else:
        report = {"threads": torch.get_num_threads(), "torch": torch.__version__, "images": args.images, "runs": {}}
        for run in args.runs:
            trained = load(run, args.data_dir, args.images)
            found = policies(trained)
            report["runs"][f"{run.parent.name}/{run.name}"] = measure(
                find_block(trained.part), found, trained.test, REPEATS
            )
    text = table(report)
    print(text)
    if args.out:
        args.out.write_text(strict_json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if args.readme:
        write(text, "small_batches.py")


if __name__ == "__main__":
    main()
