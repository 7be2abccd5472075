"""How long does an epoch of the Latent ODE take, against the way in which every batch walks through its union of times?

    python benchmarks/union_grid.py [--data-dir DIR] [--batches 8] [--threads 2] [--out FILE.json]

Both ways have the same model, start from the same weights, see the same batches of 50 of the 3,200 training records
(times rounded to 0.016 h) and take one training iteration each (forward, backward, Adamax) in turn. An epoch is 64
batches; its time is extrapolated from the median batch.

"union grid" is the way of the published latent-ODE code: the encoder goes backwards through all times at which any
stay of the batch has an observation, with all stays at each of them, and those that have none there keep their state;
torchdiffeq's dopri5 follows all stays through the same times, with one step size. What that code does more slowly than
it must is left out, to see what the grid costs: here, as in dise, the gated unit's share of the observations is
computed for all times at once, only what was observed is decoded, and the likelihood is one sum. torchdiffeq writes the
states one by one into one tensor, of which the backward pass makes a copy for every time; so the third way is the union
grid with dise's save points in place of torchdiffeq: one system, one step size, the same times.

The losses of the two are not equal, and should not be: on the union grid a stay's ODE begins at the batch's last time
and takes an Euler step to each time of the batch, so its state depends on what else is in the batch. For a stay by
itself both grids are one; that the losses are equal there is checked first, at a tolerance of 1e-6.
"""

import argparse
import copy
import statistics
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from in_turn import in_turn
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchdiffeq import odeint

from dise import Dopri5, solve
from dise.select.deploy import strict_json
from dise_experiments.physionet.batches import TrainingBatches, draw
from dise_experiments.physionet.data import load_physionet, load_physionet_sample
from dise_experiments.physionet.loss import latent_ode_loss
from dise_experiments.physionet.model import HIDDEN, TRAINING_INTEGRATOR, LatentODE, Reconstruction
from dise_experiments.physionet.presets import PRESETS
from dise_experiments.physionet.records import Records, Scaling
from dise_experiments.physionet.stays import Stays, Walk

PRESET = PRESETS["paper"]
EPOCH = 64  # batches of 50 of the 3,200 published training records
ALONE = 4  # records by themselves, on which both losses are compared
TIGHT = Dopri5(rtol=1e-6, atol=1e-6)


