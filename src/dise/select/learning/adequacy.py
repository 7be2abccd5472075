"""Selector by calibrated probabilities of adequacy, with one weight μ (the dial) instead of Eq. 4's M and α."""

from copy import copy
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dise.integrate.annotations import Float, Shaped
from dise.integrate.argument_types import checked_arguments
from dise.select.judging.costs import Costs
from dise.select.learning.fit import FitData
from dise.select.learning.selector import CostSelector


@checked_arguments
class AdequacySelector(CostSelector):
    """Selector by the expected price of every candidate: Δ_k + μ·(1 − p_k), with its probability p_k of being adequate.

    p is calibrated: of the results to which it gives 0.9, nine in ten are adequate. Δ_k is the candidate's mean NFE or
    measured time. μ, the dial, is the price of an inadequate result, in units of Δ. `with_dial` changes it after the
    fit, without another one.

    Eq. 4 with exponent α and penalty M is the same rule with Δ^α instead of Δ and μ = M^α − Δ_k^α, because the expected
    cost is p·Δ^α + (1 − p)·M^α = Δ^α + (1 − p)·(M^α − Δ^α); see `equivalent_dial`. But here the fitted quantities are
    probabilities, which do not depend on M and α.

    Construct it by `AdequacySelector.fit(network, costs, dial=μ)`, with the options of `CostSelector.fit`, or by
    `AdequacySelector(network, candidates=K)` and `load_state_dict`. The fit minimises the cross-entropy and does not
    use M and α of the costs' rule. `selector.history` has the validation losses, the calibration error and the closed
    gap; the last two are computed on the validation part, on which the probabilities are calibrated too.

    Raises:
        ValueError: a dial that is not a positive number.
    """

    price: Tensor
    slope: Tensor
    offset: Tensor

    def __init__(self, network: nn.Module, *, candidates: int, dial: float = 100.0) -> None:
        super().__init__(network, candidates=candidates)
        self.dial = _check_dial(dial)
        self.register_buffer("price", torch.zeros(candidates))
        self.register_buffer("slope", torch.ones(candidates))
        self.register_buffer("offset", torch.zeros(candidates))

    def probability(self, h0: Tensor, k1: Tensor, *conditions: Tensor) -> Tensor:
        """[n, K] probabilities p from states h0 and derivatives k1 [n, ...] at t0, and conditions if asked for."""
        return self._probability(self.network(h0, k1, *conditions))

    def _probability(self, logits: Tensor) -> Tensor:
        return (logits * self.slope + self.offset).sigmoid()

    def _scores(self, prediction: Tensor) -> Tensor:
        return self.price + self.dial * (1 - self._probability(prediction))

    def with_dial(self, dial: float) -> Self:
        """A copy of the selector with another μ; the two share the network.

        Raises:
            ValueError: a dial that is not a positive number.
        """
        other = copy(self)
        other.dial = _check_dial(dial)
        return other

    @torch.no_grad()
    def _targets(self, costs: Costs) -> Tensor:
        self.price.copy_(costs.delta.float().mean(0))
        return costs.adequate.float()

    @torch.no_grad()
    def _standardise(self, data: FitData) -> None:
        self._standardise_inputs(data)

    def _error(self, data: FitData) -> Tensor:
        return F.binary_cross_entropy_with_logits(data.prediction(), data.target)

    @torch.no_grad()
    def _finish(self, data: FitData, costs: Costs) -> None:
        logits = data.predictions()
        slope, offset = platt_scaling(logits, data.target)
        self.slope.copy_(slope)
        self.offset.copy_(offset)
        self.history.calibration_error = calibration_error(self._probability(logits), data.target)
        super()._finish(data, costs)

    def _actual_costs(self, costs: Costs) -> Tensor:
        return costs.delta + self.dial * (~costs.adequate)

    def extra_repr(self) -> str:
        """The dial in the printed form of the selector."""
        return f"dial={self.dial:g}"


def _check_dial(dial: float) -> float:
    if not 0 < dial < float("inf"):
        raise ValueError(f"dial: expected a positive number, got {dial!r}")
    return dial


@checked_arguments
def equivalent_dial(alpha: float, M: float, cheap: float, costly: float) -> float:
    """The dial μ that chooses between two candidates as Eq. 4 does, if the costly one is certainly adequate.

    Eq. 4 prefers the cheap candidate if p > (M^α − costly^α)/(M^α − cheap^α), the dial if p > 1 − (costly − cheap)/μ.
    With the paper's α = 0.3 and M = 1000, μ is 40 between 1 and 4 evaluations of f, and 75 between 1 and 14. So Eq. 4
    is a dial that depends on the pair of candidates and rises with the price.

    Args:
        alpha, M: α and M of Eq. 4.
        cheap, costly: Δ of the two candidates, 0 < cheap < costly < M.

    Raises:
        ValueError: prices that are not in that order.
    """
    if not 0 < cheap < costly < M:
        raise ValueError(f"cheap, costly, M: expected 0 < cheap < costly < M, got {cheap!r}, {costly!r} and {M!r}")
    bound = float((M**alpha - costly**alpha) / (M**alpha - cheap**alpha))
    return (costly - cheap) / (1 - bound)


@torch.enable_grad()
def platt_scaling(logits: Tensor, adequate: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and offset [K] for which sigmoid(slope·logits + offset) is calibrated, fitted per column.

    Args:
        logits: [N, K].
        adequate: [N, K], 0 or 1.

    Source: Platt, Probabilistic outputs for support vector machines, 1999, with his targets (n₊ + 1)/(n₊ + 2) and
    1/(n₋ + 2), which keep probabilities below 1 for a column that is always adequate.
    """
    z, y = logits.detach().double(), adequate.double()
    positive = y.sum(0)
    target = torch.where(y > 0, (positive + 1) / (positive + 2), 1 / (len(y) - positive + 2))
    slope, offset = torch.ones_like(positive, requires_grad=True), torch.zeros_like(positive, requires_grad=True)
    optimizer = torch.optim.LBFGS([slope, offset], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(slope * z + offset, target)
        loss.backward()
        return loss

    optimizer.step(closure)
    return slope.detach().to(logits.dtype), offset.detach().to(logits.dtype)


@checked_arguments
def calibration_error(p: Float[Tensor, "*B"], adequate: Shaped[Tensor, "*B"], *, bins: int = 10) -> float:
    """Calibration error: mean difference between predicted probabilities and observed frequencies.

    Args:
        p: [N, K] probabilities, or of any other shape.
        adequate: of the same shape, 0 or 1.
        bins: number of bins, each with the same number of probabilities.

    Returns:
        Σ over bins of (share of the probabilities in the bin) · |mean p − mean adequate|.

    Source: Nguyen, O'Connor, Posterior calibration and exploratory analysis for natural language processing models,
    2015.
    """
    order = p.flatten().argsort()
    predicted, observed = (x.flatten().double()[order].tensor_split(bins) for x in (p, adequate))
    gaps = [len(a) * abs(float(a.mean() - b.mean())) for a, b in zip(predicted, observed, strict=True) if len(a)]
    return sum(gaps) / max(p.numel(), 1)
