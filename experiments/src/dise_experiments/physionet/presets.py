"""Settings of the PhysioNet experiments."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Preset(BaseModel):
    """How a Latent ODE is trained and its selectors fitted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Literal["sample", "full"] = Field(description="the records shipped with the package, or all of sets a and b")
    quantization: float = Field(
        default=0.016, ge=0, allow_inf_nan=False, description="hours that times are rounded to; 0: not rounded"
    )
    held_out: int = Field(
        default=640,
        ge=8,
        le=3000,
        description="of the 3,200 training records, set apart for selectors; of the sample at most its 50",
    )
    epochs: int = Field(ge=1)
    batch_size: int = Field(default=50, ge=1, description="records in a training batch")
    samples: int = Field(default=3, ge=1, description="of z(0), for each record in training")
    left_out: float = Field(default=0.0, ge=0, lt=1, description="share of measurements training leaves out, at random")
    learning_rate: float = Field(default=0.01, gt=0, allow_inf_nan=False, description="of Adamax, in the beginning")
    decay: float = Field(default=0.999, gt=0, le=1, description="factor of the learning rate after each batch")
    floor: float = Field(default=0.001, ge=0, allow_inf_nan=False, description="smallest learning rate")


PRESETS = {
    # a demo of a few minutes on two cores; few records need small batches
    "sample": Preset(data="sample", quantization=1.0, left_out=0.3, batch_size=20, epochs=40),
    # a few minutes a model on two cores: at most 49 rows a record, where minutes would be up to 202
    "cpu": Preset(data="full", quantization=1.0, left_out=0.3, epochs=50),
    # the published Latent ODE's: `--niters 100`, nothing left out
    "paper": Preset(data="full", epochs=100),
}

# λ of Eq. 3, from the paper's section 4.2
WEIGHTS = {"none": 0.0, "kinetic": 0.045, "l1": 2e-4, "l2": 2.5e-3, "error": 0.015, "raw-error": 0.015}

# α and M of Eq. 4 and 5, from the paper's section 4.2
ALPHA, PENALTY = 0.05, 1000.0

# An answer is a death if its probability is above the share of deaths in the published training part: at one half
# nearly every record is called a survivor, whatever the integrator.
PREVALENCE = 433 / 3200

# β of Eq. 5, as a distance of probabilities. Distances below it count as it, so that NFE decides among the candidates
# that are adequate: the reference's own distance is 0, at which Δ·Γ would make it free.
BETA = 0.02

TEST_BATCH = 60  # records in the paper's test batch
