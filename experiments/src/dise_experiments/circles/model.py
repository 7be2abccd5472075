"""The flow of the two circles: a small network of the points, with weights given by another network of the time.

Source: torchdiffeq's `examples/cnf.py`, after Chen, Rubanova, Bettencourt, Duvenaud, Neural Ordinary Differential
Equations, 2018, section 4.
"""

import torch
from torch import Tensor, nn

from dise.flow import DiagonalNormal, Flow
from dise.integrate import Dopri5

DIM, HIDDEN, WIDTH = 2, 32, 64
BASE_VARIANCE, END = 0.1, 10.0


class HyperNetworkField(nn.Module):
    """dz/dt = (1/64) Σ_i U_i tanh(W_i·z + B_i) with W, U [64, 2] and B [64] from t; 15,904 parameters.

    A network of t with two hidden layers of 32 gives W, U', G and B, and U = U' σ(G). It runs once per time, so
    points with a common time (z [n, P, 2], or a scalar t) share its work. Its 448 outputs have the order of
    torchdiffeq's example, so its weights can be loaded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hypernetwork = nn.Sequential(
            nn.Linear(1, HIDDEN),
            nn.Tanh(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.Tanh(),
            nn.Linear(HIDDEN, (3 * DIM + 1) * WIDTH),
        )

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """dz/dt [n, ..., 2] of z [n, ..., 2] at t [n, 1, …, 1] or []."""
        W, U, B = self._weights(t)
        return torch.bmm(_hidden(W, B, z), U).reshape(z.shape)

    def with_divergence(self, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """dz/dt [n, ..., 2] and its divergence (1/64) Σ_i (1 − tanh²) W_i·U_i [n, ..., 1]."""
        W, U, B = self._weights(t)
        h = _hidden(W, B, z)
        WU = (W * U).sum(-1, keepdim=True)
        # Σ (1 − h²) WU = Σ WU − h²·WU needs one tensor of the size [m, P, 64], h²
        div = WU.sum(1, keepdim=True) - torch.bmm(h.square(), WU)
        return torch.bmm(h, U).reshape(z.shape), div.reshape(*z.shape[:-1], 1)

    def _weights(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """W, U/64 [m, 64, 2] and B [m, 1, 64] for the m times in t."""
        weights = self.hypernetwork(t.reshape(-1, 1))
        W, U, G, B = weights.split([DIM * WIDTH, DIM * WIDTH, DIM * WIDTH, WIDTH], dim=1)
        # not by F.glu, whose forward derivative has none itself; divide U by 64, the smallest tensor for the mean over
        # hidden units
        U = U * G.sigmoid() / WIDTH
        return W.reshape(-1, WIDTH, DIM), U.reshape(-1, WIDTH, DIM), B.unsqueeze(1)


def _hidden(W: Tensor, B: Tensor, z: Tensor) -> Tensor:
    """tanh(W·z + B) [m, P, 64] of P points at each of m times."""
    return torch.baddbmm(B, z.reshape(len(W), -1, DIM), W.transpose(1, 2)).tanh()


def hypernetwork_flow() -> Flow:
    """The flow of torchdiffeq's example: N(0, 0.1·I) at t=0 → data at t=10, DOPRI at 1e-5; 15,904 parameters."""
    base = DiagonalNormal(torch.zeros(DIM), torch.full((DIM,), BASE_VARIANCE**0.5))
    return Flow(HyperNetworkField(), base, Dopri5(rtol=1e-5, atol=1e-5), t0=0.0, t1=END)
