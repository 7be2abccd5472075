"""Latent ODE with an ODE-RNN encoder: a stay → z(0) → z(t_end) → the probability of death, 163,972 parameters.

Source: Rubanova, Chen, Duvenaud, Latent ODEs for irregularly-sampled time series, 2019, with the sizes of its
PhysioNet experiment. There, every batch is solved on the union of its stays' times; here each stay on its own.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dise.integrate import Dopri5, Solution, Step
from dise.nn import NeuralODE
from dise_experiments.physionet.records import VARIABLES
from dise_experiments.physionet.stays import Stays

OBSERVED, HIDDEN, LATENT, UNITS, CLASSIFIER = len(VARIABLES), 40, 20, 50, 300
TRAINING_INTEGRATOR = Dopri5(rtol=1e-3, atol=1e-4)  # as published
_DEVIATION = 0.1  # standard deviation of initial weights
_SMALLEST = 1e-6  # smallest standard deviation of z(0)


class Reconstruction(NamedTuple):
    """The model's reconstruction of B stays with M observations, from S samples of z(0)."""

    mean: Tensor  # [B, 20] of z(0)
    deviation: Tensor  # [B, 20]
    values: Tensor  # [S, M, 41] scaled
    logits: Tensor  # [S, B]
    solution: Solution  # of the S·B samples; the first B are the first sample of every stay


class LatentODE(nn.Module):
    """Stays → logits of death in hospital [B].

    Args:
        head: the classifier's input: "z_end", the state at each stay's last time, which depends on the integrator; or
            "z0", the state at the start, as published, which needs no solve.
    """

    def __init__(self, head: Literal["z0", "z_end"] = "z_end") -> None:
        super().__init__()
        self.head = head
        self.encoder = ODERNN()
        self.block = NeuralODE(VectorField(LATENT), TRAINING_INTEGRATOR)
        self.decoder = nn.Linear(LATENT, OBSERVED)
        self.classifier = nn.Sequential(
            nn.Linear(LATENT, CLASSIFIER), nn.ReLU(), nn.Linear(CLASSIFIER, CLASSIFIER), nn.ReLU(),
            nn.Linear(CLASSIFIER, 1),
        )  # fmt: skip
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=_DEVIATION)
                nn.init.zeros_(module.bias)

    def forward(self, x: Stays) -> Tensor:
        """Logits [B], from the mean of z(0)."""
        mean, _ = self.encoder(x)
        return self.classify(mean, x.end)

    def classify(self, z0: Tensor, end: Tensor) -> Tensor:
        """Logits [n] of stays with start z0 [n, 20] and end time `end` [n]."""
        z = self.block(z0, t1=end) if self.head == "z_end" else z0
        return self.classifier(z).squeeze(-1)

    def reconstruct(self, x: Stays, *, accumulate: Callable[[Step], Tensor] | None = None) -> Reconstruction:
        """Reconstruct all observations from S samples of z(0), drawn by `x.noise`."""
        mean, deviation = self.encoder(x)
        z0 = mean + deviation * x.noise
        samples = len(z0)
        times, mask = x.padded_times()
        solution = self.block.solve(
            z0.flatten(0, 1),
            t1=x.end.repeat(samples),
            save_at=times.repeat(samples, 1),
            save_mask=mask.repeat(samples, 1),
            accumulate=accumulate,
        )
        saved, last = cast(Tensor, solution.saved), cast(Tensor, solution.y)  # the state is one tensor
        path = saved.unflatten(0, (samples, len(x)))[:, x.stay, x.place]
        z = z0 if self.head == "z0" else last.unflatten(0, (samples, len(x)))
        return Reconstruction(mean, deviation, self.decoder(path), self.classifier(z).squeeze(-1), solution)


class VectorField(nn.Module):
    """dy/dt = f(y) on y [n, size], independent of t: three hidden layers of 50, tanh."""

    def __init__(self, size: int) -> None:
        super().__init__()
        inner = [layer for _ in range(3) for layer in (nn.Tanh(), nn.Linear(UNITS, UNITS))]
        self.layers = nn.Sequential(nn.Linear(size, UNITS), *inner, nn.Tanh(), nn.Linear(UNITS, size))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """dy/dt [n, size]."""
        return self.layers(y)


