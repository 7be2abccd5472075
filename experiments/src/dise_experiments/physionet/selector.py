"""The paper's auxiliary network for PhysioNet."""

import itertools

from torch import Tensor, nn

from dise_experiments.physionet.model import LATENT


class PaperNetwork(nn.Module):
    """Table 4: linear 20 → 10 → 10 → 5 → 5 with ReLU, dropout, linear 5 → K; 423 parameters for K = 3.

    Args:
        candidates: K.
        dropout: probability; the paper tries 0 and 0.25.
    """

    def __init__(self, candidates: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        sizes = (LATENT, 10, 10, 5, 5)
        hidden = [layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
        self.layers = nn.Sequential(*hidden, nn.Dropout(dropout), nn.Linear(sizes[-1], candidates))

    def forward(self, h0: Tensor, k1: Tensor) -> Tensor:
        """h0 [n, 20] → [n, K]; k1 is not used."""
        return self.layers(h0)
