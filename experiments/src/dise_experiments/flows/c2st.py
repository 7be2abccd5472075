"""C2ST: how well a classifier tells two sets of samples apart, from 0.5 (not at all) to 1.

Source: Lopez-Paz, Oquab, Revisiting Classifier Two-Sample Tests, 2017; settings of Lueckmann et al., Benchmarking
Simulation-Based Inference, 2021: five folds, a network with two hidden layers of 10 · D ReLU units, trained by Adam.
"""

import torch
from torch import Tensor

FOLDS, BATCH, RATE, DECAY = 5, 200, 1e-3, 1e-4
EPOCHS, PATIENCE, PROGRESS = 200, 10, 1e-4  # stop after 10 epochs whose loss is not smaller by 1e-4


def c2st(x: Tensor, y: Tensor, *, seed: int = 0, epochs: int = EPOCHS) -> float:
    """The mean accuracy on held-out folds of a classifier of x [N, D] and y [M, D].

    Both are standardized by x's mean and standard deviation. The folds' networks are trained together, as one batch of
    networks.

    Args:
        x: reference samples.
        y: samples to be compared.
        seed: of the folds and weights.
        epochs: at most.

    Raises:
        ValueError: x and y are not two sets of at least five finite points [N, D] with the same D.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < FOLDS:
        raise ValueError(f"x, y: expected samples [N, D], at least {FOLDS}, got {list(x.shape)} and {list(y.shape)}")
    generator = torch.Generator().manual_seed(seed)
    points = torch.cat([x, y]).float()
    if not points.isfinite().all():
        raise ValueError("x, y: expected finite samples, got NaN or infinity")
    deviation = x.float().std(0)
    points = (points - x.float().mean(0)) / torch.where(deviation > 0, deviation, 1.0)
    labels = torch.cat([torch.zeros(len(x)), torch.ones(len(y))])
    order = torch.randperm(len(points), generator=generator)
    folds = order[: len(order) // FOLDS * FOLDS].reshape(FOLDS, -1)
    training = torch.stack([folds[[j for j in range(FOLDS) if j != i]].flatten() for i in range(FOLDS)])
    networks = _Networks(x.shape[1], generator)
    _train(networks, points, labels, training, generator, epochs)
    with torch.no_grad():
        correct = (networks(points[folds]) > 0) == (labels[folds] > 0.5)
    return float(correct.float().mean())


class _Networks:
    """One network per fold, with weights drawn as Glorot and Bengio do."""

    def __init__(self, dim: int, generator: torch.Generator) -> None:
        hidden = 10 * dim
        sizes = [(dim, hidden), (hidden, hidden), (hidden, 1)]
        self.parameters = [
            (2 * torch.rand((FOLDS, *shape), generator=generator) - 1) * (6 / (a + b)) ** 0.5
            for a, b in sizes
            for shape in ((a, b), (1, b))
        ]
        for parameter in self.parameters:
            parameter.requires_grad_()

    def __call__(self, x: Tensor) -> Tensor:
        """Logits [FOLDS, n] of points [FOLDS, n, D]."""
        layers = list(zip(self.parameters[::2], self.parameters[1::2], strict=True))
        for weight, bias in layers[:-1]:
            x = torch.baddbmm(bias, x, weight).relu()
        return torch.baddbmm(layers[-1][1], x, layers[-1][0]).squeeze(-1)


def _train(
    networks: _Networks, points: Tensor, labels: Tensor, training: Tensor, generator: torch.Generator, epochs: int
) -> None:
    """Minimize the cross-entropy on each fold's training points [FOLDS, n], until it no longer falls."""
    optimizer = torch.optim.Adam(networks.parameters, lr=RATE, weight_decay=DECAY)
    best, since = float("inf"), 0
    for _ in range(epochs):
        order = training[:, torch.randperm(training.shape[1], generator=generator)]
        total = 0.0
        for rows in order.split(BATCH, dim=1):
            losses = torch.nn.functional.binary_cross_entropy_with_logits(
                networks(points[rows]), labels[rows], reduction="none"
            )
            optimizer.zero_grad()
            losses.mean(1).sum().backward()  # each network has its own parameters, so the sum trains each alone
            optimizer.step()
            total += float(losses.detach().sum())
        mean = total / training.numel()
        best, since = (mean, 0) if mean < best - PROGRESS else (best, since + 1)
        if since >= PATIENCE:
            return
