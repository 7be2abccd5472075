"""A flow's map from noise to data as a module, which can be given a policy."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from dise.flow.conditions import Condition, as_conditions
from dise.flow.flow import Flow
from dise.integrate.annotations import Float
from dise.integrate.argument_types import checked_arguments
from dise.integrate.value import as_whole
from dise.nn import NeuralODE


@checked_arguments
class FlowSampler(nn.Module):
    """The map from a flow's noise to its data: a model that `make_dynamic`, `calibrate` and `save_policy` take.

    Its inputs are the noise and each condition of the field. Noise is drawn, so calibration data cost nothing:

        sampler = dise.FlowSampler(flow)
        data = (flow.base.sample((1000,)), conditions), None  # 1000 rows, no target
        dise.make_dynamic(sampler, data, risk=dise.select.OutputDeviation(0.05), epsilon=0.05)
        sampler.sample(100, conditions[:100])

    Args:
        flow: its field, base, span, jumps, integrator and options are the sampler's, too. `sampler.block` is a
            `NeuralODE` of its own, so a policy for samples does not change the flow's densities.
    """

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.base, self.jump_at, self.step_at = flow.base, flow.jump_at, flow.step_at
        options = flow.block.options.keywords()
        self.block = NeuralODE(flow.f, flow.block.integrator, t0=flow.t0, t1=flow.t1, **options)

    @property
    def report(self) -> Any:
        """What `make_sampler` or `make_dynamic` did; None before."""
        return self.block.report

    def forward(self, z: Float[Tensor, "*B"], *conditions: Tensor) -> Float[Tensor, "*B"]:
        """Noise z [B, ..., D] at the flow's t0, and conditions as in `Flow` → points in z's shape at its t1.

        Raises:
            TypeError, ValueError: conditions that are not tensors with a row per row of points, or one row for all.
        """
        rows = as_conditions(conditions, z.shape[0], batched=self.block.options.batched)
        if self.jump_at is None and self.step_at is None:
            return cast(Tensor, self.block(z, sample_args=rows))  # as a block of any model, which can be exported
        solution = self.block.solve(z, sample_args=rows, jump_at=self.jump_at, step_at=self.step_at)
        return cast(Tensor, solution.y)

    @torch.no_grad()
    def sample(self, number: int, condition: Condition = None) -> Float[Tensor, "B ..."]:
        """[number, *event_shape] points, without gradients, from noise of torch's global generator."""
        number = as_whole("number", number, 0)
        conditions = as_conditions(condition, number, batched=self.block.options.batched)
        return cast(Tensor, self(self.base.sample(torch.Size([number])), *conditions))
