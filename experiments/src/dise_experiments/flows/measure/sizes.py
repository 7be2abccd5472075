"""How much is measured: numbers of draws and the guarantee, per preset and kind of data."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field


class Sizes(BaseModel):
    """Settings of the measurements of one field; saved with them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    draws: int = Field(ge=20, description="on which errors and evaluations are measured")
    batch: int = Field(ge=1, description="draws per solve")
    density_draws: int = Field(ge=0, description="on which log-densities are measured; 0: none are")
    compared: int = Field(ge=10, description="draws per C2ST; images are compared on all draws")
    epochs: int = Field(default=50, ge=1, description="of C2ST's classifier, at most")
    observations: int = Field(default=10, ge=1, le=10, description="at which the reference is compared with posteriors")
    fitted: tuple[int, ...] = Field(default=(6, 8), description="evaluations of the fitted solvers")
    fit_draws: int = Field(ge=16, description="to which they are fitted")
    fit_iterations: int = Field(default=100, ge=1)
    tolerance: float = Field(default=0.03, gt=0, description="τ, root mean square distance per draw")
    epsilon: float = Field(default=0.01, gt=0, lt=1)
    delta: float = Field(default=0.05, gt=0, lt=1)
    sampler_draws: int = Field(ge=0, description="for the certified sampler; 0: none is made")
    many_candidates: bool = Field(default=True, description="`default_candidates`, or a dozen of them")
    timed: tuple[int, ...] = Field(default=(1, 64, 10_000), description="batch sizes of the times")


SIZES: Mapping[str, Mapping[str, Sizes]] = {
    "sample": {
        "points": Sizes(
            draws=1000,
            batch=1024,
            density_draws=100,
            compared=500,
            epochs=20,
            observations=1,
            fitted=(6,),
            fit_draws=256,
            fit_iterations=30,
            epsilon=0.05,
            sampler_draws=2000,
        ),
        "digits": Sizes(
            draws=20,
            batch=20,
            density_draws=0,
            compared=20,
            fitted=(6,),
            fit_draws=32,
            fit_iterations=10,
            sampler_draws=0,
            timed=(1,),
        ),
    },
    "cpu": {
        "points": Sizes(
            draws=4096, batch=1024, density_draws=256, compared=1000, epochs=30, fit_draws=2048, sampler_draws=10_000
        ),
        "digits": Sizes(
            draws=64,
            batch=32,
            density_draws=0,
            compared=64,
            fitted=(8,),
            fit_draws=96,
            fit_iterations=20,
            epsilon=0.05,
            sampler_draws=450,
            many_candidates=False,
            timed=(1, 64),
        ),
    },
}
"""Settings by preset, for "points" and "digits"."""
