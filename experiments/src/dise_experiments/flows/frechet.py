"""The Fréchet distance between the features that a small digit classifier has of two sets of images.

It is defined as the Fréchet inception distance is (Heusel et al., GANs Trained by a Two Time-Scale Update Rule, 2017,
Eq. 6), but with a classifier of MNIST in place of the Inception network: its values are no FID, and comparable with
those of the same classifier alone.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dise_experiments.mnist.data import Images, to_input
from dise_experiments.run.rundir import load_weights, save_weights

FEATURES, CLASSES = 32, 10
BATCH, RATE, ITERATIONS = 128, 2e-3, 600


class Classifier(nn.Module):
    """Logits [n, 10] of images [n, 1, 28, 28] in [−1, 1]: two convolutions and a hidden layer of 32 features."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 3 * 3, FEATURES),
        )
        self.head = nn.Linear(FEATURES, CLASSES)

    def features(self, x: Tensor) -> Tensor:
        """[n, 32] values of the last hidden layer."""
        return self.convolutions(x).relu()

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, 10]."""
        return self.head(self.features(x))


def digit_classifier(images: Images, file: Path, *, iterations: int = ITERATIONS, seed: int = 0) -> Classifier:
    """The classifier from a file, or trained on images and written there.

    Raises:
        ExperimentError: the file does not contain the classifier's weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = Classifier()
        if file.exists():
            load_weights(classifier, file)
        else:
            _train(classifier, images, iterations)
            save_weights(classifier, file)
    return classifier.eval()


def _train(classifier: Classifier, images: Images, iterations: int) -> None:
    """Adam on the cross-entropy, with a rate that falls to 0 along a cosine."""
    optimizer = torch.optim.Adam(classifier.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for _ in range(iterations):
        batch = images[torch.randint(len(images), (BATCH,))]
        loss = F.cross_entropy(classifier(2 * to_input(batch.images) - 1), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """|m − n|² + tr(A + B − 2 (A B)^½) of the means m, n and covariances A, B of features x [N, F] and y [M, F].

    Raises:
        ValueError: x and y are not two sets of at least two finite rows [N, F] with the same F.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f"x, y: expected features [N, F], at least 2 rows, got {list(x.shape)} and {list(y.shape)}")
    x, y = x.double(), y.double()
    if not (x.isfinite().all() and y.isfinite().all()):
        raise ValueError("x, y: expected finite features, got NaN or infinity")
    root = _square_root(x.T.cov())
    # A B has the eigenvalues of A^½ B A^½, which is symmetric
    cross = torch.linalg.eigvalsh(root @ y.T.cov() @ root).clamp(min=0).sqrt().sum()
    traces = x.var(0).sum() + y.var(0).sum()
    return max(float((x.mean(0) - y.mean(0)).square().sum() + traces - 2 * cross), 0.0)  # rounding may go below


def _square_root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
