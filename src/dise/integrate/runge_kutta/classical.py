"""Butcher tableaux of the classical methods. Each is checked when this module is imported."""

from dise.integrate.runge_kutta.tableau import ButcherTableau

EULER = ButcherTableau(c=(0.0,), a=((),), b=(1.0,), order=1, interpolant=((1.0,),))

# The explicit midpoint rule: Runge 1895; Hairer, Nørsett, Wanner, II.1.
MIDPOINT = ButcherTableau(
    c=(0.0, 1 / 2), a=((), (1 / 2,)), b=(0.0, 1.0), order=2, interpolant=((1.0, -1.0), (0.0, 1.0))
)

# Heun's method of order 2, the explicit trapezoidal rule; the difference from an Euler step estimates the error.
# Hairer, Nørsett, Wanner, II.1. This interpolant and the next are the only ones of order 2.
HEUN = ButcherTableau(
    c=(0.0, 1.0),
    a=((), (1.0,)),
    b=(1 / 2, 1 / 2),
    order=2,
    interpolant=((1.0, -1 / 2), (0.0, 1 / 2)),
    b_err=(-1 / 2, 1 / 2),
)

# Ralston, Runge–Kutta methods with minimum error bounds, Math. Comp. 16, 1962.
RALSTON = ButcherTableau(
    c=(0.0, 2 / 3), a=((), (2 / 3,)), b=(1 / 4, 3 / 4), order=2, interpolant=((1.0, -3 / 4), (0.0, 3 / 4))
)

# Fehlberg, Low-order classical Runge–Kutta formulas with stepsize control, NASA TR R-315, 1969: RK1(2) with
# the solution of order 2 as the result of the step, as in torchdiffeq's "fehlberg2".
FEHLBERG2 = ButcherTableau(
    c=(0.0, 1 / 2, 1.0),
    a=((), (1 / 2,), (1 / 256, 255 / 256)),
    b=(1 / 512, 255 / 256, 1 / 512),
    order=2,
    interpolant=((1.0, -511 / 512), (0.0, 255 / 256), (0.0, 1 / 512)),
    b_err=(-1 / 512, 0.0, 1 / 512),
)

# Bogacki, Shampine, A 3(2) pair of Runge–Kutta formulas, Appl. Math. Lett. 2, 1989. The interpolant is the
# cubic Hermite polynomial of both ends.
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

# The classical method: Kutta 1901; Hairer, Nørsett, Wanner, Table II.1.2, left (right: the 3/8 rule). The interpolant
# is the continuous extension of order 3 of II.6.
RK4 = ButcherTableau(
    c=(0.0, 1 / 2, 1 / 2, 1.0),
    a=((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
    b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
    order=4,
    interpolant=((1.0, -3 / 2, 2 / 3), (0.0, 1.0, -2 / 3), (0.0, 1.0, -2 / 3), (0.0, -1 / 2, 2 / 3)),
)

# Kutta's 3/8 rule, 1901: Hairer, Nørsett, Wanner, Table II.1.2, right. The interpolant is the only one of order 3.
RK38 = ButcherTableau(
    c=(0.0, 1 / 3, 2 / 3, 1.0),
    a=((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
    b=(1 / 8, 3 / 8, 3 / 8, 1 / 8),
    order=4,
    interpolant=((1.0, -15 / 8, 1.0), (0.0, 15 / 8, -3 / 2), (0.0, 3 / 8, 0.0), (0.0, -3 / 8, 1 / 2)),
)

# Dormand, Prince 1980, RK5(4)7M; Hairer, Nørsett, Wanner, Table II.5.2. The embedded fourth-order weights are
# Shampine's (Some practical Runge-Kutta formulas, Math. Comp. 46, 1986), as in torchdiffeq, torchode and diffrax;
# Dormand and Prince's own weights give another error estimate, hence other step counts. The interpolant of order 4 is
# also Shampine's (the same paper), as in SciPy's RK45.
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

# Tsitouras, Runge–Kutta pairs of order 5(4) satisfying only the first column simplifying assumption, Comput. Math.
# Appl. 62, 2011; the interpolant of order 4 is that of the paper, expanded in powers of θ.
_B = (0.096460766818065230, 0.01, 0.47988965041449960, 1.3790085741037419, -3.2900695154360807, 2.3247105240997740)
TSIT5 = ButcherTableau(
    c=(0.0, 0.161, 0.327, 0.9, 0.98002554090450970, 1.0, 1.0),
    a=(
        (),
        (0.161,),
        (-0.0084806554923569885, 0.33548065549235699),
        (2.8971530571054934, -6.3594484899750748, 4.3622954328695814),
        (5.3258648284392566, -11.748883564062828, 7.4955393428898362, -0.092495066361755249),
        (5.8614554429464200, -12.920969317847109, 8.1593678985761586, -0.071584973281400997, -0.028269050394068384),
        _B,
    ),
    b=(*_B, 0.0),
    order=5,
    interpolant=(
        (1.0, -2.7637061972748259, 2.9132554618219127, -1.0530884977290216),
        (0.0, 0.1317, -0.2234, 0.1017),
        (0.0, 3.9302962368947515, -5.9410338721315047, 2.4906272856512528),
        (0.0, -12.411077166933677, 30.338188630282322, -16.548102889244903),
        (0.0, 37.509313416511039, -88.178904894766401, 47.379521962819281),
        (0.0, -27.896526289197288, 65.091894674793672, -34.870657861496610),
        (0.0, 3 / 2, -4.0, 5 / 2),
    ),
    b_err=(
        0.096460766818065230 - 0.094680755765839458,
        0.01 - 0.0091835655403432531,
        0.47988965041449960 - 0.48777052842476157,
        1.3790085741037419 - 1.2342975669304790,
        -3.2900695154360807 + 2.7077123499835255,
        2.3247105240997740 - 1.8666284181705870,
        -1 / 66,
    ),
)
