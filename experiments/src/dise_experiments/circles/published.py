"""Two circles with the paper's selector as published."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dise.select import Dynamic, TaskErrorCost, run_candidates
from dise_experiments.circles.evaluate import CHUNK, SMALL, policy_rows
from dise_experiments.circles.points import FreshBatches, sets
from dise_experiments.circles.presets import ALPHA, PENALTY, Preset
from dise_experiments.circles.selector import SET, PaperNetwork
from dise_experiments.circles.task import CirclesTask
from dise_experiments.common.task import AsPublished, SelectorSpec

LITERAL = 1e-12  # Eq. 5 has no lower limit of Γ


class PublishedCircles(CirclesTask):
    """Table 7's network, tanh on its last layer too, for Euler, RK4 and DOPRI, fitted to Eq. 5 on the training points.

    Γ is the negative log-likelihood that a candidate reports for a batch of 32 points, so an integrator that overstates
    the likelihood is rewarded. Costs are standardised for the network: they reach M^α = 1.23, which tanh cannot.

    Args:
        about: what the paper leaves open.
        seed: of the run, which determines its training points.
        beta: β: the mean Γ of the flow trained with R_err, under DOPRI.
    """

    def __init__(self, about: AsPublished, *, seed: int, beta: float) -> None:
        self.about, self.default_selector, self.seed, self.beta = about, about.label, seed, beta
        self.candidates = about.candidates(self.reference)
        self.selectors = {
            about.label: SelectorSpec(
                lambda model, candidates: PaperNetwork(candidates, last_tanh=True), unit="set", equation=5
            )
        }

    def rule(self, alpha: float | None, penalty: float | None, equation: int) -> TaskErrorCost:
        """Eq. 5 as printed: Γ is the negative log-likelihood."""
        return TaskErrorCost(
            alpha=ALPHA if alpha is None else alpha,
            M=PENALTY if penalty is None else penalty,
            task_error=reported_nll,
            beta=self.beta,
            resolution=LITERAL,
        )

    def selection_batches(
        self, model: nn.Module, splits: Preset, *, on: str, unit: str
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The points of all training iterations, in sets of 32. They have no targets: Γ is what a candidate reports."""
        device = next(model.parameters()).device
        for x in self.about.cut(training_sets(splits, self.seed)).to(device).split(CHUNK):
            yield x, x.new_zeros(x.shape[:2])

    def metrics(
        self, model: nn.Module, dynamics: Mapping[str, Dynamic], selector_macs: Mapping[str, float], splits: Preset
    ) -> dict[str, Any]:
        """Likelihood and NFE of all policies, with one decision per set."""
        test = torch.cat([sets(splits.target, SMALL, "test"), sets(splits.target, splits.test_sets, "large test")])
        rows = policy_rows(model, self.candidates, self.rule(None, None, 5), dynamics, selector_macs, test, "set")
        return {"target": splits.target, "samples": test.shape[0] * test.shape[1], "policies": rows}


def training_sets(preset: Preset, seed: int) -> Tensor:
    """[N, 32, 2] points of all training iterations; of each iteration the whole sets."""
    whole = preset.batch_size // SET * SET
    epochs = (FreshBatches(preset, seed, epoch) for epoch in range(preset.epochs))
    return torch.cat([x[0, :whole] for batches in epochs for x in batches]).reshape(-1, SET, 2)


def reported_nll(output: Tensor, target: Tensor) -> Tensor:
    """Γ [N, K] of log p [N, K, P]: the negative log-likelihood that each candidate reports, mean over P."""
    return -output.mean(-1)


def mean_nll(task: CirclesTask, model: nn.Module, sets: Sequence[Tensor]) -> float:
    """β: the mean negative log-likelihood of a flow on sets [N, 32, 2] under DOPRI."""
    outcomes = run_candidates(model, [((x,), None) for x in sets], [task.reference])
    return float(-outcomes.output.double().mean())