class UnionGrid(nn.Module):
    """A Latent ODE that takes every batch through the union of its stays' times; counts the generator's evaluations.

    Args:
        model: whose weights and integrator to use.
        follow: (f, z0 [n, 20], times [T], integrator) → states [T, n, 20].
    """

    def __init__(self, model: LatentODE, follow: "Follow") -> None:
        super().__init__()
        self.model, self.follow, self.nfe = model, follow, 0
        model.block.f.register_forward_hook(self._count)

    def _count(self, *arguments: Any) -> None:
        self.nfe += 1

    def reconstruct(self, x: Stays) -> Reconstruction:
        """As `LatentODE.reconstruct`."""
        times, column = x.times.unique(return_inverse=True)  # rising
        mean, deviation = self._encode(x, times, column)
        z0 = mean + deviation * x.noise
        block = self.model.block
        states = self.follow(block.f, z0.flatten(0, 1), times, block.integrator)
        path = states.unflatten(1, (len(z0), len(x)))  # [T, S, B, 20]
        last = column[x.place.diff(append=x.place.new_zeros(1)) <= 0]  # of each stay
        z = path[last, :, torch.arange(len(x))].transpose(0, 1)
        observed = path[column, :, x.stay].transpose(0, 1)
        return Reconstruction(mean, deviation, self.model.decoder(observed), self.model.classifier(z).squeeze(-1), None)

    def _encode(self, x: Stays, times: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of z(0), [B, 20] each."""
        encoder, cell = self.model.encoder, (x.stay, column)
        own = torch.cat([x.values, x.mask], dim=1)
        seen = encoder.unit.read(own.new_zeros(len(x), len(times), own.shape[1]).index_put(cell, own).flatten(0, 1))
        # unbound at once: the gradient of one time's slice alone would be as large as all times'
        columns = seen.unflatten(0, (len(x), len(times))).unbind(1)
        here = torch.zeros(len(x), len(times), dtype=torch.bool).index_put(cell, torch.tensor(True))
        # the grid's walk is that of one stay with all of these times
        walk = Walk.of(times, torch.zeros_like(column[: len(times)]), times[-1:])
        h = own.new_zeros(len(x), 2, HIDDEN)
        for t, dt, row in zip(walk.t, walk.t_next - walk.t, walk.row.tolist(), strict=True):
            mean = h[:, 0]
            h = torch.stack([mean + dt * encoder.field(t, mean), h[:, 1]], dim=1)
            if row >= 0:
                h = torch.where(here[:, row, None, None], encoder.unit(h, columns[row]), h)
        mean, deviation = encoder.posterior(h.flatten(1)).chunk(2, dim=1)
        return mean, deviation.abs()


Follow = Callable[[nn.Module, Tensor, Tensor, Any], Tensor]


def by_odeint(f: nn.Module, z0: Tensor, times: Tensor, integrator: Dopri5) -> Tensor:
    """torchdiffeq's dopri5."""
    return odeint(f, z0, times, rtol=integrator.rtol, atol=integrator.atol, method="dopri5")


def by_save_points(f: nn.Module, z0: Tensor, times: Tensor, integrator: Dopri5) -> Tensor:
    """dise's, of one system."""
    return solve(f, z0, 0.0, times[-1], integrator, batched=False, save_at=times).saved


Iteration = Callable[[Stays], tuple[float, float]]


def by_dise(model: LatentODE) -> Iteration:
    """One iteration: loss and the generator's NFE per sample."""
    optimizer = torch.optim.Adamax(model.parameters(), lr=PRESET.learning_rate)

    def iterate(x: Stays) -> tuple[float, float]:
        made = model.reconstruct(x)
        loss, _ = latent_ode_loss(made, x)
        step(optimizer, loss)
        return float(loss.detach()), float(made.solution.nfe.double().mean())

    return iterate


def by_union_grid(model: LatentODE, follow: Follow) -> Iteration:
    """One iteration: loss and the generator's NFE, the same for all samples."""
    union = UnionGrid(model, follow)
    optimizer = torch.optim.Adamax(model.parameters(), lr=PRESET.learning_rate)

    def iterate(x: Stays) -> tuple[float, float]:
        union.nfe = 0
        loss, _ = latent_ode_loss(union.reconstruct(x), x)
        step(optimizer, loss)
        return float(loss.detach()), float(union.nfe)

    return iterate


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.no_grad()
def alone(model: LatentODE, records: Records) -> float:
    """Largest relative difference of the two ways' losses of records by themselves, at a tolerance of 1e-6."""
    model, generator, differences = copy.deepcopy(model), torch.Generator().manual_seed(0), []
    model.block.integrator = TIGHT
    union = UnionGrid(model, by_odeint)
    for i in range(min(ALONE, len(records))):
        x = Stays.of(records[i : i + 1], noise=draw(PRESET.samples, 1, generator))
        ours, theirs = (float(latent_ode_loss(way.reconstruct(x), x)[0]) for way in (model, union))
        differences.append(abs(ours - theirs) / abs(theirs))
    return max(differences)


def compare(model: LatentODE, batches: TrainingBatches, number: int) -> dict[str, Any]:
    """Medians over `number` batches, after one to warm up."""
    ways = {
        "dise": by_dise(copy.deepcopy(model)),
        "union grid": by_union_grid(copy.deepcopy(model), by_odeint),
        "union grid, save points": by_union_grid(copy.deepcopy(model), by_save_points),
    }
    some = list(islice(batches, number + 1))
    seconds, results = in_turn(ways, some)
    steps = {"dise": [len(x.walk.sizes) for x in some[1:]], "union": [len(x.times.unique()) for x in some[1:]]}
    return {
        name: {
            "s": statistics.median(seconds[name]),
            "epoch_s": EPOCH * statistics.median(seconds[name]),
            "encoder_steps": statistics.mean(steps["dise" if name == "dise" else "union"]),
            "nfe": statistics.mean(nfe for _, nfe in results[name]),
            "loss": statistics.mean(loss for loss, _ in results[name]),
        }
        for name in ways
    }


def load(data_dir: Path | None, *, sample: bool) -> Records:
    """The training records, scaled."""
    if sample:
        records = load_physionet_sample(q=PRESET.quantization).train
    else:
        records = load_physionet(data_dir, q=PRESET.quantization, held_out=0).train
    return Scaling.fit(records)(records)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="folder that holds physionet2012/* (default: $DISE_DATA)")
    parser.add_argument("--sample", action="store_true", help="the 200 records shipped with the package instead")
    parser.add_argument("--batches", type=int, default=8, help="timed, after one to warm up")
    parser.add_argument("--batch-size", type=int, default=PRESET.batch_size)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    records = load(args.data_dir, sample=args.sample)
    torch.manual_seed(0)
    model = LatentODE()
    model.block.integrator = replace(TRAINING_INTEGRATOR)
    difference = alone(model, records)
    ways = compare(model, TrainingBatches(records, args.batch_size, PRESET.samples, 0, 0), args.batches)
    table = Table(
        title=f"One training iteration, {args.batch_size} records, {args.threads} threads, median of {args.batches} "
        f"batches; an epoch is {EPOCH} of them, extrapolated"
    )
    for column in ("way", "s a batch", "times as long", "s an epoch", "encoder steps", "NFE", "loss"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for name, row in ways.items():
        table.add_row(
            name,
            f"{row['s']:.3f}",
            f"{row['s'] / ways['dise']['s']:.2f}",
            f"{row['epoch_s']:.0f}",
            f"{row['encoder_steps']:.0f}",
            f"{row['nfe']:.1f}",
            f"{row['loss']:.2f}",
        )
    console = Console(width=120)
    console.print(table)
    console.print(f"Losses of single records at 1e-6: relative difference at most {difference:.1e}.")
    if args.out:
        about = {"records": len(records), "batch": args.batch_size, "quantization": PRESET.quantization}
        about |= {"threads": args.threads, "batches": args.batches, "epoch_batches": EPOCH}
        result = about | {"largest relative loss difference of single records": difference, "ways": ways}
        args.out.write_text(strict_json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
