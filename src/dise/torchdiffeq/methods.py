"""torchdiffeq's methods by name, and the options of each kind of method."""

from dataclasses import dataclass, replace

from dise.integrate import ButcherTableau
from dise.integrate.runge_kutta import classical
from dise.integrate.runge_kutta.dopri8 import DOPRI8

# Heun's method of order 3: Hairer, Nørsett, Wanner, Table II.1.1.
HEUN3 = ButcherTableau(c=(0.0, 1 / 3, 2 / 3), a=((), (1 / 3,), (0.0, 2 / 3)), b=(1 / 4, 0.0, 3 / 4), order=3)


@dataclass(frozen=True)
class Adams:
    """An Adams method: Adams–Bashforth alone, or as the predictor of Adams–Moulton."""

    implicit: bool


ADAPTIVE: dict[str, ButcherTableau] = {
    "dopri8": DOPRI8,
    "dopri5": classical.DOPRI5,
    "tsit5": classical.TSIT5,
    "bosh3": classical.BOSH3,
    "fehlberg2": replace(classical.FEHLBERG2, reuse_last=True),
    "adaptive_heun": replace(classical.HEUN, reuse_last=True),
}
FIXED: dict[str, ButcherTableau] = {
    "euler": classical.EULER,
    "midpoint": classical.MIDPOINT,
    "heun2": classical.HEUN,
    "heun3": HEUN3,
    "rk4": classical.RK38,
}
ADAMS: dict[str, Adams] = {
    "explicit_adams": Adams(implicit=False),
    "implicit_adams": Adams(implicit=True),
    "fixed_adams": Adams(implicit=True),
}
SOLVERS: dict[str, ButcherTableau | Adams | None] = {  # None: SciPy's
    **ADAPTIVE, **FIXED, **ADAMS, "scipy_solver": None,
}  # fmt: skip
SCIPY_NAMES = {"RK45": "dopri5", "RK23": "bosh3", "DOP853": "dopri8"}  # methods of SciPy's that dise has itself

ADAPTIVE_OPTIONS = (
    "first_step", "min_step", "max_step", "safety", "ifactor", "dfactor", "max_num_steps", "step_t", "jump_t", "norm",
    "dtype",
)  # fmt: skip
FIXED_OPTIONS = ("step_size", "grid_constructor", "interp", "perturb", "norm")
ADAMS_OPTIONS = (*FIXED_OPTIONS, "max_order", "max_iters")
SCIPY_OPTIONS = ("solver", "min_step", "max_step", "norm", "grid_points", "eps")  # the last three have no effect
ADAMS_MIN_ORDER, ADAMS_MAX_ORDER = 4, 12


def options_of(method: str) -> tuple[str, ...]:
    """The names of a method's options."""
    if method in ADAPTIVE:
        return ADAPTIVE_OPTIONS
    return ADAMS_OPTIONS if method in ADAMS else FIXED_OPTIONS if method in FIXED else SCIPY_OPTIONS


def has_fixed_steps(method: str) -> bool:
    """Whether a method takes the steps of a grid."""
    return method in FIXED or method in ADAMS


def interpolated(tableau: ButcherTableau, interp: str | None) -> ButcherTableau:
    """The method with torchdiffeq's interpolation within fixed steps: linear, or the cubic Hermite polynomial.

    The cubic needs f at the end of the step: one more stage, which is the first stage of the next step.
    """
    if interp != "cubic":
        return replace(tableau, interpolant=tuple((b,) for b in tableau.b), b_err=None)
    b = (*tableau.b, 0.0)
    rows = [[0.0, 3 * weight, -2 * weight] for weight in b]
    rows[0] = [1.0, rows[0][1] - 2, rows[0][2] + 1]
    rows[-1] = [0.0, -1.0, 1.0]
    return ButcherTableau(
        c=(*tableau.c, 1.0),
        a=(*tableau.a, tableau.b),
        b=b,
        order=tableau.order,
        interpolant=tuple(tuple(row) for row in rows),
    )
