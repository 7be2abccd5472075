"""How long does one training iteration of the two-circles flow take, against torchdiffeq's example?

    python benchmarks/flow_training.py RUN [--iterations 20] [--threads 2] [--out FILE.json]

RUN is a trained run of `dise train circles`; both ways start from its weights, see the same fresh points, and take one
iteration (forward, backward, Adam) in turn. "torchdiffeq" is the way of its examples/cnf.py: dopri5 at 1e-5 with
direct backpropagation, every hidden unit's contribution as a matrix of its own, and the trace by autograd.
torchdiffeq steps beyond the end and interpolates, so its NFE is also given with the step that ends there.
"""

import argparse
import copy
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from in_turn import in_turn
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchdiffeq import odeint

import dise
from dise.select.deploy import strict_json
from dise_experiments.circles.model import DIM, END, WIDTH
from dise_experiments.circles.points import draw
from dise_experiments.run.rundir import load_model, open_run

BATCH, TOLERANCE = 512, 1e-5


class ExampleField(nn.Module):
    """The augmented vector field as torchdiffeq's example evaluates it; counts its calls."""

    def __init__(self, hypernetwork: nn.Sequential) -> None:
        super().__init__()
        self.hypernetwork, self.calls = hypernetwork, 0

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """(dz/dt [n, 2], −trace [n, 1])."""
        self.calls += 1
        z = state[0]
        with torch.set_grad_enabled(True):
            z.requires_grad_(True)
            block = WIDTH * DIM
            weights = self.hypernetwork(t.reshape(1, 1)).reshape(-1)
            W, U, G, B = weights.split([block, block, block, WIDTH])
            W, B = W.reshape(WIDTH, DIM, 1), B.reshape(WIDTH, 1, 1)
            U = (U * torch.sigmoid(G)).reshape(WIDTH, 1, DIM)
            h = torch.tanh(torch.matmul(z.unsqueeze(0).expand(WIDTH, -1, -1), W) + B)
            dz = torch.matmul(h, U).mean(0)
            trace = sum(torch.autograd.grad(dz[:, i].sum(), z, create_graph=True)[0][:, i] for i in range(DIM))
        return dz, -trace.reshape(-1, 1)


Iteration = Callable[[Tensor], tuple[float, int]]


def by_dise(flow: dise.Flow) -> Iteration:
    """One iteration: loss and NFE."""
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)

    def iterate(x: Tensor) -> tuple[float, int]:
        log_prob, solution = flow.solve(x[None])
        loss = -log_prob.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach()), int(solution.nfe)

    return iterate


def by_torchdiffeq(flow: dise.Flow, options: dict[str, Tensor]) -> Iteration:
    """One iteration: loss and NFE."""
    field = ExampleField(flow.f.hypernetwork)
    optimizer = torch.optim.Adam(field.parameters(), lr=1e-3)
    span = torch.tensor([END, 0.0])

    def iterate(x: Tensor) -> tuple[float, int]:
        field.calls = 0
        start = (x.clone(), torch.zeros(len(x), 1))
        z, change = odeint(field, start, span, rtol=TOLERANCE, atol=TOLERANCE, method="dopri5", options=options)
        loss = -(flow.base.log_prob(z[-1]) - change[-1].squeeze(1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach()), field.calls

    return iterate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory of a flow")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = open_run(args.run)
    flow = load_model(args.run, config)
    end = torch.tensor([0.0])
    ways = {
        "dise": by_dise(copy.deepcopy(flow)),
        "torchdiffeq": by_torchdiffeq(copy.deepcopy(flow), {}),
        "torchdiffeq, last step ends at the end": by_torchdiffeq(copy.deepcopy(flow), {"step_t": end}),
    }
    points = (draw("circles", BATCH, "benchmark", index) for index in range(args.iterations + 1))
    seconds, results = in_turn(ways, points)
    rows = {
        name: {
            "ms": 1e3 * statistics.median(seconds[name]),
            "nfe": statistics.mean(nfe for _, nfe in results[name]),
            "loss": statistics.mean(loss for loss, _ in results[name]),
            "largest loss difference from dise": max(
                abs(a[0] - b[0]) for a, b in zip(results[name], results["dise"], strict=True)
            ),
        }
        for name in ways
    }
    table = Table(title=f"One training iteration, {BATCH} points, {args.threads} threads, median of {args.iterations}")
    for column in ("way", "ms", "times as long", "NFE", "loss", "largest loss difference"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for name, row in rows.items():
        table.add_row(
            name,
            f"{row['ms']:.1f}",
            f"{row['ms'] / rows['dise']['ms']:.2f}",
            f"{row['nfe']:.1f}",
            f"{row['loss']:.4f}",
            f"{row['largest loss difference from dise']:.1e}",
        )
    Console(width=120).print(table)
    if args.out:
        about = {"run": config.name, "batch": BATCH, "threads": args.threads, "iterations": args.iterations}
        args.out.write_text(strict_json.dumps(about | {"ways": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
