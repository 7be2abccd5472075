"""What becomes of a guarantee where the data are others: rotated digits.

    python benchmarks/shift.py RUN [--data-dir DIR] [--epsilon 0.005] [--images 2000] [--out FILE.json]

`make_dynamic` calibrates on held-out digits as they are; the policy then meets test digits rotated by some angle. For
each angle: how often its prediction is another one than DOPRI's, both accuracies, and the mean NFE, which tells of the
shift without labels and without DOPRI.
"""

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import dise
from dise.select import find_block
from dise.select.deploy import strict_json
from dise_experiments.mnist.data import Batches
from dise_experiments.run.rundir import load_model, open_run

REFERENCE = dise.Dopri5(rtol=1e-3, atol=1e-3)
ANGLES = (0, 10, 20, 30, 45, 60, 90)


def rotated(x: Tensor, degrees: float) -> Tensor:
    """Images [n, 1, H, W], turned about their centre, bilinearly."""
    angle = torch.deg2rad(torch.tensor(float(degrees)))
    turn = torch.tensor([[angle.cos(), -angle.sin(), 0.0], [angle.sin(), angle.cos(), 0.0]])
    return F.grid_sample(
        x, F.affine_grid(turn.expand(len(x), 2, 3), list(x.shape), align_corners=False), align_corners=False
    )


@torch.no_grad()
def run(model: nn.Module, x: Tensor, integrator: dise.Integrator) -> tuple[Tensor, float]:
    """Predictions [n] and mean NFE."""
    block = find_block(model)
    with block.using(integrator), block.recording() as records:
        predictions = torch.cat([model(part).argmax(1) for part in x.split(250)])
    return predictions, float(torch.cat([record.solution.nfe for record in records]).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory of an ODE-Net")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--epsilon", type=float, default=0.005)
    parser.add_argument("--images", type=int, default=2000, help="test images to rotate")
    parser.add_argument("--held-out", type=int, help="held-out images to calibrate on; default: all")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    config = open_run(args.run)
    task, settings = config.found
    model, splits = load_model(args.run, config), task.load(settings, args.data_dir)
    dise.make_dynamic(model, Batches.evaluation(splits.held_out[: args.held_out], batch_size=250), epsilon=args.epsilon)
    block = find_block(model)
    policy, usual = block.integrator, block.report.nfe
    # of all parts of the test images, whose first half is by other writers than its second
    some = splits.test[:: max(1, len(splits.test) // args.images)][: args.images]
    ((x, y),) = Batches.evaluation(some, batch_size=args.images)
    rows = []
    for angle in ANGLES:
        turned = rotated(x, angle)
        (answer, nfe), (reference, _) = run(model, turned, policy), run(model, turned, REFERENCE)
        rows.append(
            {
                "angle": angle,
                "differs from DOPRI": float((answer != reference).double().mean()),
                "accuracy": float((answer == y).double().mean()),
                "accuracy of DOPRI": float((reference == y).double().mean()),
                "NFE": nfe,
            }
        )
    console = Console()
    console.print(str(block.report))
    table = Table(title=f"{config.name}: {args.images} test images, rotated; NFE on the calibration's {usual:.2f}")
    for column in rows[0]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*(f"{value:.4g}" for value in row.values()))
    console.print(table)
    if args.out:
        report = {"run": config.name, "policy": block.report.to_json(), "images": args.images, "rows": rows}
        args.out.write_text(strict_json.dumps(report, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
