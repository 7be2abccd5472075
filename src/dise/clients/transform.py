"""A flow as a transform of `torch.distributions`, which zuko's and sbi's distributions are made of."""

import torch
from torch import Tensor
from torch.distributions import Transform, constraints

from dise.flow import Flow


class FlowTransform(Transform):
    """The map of a flow from data to its base, with zuko's `call_and_ladj`; every point takes its own steps.

    Args:
        flow: of points [D].
        conditions: of the flow's field; tensors [..., C] whose leading dimensions broadcast to those of the points.
        to_data: the inverse map instead, from the base to data.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, flow: Flow, conditions: tuple[Tensor, ...] = (), *, to_data: bool = False) -> None:
        super().__init__()
        self.flow, self.conditions, self.to_data = flow, conditions, to_data

    @property
    def inv(self) -> "FlowTransform":
        """The inverse transform."""
        return FlowTransform(self.flow, self.conditions, to_data=not self.to_data)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y [..., D] of x [..., D], and log |det ∂y/∂x| [...], from one solve."""
        shape, rows, conditions = self._rows(x)
        y, log_det = self.flow.transport_with_log_det(rows, *self._span(self.to_data), conditions)
        return y.reshape(*shape, x.shape[-1]), log_det.reshape(shape)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log |det ∂y/∂x| [...]."""
        return self.call_and_ladj(x)[1]

    def _call(self, x: Tensor) -> Tensor:
        return self._moved(x, self.to_data)

    def _inverse(self, y: Tensor) -> Tensor:
        return self._moved(y, not self.to_data)

    def _moved(self, x: Tensor, to_data: bool) -> Tensor:
        shape, rows, conditions = self._rows(x)
        return self.flow.transport(rows, *self._span(to_data), conditions).reshape(*shape, x.shape[-1])

    def _span(self, to_data: bool) -> tuple[float | Tensor, float | Tensor]:
        return (self.flow.t0, self.flow.t1) if to_data else (self.flow.t1, self.flow.t0)

    def _rows(self, x: Tensor) -> tuple[torch.Size, Tensor, tuple[Tensor, ...]]:
        """Leading dimensions of the points, the points as rows [N, D], and the conditions as rows [N, C]."""
        shape = torch.broadcast_shapes(x.shape[:-1], *(c.shape[:-1] for c in self.conditions))
        conditions = tuple(c.expand(*shape, c.shape[-1]).reshape(-1, c.shape[-1]) for c in self.conditions)
        return shape, x.expand(*shape, x.shape[-1]).reshape(-1, x.shape[-1]), conditions
