"""Random solves against closed forms, SciPy, a loop of the tableau's own steps, and each sample alone.

Wrong answers with SUCCESS are what this looks for: bounds on errors are wide, statuses and counts are exact.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from dise import (
    RK4,
    RK38,
    RKC1,
    Adams,
    Bosh3,
    Dopri5,
    Dopri8,
    Euler,
    Event,
    Fehlberg2,
    Heun,
    HeunEuler,
    IController,
    Midpoint,
    PIController,
    Ralston,
    Status,
    StepDoubling,
    Tsit5,
    max_norm,
    resume,
    rms_norm,
    solve,
)
from dise.integrate.integrators import ErrorControlled

pytestmark = pytest.mark.fuzz

PER_SAMPLE = ("y", "t", "nfe", "n_steps", "n_accepted", "error", "status")
EPS = {x: torch.finfo(x).eps for x in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex128)}
REAL = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


# ---- fields with closed forms, alike in every component; p is a number per sample


class Kind(NamedTuple):
    f: object  # (t, y, p) → dy/dt
    exact: object  # (t0, t1, y0, p) → y(t1)
    autonomous: bool = True
    forward: bool = False  # stiff: backwards in time it explodes
    dtypes: tuple = REAL


KINDS = {
    "decay": Kind(lambda t, y, p: -p * y, lambda t0, t1, y0, p: y0 * torch.exp(-p * (t1 - t0)), dtypes=tuple(EPS)),
    "constant": Kind(lambda t, y, p: p + 0 * y, lambda t0, t1, y0, p: y0 + p * (t1 - t0), dtypes=tuple(EPS)),
    "logistic": Kind(
        lambda t, y, p: p * y * (1 - y),
        lambda t0, t1, y0, p: y0 / (y0 + (1 - y0) * torch.exp(-p * (t1 - t0))),
    ),
    "driven": Kind(
        lambda t, y, p: p * torch.cos(3 * t) * y,
        lambda t0, t1, y0, p: y0 * torch.exp(p / 3 * (torch.sin(3 * t1) - torch.sin(3 * t0))),
        autonomous=False,
    ),
    "relaxation": Kind(
        lambda t, y, p: -(20 + 10 * p) * (y - torch.cos(t)) - torch.sin(t),
        lambda t0, t1, y0, p: torch.cos(t1) + (y0 - torch.cos(t0)) * torch.exp(-(20 + 10 * p) * (t1 - t0)),
        autonomous=False,
        forward=True,
        dtypes=(torch.float64, torch.float32),
    ),
    "rotation": Kind(
        lambda t, y, p: 1j * p * y,
        lambda t0, t1, y0, p: y0 * torch.exp(1j * p * (t1 - t0)),
        dtypes=(torch.complex128,),
    ),
}


# ---- integrators


controllers = st.sampled_from([IController(), PIController(), PIController(safety=0.8, shrink=0.3, grow=3)])
limits = st.one_of(
    st.just({}),
    st.sampled_from([{"dt_max": 0.05}, {"dt_max": 0.5}, {"max_steps": 3}, {"dt_min": 0.2}]),
    st.just({"dt_min": 0.01, "accept_at_dt_min": True}),
)
fixed = st.builds(
    lambda method, steps: method(steps),
    st.sampled_from([Euler, Midpoint, Heun, Ralston, RK4, RK38, RKC1]),
    st.integers(1, 6),
)


@st.composite
def adaptive(draw):
    method = draw(st.sampled_from([HeunEuler, Fehlberg2, Bosh3, Dopri5, Tsit5, Dopri8, Adams]))
    coarse = method in (HeunEuler, Fehlberg2, Bosh3)
    return method(
        rtol=draw(st.sampled_from([1e-2, 1e-4] if coarse else [1e-2, 1e-4, 1e-7])),
        atol=draw(st.sampled_from([1e-2, 1e-4] if coarse else [1e-2, 1e-4, 1e-7])),
        first_step=draw(st.one_of(st.sampled_from(["heuristic", "scale", "span"]), st.floats(1e-3, 5))),
        controller=draw(controllers),
        norm=draw(st.sampled_from([rms_norm, max_norm])),
        **draw(limits),
    )


integrators = st.one_of(fixed, fixed.map(StepDoubling), adaptive(), adaptive())


# ---- problems


@dataclass(frozen=True)
class Case:
    kind: str
    y0: object  # tensor, tuple or dict of [B, ...]
    t0: torch.Tensor  # [B]
    t1: torch.Tensor
    p: torch.Tensor
    dtype: torch.dtype

    def __len__(self):
        return len(self.t0)

    def f(self, t, y, p):
        return mapped(lambda x: KINDS[self.kind].f(like(t.reshape(-1), x), x, like(p, x)).to(x.dtype), y)

    def exact(self, t):
        """y at t [B], in double precision."""
        wide = lambda x: x.to(torch.complex128 if x.is_complex() else torch.float64)  # noqa: E731
        exact = KINDS[self.kind].exact
        return mapped(lambda x: exact(*(like(v, x) for v in (self.t0, t)), wide(x), wide(like(self.p, x))), self.y0)

    def rows(self, rows):
        y0 = mapped(lambda x: x[rows], self.y0)
        return replace(self, y0=y0, t0=self.t0[rows], t1=self.t1[rows], p=self.p[rows])

    def solve(self, integrator, t1=None, **options):
        t1 = self.t1 if t1 is None else t1
        return solve(self.f, self.y0, self.t0, t1, integrator, sample_args=(self.p,), throw=False, **options)


def mapped(function, state, *others):
    if isinstance(state, tuple):
        return tuple(function(*parts) for parts in zip(state, *others, strict=True))
    if isinstance(state, dict):
        return {name: function(x, *(other[name] for other in others)) for name, x in state.items()}
    return function(state, *others)


def like(x, state):
    """[B] with a 1 per feature dimension of the state."""
    return x.reshape(-1, *(1 for _ in state.shape[1:])) if x.numel() > 1 or state.ndim else x.reshape(())


def flat(state):
    """[B, F] of a state."""
    parts = state if isinstance(state, tuple) else state.values() if isinstance(state, dict) else (state,)
    return torch.cat([x.reshape(len(x), -1) for x in parts], 1)


STRUCTURES = {
    "vector": lambda draw, B: draw(B, 2),
    "numbers": lambda draw, B: draw(B),
    "matrix": lambda draw, B: draw(B, 2, 3),
    "tuple": lambda draw, B: (draw(B, 2), draw(B)),
    "dict": lambda draw, B: {"a": draw(B, 1), "b": draw(B, 2, 2)},
    "transposed": lambda draw, B: draw(3, B).T,
}


@st.composite
def cases(draw, kinds=tuple(KINDS), dtypes=tuple(EPS), near=False, healthy=False):
    """`near`: times near 0; `healthy`: without NaN."""
    name = draw(st.sampled_from(kinds))
    kind, B = KINDS[name], draw(st.integers(1, 5))
    dtype = draw(st.sampled_from([x for x in kind.dtypes if x in dtypes]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    y0 = STRUCTURES[draw(st.sampled_from(sorted(STRUCTURES)))](
        lambda *shape: (0.1 + 0.8 * torch.rand(*shape, generator=generator, dtype=torch.float64)).to(dtype), B
    )
    spans = st.one_of(st.floats(0.01, 3), st.floats(-3, 3), st.just(0.0))
    lengths = torch.tensor(draw(st.lists(spans, min_size=B, max_size=B)), dtype=torch.float64)
    # f has t in the state's dtype, in which it must be resolved
    far = (kind.autonomous or dtype is torch.float64) and not near
    offsets = st.sampled_from([0.0, 0.0, -1.5, 1e3, 1e6] if far else [0.0, -1.5])
    t0 = torch.tensor(draw(st.lists(st.floats(-2, 2), min_size=B, max_size=B)), dtype=torch.float64) + draw(offsets)
    p = torch.tensor(draw(st.lists(st.floats(-1.5, 1.5), min_size=B, max_size=B)), dtype=torch.float64)
    bad = None if healthy else draw(st.one_of(st.none(), st.none(), st.sampled_from(["y0", "p"])))
    if bad is not None and B > 1:
        if bad == "p":
            p[-1] = math.nan
        else:
            mapped(lambda x: x[-1:].fill_(math.nan), y0)
    t1 = t0 + (lengths.abs() if kind.forward else lengths)
    p = p.to(dtype.to_real() if dtype.is_complex else dtype)
    return Case(name, y0, t0, t1, p.abs() if kind.forward else p, dtype)


# ---- what must hold


def tolerance(case, integrator, scale):
    """Largest error [B] of an answer that counts as right."""
    given = integrator.atol + integrator.rtol * scale
    rounding = 100 * EPS[case.dtype] * (1 + scale)
    growth = torch.exp((case.p.double().abs() * (case.t1 - case.t0).abs()).nan_to_num(0))
    return (300 * given + rounding) * (1 if KINDS[case.kind].forward else growth)


def assert_near(case, integrator, status, values, times, factor=1.0):
    """States [B] at times [B] of samples with SUCCESS are those of the closed form."""
    right = flat(case.exact(times))
    ok = (status == int(Status.SUCCESS)) & ~bad_rows(case)
    off = (flat(values).to(right.dtype) - right).abs().amax(1)
    scale = right.abs().amax(1).maximum(flat(case.y0).abs().double().amax(1))
    bound = factor * tolerance(case, integrator, scale)
    assert bool((off <= bound)[ok].all()), (off, bound, status)


def within_reach(case, integrator):
    """Whether the error estimate can be trusted to a factor.

    On a stiff field it may be small beside an unstable growth of the state; with two or three stages it is blind to
    oscillations that have the same slopes at both ends of a step.
    """
    kind, simple = KINDS[case.kind], isinstance(integrator, HeunEuler | Fehlberg2)
    if kind.forward:
        return integrator.rtol <= 1e-4 and not simple and not integrator.accept_at_dt_min
    return kind.autonomous or not simple


def resolved(case):
    """[B] whether the clock has times for the steps of a span; where it has not, a solve says so."""
    ulp = EPS[torch.float64] * torch.maximum(case.t0.abs(), case.t1.abs())
    return (case.t0 == case.t1) | ((case.t1 - case.t0).abs() > 1000 * ulp)


def bad_rows(case):
    return flat(case.y0).isnan().any(1) | case.p.isnan()


def assert_alike(got, rows, expected, dtype):
    """A sample of a batch is the sample alone."""
    near = 1e3 * EPS[dtype]
    for name in PER_SAMPLE:
        here, alone = getattr(got, name), getattr(expected, name)
        if name in ("nfe", "n_steps", "n_accepted", "status"):
            assert here[rows].tolist() == alone.tolist(), name
        else:
            here, alone = (flat(x) for x in (mapped(lambda x: x[rows], here), alone))
            torch.testing.assert_close(
                here, alone, rtol=near, atol=near, equal_nan=True, msg=lambda m, n=name: f"{n} {m}"
            )


@given(case=cases(), integrator=adaptive(), drop_finished=st.booleans())
def test_adaptive_solves_are_right(case, integrator, drop_finished):
    assume(within_reach(case, integrator))
    solution = case.solve(integrator, drop_finished=drop_finished)
    status, bad, empty = solution.status, bad_rows(case), case.t0 == case.t1
    assert_near(case, integrator, solution.status, solution.y, case.t1)
    assert not bool((status == int(Status.RUNNING)).any())
    assert bool(((status != int(Status.SUCCESS)) | empty)[bad].all())
    limited = integrator.max_steps < 10_000 or integrator.dt_min > 0 or case.dtype not in (torch.float64, torch.float32)
    if not limited and not (case.dtype is torch.float32 and integrator.rtol + integrator.atol < 1e-4):
        assert bool((status == int(Status.SUCCESS))[~bad & resolved(case)].all()), status
    assert torch.equal(solution.t[status == 0], case.t1[status == 0].to(solution.t.dtype))
    failed = (status != int(Status.SUCCESS)) & ~bad
    assert bool(flat(solution.y)[failed].isfinite().all())  # the last good state


@given(case=cases(), integrator=integrators, drop_finished=st.booleans())
def test_a_sample_alone_is_the_sample_in_a_batch(case, integrator, drop_finished):
    together = case.solve(integrator, drop_finished=drop_finished)
    for i in resolved(case).nonzero().flatten().tolist():
        one = slice(i, i + 1)
        assert_alike(together, one, case.rows(one).solve(integrator), case.dtype)


@given(case=cases(dtypes=(torch.float64, torch.complex128)), integrator=st.one_of(fixed, fixed.map(StepDoubling)))
def test_fixed_steps_are_the_tableaus(case, integrator):
    """A plain loop over the samples, steps and stages."""
    solution = case.solve(integrator)
    tableau = integrator.tableau
    steps = integrator.integrator.steps if isinstance(integrator, StepDoubling) else integrator.steps
    for i in range(len(case)):
        one = case.rows(slice(i, i + 1))
        y, (t0, t1) = flat(one.y0), (float(one.t0), float(one.t1))
        if not bool(resolved(one)):
            assert solution.status[i] in (0, int(Status.STEP_UNDERFLOW), int(Status.NON_FINITE))
            continue
        assert solution.status[i] == (int(Status.NON_FINITE) if bool(bad_rows(one)) and t0 != t1 else 0)
        if t0 == t1 or bool(bad_rows(one)):
            continue
        field = KINDS[case.kind].f
        for k in range(steps):
            h, stages = (t1 - t0) / steps, []
            for c, row in zip(tableau.c, tableau.a, strict=True):
                point = y + h * sum((a * s for a, s in zip(row, stages, strict=False)), torch.zeros_like(y))
                stages.append(field(torch.tensor(t0 + k * h + c * h, dtype=torch.float64), point, one.p))
            y = y + h * sum(b * s for b, s in zip(tableau.b, stages, strict=True))
        near = 1e-9 + 1e3 * EPS[torch.float64] * abs(t0)
        torch.testing.assert_close(flat(mapped(lambda x, i=i: x[i : i + 1], solution.y)), y, rtol=near, atol=near)


@given(case=cases(), integrator=integrators, data=st.data())
def test_saved_states_are_those_of_solves_that_end_there(case, integrator, data):
    T = data.draw(st.integers(1, 4))
    parts = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0]))
    B = len(case)
    share = torch.tensor(data.draw(st.lists(parts, min_size=B * T, max_size=B * T)), dtype=torch.float64).view(B, T)
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=B * T, max_size=B * T))).view(B, T)
    times = torch.where(share == 1, case.t1[:, None], case.t0[:, None] + share * (case.t1 - case.t0)[:, None])
    low, high = torch.minimum(case.t0, case.t1)[:, None], torch.maximum(case.t0, case.t1)[:, None]
    times = times.clamp(low, high)
    given_times = torch.where(mask, times, math.nan)
    plain = case.solve(integrator)
    solution = case.solve(integrator, save_at=given_times, save_mask=mask)
    assert_alike(solution, slice(None), plain, case.dtype)
    for k in range(T):
        saved = mapped(lambda x, k=k: x[:, k], solution.saved)
        assert bool((flat(saved)[~mask[:, k]] == 0).all())
        start, end = (mask[:, k] & (times[:, k] == t) & ~bad_rows(case) for t in (case.t0, case.t1))
        assert torch.equal(flat(saved)[start], flat(case.y0)[start])
        end = end & (solution.status == 0)
        assert torch.equal(flat(saved)[end], flat(solution.y)[end])
        if isinstance(integrator, ErrorControlled) and within_reach(case, integrator):
            seen = torch.where(mask[:, k], solution.status, 9)
            assert_near(case, integrator, seen, saved, times[:, k], factor=30)


@given(case=cases(), integrator=adaptive(), part=st.floats(0, 1), drop_finished=st.booleans())
def test_a_resumed_solve_is_one_solve(case, integrator, part, drop_finished):
    assume(within_reach(case, integrator))
    middle = case.t0 + part * (case.t1 - case.t0)
    first = case.solve(integrator, t1=middle)
    second = resume(first, case.f, case.t1, integrator, sample_args=(case.p,), throw=False, drop_finished=drop_finished)
    both = torch.maximum(first.status, second.status)
    assert_near(case, integrator, both, second.y, case.t1, factor=2)


@given(
    case=cases(kinds=("decay", "logistic", "constant"), dtypes=(torch.float64, torch.float32)),
    integrator=adaptive(),
    direction=st.sampled_from(["any", "rising", "falling"]),
    place=st.floats(-0.5, 1.5),
)
def test_events_are_where_the_closed_form_has_them(case, integrator, direction, place):
    """Components are monotone, so a level is crossed once or never."""
    first = lambda state: flat(state)[:, 0]  # noqa: E731
    begin, end = first(case.y0).double(), first(case.exact(case.t1))
    level = (begin + place * (end - begin)).to(case.dtype)

    def event(t, y, p, level):
        return first(y) - level

    options = {"sample_args": (case.p, level), "throw": False, "event": Event(event, direction)}
    f = lambda t, y, p, level: case.f(t, y, p)  # noqa: E731
    solution = solve(f, case.y0, case.t0, case.t1, integrator, **options)
    rises = end > begin
    wanted = torch.full_like(rises, True) if direction == "any" else rises == (direction == "rising")
    ok = (solution.status == 0) & ~bad_rows(case) & (case.t0 != case.t1)
    slack = tolerance(case, integrator, begin.abs().maximum(end.abs()))
    clear = ((level.double() - begin).abs() > 4 * slack) & ((level.double() - end).abs() > 4 * slack)
    crosses = (0 < place < 1) and wanted & ok & clear
    misses = ok & clear & ~(wanted & (0 < place < 1))
    assert bool(solution.event[crosses].all()) if 0 < place < 1 else True
    assert not bool(solution.event[misses].any())
    stopped = solution.event & ok
    assert_near(
        case, integrator, replace(solution, status=torch.where(stopped, 0, 9)), solution.y, solution.t.double(), 30
    )
    at = first(solution.y).double() - level.double()
    assert bool((at.abs() <= 1e-3 * (1 + begin.abs()) + 1e-6)[stopped].all())


@given(case=cases(), integrator=adaptive())
def test_one_system_is_right_too(case, integrator):
    """All samples as one system, from the first one's t0 to its t1."""
    assume(within_reach(case, integrator))
    same = replace(case, t0=case.t0[:1].expand(len(case)), t1=case.t1[:1].expand(len(case)))
    f = lambda t, y, p: same.f(t.expand(len(case)), y, p)  # noqa: E731
    solution = solve(f, case.y0, case.t0[0], case.t1[0], integrator, args=(case.p,), batched=False, throw=False)
    if bool(bad_rows(same).any()) and case.t0[0] != case.t1[0]:
        assert solution.status == int(Status.NON_FINITE)
    if solution.status == 0 and not bool(bad_rows(same).any()):
        broad = torch.zeros(len(case))
        assert_near(
            same, replace(integrator, atol=integrator.atol * 6, rtol=integrator.rtol * 6), broad, solution.y, same.t1
        )


