"""The paper's results on MNIST."""

from typing import NamedTuple


class Row(NamedTuple):
    """A row of Table 1."""

    label: str
    model: str
    reg: str
    dise: bool
    accuracy: float
    nfe: float | None


TABLE_1 = (
    Row("ResNet", "resnet", "none", False, 0.9959, None),
    Row("RKNet", "rknet", "none", False, 0.9953, None),
    Row("No reg.", "odenet", "none", False, 0.9960, 26),
    Row("Kinetic energy reg.", "odenet", "kinetic", False, 0.9965, 20),
    Row("L1 reg.", "odenet", "l1", False, 0.9956, 20),
    Row("L2 reg.", "odenet", "l2", False, 0.9961, 20),
    Row("Our reg.", "odenet", "error", False, 0.9964, 14),
    Row("No reg. & DISE", "odenet", "none", True, 0.9958, 11.36),
    Row("Our reg. & DISE", "odenet", "error", True, 0.9963, 5.79),
)

# share of test cases under "Our reg. & DISE".
TABLE_3 = {"Dopri5": 0.37, "RK4": 0.34, "Euler": 0.29}
