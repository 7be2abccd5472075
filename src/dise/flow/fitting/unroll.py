"""A table's states as a differentiable function of its times and weights."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from dise.flow.fitting.draws import Draws
from dise.flow.fitting.parameters import Coefficients, TableParameters

Field = Callable[..., Tensor]
Loss = Literal["mse", "log"]
_PROBES = 2  # backward passes per parameter, for the curvature


def unroll(f: Field, draws: Draws, coefficients: Coefficients, t0: float, t1: float) -> Tensor:
    """The ends [N, ...] of the starts by a table of n evaluations of f."""
    start = draws.starts
    times = t0 + (t1 - t0) * coefficients.times
    steps = (t1 - t0) * coefficients.increments
    columns = times.to(start).view(-1, *[1] * start.ndim).expand(-1, len(start), *[1] * (start.ndim - 1))
    y, values = start, []
    for k, row in enumerate(steps.to(start)):
        values.append(f(columns[k], y, *draws.conditions))
        y = y + sum(row[j] * values[j] for j in range(k + 1))
        if coefficients.scales is not None:
            y = y + coefficients.scales.diff()[k].to(start) * start
    return y


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """[N] mean squares over the coordinates of a − b."""
    return (a - b).flatten(1).square().mean(1)


class FittingLoss:
    """The loss of table parameters on draws, a batch at a time; calling it sets their gradients.

    "mse" is the logarithm of the mean squared distance to the tight ends, and "log" the mean of the logarithms, which
    hard draws change less: the mean signal-to-noise ratio of Shaul et al., 2024 (arXiv:2403.01329), Eq. 16. With a
    tolerance τ it is the mean of log(e² + τ²): draws whose error e is far below τ cannot be made better, and those far
    above count little.
    """

    def __init__(
        self,
        f: nn.Module,
        parameters: TableParameters,
        span: tuple[float, float],
        loss: Loss,
        tolerance: float | None,
        batch: int,
    ) -> None:
        self.f, self.parameters, self.span, self.loss, self.batch = f, parameters, span, loss, batch
        self.tolerance = tolerance

    def __call__(self, draws: Draws) -> Tensor:
        """The loss, with gradients in the parameters' `grad`; infinite, with gradients 0, where it is not finite."""
        parameters = list(self.parameters.parameters())
        total, gradients = 0.0, [torch.zeros_like(p) for p in parameters]
        for part in draws.batches(self.batch):
            with torch.enable_grad():
                loss = self._sum(part, self.parameters()) / len(draws)
            # an f that does not depend on time leaves the times of free rows unused: their gradients are 0
            parts = torch.autograd.grad(loss, parameters, materialize_grads=True)
            for sum_, gradient in zip(gradients, parts, strict=True):
                sum_ += gradient
            total += float(loss.detach())
        finite = total == total and abs(total) < float("inf") and all(bool(g.isfinite().all()) for g in gradients)
        scale = (1 / total if self.loss == "mse" else 1.0) if finite and total else 0.0
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = gradient * scale if finite else torch.zeros_like(p)
        return self._value(total) if finite else torch.tensor(float("inf"), dtype=torch.float64)

    @torch.no_grad()
    def value(self, draws: Draws) -> float:
        """The loss alone."""
        coefficients = self.parameters()
        total = sum(float(self._sum(part, coefficients)) for part in draws.batches(self.batch)) / len(draws)
        return float(self._value(total)) if total == total else float("inf")

    def curvature(self, draws: Draws) -> Tensor:
        """[P, P] Σ Jᵀ J of the ends by the parameters, estimated by backward passes of random signs.

        Up to a factor the Gauss–Newton matrix of "mse". E (Jᵀu)(Jᵀu)ᵀ = Jᵀ J for independent signs u.
        """
        parameters = list(self.parameters.parameters())
        number = sum(p.numel() for p in parameters)
        signs = torch.Generator().manual_seed(0)
        with torch.enable_grad():
            ends = unroll(self.f, draws, self.parameters(), *self.span)
        total = torch.zeros(number, number, dtype=torch.float64)
        for _ in range(_PROBES * number):
            u = torch.randint(0, 2, ends.shape, generator=signs).to(ends) * 2 - 1
            parts = torch.autograd.grad(ends, parameters, u, retain_graph=True, materialize_grads=True)
            product = torch.cat([part.flatten() for part in parts])
            total += torch.outer(product, product)
        return total

    def _sum(self, draws: Draws, coefficients: Coefficients) -> Tensor:
        squares = squared_distances(unroll(self.f, draws, coefficients, *self.span), draws.ends).double()
        floor = rounding(draws.ends) if self.tolerance is None else self.tolerance**2
        return (squares if self.loss == "mse" else (squares + floor).log()).sum()

    def _value(self, total: float) -> Tensor:
        value = torch.tensor(total, dtype=torch.float64)
        return value.log() if self.loss == "mse" else value


def rounding(ends: Tensor) -> float:
    """A squared distance that rounding makes: added before taking logarithms."""
    return float(torch.finfo(ends.dtype).eps ** 2)
