"""The block of a flow, which solves for points together with their log-density."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, Unpack

import torch
from torch import Tensor

from dise.flow.divergences import AugmentedField
from dise.integrate import Integrator
from dise.integrate.options import SolveKeywords
from dise.integrate.tracing import has_values
from dise.integrate.value import check_above
from dise.nn import NeuralODE


class FlowBlock(NeuralODE):
    """The block of a flow: takes data at its t0 to the base at its t1, with the change of the log-density.

    Its integrator is that of samples: a time grid counts from the base to the data, and a solve in the other direction
    uses the same times, reversed.

    Args:
        f: of points with their log-density.
        integrator: of samples.
        t0, t1: times of the data and of the base.
        log_prob_tolerance: tolerance of the log-density, in nats; None: that of the points.
        options: see `NeuralODE`.

    Raises:
        TypeError, ValueError: an argument (named in the message) is not as described.
    """

    def __init__(
        self,
        f: AugmentedField,
        integrator: Integrator,
        *,
        t0: float | Tensor,
        t1: float | Tensor,
        log_prob_tolerance: float | None = None,
        **options: Unpack[SolveKeywords],
    ) -> None:
        super().__init__(f, integrator, t0=t0, t1=t1, **options)
        if log_prob_tolerance is not None:
            check_above("log_prob_tolerance", log_prob_tolerance, 0)
        self.log_prob_tolerance = log_prob_tolerance

    def integrator_of_points(self, t0: float | Tensor, t1: float | Tensor) -> Integrator:
        """The integrator that takes points from t0 to t1.

        Raises:
            ValueError: the integrator has no counterpart for the way back, or has a grid and spans go both ways.
        """
        to_data, to_base = self._ways(t0, t1)
        if not to_base:
            return self.integrator
        back = self.integrator.mapped(lambda method: method.reversed())
        if to_data and back != self.integrator:
            raise ValueError(f"t0, t1: {self.integrator} has a grid, for spans in one direction, got spans in both")
        return back

    def _ways(self, t0: float | Tensor, t1: float | Tensor) -> tuple[bool, bool]:
        """Whether some spans go to the data, and whether some go to the base; traced times may go both ways."""
        if t0 is self.t0 and t1 is self.t1:  # a density; its times need not be read
            return False, True
        if t0 is self.t1 and t1 is self.t0:
            return True, False
        product = torch.as_tensor((t1 - t0) * (self.t0 - self.t1))
        if not has_values(product):
            return True, True
        return bool((product > 0).any()), bool((product < 0).any())

    def _integrator_for(self, t0: float | Tensor, t1: float | Tensor) -> Integrator:
        tolerance, integrator = self.log_prob_tolerance, self.integrator_of_points(t0, t1)
        return integrator if tolerance is None else integrator.mapped(_with_tolerance(tolerance))


def _with_tolerance(tolerance: float) -> Callable[[Integrator], Integrator]:
    """A function that gives a method with error control an absolute tolerance for the second tensor of a state."""

    def change(method: Integrator) -> Integrator:
        names: set[str] = {field.name for field in fields(method)} if is_dataclass(method) else set()
        if not {"rtol", "atol"} <= names:
            return method
        values: Any = method
        return replace(values, rtol=(values.rtol, 0.0), atol=(values.atol, tolerance))

    return change
