"""Does the guarantee hold, and what does it cost? Calibrations on random halves of MNIST's held-out and test images.

    python benchmarks/guarantee.py RUN [--data-dir DIR] [--splits 200] [--epsilon 0.002] [--out FILE.json]

A cascade's settings are run once on all images of a trained run that nothing was fitted to. Then, again and again, one
random part calibrates (Learn then Test) and the rest tests: a violation is a chosen setting whose predictions differ
from DOPRI's on more than ε of the rest. The rest, too, is a sample, so "of all" counts the settings that differ on more
than ε of all images, which is what the guarantee is about where these are all that there is. Beside it stands the
setting that hindsight chooses: the cheapest whose risk on the rest is at most ε. The cascade's forecasts are learnt
from training images, without their labels.
"""

import argparse
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from states import Trained, load
from torch import Tensor

import dise
from dise.select import disagreement, exact_binomial, hoeffding_bentkus, nfe_with_overhead, run_candidates
from dise.select.deploy import strict_json
from dise.select.make_dynamic.families import forecast_cascades

REFERENCE = dise.Dopri5(rtol=1e-3, atol=1e-3)
CANDIDATES = (dise.Euler(1), dise.Midpoint(1), dise.RK4(1), dise.RK4(2), REFERENCE)
PARTS = (1 / 4, 1 / 3, 1 / 2)  # of the images calibrate; a third is as many as MNIST's held-out images
P_VALUES = {"exact binomial": exact_binomial, "Hoeffding–Bentkus": hoeffding_bentkus}


@torch.no_grad()
def run_settings(trained: Trained) -> tuple[list[str], Tensor, Tensor]:
    """Settings' names, losses [S, N] and NFE [S, N] on all held-out and test samples."""
    outcomes = run_candidates(trained.part, trained.learn.batches(), CANDIDATES)
    family = forecast_cascades(outcomes, trained.part[1], torch.device("cpu"))
    samples = [*trained.held_out.batches(), *trained.test.batches()]
    block = trained.part[0]
    with block.using(REFERENCE):
        expected = torch.cat([trained.part(h0) for h0, _ in samples])
    losses, nfe = [], []
    for setting in family.settings:
        with block.using(setting), block.recording() as records:
            output = torch.cat([trained.part(h0) for h0, _ in samples])
        losses.append(disagreement(output, expected, output))
        nfe.append(nfe_with_overhead(block, setting, records))
    names = [f"lead of {setting.accept[0].threshold:.2f}" for setting in family.settings]
    return names, torch.stack(losses), torch.stack(nfe).double()


def resplit(
    losses: Tensor,
    nfe: Tensor,
    *,
    calibration: int,
    splits: int,
    epsilon: float,
    delta: float,
    p_value: Callable[[float, int, float], float],
    full: float,
) -> dict[str, float]:
    """Violations and NFE over the splits; settings are the safest first, and `full` is the reference's NFE."""
    number = losses.shape[1]
    generator = torch.Generator().manual_seed(0)
    violations, of_all, chosen_nfe, best_nfe, risks = 0, 0, [], [], []
    for _ in range(splits):
        order = torch.randperm(number, generator=generator)
        here, there = order[:calibration], order[calibration:]
        p = (p_value(mean, calibration, epsilon) for mean in losses[:, here].mean(1).tolist())
        certified = len(list(takewhile(lambda value: value <= delta, p)))
        rest_risk, rest_nfe = losses[:, there].mean(1), nfe[:, there].mean(1)
        pick = int(nfe[:certified, here].mean(1).argmin()) if certified else None
        risk = 0.0 if pick is None else float(rest_risk[pick])
        violations += risk > epsilon
        of_all += pick is not None and float(losses[pick].mean()) > epsilon
        risks.append(risk)
        chosen_nfe.append(full if pick is None else float(rest_nfe[pick]))
        best_nfe.append(float(torch.where(rest_risk <= epsilon, rest_nfe, full).min()))
    mean = {name: sum(values) / splits for name, values in {"nfe": chosen_nfe, "best": best_nfe, "risk": risks}.items()}
    return {
        "calibration": calibration,
        "violations": violations / splits,
        "of all": of_all / splits,
        "mean risk": mean["risk"],
        "NFE": mean["nfe"],
        "NFE with hindsight": mean["best"],
        "excess": mean["nfe"] / mean["best"] - 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory of an ODE-Net")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--epsilon", type=float, default=0.002)
    parser.add_argument("--delta", type=float, default=0.05)
    parser.add_argument("--images", type=int, help="take so many training, held-out and test images only")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    trained = load(args.run, args.data_dir, args.images)
    names, losses, nfe = run_settings(trained)
    full = float(run_candidates(trained.part, trained.test.batches(), [REFERENCE]).nfe.double().mean())
    number = losses.shape[1]
    options = {"splits": args.splits, "epsilon": args.epsilon, "delta": args.delta, "full": full}
    rows = [
        {"p-value": name} | resplit(losses, nfe, calibration=round(part * number), p_value=p_value, **options)
        for name, p_value in P_VALUES.items()
        for part in PARTS
    ]
    settings = {
        name: {"risk": float(loss.mean()), "nfe": float(cost.mean())}
        for name, loss, cost in zip(names, losses, nfe, strict=True)
    }
    table = Table(
        title=f"{trained.name}: {args.splits} splits of {number} images, ε = {args.epsilon:g}, δ = {args.delta:g}"
    )
    for column in rows[0]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)
    if args.out:
        result = {"run": trained.name, "images": number, "reference NFE": full, "settings": settings, "rows": rows}
        args.out.write_text(
            strict_json.dumps(result | {k: options[k] for k in ("splits", "epsilon", "delta")}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
