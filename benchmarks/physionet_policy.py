"""The cheapest certified policy for the mortality of PhysioNet 2012, on trained Latent ODEs that read z(t_end).

    python benchmarks/physionet_policy.py RUN... [--data-dir DIR] [--tau 0.05] [--epsilon 0.02] [--out FILE.json]

`make_dynamic` gets the held-out records, without their labels: with confidence 95 % the probability of death is off
DOPRI's by more than τ for at most a part ε of the records. Then the test records and set b, once: areas under the ROC
curve with paired bootstrap intervals of the difference, how often a probability moved by more than τ, and NFE with what
the policy looks at (a selector, the classifier of a cascade) in multiply–adds of f.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_auroc

import dise
from dise.select import ProbabilityShift, find_block, nfe_with_overhead
from dise.select.deploy import strict_json
from dise_experiments.common.statistics import bootstrap_auroc, interval
from dise_experiments.physionet.model import LATENT, TRAINING_INTEGRATOR, LatentODE
from dise_experiments.physionet.records import Records
from dise_experiments.physionet.starts import encoded
from dise_experiments.run.rundir import load_model, open_run

STEPS = {dise.Euler: (1, 2, 4, 6, 8, 12, 16), dise.Midpoint: (1, 2, 3, 4, 6), dise.RK4: (1, 2, 3, 4, 6)}
# the fields are dissipative: Euler's steps have to be small for stability more than for accuracy
DAMPED = tuple(
    dise.RKC1(steps, stages, damping)
    for steps in (1, 2, 3)
    for stages in range(2, 9)
    for damping in (0.03, 0.1, 0.3)
    if steps * stages <= 10
)
CANDIDATES = (*(method(steps) for method, numbers in STEPS.items() for steps in numbers), *DAMPED)


class Ends(nn.Module):
    """z(0) and the end of each stay, in one tensor [n, 21] → logits [n]."""

    def __init__(self, model: LatentODE) -> None:
        super().__init__()
        self.block, self.classifier = model.block, model.classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.block(x[:, :LATENT], t1=x[:, LATENT])).squeeze(-1)


def rows_of(model: LatentODE, records: Records) -> tuple[Tensor, Tensor]:
    """Inputs [N, 21] of `Ends` and labels [N]."""
    starts = encoded(model, records)
    x = torch.cat([torch.cat([s.mean, s.end[:, None]], dim=1) for s, _ in starts])
    return x, torch.cat([labels for _, labels in starts])


@torch.no_grad()
def run(model: Ends, x: Tensor, integrator: dise.Integrator) -> tuple[Tensor, Tensor]:
    """Probabilities [N] and NFE [N], the policy's looking included."""
    block = model.block
    with block.using(integrator), block.recording() as records:
        p = torch.cat([model(part).sigmoid() for part in x.split(60)])
    nfe = nfe_with_overhead(block, integrator, records)
    return p, nfe


def compare(model: Ends, x: Tensor, labels: Tensor, policy: dise.Integrator, tau: float) -> dict[str, Any]:
    """The policy beside DOPRI on these records."""
    (p, nfe), (q, reference_nfe) = run(model, x, policy), run(model, x, TRAINING_INTEGRATOR)
    draws = bootstrap_auroc(torch.stack([p, q]), labels)
    area = float(binary_auroc(p, labels.long()))
    return {
        "auroc": area,
        "difference": area - float(binary_auroc(q, labels.long())),
        "interval": interval(draws[:, 0] - draws[:, 1]),
        "moved": float(((p - q).abs() > tau).double().mean()),
        "nfe": float(nfe.mean()),
        "reference_nfe": float(reference_nfe.mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run directories of z_end models")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--tau", type=float, default=0.05)
    parser.add_argument("--epsilon", type=float, default=0.02)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    console, splits, results = Console(width=140), None, []
    table = Table(title=f"probabilities off by more than τ = {args.tau:g} for at most ε = {args.epsilon:g}")
    for name in ("run", "policy", "records", "AUROC", "− DOPRI", "95 %, paired", "moved", "NFE", "DOPRI's"):
        table.add_column(name)
    for path in args.runs:
        config = open_run(path)
        task, settings = config.found
        splits = splits or task.load(settings, args.data_dir)
        latent = load_model(path, config)
        model = Ends(latent).eval()
        held_out = rows_of(latent, splits.held_out)[0].split(64)
        dise.make_dynamic(
            model,
            held_out,
            risk=ProbabilityShift(args.tau),
            epsilon=args.epsilon,
            head=model.classifier,
            candidates=CANDIDATES,
            log=console.print,
        )
        report = find_block(model).report
        result = {"run": config.name, "report": report.to_json()}
        for part, records in {"test": splits.test, "set b": splits.set_b}.items():
            got = result[part] = compare(model, *rows_of(latent, records), report.policy, args.tau)
            low, high = got["interval"]
            values = (f"{got['auroc']:.4f}", f"{got['difference']:+.4f}", f"{low:+.4f} … {high:+.4f}")
            counts = (f"{got['moved']:.2%}", f"{got['nfe']:.2f}", f"{got['reference_nfe']:.2f}")
            table.add_row(config.name, str(report.policy), part, *values, *counts)
        results.append(result)
    console.print(table)
    if args.out:
        about = {"tau": args.tau, "epsilon": args.epsilon, "runs": results}
        args.out.write_text(strict_json.dumps(about, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
