"""What the paper's own numbers imply, and where they do not add up."""

from typing import NamedTuple

from dise_experiments.circles.paper import TABLE_8, TABLE_9
from dise_experiments.mnist import presets as mnist
from dise_experiments.mnist.paper import TABLE_1, TABLE_3
from dise_experiments.physionet import presets as physionet
from dise_experiments.physionet.paper import TABLE_5, TABLE_6

BATCHES = 16  # of 32 points: the number under which NFE of 2,297 is of the right size
SELECTOR = 0.8  # NFE of Table 2's network, as the paper says
DEATHS = 554 / 4000  # in set a
RK4_NFE = 4


class Finding(NamedTuple):
    """A number that follows from the paper's, and the one that it does not agree with."""

    what: str
    implied: float
    printed: float


def break_even(cheap: float, dear: float, *, M: float, alpha: float) -> float:
    """The largest p(cheap right) / p(dear right) at which Eq. 4 prefers the costlier integrator.

    Expected costs are p Δ^α + (1 − p) M^α, so it is (M^α − Δ_dear^α) / (M^α − Δ_cheap^α).
    """
    return float((M**alpha - dear**alpha) / (M**alpha - cheap**alpha))


def findings() -> list[Finding]:
    """All of them, from Tables 1, 3, 5, 6, 8 and 9 and the printed α and M."""
    tables = (TABLE_1, TABLE_5, TABLE_8)
    table_1, table_5, table_8 = ({(row.reg, row.dise): float(row.nfe or 0) for row in table} for table in tables)
    nll = {row.reg: row.nll for row in TABLE_8 if not row.dise}
    dopri = table_1["error", False]
    mixed = TABLE_3["Dopri5"] * dopri + TABLE_3["RK4"] * RK4_NFE + TABLE_3["Euler"]
    cost = {"M": mnist.PENALTY, "alpha": mnist.ALPHA}
    rk4 = 1 - TABLE_3["Dopri5"] * (1 - break_even(RK4_NFE, dopri, **cost))
    euler = 1 - TABLE_3["Dopri5"] * (1 - break_even(1, dopri, **cost))
    euler -= TABLE_3["RK4"] * (1 - break_even(1, RK4_NFE, **cost))
    stays = {"M": physionet.PENALTY, "alpha": physionet.ALPHA}
    right = 1 - TABLE_6["Dopri5"] * (1 - break_even(1, table_5["error", False], **stays))
    left = table_8["error", True] - TABLE_9["Dopri5"] * table_8["error", False]
    saved = TABLE_3["RK4"] + TABLE_3["Euler"]
    nfe = table_1["error", True]
    return [
        Finding("MNIST: NFE of Table 3's shares with Table 1's 14 NFE of DOPRI", mixed, nfe),
        Finding("MNIST: the same with the selector's 0.8 NFE", mixed + SELECTOR, nfe),
        Finding("PhysioNet: NFE of DOPRI's 87.5 % alone", TABLE_6["Dopri5"] * table_5["error", False], 34.1),
        Finding(
            "flow: NFE of Euler per batch of 32 that Tables 8 and 9 leave; one step",
            left / TABLE_9["Euler"] / BATCHES,
            1,
        ),
        Finding("MNIST: largest accuracy of RK4 at which Eq. 4 gives DOPRI 37 %", rk4, 0.9963),
        Finding("MNIST: largest accuracy of Euler at which Eq. 4 gives Table 3", euler, 0.9963),
        Finding('PhysioNet: largest share that Euler has right; "survives" for all', right, 1 - DEATHS),
        Finding("MNIST: share of images without DOPRI; the paper's text: 10 to 30 %", saved, 0.3),
        Finding(
            "two tasks with the same shares: DOPRI's in Table 6, and in Table 9", TABLE_6["Dopri5"], TABLE_9["Dopri5"]
        ),
        Finding('flow: NLP with kinetic energy, "almost always" below that without', nll["kinetic"], nll["none"]),
    ]
