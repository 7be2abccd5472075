"""The paper's auxiliary network for MNIST."""

from torch import Tensor, nn
from torch.nn import functional as F

from dise.select import ConfidenceNetwork
from dise_experiments.mnist.model import CHANNELS, CLASSES, ResidualBlock

HIDDEN = 32


class PaperNetwork(nn.Module):
    """Table 2: ReLU(residual block), average pool(ReLU(norm(residual block))), linear 64 → 32, linear 32 → K.

    With standard two-convolution blocks it has 150,275 parameters for K = 3, and costs about two evaluations
    of f; the paper says 0.8. As in the paper, there is no activation between the two linear layers.
    """

    def __init__(self, candidates: int) -> None:
        super().__init__()
        self.block1, self.block2 = ResidualBlock(), ResidualBlock()
        self.norm = nn.GroupNorm(32, CHANNELS)
        self.fc1, self.fc2 = nn.Linear(CHANNELS, HIDDEN), nn.Linear(HIDDEN, candidates)

    def forward(self, h0: Tensor, k1: Tensor) -> Tensor:
        """h0 [n, 64, 6, 6] → [n, K]; k1 is not used."""
        h = F.relu(self.block1(h0))
        h = F.relu(self.norm(self.block2(h)))
        return self.fc2(self.fc1(h.mean((2, 3))))


def confidence_network(model: nn.Module, candidates: int) -> ConfidenceNetwork:
    """`ConfidenceNetwork` with the classifier's own head."""
    return ConfidenceNetwork(model.get_submodule("head"), candidates, classes=CLASSES)
