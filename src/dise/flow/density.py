"""A flow's log-density as a module, which can be given a policy."""

from typing import Any

from torch import Tensor, nn

from dise.flow.block import FlowBlock
from dise.flow.conditions import Condition
from dise.flow.divergences import HutchinsonDivergence
from dise.flow.flow import Flow
from dise.integrate.annotations import Float
from dise.integrate.argument_types import checked_arguments


@checked_arguments
class FlowDensity(nn.Module):
    """The log-density of a flow: a model that `make_dynamic`, `calibrate` and `save_policy` take.

    Its inputs are points and each condition of the field, its outputs log p [B].

    Args:
        flow: its field, base, span, integrator and options are the density's, too. The block is of its own, so a policy
            for densities does not change the flow's samples.

    Raises:
        TypeError, ValueError: no flow, or a divergence that draws random numbers, which no two runs share.
    """

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        if isinstance(flow.divergence, HutchinsonDivergence):
            raise ValueError("flow: expected exact divergences, got HutchinsonDivergence, whose log p is random")
        self.flow = flow.until(flow.t1)

    @property
    def block(self) -> FlowBlock:
        """The block, from data to the base; its integrator counts from the base to the data, as a flow's does."""
        return self.flow.block

    @property
    def report(self) -> Any:
        """What `make_sampler` or `make_dynamic` did; None before."""
        return self.flow.block.report

    def forward(self, x: Tensor, *conditions: Tensor) -> Float[Tensor, "*B"]:
        """Points x [B, ..., D] and conditions as in `Flow` → log p(x) [B, ...]."""
        return self.flow.log_prob(x, conditions or None)

    def log_prob(self, x: Tensor, condition: Condition = None) -> Float[Tensor, "*B"]:
        """As `Flow.log_prob`, by the policy."""
        return self.flow.log_prob(x, condition)
