"""A selector of probabilities that a candidate is adequate: one dial instead of Eq. 4's M and α."""

from copy import copy
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dise.select.judging.costs import Costs
from dise.select.learning.selector import CostSelector, _Data


class AdequacySelector(CostSelector):
    """Expected price of every candidate: Δ_k + μ·(1 − p_k), with p_k the probability that it is adequate.

    p is calibrated: among the samples of which it says 0.9, nine in ten are adequate. Δ_k is the candidate's mean NFE,
    or its measured time. μ, the dial, says what an inadequate result is worth: the price that one is ready to pay to
    avoid it, in units of Δ. It can be turned after the fit, without another (`with_dial`).

    Eq. 4 with exponent α and penalty M is the same rule with Δ^α instead of Δ and μ = M^α − Δ_k^α, as the expected
    cost is p·Δ^α + (1 − p)·M^α = Δ^α + (1 − p)·(M^α − Δ^α); see `equivalent_dial`. What differs is what is learnt:
    the probabilities do not change with M and α, and their scale is known.

    Made by `AdequacySelector.fit(network, costs, dial=μ)`, with the options of `CostSelector.fit`, or by
    `AdequacySelector(network, candidates=K)` and `load_state_dict`. The fit minimises the cross-entropy; M and α of the
    costs' rule are not looked at. `selector.history` has the validation losses, the calibration error and the closed
    gap; the last two are of the validation part, on which the probabilities were calibrated too.

    Raises:
        ValueError: a dial that is no positive number.
    """

    price: Tensor
    slope: Tensor
    offset: Tensor

    def __init__(self, network: nn.Module, *, candidates: int, dial: float = 100.0) -> None:
        super().__init__(network, candidates=candidates)
        self.dial = _checked(dial)
        self.register_buffer("price", torch.zeros(candidates))
        self.register_buffer("slope", torch.ones(candidates))
        self.register_buffer("offset", torch.zeros(candidates))

    def probability(self, h0: Tensor, k1: Tensor) -> Tensor:
        """[n, K] p of samples with states and derivatives [n, ...] at t0."""
        return self._probability(self.network(h0, k1))

    def _probability(self, logits: Tensor) -> Tensor:
        return (logits * self.slope + self.offset).sigmoid()

    def _scores(self, answer: Tensor) -> Tensor:
        return self.price + self.dial * (1 - self._probability(answer))

    def with_dial(self, dial: float) -> Self:
        """The selector with another μ; both share the network.

        Raises:
            ValueError: a dial that is no positive number.
        """
        other = copy(self)
        other.dial = _checked(dial)
        return other

    @torch.no_grad()
    def _prepare(self, costs: Costs) -> Tensor:
        self.price.copy_(costs.delta.float().mean(0))
        return costs.adequate.float()

    @torch.no_grad()
    def _standardise(self, data: _Data) -> None:
        self._standardise_inputs(data)

    def _error(self, data: _Data) -> Tensor:
        return F.binary_cross_entropy_with_logits(data.predict(*data.inputs), data.target)

    @torch.no_grad()
    def _conclude(self, data: _Data, costs: Costs) -> None:
        logits = torch.cat([part.predict(*part.inputs) for part in data.split(512)])
        slope, offset = platt(logits, data.target)
        self.slope.copy_(slope)
        self.offset.copy_(offset)
        self.history.calibration_error = calibration_error(self._probability(logits), data.target)
        super()._conclude(data, costs)

    def _realised(self, costs: Costs) -> Tensor:
        return costs.delta + self.dial * (~costs.adequate)

    def extra_repr(self) -> str:
        """What a printed selector says of its dial."""
        return f"dial={self.dial:g}"


def _checked(dial: float) -> float:
    if not 0 < dial < float("inf"):
        raise ValueError(f"dial: expected a positive number, got {dial!r}")
    return dial


def equivalent_dial(alpha: float, M: float, cheap: float, dear: float) -> float:
    """The μ that decides between two candidates as Eq. 4 does, where the dearer one is certainly adequate.

    Eq. 4 then prefers the cheap candidate where p > (M^α − dear^α)/(M^α − cheap^α), and μ where p > 1 − (dear −
    cheap)/μ. With the paper's α = 0.3 and M = 1000, μ is 40 between 1 and 4 evaluations, and 75 between 1 and 14: Eq. 4
    is a dial that depends on the pair, and rises with the price.

    Args:
        alpha, M: of Eq. 4.
        cheap, dear: Δ of the two candidates, 0 < cheap < dear < M.

    Raises:
        ValueError: prices that are not in that order.
    """
    if not 0 < cheap < dear < M:
        raise ValueError(f"cheap, dear, M: expected 0 < cheap < dear < M, got {cheap!r}, {dear!r} and {M!r}")
    bound = (M**alpha - dear**alpha) / (M**alpha - cheap**alpha)
    return (dear - cheap) / (1 - bound)


@torch.enable_grad()
def platt(logits: Tensor, adequate: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and offset [K] with which sigmoid(slope·logits + offset) are calibrated probabilities, column by column.

    Args:
        logits: [N, K].
        adequate: [N, K], 0 or 1.

    Source: Platt, Probabilistic outputs for support vector machines, 1999, with his targets (n₊ + 1)/(n₊ + 2) and
    1/(n₋ + 2), which keep a column that is adequate always from certainty.
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


def calibration_error(p: Tensor, adequate: Tensor, *, bins: int = 10) -> float:
    """Mean difference between what probabilities say and how often it comes true.

    Args:
        p: [N, K] probabilities.
        adequate: [N, K], 0 or 1.
        bins: of equal numbers of probabilities.

    Returns:
        Σ over bins of their share times |mean p − mean adequate|.

    Source: Nguyen, O'Connor, Posterior calibration and exploratory analysis for natural language processing models,
    2015.
    """
    order = p.flatten().argsort()
    said, came = (x.flatten().double()[order].tensor_split(bins) for x in (p, adequate))
    gaps = [len(a) * abs(float(a.mean() - b.mean())) for a, b in zip(said, came, strict=True) if len(a)]
    return sum(gaps) / max(p.numel(), 1)
