"""MNIST with the paper's selector as published."""

from torch import nn

from dise_experiments.common.task import AsPublished, SelectorSpec
from dise_experiments.mnist.data import Batches, MnistSplits
from dise_experiments.mnist.selector import PaperNetwork
from dise_experiments.mnist.task import TEST_BATCH, MnistTask


class PublishedMnist(MnistTask):
    """Table 2's network for Euler, RK4 and DOPRI, fitted to Eq. 4 on the training images."""

    baselines = ()

    def __init__(self, about: AsPublished) -> None:
        self.about, self.default_selector = about, about.label
        self.candidates = about.candidates(self.reference)
        self.selectors = {about.label: SelectorSpec(lambda model, candidates: PaperNetwork(candidates))}

    def check(self, model: str, reg: str) -> str | None:
        """Only the ODE-Net is trained with DOPRI, the last candidate."""
        return None if model == "odenet" else f"model: the published selector is the ODE-Net's, got {model!r}"

    def selection_batches(self, model: nn.Module, splits: MnistSplits, *, on: str, unit: str) -> Batches:
        """The training images without their random crops."""
        return Batches.evaluation(self.about.cut(splits.train), batch_size=TEST_BATCH)
