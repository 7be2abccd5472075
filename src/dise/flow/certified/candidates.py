"""Integrators that a certified sampler chooses from."""

from dise.flow.certified.varied_tables import varied_tables
from dise.integrate import RK4, Adams, Bosh3, Euler, Integrator, Midpoint, Multistep
from dise.select.guarantee.risk import OutputDeviation, Risk

TOLERANCES = (8.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.1, 0.03)  # of Adams's own steps, in units of the risk's tolerance
TIGHT = 3e-3  # tolerance of the risk; below it high orders need the fewest evaluations
ORDERS, HIGH_ORDERS = (3, 4), (4, 6)  # of Adams
RUNGE_KUTTA = (1.0, 0.25, 0.06)  # those of Bosh3's, which is rarely the cheapest
USUAL = 0.03  # tolerance that those of own steps are a multiple of, where the risk has none


def default_candidates(risk: Risk) -> tuple[Integrator, ...]:
    """Methods of a fixed budget, on equal steps and others, and of each sample's own steps at several tolerances.

    Args:
        risk: its tolerance, if it has one, sets those of the own steps, and their orders.
    """
    unit = risk.tolerance if isinstance(risk, OutputDeviation) else USUAL
    orders = HIGH_ORDERS if unit < TIGHT else ORDERS
    return (
        *map(Euler, (1, 2, 4)),
        *varied_tables(),
        *(Multistep.adams(24, order) for order in (2, 3)),
        *map(Midpoint, (2, 4, 8)),
        *map(RK4, (1, 2, 4, 6)),
        *(Adams(order, rtol=unit * x, atol=unit * x) for x in TOLERANCES for order in orders),
        *(Bosh3(rtol=unit * x, atol=unit * x, first_step="scale") for x in RUNGE_KUTTA),
    )
