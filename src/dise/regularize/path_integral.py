"""Regularizers that are integrals of derivatives of f along the path."""

import math
from abc import abstractmethod

import torch
from torch import Tensor

from dise.integrate import Step
from dise.integrate.annotations import Float
from dise.integrate.clock import real_dtype
from dise.integrate.output.interpolation import states_within
from dise.integrate.problem.field import BoundField
from dise.regularize.regularizer import SampleRegularizer

NODES = 0.5 - math.sqrt(3) / 6, 0.5 + math.sqrt(3) / 6  # of Gauss's quadrature with two points, exact up to degree 3


class PathIntegral(SampleRegularizer):
    """R = ∫ g(t, h(t)) dt, where g contains derivatives of f.

    A step contributes by Gauss's quadrature with two nodes, whose states are those of the step's dense output: of
    order 4, with two evaluations of g per step. They call f, and are not among the solve's `nfe`. The derivatives are
    forward ones (`torch.func.jvp`), which can be differentiated again for training.
    """

    @abstractmethod
    def integrand(self, field: BoundField, t: Float[Tensor, " n"], y: Tensor) -> Float[Tensor, " n"]:
        """[n] g at times [n] and states [n, F] of n samples.

        Args:
            field: f with its arguments: field(t, y) → dy/dt [n, F].
            t, y: in the solver's layout.
        """

    def accumulate(self, step: Step, field: BoundField) -> Float[Tensor, " n"]:
        """[n] contribution of the step to the integral."""
        dtype = real_dtype(step.y)
        states = states_within(step, NODES)
        times = [torch.add(step.t, step.dt, alpha=node).to(dtype) for node in NODES]
        values = [self.integrand(field, t, y) for t, y in zip(times, states.unbind(), strict=True)]
        return step.dt.abs().to(dtype) * (values[0] + values[1]) / 2

    accumulate.calls_field = True  # type: ignore[attr-defined]


def squared_norm(x: Tensor) -> Tensor:
    """[n] ‖x‖₂² of [n, F], real or complex."""
    return (x * x.conj()).real.sum(1)