@given(
    case=cases(kinds=("decay",), dtypes=(torch.float64,)),
    integrator=st.one_of(adaptive(), st.integers(1, 3).map(RK4)),
    places=st.lists(st.one_of(st.floats(-0.5, 1.5), st.sampled_from([0.0, 1.0])), min_size=5, max_size=5),
    drop_finished=st.booleans(),
)
def test_rates_that_jump_have_the_closed_form(case, integrator, places, drop_finished):
    """y' = −p y before each sample's own time, in the direction of t, and 2 p y after it."""
    jump = case.t0 + torch.tensor(places[: len(case)], dtype=torch.float64) * (case.t1 - case.t0)
    low, high = torch.minimum(case.t0, case.t1), torch.maximum(case.t0, case.t1)

    def f(t, y, p, jump):
        after = t.reshape(-1) >= jump
        return mapped(lambda x: like(torch.where(after, 2 * p, -p), x) * x, y)

    inside = (jump > low) & (jump < high)
    jump = torch.where(inside, jump, torch.where(jump <= low, low - 1, high + 1))  # none at the ends of a span
    options = {"jump_at": torch.where(inside, jump, 0.0)[:, None], "jump_mask": inside[:, None]}
    assume(not isinstance(integrator, RK4) or float((case.t1 - case.t0).abs().max()) < 0.3)
    solution = solve(
        f,
        case.y0,
        case.t0,
        case.t1,
        integrator,
        sample_args=(case.p, jump),
        throw=False,
        drop_finished=drop_finished,
        **options,
    )
    before, after = jump.clamp(low, high) - low, high - jump.clamp(low, high)
    power = case.p * torch.where(case.t1 >= case.t0, 1, -1) * (2 * after - before)
    right = flat(mapped(lambda x: like(power.exp(), x) * x, case.y0))
    ok = (solution.status == 0) & ~bad_rows(case) & resolved(case)
    tolerances = integrator if isinstance(integrator, ErrorControlled) else Dopri5(rtol=1e-3, atol=1e-3)
    bound = tolerance(replace(case, p=2 * case.p), tolerances, right.abs().amax(1).maximum(flat(case.y0).abs().amax(1)))
    off = (flat(solution.y) - right).abs().amax(1)
    assert bool((off <= bound)[ok].all()), (off, bound)