class ODERNN(nn.Module):
    """Stays → mean and standard deviation of z(0), [B, 20] each; 56,490 parameters.

    Runs backwards in time. The state is a mean and a deviation, [B, 40] each. Between observations the mean follows an
    ODE, by Euler steps; at an observation a gated unit updates both.
    """

    def __init__(self) -> None:
        super().__init__()
        self.field = VectorField(HIDDEN)
        self.unit = GatedUnit()
        self.posterior = nn.Sequential(nn.Linear(2 * HIDDEN, 100), nn.Tanh(), nn.Linear(100, 2 * LATENT))

    def forward(self, x: Stays) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of z(0), [B, 20] each."""
        walk = x.walk
        seen = self.unit.read(torch.cat([x.values, x.mask], dim=1))[walk.row]
        # a row without measurements, all left out in training, is no observation
        observed = ((walk.row >= 0) & x.mask.any(1)[walk.row])[:, None, None]
        dt = (walk.t_next - walk.t)[:, None]
        columns = (column.split(walk.sizes) for column in (walk.t, dt, seen, observed))
        h, finished = x.values.new_zeros(len(x), 2, HIDDEN), []
        for t, dt_here, seen_here, observed_here in zip(*columns, strict=True):
            finished.append(h[len(t) :])
            h = h[: len(t)]
            mean = h[:, 0]
            # the same bits as one step of `dise.Euler`; without a solve's checks training takes a third less time
            mean = torch.addcmul(mean, dt_here, self.field(t, mean))
            h = torch.stack([mean, h[:, 1]], dim=1)
            h = torch.where(observed_here, self.unit(h, seen_here), h)
        state = torch.cat([h, *reversed(finished)])[walk.place]
        mean, deviation = self.posterior(state.flatten(1)).chunk(2, dim=1)
        return mean, deviation.abs().clamp(min=_SMALLEST)


class GatedUnit(nn.Module):
    """The gated unit of a state of mean and deviation: new = (1 − u)·candidate + u·old; 32,610 parameters.

    Update u and reset r, [n, 40] each, are σ(W tanh(V [state, x])); the candidate is W tanh(V [r·state, x]), with the
    absolute value as its deviation. The layers are those of the published unit; layers with the same input are merged.
    """

    def __init__(self) -> None:
        super().__init__()
        size = 2 * HIDDEN + 2 * OBSERVED
        self.gates, self.candidate = nn.Linear(size, 2 * UNITS), nn.Linear(size, UNITS)
        self.update, self.reset = nn.Linear(UNITS, HIDDEN), nn.Linear(UNITS, HIDDEN)
        self.renew = nn.Linear(UNITS, 2 * HIDDEN)

    def read(self, x: Tensor) -> Tensor:
        """[M, 150] contribution of observations [M, 82] to the argument of each tanh, for all steps at once."""
        layers = (self.gates, self.candidate)
        return torch.cat([F.linear(x, layer.weight[:, 2 * HIDDEN :], layer.bias) for layer in layers], dim=1)

    def forward(self, h: Tensor, seen: Tensor) -> Tensor:
        """The next state [n, 2, 40] from h [n, 2, 40] and the result of `read` for the observations, [n, 150]."""
        of_gates, of_candidate = seen.split([2 * UNITS, UNITS], dim=1)
        gates = torch.addmm(of_gates, h.flatten(1), self.gates.weight[:, : 2 * HIDDEN].t()).tanh()
        u, r = (layer(part).sigmoid() for layer, part in zip((self.update, self.reset), gates.chunk(2, 1), strict=True))
        kept = (h * r[:, None]).flatten(1)
        inner = torch.addmm(of_candidate, kept, self.candidate.weight[:, : 2 * HIDDEN].t()).tanh()
        mean, deviation = self.renew(inner).chunk(2, dim=1)
        return torch.lerp(torch.stack([mean, deviation.abs()], dim=1), h, u[:, None])
