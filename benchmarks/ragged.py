"""What does it save that only the samples which still run are evaluated? A batch of which one tenth is stiff.

    python benchmarks/ragged.py [--batch 256] [--width 512] [--repeats 7] [--out FILE.json]

Van der Pol's equation, μ = 1 for nine tenths of the batch and μ = 25 for the others, with a network's correction of a
hundredth, 2 → width → width → 2: it takes nearly all of the time. t from 0 to 10, tolerance 1e-5, one thread. All ways
solve the same batch in turns, in one process; the median counts. "rows of f" are samples × evaluations that f is
called on; dise's are the sum of what each sample needs (Σ nfe). Eager ways alone: the network's time is the same.
"""

from typing import Any

import torch
from peers import Task, arguments, by_dise, by_torchdiffeq, by_torchode, installed
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from dise.select.deploy import strict_json
from dise.select.judging.profile import time_side_by_side

TOLERANCE = 1e-5
STIFF = 10  # one in so many
OURS = "dise"


class Corrected(nn.Module):
    """Van der Pol's equation plus a network's correction, of states (x, v, μ) [n, 3]; μ stays."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2)
        )

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        x, v, mu = y[:, 0], y[:, 1], y[:, 2]
        known = torch.stack([v, mu * (1 - x * x) * v - x], dim=1)
        return torch.cat([known + 0.01 * self.net(y[:, :2]), torch.zeros_like(y[:, 2:])], dim=1)


def start(batch: int) -> Tensor:
    """[B, 3] random (x, v), and μ."""
    y0 = torch.randn(batch, 3, generator=torch.Generator().manual_seed(1))
    y0[:, 2] = torch.where(torch.arange(batch) % STIFF == 0, 25.0, 1.0)
    return y0


def compare(task: Task, repeats: int) -> dict[str, dict[str, Any]]:
    """Each way's rows of f and time."""
    found = {OURS: by_dise(task)}
    if installed("torchode"):
        found["torchode"] = by_torchode(task)
    found["torchdiffeq"] = by_torchdiffeq(task)
    times = time_side_by_side({name: way.forward for name, way in found.items()}, [task.y0] * repeats)
    return {name: {"rounds": way.rounds, "rows": way.rows, "ms": times[name]} for name, way in found.items()}


def main() -> None:
    parser = arguments(__doc__, repeats=7)
    parser.add_argument("--width", type=int, default=512)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = compare(Task(Corrected(args.width), start(args.batch), args.t1, TOLERANCE), args.repeats)
    table = Table(title=f"One tenth stiff: B = {args.batch}, {args.threads} thread")
    table.add_column("")
    for column in ("rounds", "rows of f", "× dise's", "ms", "dise's ÷ this"):
        table.add_column(column, justify="right")
    ours = found[OURS]
    for name, row in found.items():
        numbers = (str(row["rounds"]), f"{row['rows']:,}", f"{row['rows'] / ours['rows']:.2f}", f"{row['ms']:.0f}")
        table.add_row(name, *numbers, f"{ours['ms'] / row['ms']:.3f}")
    Console(width=120).print(table)
    if args.out:
        about = {"batch": args.batch, "width": args.width, "repeats": args.repeats, "t1": args.t1}
        about |= {"tolerance": TOLERANCE, "threads": args.threads, "torch": torch.__version__}
        args.out.write_text(strict_json.dumps(about | {"ways": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
