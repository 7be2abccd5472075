"""The paper's results on two circles."""

from typing import NamedTuple


class Row(NamedTuple):
    """A row of Table 8."""

    label: str
    reg: str
    dise: bool
    nll: float  # "NLP", negative log-probability
    nfe: float


TABLE_8 = (
    Row("No reg.", "none", False, 0.8911, 2297),
    Row("Kinetic energy reg.", "kinetic", False, 0.8914, 2286),
    Row("L1 reg.", "l1", False, 0.8901, 2259),
    Row("L2 reg.", "l2", False, 0.8760, 2904),
    Row("Our reg.", "error", False, 0.8841, 2166),
    Row("No reg. & DISE", "none", True, 0.8883, 2104),
    Row("Our reg. & DISE", "error", True, 0.8742, 1984),
)

# share of test cases under DISE.
TABLE_9 = {"Dopri5": 0.875, "RK4": 0.0, "Euler": 0.125}
