"""Settings of the MNIST experiments."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Preset(BaseModel):
    """Settings of the training of a model and of the fit of its selectors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Literal["sample", "full"] = Field(description="the images shipped with the package, or all of MNIST")
    epochs: int = Field(ge=1)
    schedule: Literal["one-cycle", "steps"]
    batch_size: int = Field(default=128, ge=1)
    learning_rate: float = Field(
        default=0.1, gt=0, description="peak rate for a batch of 128; scales with the batch size"
    )
    coarse_epochs: int = Field(
        default=0,
        ge=0,
        description="first epochs: one step of RK4, or of DOPRI for its regularizers",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of convolutions and products in training; states, sums and weights are float32"
    )
    monitored: int = Field(default=1000, ge=1, description="held-out images on which accuracy is logged each epoch")


PRESETS = {
    # fast enough for a demo on two cores
    "sample": Preset(data="sample", epochs=2, schedule="one-cycle", batch_size=32, learning_rate=0.4, monitored=200),
    # about a quarter of an hour per model on two cores
    "cpu": Preset(data="full", epochs=2, schedule="one-cycle", batch_size=64, learning_rate=0.2),
    # the paper's accuracy at a fraction of its epochs and evaluations
    "long": Preset(data="full", epochs=10, schedule="one-cycle", coarse_epochs=9, precision="bfloat16", monitored=1000),
    # the paper's: torchdiffeq's examples/odenet_mnist.py, ×{0.1, 0.01, 0.001} at epochs {60, 100, 140}
    "paper": Preset(data="full", epochs=160, schedule="steps", monitored=5000),
}

# λ of Eq. 3, from the paper's section 4.1
WEIGHTS = {
    "none": 0.0,
    "kinetic": 0.01,
    "l1": 1e-4,
    "l2": 1e-4,
    "error": 5e-3,
    "raw-error": 5e-3,
    # not the paper's: λ·R is about 0.01 on a model trained without regularizer, not swept
    "weighted-error": 2.5,
    "stiffness": 3e-3,
    "jacobian": 3e-5,
    "taylor2": 3e-6,
    "taylor3": 4e-7,
    "steer": 0.25,
}

# α and M of Eq. 4, from the paper's section 4.1
ALPHA, PENALTY = 0.3, 1000.0
