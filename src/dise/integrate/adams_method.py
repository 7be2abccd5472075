"""`Adams`: an Adams method with each sample's own steps, as an integrator."""

from dataclasses import KW_ONLY, dataclass, replace

from dise.integrate.integrators import ErrorControlled
from dise.integrate.multistep.own_steps import ORDERS, AdamsFormula
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Integration
from dise.integrate.problem.run import Run
from dise.integrate.stepping.control import ErrorControl
from dise.integrate.stepping.controllers import IController, PIController
from dise.integrate.stepping.loop import integrate
from dise.integrate.value import as_whole

STEADY = PIController(proportional=0.1, integral=0.9, safety=0.65)
"""Steps that are seldom rejected: a rejected one costs as much as an accepted one, and steps may shrink in between."""

BRISK_FROM = 5  # order
BRISK = PIController(proportional=0.3, integral=0.7, safety=0.8)
"""That of high orders: longer steps."""


def own_controller(order: int) -> PIController:
    """The controller of `Adams(order)`."""
    return STEADY if order < BRISK_FROM else BRISK


@dataclass(frozen=True)
class Adams(ErrorControlled):
    """The Adams–Bashforth–Moulton method with each sample's own steps: adaptive, one evaluation of f per step.

    A step predicts, evaluates f at the predicted end, and corrects (PEC mode); the difference of corrector and
    predictor is the error estimate. A sample starts with order 2 and raises it by one with each step, up to `order`;
    it starts again after an event that changed its state, and after a jump of f. Dense output has the method's order.
    The step that ends the span may be longer than the controller's by 1/safety, since no step follows it and the error
    test still holds; where more is left but less than two steps, the last two are equal. What the sum of the steps
    loses by rounding is kept and added again, so that many short steps are no less exact than a few long ones.

    For smooth fields, such as those of flow-matching samplers, it needs 0.5 to 0.8 times the evaluations of adaptive
    Runge–Kutta methods at equal error. Not for stiff fields: its stability region is smaller than theirs.

    NFE is 1 + steps, rejected steps included, 1 more with first_step="heuristic", and 1 more for each new start.

    Args:
        order: of the method, 2 to 8. High ones are for smooth fields and tight tolerances: the higher the order, the
            smaller the region of stability, and the more do differences of f's values consist of their roundings.
        first_step: "scale" by default, which needs no evaluation.
        controller: None: one that makes rejected steps rare, with longer steps from order 5 on.
        rtol, atol, max_steps, dt_min, dt_max, accept_at_dt_min, norm: see `ErrorControlled`. The estimate is that of
            the predictor, whose order is lower by one, so it exceeds the error of smooth solutions.

    Raises:
        ValueError: an argument (named in the message) is out of its range.

    Source: Hairer, Nørsett, Wanner, III.1 and III.5.
    """

    order: int = 4
    _: KW_ONLY
    first_step: str | float = "scale"
    controller: IController | None = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        as_whole("order", self.order, ORDERS[0], ORDERS[-1])
        super().__post_init__()

    @property
    def error_order(self) -> int:
        """That of the corrector, reached after the first steps."""
        return self.order

    @property
    def control(self) -> ErrorControl:
        """Error control; a last step may be as long as the error test is expected to allow."""
        controller = self.controller or own_controller(self.order)
        return replace(super().control, controller=controller, stretch=1 / controller.safety)

    @property
    def tableau(self) -> AdamsFormula:
        """The method's formula."""
        return AdamsFormula(self.order)

    def integrate(self, problem: Problem, run: Run) -> Integration:
        """Step every sample from t0 to t1."""
        return integrate(self.tableau, self.control, problem, run)
