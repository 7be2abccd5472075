"""The transport cost of a flow (Finlay et al., How to Train Your Neural ODE, 2020)."""

from torch import Tensor, nn

from dise.integrate import Solution, Step
from dise.regularize import KineticEnergy, Regularizer


class TransportCost(Regularizer):
    """R = ∫ ‖f(t, z)‖² dt of a flow's points, mean over points: kinetic energy without the log-density's part.

    `KineticEnergy` of a flow's solve would include ∫ (div f)² dt, and would sum over points that share a row. A small
    cost makes paths straight, so that few steps follow them: the first regularizer of Finlay et al., How to Train Your
    Neural ODE, 2020. The solver's quadrature computes it from the stages of its steps:

        cost = TransportCost(flow.dim)
        log_prob, solution = flow.solve(x, accumulate=cost.accumulate)
        loss = -log_prob.mean() + weight * cost(solution, flow.f)

    Args:
        dim: D of the flow's points.

    Raises:
        ValueError: dim is not a positive whole number; when solving: the state is not points of D dimensions with
            their log-densities.
    """

    def __init__(self, dim: int) -> None:
        if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
            raise ValueError(f"dim: expected a whole number of at least 1, got {dim!r}")
        self.dim = dim

    def accumulate(self, step: Step) -> Tensor:
        """[n] contribution of the step to the integral, mean over each row's points."""
        features = step.y.shape[1]
        points, rest = divmod(features, self.dim + 1)
        if rest:
            raise ValueError(
                f"dim: expected the D of points that, with their log-densities, are {features} numbers per row, "
                f"got {self.dim}"
            )
        # a row holds all coordinates of its points, then their log-densities
        coordinates = tuple(stage[:, : points * self.dim] for stage in step.stages)
        return KineticEnergy.accumulate(step._replace(stages=coordinates)) / max(points, 1)

    def __call__(self, solution: Solution | None, f: nn.Module) -> Tensor:
        """Mean over points, a scalar []."""
        return self._mean_accumulated(solution)
