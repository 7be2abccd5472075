"""The paper's results on PhysioNet."""

from typing import NamedTuple


class Row(NamedTuple):
    """A row of Table 5."""

    label: str
    reg: str
    dise: bool
    auroc: float
    nfe: float


TABLE_5 = (
    Row("No reg.", "none", False, 0.7190, 74),
    Row("Kinetic energy reg.", "kinetic", False, 0.7581, 63.5),
    Row("L1 reg.", "l1", False, 0.7630, 68),
    Row("L2 reg.", "l2", False, 0.7450, 59),
    Row("Our reg.", "error", False, 0.7509, 39.71),
    Row("No reg. & DISE", "none", True, 0.7513, 57.57),
    Row("Our reg. & DISE", "error", True, 0.7604, 34.1),
)

# share of test cases under "Our reg. & DISE".
TABLE_6 = {"Dopri5": 0.875, "RK4": 0.0, "Euler": 0.125}

# test AUROC of the published Latent ODE with this encoder on this split (Rubanova et al. 2019, Table 6).
PUBLISHED = (0.829, 0.004)