# ---- coupled and nonlinear, against SciPy


def pendulum(t, y):
    return torch.stack([y[..., 1], -torch.sin(y[..., 0]) - 0.1 * y[..., 1] + 0.3 * torch.cos(2 * t[..., 0])], -1)


def van_der_pol(t, y):
    return torch.stack([y[..., 1], 3 * (1 - y[..., 0] ** 2) * y[..., 1] - y[..., 0]], -1)


def prey_and_predators(t, y):
    return torch.stack([y[..., 0] * (1 - y[..., 1]), y[..., 1] * (y[..., 0] - 1)], -1)


@given(
    f=st.sampled_from([pendulum, van_der_pol, prey_and_predators]),
    starts=st.lists(st.tuples(st.floats(0.2, 2), st.floats(0.2, 2), st.floats(0.1, 6)), min_size=1, max_size=4),
    method=st.sampled_from([Dopri5, Tsit5, Dopri8]),
    controller=controllers,
    drop_finished=st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_scipy_has_the_same_answers(f, starts, method, controller, drop_finished):
    table = torch.tensor(starts, dtype=torch.float64)
    y0, t1 = table[:, :2], table[:, 2]
    share = torch.tensor([0.3, 0.7], dtype=torch.float64)
    integrator = method(rtol=1e-8, atol=1e-8, controller=controller)
    solution = solve(f, y0, 0.0, t1, integrator, save_at=t1[:, None] * share, drop_finished=drop_finished)
    for i, (a, b, end) in enumerate(starts):
        right = solve_ivp(
            lambda t, y: f(torch.tensor([t], dtype=torch.float64), torch.from_numpy(y)).numpy(),
            (0.0, end), [a, b], method="DOP853", rtol=1e-11, atol=1e-11, t_eval=[0.3 * end, 0.7 * end, end],
        ).y  # fmt: skip
        here = torch.cat([solution.saved[i], solution.y[i : i + 1]]).T
        torch.testing.assert_close(here, torch.from_numpy(right), rtol=3e-5, atol=3e-5)


# ---- gradients


@given(
    # far from 0 the clock's rounding is too coarse for differences
    case=cases(kinds=("decay", "logistic", "driven"), dtypes=(torch.float64,), near=True, healthy=True),
    integrator=integrators,
    drop_finished=st.booleans(),
)
def test_gradients_are_finite_differences(case, integrator, drop_finished):
    y0, p = flat(case.y0).clone().requires_grad_(), case.p.clone().requires_grad_()

    def loss(y0, p, gradient):
        f = lambda t, y, p: KINDS[case.kind].f(t, y, p[:, None])  # noqa: E731
        options = {"sample_args": (p,), "gradient": gradient, "drop_finished": drop_finished, "throw": False}
        s = solve(f, y0, case.t0, case.t1, integrator, differentiate_step_sizes=gradient != "backsolve", **options)
        return s, (s.y * torch.linspace(1, 2, s.y.numel(), dtype=torch.float64).view_as(s.y)).sum()

    s, value = loss(y0, p, "direct")
    assume(bool((s.status == 0).all()))
    direct = torch.autograd.grad(value, (y0, p), allow_unused=True, materialize_grads=True)
    kept = torch.autograd.grad(loss(y0, p, "checkpoint")[1], (y0, p), allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(kept, direct, rtol=1e-9, atol=1e-9)
    towards = [torch.linspace(-1, 1, x.numel(), dtype=torch.float64).view_as(x) for x in (y0, p)]
    ends, eps = [], 1e-6
    with torch.no_grad():
        for sign in (1, -1):
            moved, total = loss(*(x + sign * eps * d for x, d in zip((y0, p), towards, strict=True)), "direct")
            assume(torch.equal(moved.n_steps, s.n_steps))  # a step more or less is a jump
            ends.append(total)
    slope = sum((g * d).sum() for g, d in zip(direct, towards, strict=True))
    assert float(slope) == pytest.approx(
        float(ends[0] - ends[1]) / (2 * eps), rel=2e-3, abs=1e-4
    )  # limits on steps have kinks
