"""PhysioNet with the paper's selector as published."""

from collections.abc import Iterable
from functools import partial

from torch import Tensor, nn

from dise_experiments.common.task import AsPublished, SelectorSpec
from dise_experiments.physionet.batches import TestBatches
from dise_experiments.physionet.data import PhysionetSplits
from dise_experiments.physionet.presets import TEST_BATCH
from dise_experiments.physionet.selector import PaperNetwork
from dise_experiments.physionet.stays import Stays
from dise_experiments.physionet.task import PhysionetTask

DROPOUTS = (0.0, 0.25)


class PublishedPhysionet(PhysionetTask):
    """Table 4's network, with both dropouts, for Euler, RK4 and DOPRI, fitted to Eq. 4 on the training records.

    The paper names no threshold of the probability of death; it is the prevalence here, as for the other selectors.
    """

    baselines = ()

    def __init__(self, about: AsPublished) -> None:
        self.about, self.default_selector = about, about.label
        self.candidates = about.candidates(self.reference)
        self.selectors = {
            about.label + (f", dropout {dropout:g}" if dropout else ""): SelectorSpec(
                partial(_network, dropout), unit="record"
            )
            for dropout in DROPOUTS
        }

    def selection_batches(
        self, model: nn.Module, splits: PhysionetSplits, *, on: str, unit: str
    ) -> Iterable[tuple[Stays, Tensor]]:
        """The training records."""
        return TestBatches(self.about.cut(splits.train), TEST_BATCH)


def _network(dropout: float, model: nn.Module, candidates: int) -> PaperNetwork:
    return PaperNetwork(candidates, dropout=dropout)
