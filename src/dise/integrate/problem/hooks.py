"""What a solve calls after each attempted step: observers, which change nothing, and a rule that may stop samples."""

from typing import NamedTuple, Protocol

from torch import Tensor

from dise.integrate.annotations import Bool, Float, Int
from dise.integrate.runge_kutta.step import Step


class StepRecord(NamedTuple):
    """An attempted step of n samples, and what became of it."""

    sample: Int[Tensor, " n"]  # which of the solve's samples
    step: Step
    t_next: Float[Tensor, " n"]  # end of the step
    ratio: Float[Tensor, " n"]  # scaled error estimate; NaN if the method embeds none
    accept: Bool[Tensor, " n"]  # False for samples that were done


class Observer(Protocol):
    """What is told of every attempted step."""

    def see(self, seen: StepRecord) -> None:
        """An attempted step."""
        ...

    def start_over(self, sample: Tensor) -> None:
        """Another integrator begins with these samples anew; what was seen of them is void."""
        ...


class StoppingRule(Protocol):
    """What may stop a sample before t1."""

    def stops(self, sample: Tensor, step: Step, t_next: Tensor, accept: Tensor) -> Tensor:
        """[n] bool, which of the samples [n] this step stops."""
        ...
