"""Regularizers of a flow's points alone, without their log-density."""

from dataclasses import replace

from torch import Tensor

from dise.flow.divergences import AugmentedField
from dise.integrate import Step
from dise.integrate.problem.field import BoundField
from dise.integrate.value import as_whole
from dise.regularize import KineticEnergy
from dise.regularize.regularizer import Reduce, SampleRegularizer


class PointRegularizer(SampleRegularizer):
    """A regularizer of a flow's points alone, mean over the points of a row.

    A flow's solve has the state (points, log-densities), and a row may have many points. For the regularizer of RNODE
    (Finlay et al., How to Train Your Neural ODE, 2020):

        energy, jacobian = TransportCost(flow.dim), PointRegularizer(JacobianNorm(), flow.dim)
        log_prob, solution = flow.solve(x, accumulate={"energy": energy.accumulate, "jacobian": jacobian.accumulate})
        loss = -log_prob.mean() + 0.01 * sum(part.mean() for part in solution.accumulated.values())

    Args:
        regularizer: whose value for several points is the sum of theirs: `KineticEnergy`, `JacobianNorm` or
            `TaylorSpeed`.
        dim: D of the flow's points.
        reduce: "mean" or "sum" over the rows of the batch.

    Raises:
        TypeError: another kind of regularizer.
        ValueError: dim is not a positive whole number; when solving: the state is not points of D dimensions with
            their log-densities.
    """

    def __init__(self, regularizer: SampleRegularizer, dim: int, *, reduce: Reduce = "mean") -> None:
        super().__init__(reduce=reduce)
        function = regularizer.accumulate if isinstance(regularizer, SampleRegularizer) else None
        if function is None:
            raise TypeError(f"regularizer: expected one that the solver accumulates, got {regularizer!r}")
        self.regularizer, self.dim, self._function = regularizer, as_whole("dim", dim), function
        calls_field = getattr(function, "calls_field", False)
        self.accumulate = self._with_field if calls_field else self._of_points

    def _of_points(self, step: Step, *field: BoundField) -> Tensor:
        """[n] contribution of the step, mean over each row's points."""
        features = step.y.shape[1]
        points, rest = divmod(features, self.dim + 1)
        if rest:
            raise ValueError(
                f"dim: expected the D of points that, with their log-densities, are {features} numbers per row, "
                f"got {self.dim}"
            )
        # a row holds all coordinates of its points, then their log-densities
        coordinates = slice(0, points * self.dim)
        y, y_next = step.y[:, coordinates], step.y_next[:, coordinates]
        part = step._replace(y=y, y_next=y_next, stages=tuple(stage[:, coordinates] for stage in step.stages))
        return self._function(part, *map(field_of_points, field)) / max(points, 1)

    def _with_field(self, step: Step, field: BoundField) -> Tensor:
        return self._of_points(step, field)

    _with_field.calls_field = True  # type: ignore[attr-defined]


class TransportCost(PointRegularizer):
    """R = ∫ ‖f(t, z)‖² dt of a flow's points, mean over points: kinetic energy without the log-density's part.

    `KineticEnergy` of a flow's solve would include ∫ (div f)² dt, and would sum over points that share a row. A small
    cost makes paths straight, so that few steps follow them: the first regularizer of Finlay et al., How to Train Your
    Neural ODE, 2020. The solver's quadrature computes it from the stages of its steps:

        cost = TransportCost(flow.dim)
        log_prob, solution = flow.solve(x, accumulate=cost.accumulate)
        loss = -log_prob.mean() + weight * cost(solution, flow.f)

    Args:
        dim: D of the flow's points.
        reduce: "mean" or "sum" over the rows of the batch.

    Raises:
        ValueError: dim is not a positive whole number; when solving: the state is not points of D dimensions with
            their log-densities.
    """

    def __init__(self, dim: int, *, reduce: Reduce = "mean") -> None:
        super().__init__(KineticEnergy(), dim, reduce=reduce)


def field_of_points(field: BoundField) -> BoundField:
    """The points' field of the field of a flow's densities.

    Raises:
        TypeError: the field of another solve.
    """
    augmented, layout = field.f, field.layout
    if not isinstance(augmented, AugmentedField):
        raise TypeError(f"f: expected the field of a flow's densities, got {type(augmented).__name__}")
    draws = augmented.divergence is not None and augmented.divergence.draws
    conditions = field.sample_args[:-1] if draws else field.sample_args
    points = replace(layout, shapes=layout.shapes[:1], is_tuple=False)
    return BoundField(augmented.f, points, field.args, conditions)
