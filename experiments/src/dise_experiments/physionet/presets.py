"""Settings of the PhysioNet experiments."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Preset(BaseModel):
    """Settings of the training of a Latent ODE and of the fit of its selectors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Literal["sample", "full"] = Field(description="the records shipped with the package, or all of sets a and b")
    quantization: float = Field(
        default=0.016,
        ge=0,
        allow_inf_nan=False,
        description="times are rounded to multiples of it, in hours; 0: no rounding",
    )
    held_out: int = Field(
        default=640,
        ge=8,
        le=3000,
        description="training records held out for selectors: of 3,200, or at most the sample's 50",
    )
    epochs: int = Field(ge=1)
    batch_size: int = Field(default=50, ge=1, description="records in a training batch")
    samples: int = Field(default=3, ge=1, description="samples of z(0) per record in training")
    left_out: float = Field(
        default=0.0, ge=0, lt=1, description="share of measurements left out in training, at random"
    )
    loss: Literal["latent-ode", "cross-entropy"] = Field(
        default="latent-ode",
        description="L_task: the published Latent ODE's, or the cross-entropy alone, as the paper has it",
    )
    learning_rate: float = Field(default=0.01, gt=0, allow_inf_nan=False, description="initial learning rate of Adamax")
    decay: float = Field(default=0.999, gt=0, le=1, description="factor of the learning rate per batch")
    floor: float = Field(default=0.001, ge=0, allow_inf_nan=False, description="smallest learning rate")


PRESETS = {
    # a demo of a few minutes on two cores; few records need small batches
    "sample": Preset(data="sample", quantization=1.0, left_out=0.3, batch_size=20, epochs=40),
    # a few minutes per model on two cores: at most 49 rows per record, against up to 202 with times to the minute
    "cpu": Preset(data="full", quantization=1.0, left_out=0.3, epochs=50),
    # the published Latent ODE's: `--niters 100`, no measurement left out
    "paper": Preset(data="full", epochs=100),
}

# λ of Eq. 3, from the paper's section 4.2
WEIGHTS = {
    "none": 0.0,
    "kinetic": 0.045,
    "l1": 2e-4,
    "l2": 2.5e-3,
    "error": 0.015,
    "raw-error": 0.015,
    # not the paper's: λ·R is about 0.02 on a model trained without regularizer, not swept; none of steer, as the
    # end of the span is each record's own
    "weighted-error": 80.0,
    "stiffness": 2.5e-4,
    "jacobian": 7e-5,
    "taylor2": 2e-4,
    "taylor3": 2e-6,
}

# α and M of Eq. 4 and 5, from the paper's section 4.2
ALPHA, PENALTY = 0.05, 1000.0

# The answer is "death" where its probability exceeds the share of deaths in the published training part: with the
# threshold 1/2 nearly all answers are "survivor", with every integrator.
PREVALENCE = 433 / 3200

# β of Eq. 5, a distance of probabilities. Distances below β are raised to β, so that NFE decides among adequate
# candidates: the reference's distance is 0, so Δ·Γ would give it the cost 0.
BETA = 0.02

TEST_BATCH = 60  # records in the paper's test batch
