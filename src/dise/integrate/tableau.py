"""Explicit Runge–Kutta methods as data."""

import math
from dataclasses import dataclass

_ROUNDING = 1e-12  # coefficients are quotients of small integers in double precision


@dataclass(frozen=True)
class ButcherTableau:
    r"""Coefficients of an explicit Runge–Kutta method, checked when it is made.

        c | a          k_i = f(t + c_i dt, y + dt Σ_j a_ij k_j)
        --+----        y_next = y + dt Σ_i b_i k_i
          | b          error  = dt Σ_i b_err_i k_i     (b minus the embedded method's weights)

    and of its continuous extension, y(t + θ dt) = y + dt Σ_i b_i(θ) k_i with b_i(θ) = Σ_j interpolant_ij θ^(j+1).

    Args:
        c: nodes, one a stage, the first 0.
        a: rows of the strictly lower triangle: row i (from 0) holds i numbers.
        b: weights of the solution.
        order: order of the solution.
        b_err: weights of the error estimate; None if no method is embedded.
        interpolant: a row a stage, of as many numbers as the extension's degree; needed for save points. Its order
            is the method's less one at least, so that save points are as accurate as the steps.

    Raises:
        ValueError: coefficients of the wrong number, a_i that do not sum to c_i, b not to 1, b_err not to 0, or an
            interpolant that is not b at θ = 1, or whose b_i(θ) do not sum to θ.

    Source: Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I, II.1, II.4 and II.6.
    """

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int
    b_err: tuple[float, ...] | None = None
    interpolant: tuple[tuple[float, ...], ...] | None = None

    def __post_init__(self) -> None:
        rows = {"a": self.a, "b": self.b, "b_err": self.b_err, "interpolant": self.interpolant}
        for name, row in rows.items():
            if row is not None and len(row) != self.stages:
                raise ValueError(f"{name}: expected {self.stages} entries as c has, got {len(row)}")
        for i, (row, c) in enumerate(zip(self.a, self.c, strict=True)):
            if len(row) != i:
                raise ValueError(f"a: row {i} of an explicit method has {i} entries, got {len(row)}")
            if not math.isclose(sum(row), c, abs_tol=_ROUNDING):
                raise ValueError(f"a: row {i} sums to {sum(row)}, but c[{i}] is {c}")
        if not math.isclose(sum(self.b), 1.0, abs_tol=_ROUNDING):
            raise ValueError(f"b: must sum to 1, sums to {sum(self.b)}")
        if self.b_err is not None and abs(sum(self.b_err)) > _ROUNDING:
            raise ValueError(f"b_err: must sum to 0, sums to {sum(self.b_err)}")

        if self.interpolant is not None:
            self._check_interpolant(self.interpolant)

    def _check_interpolant(self, interpolant: tuple[tuple[float, ...], ...]) -> None:
        if len({len(row) for row in interpolant}) != 1 or not interpolant[0]:
            raise ValueError(f"interpolant: rows need one length, got {[len(row) for row in interpolant]}")
        for i, (row, b) in enumerate(zip(interpolant, self.b, strict=True)):
            if not math.isclose(sum(row), b, abs_tol=_ROUNDING):
                raise ValueError(f"interpolant: row {i} sums to {sum(row)}, but b[{i}] is {b}")
        for j, column in enumerate(zip(*interpolant, strict=True)):
            if not math.isclose(sum(column), float(j == 0), abs_tol=10 * _ROUNDING):
                raise ValueError(f"interpolant: column {j} must sum to {int(j == 0)}, sums to {sum(column)}")

    @property
    def stages(self) -> int:
        """Number of stages."""
        return len(self.c)

    @property
    def fsal(self) -> bool:
        """First same as last: the last stage is f at the step's end, hence the next step's first stage."""
        return self.stages > 1 and self.c[-1] == 1 and self.a[-1] == self.b[:-1] and self.b[-1] == 0


EULER = ButcherTableau(c=(0.0,), a=((),), b=(1.0,), order=1, interpolant=((1.0,),))

# The explicit midpoint rule: Runge 1895; Hairer, Nørsett, Wanner, II.1.
MIDPOINT = ButcherTableau(
    c=(0.0, 1 / 2), a=((), (1 / 2,)), b=(0.0, 1.0), order=2, interpolant=((1.0, -1.0), (0.0, 1.0))
)

# Bogacki, Shampine, A 3(2) pair of Runge–Kutta formulas, Appl. Math. Lett. 2, 1989. The interpolant is Hermite's cubic
# through both ends and their derivatives.
BOSH3 = ButcherTableau(
    c=(0.0, 1 / 2, 3 / 4, 1.0),
    a=((), (1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    b=(2 / 9, 1 / 3, 4 / 9, 0.0),
    order=3,
    interpolant=(
        (1.0, 3 * 2 / 9 - 2, 1 - 2 * 2 / 9),
        (0.0, 1.0, -2 / 3),
        (0.0, 4 / 3, -8 / 9),
        (0.0, -1.0, 1.0),
    ),
    b_err=(2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
)

# The classical method: Kutta 1901; Hairer, Nørsett, Wanner, Table II.1.2, left (the "3/8 rule" is its right). The
# interpolant is the extension of order 3 of II.6.
RK4 = ButcherTableau(
    c=(0.0, 1 / 2, 1 / 2, 1.0),
    a=((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
    b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
    order=4,
    interpolant=((1.0, -3 / 2, 2 / 3), (0.0, 1.0, -2 / 3), (0.0, 1.0, -2 / 3), (0.0, -1 / 2, 2 / 3)),
)

# Dormand, Prince 1980, RK5(4)7M; Hairer, Nørsett, Wanner, Table II.5.2. The embedded fourth-order weights are
# Shampine's (Some practical Runge-Kutta formulas, Math. Comp. 46, 1986), as in torchdiffeq, torchode and diffrax;
# Dormand and Prince's own give another error estimate, hence other step counts. The interpolant of order 4 is
# Shampine's too (the same paper), as in SciPy's RK45.
DOPRI5 = ButcherTableau(
    c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    a=(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    order=5,
    interpolant=(
        (1.0, -8048581381 / 2820520608, 8663915743 / 2820520608, -12715105075 / 11282082432),
        (0.0, 0.0, 0.0, 0.0),
        (0.0, 131558114200 / 32700410799, -68118460800 / 10900136933, 87487479700 / 32700410799),
        (0.0, -1754552775 / 470086768, 14199869525 / 1410260304, -10690763975 / 1880347072),
        (0.0, 127303824393 / 49829197408, -318862633887 / 49829197408, 701980252875 / 199316789632),
        (0.0, -282668133 / 205662961, 2019193451 / 616988883, -1453857185 / 822651844),
        (0.0, 40617522 / 29380423, -110615467 / 29380423, 69997945 / 29380423),
    ),
    b_err=(
        35 / 384 - 1951 / 21600,
        0.0,
        500 / 1113 - 22642 / 50085,
        125 / 192 - 451 / 720,
        -2187 / 6784 + 12231 / 42400,
        11 / 84 - 649 / 6300,
        -1 / 60,
    ),
)
