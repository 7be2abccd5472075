"""Settings of the flow experiments."""

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from dise_experiments.circles.data import TARGETS


class Preset(BaseModel):
    """How a flow is trained, its selectors fitted, and how much it is tested."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str = Field(default="circles", description=f"distribution to learn: {', '.join(TARGETS)}")
    epochs: int = Field(ge=1, description="checkpoints are written after each")
    iterations: int = Field(default=100, ge=1, description="of an epoch")
    batch_size: int = Field(default=512, ge=1, description="fresh points an iteration")
    learning_rate: float = Field(default=1e-3, gt=0, allow_inf_nan=False, description="of Adam")
    selection_sets: int = Field(ge=4, description="sets of 32 points that selectors are fitted to, in 4 folds")
    test_sets: int = Field(ge=1, description="sets of 32 points of the larger test")

    @field_validator("target")
    @classmethod
    def _known(cls, target: str) -> str:
        if target not in TARGETS:
            # of a ValueError pydantic's message would begin with "Value error, "
            raise PydanticCustomError("target", f"there is no {target!r}; choose one of {', '.join(TARGETS)}")
        return target


PRESETS = {
    # a demo of three minutes on two cores; few iterations need larger steps
    "sample": Preset(epochs=4, learning_rate=3e-3, selection_sets=288, test_sets=100),
    "cpu": Preset(epochs=10, selection_sets=1024, test_sets=625),
    # the paper's 1,000 iterations; as `cpu`, with more for the selectors to learn from
    "paper": Preset(epochs=10, selection_sets=4096, test_sets=625),
}

# λ of Eq. 3, from the paper's section 4.3
WEIGHTS = {"none": 0.0, "kinetic": 5e-4, "l1": 1e-5, "l2": 3e-4, "error": 4e-3, "raw-error": 4e-3}

# α and M of Eq. 5, from the paper's section 4.3
ALPHA, PENALTY = 0.03, 1000.0

# β of Eq. 5, in nats. Errors below it count as it, so that NFE alone decides among adequate candidates: the product of
# NFE and Γ would buy errors that do not matter with evaluations that do. The paper's β is the mean NLP of the model
# trained with R_err, on the NLP itself; here Γ is the distance to the reference, which a coarse integrator cannot make
# smaller by overstating the likelihood.
BETA = 0.02
