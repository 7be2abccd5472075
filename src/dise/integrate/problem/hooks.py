"""Hooks called after each attempted step: observers, which change nothing, and a rule that may stop samples."""

from typing import NamedTuple, Protocol

from torch import Tensor

from dise.integrate.annotations import Bool, Float, Int
from dise.integrate.runge_kutta.step import Step


class StepRecord(NamedTuple):
    """An attempted step of n samples, and its outcome."""

    sample: Int[Tensor, " n"]  # indices in the solve's batch
    step: Step
    t_next: Float[Tensor, " n"]  # end of the step
    ratio: Float[Tensor, " n"]  # scaled error estimate; NaN if it is not measured
    accept: Bool[Tensor, " n"]  # False for finished samples


class Observer(Protocol):
    """Receives every attempted step."""

    def see(self, record: StepRecord) -> None:
        """Take note of an attempted step."""
        ...

    def start_over(self, sample: Tensor) -> None:
        """Discard the steps of these samples: another integrator restarts them from t0."""
        ...


class StoppingRule(Protocol):
    """Stops samples before t1."""

    def stops(self, sample: Tensor, step: Step, t_next: Tensor, accept: Tensor) -> Tensor:
        """[n] bool, whether this step stops a sample; `sample` [n] are indices in the solve's batch."""
        ...
