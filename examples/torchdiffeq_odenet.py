"""Make an ODE-Net dynamic that is written on torchdiffeq: train, measure, make dynamic, measure again.

    python examples/torchdiffeq_odenet.py [--data-dir DIR] [--epochs 2] [--epsilon 0.005]

The model has the form of torchdiffeq's ODE-Net example: `nn.Sequential` of downsampling layers, one block whose forward
calls `odeint`, and layers that classify; the vector field takes a scalar time. It is trained on the 6,000 digits that
come with dise-experiments, or with --data-dir on all of MNIST.
"""

import argparse
import copy
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchdiffeq import odeint

import dise
from dise_experiments.mnist.data import Batches, MnistSplits, load_mnist, load_mnist_sample

CHANNELS, BLOCK, BATCH = 64, "7", 32


class ODEFunc(nn.Module):
    """dh/dt: two convolutions with the time as one more channel."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(32, CHANNELS) for _ in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(CHANNELS + 1, CHANNELS, 3, padding=1) for _ in range(2))

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        """dh/dt [n, 64, 6, 6] at a scalar time t and a state h [n, 64, 6, 6]."""
        clock = torch.ones_like(h[:, :1]) * t
        for norm, conv in zip(self.norms[:2], self.convs, strict=True):
            h = conv(torch.cat([clock, F.relu(norm(h))], dim=1))
        return self.norms[2](h)


class ODEBlock(nn.Module):
    """The state at the end of the span, computed by torchdiffeq."""

    def __init__(self, odefunc: nn.Module) -> None:
        super().__init__()
        self.odefunc = odefunc
        self.integration_time = torch.tensor([0.0, 1.0])

    def forward(self, h: Tensor) -> Tensor:
        """State [n, 64, 6, 6] at t = 1 from that at t = 0."""
        return odeint(self.odefunc, h, self.integration_time.type_as(h), rtol=1e-3, atol=1e-3)[1]


def ode_net() -> nn.Sequential:
    """Images [n, 1, 28, 28] → logits [n, 10]."""
    downsampling = [
        nn.Conv2d(1, CHANNELS, 3),
        nn.GroupNorm(32, CHANNELS),
        nn.ReLU(),
        nn.Conv2d(CHANNELS, CHANNELS, 4, 2, 1),
        nn.GroupNorm(32, CHANNELS),
        nn.ReLU(),
        nn.Conv2d(CHANNELS, CHANNELS, 4, 2, 1),
    ]
    classify = [nn.GroupNorm(32, CHANNELS), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 10)]
    return nn.Sequential(*downsampling, ODEBlock(ODEFunc()), *classify)


def train(model: nn.Module, splits: MnistSplits, epochs: int) -> None:
    """Train by SGD with momentum and one cycle of the learning rate."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    steps = epochs * len(Batches(splits.train, batch_size=BATCH))
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
    for epoch in range(epochs):
        for x, y in Batches(splits.train, batch_size=BATCH, epoch=epoch):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            cycle.step()


class Measured(NamedTuple):
    """Accuracy and times of a model on the test images, in batches of 100."""

    accuracy: float
    model: float  # ms per batch
    block: float  # of which the block takes

    def __str__(self) -> str:
        times = f"{self.model:.1f} ms per batch of 100, of which the block {self.block:.1f} ms"
        return f"accuracy {self.accuracy:.4f}; {times}"


@torch.no_grad()
def measure(model: nn.Module, splits: MnistSplits) -> Measured:
    """Evaluate a model on the test images and time its block by hooks."""
    seconds, started = 0.0, 0.0
    block = model.get_submodule(BLOCK)

    def begin(module: nn.Module, inputs: object) -> None:
        nonlocal started
        started = time.perf_counter()

    def end(module: nn.Module, inputs: object, output: object) -> None:
        nonlocal seconds
        seconds += time.perf_counter() - started

    hooks = [block.register_forward_pre_hook(begin), block.register_forward_hook(end)]
    start = time.perf_counter()
    right = [model(x).argmax(1) == y for x, y in Batches.evaluation(splits.test, batch_size=100)]
    total = time.perf_counter() - start
    for hook in hooks:
        hook.remove()
    return Measured(float(torch.cat(right).double().mean()), 1e3 * total / len(right), 1e3 * seconds / len(right))


class Clock:
    """A printer of lines, each with the seconds since the line before."""

    def __init__(self) -> None:
        self.last = time.perf_counter()

    def __call__(self, line: str) -> None:
        """Print a line."""
        now = time.perf_counter()
        print(f"{now - self.last:6.1f} s  {line}")
        self.last = now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data-dir", type=Path, help="folder with MNIST; default: the digits that come with dise-experiments"
    )
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--epsilon", type=float, default=0.005)
    args = parser.parse_args()
    splits = load_mnist(args.data_dir) if args.data_dir else load_mnist_sample()
    torch.manual_seed(0)
    model = ode_net()
    log = Clock()
    train(model, splits, args.epochs)
    log(f"trained on {len(splits.train)} images")
    before = measure(model.eval(), splits)
    log(f"torchdiffeq: {before}")

    weights = copy.deepcopy(model.state_dict())
    held_out = Batches.evaluation(splits.held_out, batch_size=100)
    dise.make_dynamic(model, held_out, block=BLOCK, epsilon=args.epsilon, log=log)
    after = measure(model, splits)
    log(f"dynamic: {after}")
    print(
        f"the block is {before.block / after.block:.1f} times faster, the model {before.model / after.model:.1f} times"
    )
    model.load_state_dict(weights)  # weights saved before fit the dynamic model


if __name__ == "__main__":
    main()
