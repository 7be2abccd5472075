"""Does the per-sample solver do what torchdiffeq's dopri5 does on one sample at a time?

    python benchmarks/parity.py RUN [--data-dir DIR] [--images 200] [--out FILE.json]

Solves the first test images of a trained run (made by `dise train mnist`), each alone with torchdiffeq and all
together with dise, at the same tolerance and the same first-step heuristic. torchdiffeq steps beyond t1 and
interpolates; `step_t=[t1]` makes it end there, as dise does, so that both take the same steps. Even then it returns an
interpolation, whose polynomial loses about a digit and a half to cancellation; the state that its last step ended in
is read where the next step begins. All three are shown.
"""

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torchdiffeq import odeint

import dise
from dise.select.deploy import strict_json
from dise_experiments.mnist.data import to_input
from dise_experiments.run.rundir import load_model, open_run

T1 = 1.0


class Counter(torch.nn.Module):
    """A vector field that counts its calls until T1, and keeps the state there if a step begins at it."""

    def __init__(self, f: torch.nn.Module) -> None:
        super().__init__()
        self.f, self.calls, self.state = f, 0, None

    def forward(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.calls += self.state is None
        return self.f(t, y)

    def callback_step(self, t0: torch.Tensor, y0: torch.Tensor, dt: torch.Tensor) -> None:
        """What torchdiffeq calls before each step."""
        if t0 == T1 and self.state is None:
            self.state = y0


@torch.no_grad()
def compare(f: torch.nn.Module, h0: torch.Tensor, tol: float) -> dict[str, float]:
    """Equal step counts and largest differences over the samples of h0 [B, ...] in its dtype."""
    ours = dise.solve(f, h0, 0.0, T1, dise.Dopri5(rtol=tol, atol=tol))
    beyond = torch.tensor([0.0, T1, T1 + 1e-3], dtype=h0.dtype)
    ways = {"same end": (beyond, {"step_t": beyond[1:2]}), "default": (beyond[:2], {})}
    rows = []
    for i in range(len(h0)):
        found = {}
        for name, (times, options) in ways.items():
            counter = Counter(f)
            y = odeint(counter, h0[i : i + 1], times, rtol=tol, atol=tol, method="dopri5", options=options)[1]
            ends = {name: y} if counter.state is None else {name: y, "step": counter.state}
            found |= {key: (counter.calls, float((end - ours.y[i]).abs().max())) for key, end in ends.items()}
        rows.append((int(ours.nfe[i]), found))
    return {
        "samples": len(rows),
        "tolerance": tol,
        "dtype": str(h0.dtype),
        "same NFE and steps": sum(nfe == found["same end"][0] for nfe, found in rows),
        "largest state difference": max(found["step"][1] for _, found in rows),
        "largest state difference, interpolated": max(found["same end"][1] for _, found in rows),
        "same NFE, torchdiffeq's default end": sum(nfe == found["default"][0] for nfe, found in rows),
        "largest state difference, default end": max(found["default"][1] for _, found in rows),
        "mean NFE": sum(nfe for nfe, _ in rows) / len(rows),
        "mean NFE, torchdiffeq": sum(found["same end"][0] for _, found in rows) / len(rows),
        "mean NFE, torchdiffeq's default end": sum(found["default"][0] for _, found in rows) / len(rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory of an ODE-Net")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    config = open_run(args.run)
    task, settings = config.found
    model = load_model(args.run, config)
    x = task.load(settings, args.data_dir).test[: args.images].images
    with torch.no_grad():
        h0 = model.stem(to_input(x))
    results = []
    for dtype in (torch.float32, torch.float64):
        model = model.to(dtype)
        results += [compare(model.block.f, h0.to(dtype), tol) for tol in (1e-3, 1e-5)]
    table = Table(title=f"dise against torchdiffeq at batch size 1: {config.name}")
    table.add_column("")
    for result in results:
        table.add_column(f"{result['dtype'][6:]}, {result['tolerance']:g}", justify="right")
    for key in results[0]:
        table.add_row(key, *(f"{r[key]:.3g}" if isinstance(r[key], float) else str(r[key]) for r in results))
    Console().print(table)
    if args.out:
        args.out.write_text(strict_json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
