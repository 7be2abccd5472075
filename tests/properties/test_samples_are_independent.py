"""For any field, span and batch, the result and the cost of a sample do not depend on the other samples."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dise import (
    RK4,
    RK38,
    RKC1,
    Adams,
    Adaptive,
    Bosh3,
    ButcherTableau,
    Dopri5,
    Dopri8,
    Euler,
    Fehlberg2,
    FixedStep,
    Heun,
    HeunEuler,
    IController,
    Midpoint,
    PIController,
    Ralston,
    StepDoubling,
    Tsit5,
    max_norm,
    rms_norm,
    solve,
)

few = settings(max_examples=15, deadline=None, derandomize=True, database=None)
PER_SAMPLE = ("y", "t", "nfe", "n_steps", "n_accepted", "error", "status", "accumulated")

times = st.floats(-2, 2, width=32)


@st.composite
def tableaus(draw):
    """Any explicit method of order 1 with stages within the step and an error estimate, FSAL or not."""
    stages, weight = draw(st.integers(1, 5)), st.floats(0.01, 1)
    a = [()]
    for i in range(1, stages):
        row = draw(st.lists(weight, min_size=i, max_size=i))
        a.append(tuple(draw(st.floats(0, 1)) * x / sum(row) for x in row))
    c = [sum(row) for row in a]
    b = draw(st.lists(weight, min_size=stages, max_size=stages))
    b = [x / sum(b) for x in b]
    if draw(st.booleans()):
        a, c, b = [*a, tuple(b)], [*c, 1.0], [*b, 0.0]
    other = draw(st.lists(weight, min_size=len(b), max_size=len(b)))
    b_err = tuple(x - y / sum(other) for x, y in zip(b, other, strict=True))
    interpolant = tuple((x,) for x in b)
    return ButcherTableau(tuple(c), tuple(a), tuple(b), order=1, b_err=b_err, interpolant=interpolant)


def random_methods(base):
    """Subclasses of `base` with random tableaus, as users define them."""
    return tableaus().map(lambda tableau: type(f"Random{base.__name__}", (base,), {"tableau": tableau}))


first_steps = st.one_of(st.sampled_from(["heuristic", "scale", "span"]), st.floats(1e-2, 1))
controllers = st.sampled_from([IController(), PIController(), PIController(safety=0.8, shrink=0.3, grow=3)])
norms = st.sampled_from([rms_norm, max_norm])
fixed = st.builds(
    lambda method, steps: method(steps),
    st.one_of(st.sampled_from([Euler, Midpoint, Heun, Ralston, RK4, RK38, RKC1]), random_methods(FixedStep)),
    st.integers(1, 4),
)
adaptive = st.builds(
    lambda method, **options: method(**options),
    st.sampled_from([Bosh3, Dopri5, Tsit5, Dopri8, Adams]),
    rtol=st.sampled_from([1e-3, 1e-6]),
    atol=st.sampled_from([1e-3, 1e-6]),
    first_step=first_steps,
    controller=controllers,
    norm=norms,
    dt_max=st.sampled_from([0.1, 10.0]),
)
coarse = st.builds(
    lambda method, **options: method(rtol=1e-2, atol=1e-2, **options),
    st.one_of(st.sampled_from([HeunEuler, Fehlberg2]), random_methods(Adaptive)),
    first_step=first_steps,
    controller=controllers,
    norm=norms,
    dt_min=st.just(1e-3),
    accept_at_dt_min=st.just(True),
)
integrators = st.one_of(fixed, fixed.map(StepDoubling), adaptive, coarse)


def linear_field(size, *, scale, seed):
    A = scale * torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return lambda t, y: (y[:, None, :] * A).sum(2)


@st.composite
def problems(draw):
    """(whether the field is linear, its arguments, y0 [B, F], t0 [B], t1 [B])."""
    size, batch = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    seed = draw(st.integers(0, 1000))
    y0 = 2 * torch.randn(batch, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    t0, t1 = (torch.tensor(draw(st.lists(times, min_size=batch, max_size=batch)), dtype=torch.float64) for _ in "01")
    return draw(st.booleans()), {"size": size, "scale": draw(st.floats(0, 2)), "seed": seed}, y0, t0, t1


@pytest.fixture(scope="session")
def field_of(tanh_field):
    def make(is_linear, arguments):
        return linear_field(**arguments) if is_linear else tanh_field(**arguments).requires_grad_(False)

    return make


def run(f, *args, **options):
    return solve(f, *args, accumulate=lambda step: step.dt**2, **options)


def assert_rows_equal(solution, rows, expected):
    for name in PER_SAMPLE:
        got, want = getattr(solution, name)[rows], getattr(expected, name)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9, equal_nan=True)


@few
@given(problem=problems(), integrator=integrators, drop_finished=st.booleans())
def test_a_sample_alone_is_solved_as_in_a_batch(field_of, problem, integrator, drop_finished):
    kind, arguments, y0, t0, t1 = problem
    f = field_of(kind, arguments)
    together = run(f, y0, t0, t1, integrator, drop_finished=drop_finished)
    for i in range(len(y0)):
        one = slice(i, i + 1)
        assert_rows_equal(together, one, run(f, y0[one], t0[one], t1[one], integrator, drop_finished=drop_finished))


@few
@given(
    problem=problems(), integrator=integrators, drop_finished=st.booleans(), random=st.randoms(use_true_random=False)
)
def test_the_order_of_samples_does_not_matter(field_of, problem, integrator, drop_finished, random):
    kind, arguments, y0, t0, t1 = problem
    f, order = field_of(kind, arguments), random.sample(range(len(y0)), len(y0))
    together = run(f, y0, t0, t1, integrator, drop_finished=drop_finished)
    assert_rows_equal(together, order, run(f, y0[order], t0[order], t1[order], integrator, drop_finished=drop_finished))


@few
@given(problem=problems(), integrator=integrators)
def test_nfe_counts_the_rows_that_f_evaluates(field_of, record, problem, integrator):
    kind, arguments, y0, t0, t1 = problem
    f = record(field_of(kind, arguments))
    solution = solve(f, y0, t0, t1, integrator, drop_finished=True)
    assert f.rows == solution.nfe.sum()
    assert f.calls == solution.calls
    if integrator.tableau.fsal or isinstance(integrator, FixedStep | StepDoubling):
        assert solution.calls == solution.nfe.max()
    else:  # a step after a rejected one needs no first stage, while the step of another sample may need it
        assert solution.nfe.max() <= solution.calls <= 1 + integrator.tableau.stages * solution.n_steps.max()


@few
@given(problem=problems(), integrator=integrators)
def test_nfe_follows_from_the_steps(field_of, problem, integrator):
    kind, arguments, y0, t0, t1 = problem
    solution = solve(field_of(kind, arguments), y0, t0, t1, integrator)
    tableau = integrator.tableau
    first = 1 if getattr(integrator, "first_step", None) == "heuristic" else 0
    first, each = (first + 1, tableau.evaluations) if tableau.fsal else (first, tableau.stages)
    # after a rejected step the first stage is known
    repeated = 0 if tableau.fsal else solution.n_steps - solution.n_accepted
    expected = torch.where(t0 == t1, 0, first + each * solution.n_steps - repeated)
    assert solution.nfe.tolist() == expected.tolist()


@few
@given(problem=problems(), method=st.sampled_from([Dopri5, Tsit5, Dopri8]), controller=controllers, norm=norms)
def test_solving_forwards_and_backwards_returns_to_y0(field_of, problem, method, controller, norm):
    kind, arguments, y0, t0, t1 = problem
    f, integrator = field_of(kind, arguments), method(rtol=1e-9, atol=1e-9, controller=controller, norm=norm)
    there = solve(f, y0, t0, t1, integrator).y
    torch.testing.assert_close(solve(f, there, t1, t0, integrator).y, y0, rtol=1e-3, atol=1e-3)


@few
@given(problem=problems(), method=random_methods(FixedStep))
def test_shorter_steps_return_closer_to_y0(field_of, problem, method):
    """Methods of order 1 or higher: with four times the steps the distance is at most about a quarter."""
    kind, arguments, y0, t0, t1 = problem
    f = field_of(kind, arguments | {"scale": 0.5})
    distances = []
    for steps in (32, 128):
        back = solve(f, solve(f, y0, t0, t1, method(steps)).y, t1, t0, method(steps)).y
        distances.append((back - y0).abs().max().item())
    assert distances[1] < 0.35 * distances[0] + 1e-9


@few
@given(problem=problems(), integrator=integrators)
def test_a_failed_sample_does_not_affect_its_neighbours(field_of, problem, integrator):
    kind, arguments, y0, t0, t1 = problem
    f, n = field_of(kind, arguments), len(y0)
    y0, t0, t1 = (torch.cat([x, x[:1]]) for x in (y0, t0, t1))
    y0[n] = torch.nan
    beside = run(f, y0, t0, t1, integrator, throw=False)
    assert_rows_equal(beside, slice(0, n), run(f, y0[:n], t0[:n], t1[:n], integrator))
