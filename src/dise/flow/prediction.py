"""Networks of diffusion models as vector fields: whatever a network predicts, turned into dx/dt."""

from collections.abc import Callable
from typing import Any, Literal, get_args

from torch import Tensor, nn

from dise.integrate.argument_types import checked_arguments
from dise.integrate.multistep.paths import Path
from dise.integrate.problem.state import shapes
from dise.integrate.value import check_callable

Prediction = Literal["velocity", "data", "noise", "score", "v"]


@checked_arguments
class PathField(nn.Module):
    """The vector field dx/dt of a path x_t = α x + σ ε, from a network that predicts some quantity of x_t.

    With the data x̂ and the noise ε̂ that follow from the prediction, dx/dt = α' x̂ + σ' ε̂: the probability flow of a
    diffusion model. `Multistep.dpmpp2m` and `Multistep.unipc` take this field and the same path.

    Args:
        network: called as network(t, x, ...) with f's arguments; returns its prediction in x's shape.
        path: that the network was trained on, such as `StraightPath()`.
        predicts: "velocity" (dx/dt itself), "data" (x̂), "noise" (ε̂), "score" (−ε̂/σ), or "v" (α ε̂ − σ x̂, Salimans
            and Ho, 2022).
        time_scale: factor of the time that the network receives, e.g. 1000 for one trained on steps of DDPM.

    A data prediction is divided by σ, and a noise prediction by α, so those fields are not finite at the data's, or at
    the noise's, end of the path: solve up to a time just before it.

    Raises:
        TypeError: network cannot be called.
        ValueError: another prediction.
    """

    def __init__(
        self, network: Callable[..., Tensor], path: Path, predicts: Prediction = "velocity", *, time_scale: float = 1.0
    ) -> None:
        super().__init__()
        check_callable("network", network, "a function of (t, x)")
        if predicts not in get_args(Prediction):
            raise ValueError(f"predicts: expected one of {', '.join(get_args(Prediction))}, got {predicts!r}")
        self.network, self.path, self.predicts, self.time_scale = network, path, predicts, time_scale

    def forward(self, t: Tensor, x: Tensor, *args: Any) -> Tensor:
        """dx/dt at times t [n, 1, …, 1] and points x [n, ...].

        Raises:
            ValueError: the network returned no tensor of x's shape.
        """
        prediction = self.network(t if self.time_scale == 1 else t * self.time_scale, x, *args)
        if not isinstance(prediction, Tensor) or prediction.shape != x.shape:
            raise ValueError(f"network: expected a prediction like x {shapes(x)}, got {shapes(prediction)}")
        if self.predicts == "velocity":
            return prediction
        data, noise = self._parts(t, x, prediction)
        return self.path.alpha_slope(t) * data + self.path.sigma_slope(t) * noise

    def _parts(self, t: Tensor, x: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor]:
        """The data and the noise that the prediction implies."""
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        if self.predicts == "data":
            return prediction, (x - alpha * prediction) / sigma
        if self.predicts == "v":
            size = alpha.square() + sigma.square()
            return (alpha * x - sigma * prediction) / size, (sigma * x + alpha * prediction) / size
        noise = prediction if self.predicts == "noise" else -sigma * prediction
        return (x - sigma * noise) / alpha, noise

    def extra_repr(self) -> str:
        """Path and prediction, for the printed module."""
        return f"path={self.path}, predicts={self.predicts!r}"
