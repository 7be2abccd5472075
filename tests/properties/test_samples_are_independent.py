"""For any field, span and batch: a sample's result and its cost are its own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dise import RK4, Dopri5, Euler, solve

few = settings(max_examples=15, deadline=None, derandomize=True, database=None)
PER_SAMPLE = ("y", "t", "nfe", "n_steps", "n_accepted", "error", "status", "accumulated")

times = st.floats(-2, 2, width=32)
integrators = st.one_of(
    st.builds(Euler, st.integers(1, 4)),
    st.builds(RK4, st.integers(1, 3)),
    st.builds(
        Dopri5,
        rtol=st.sampled_from([1e-3, 1e-6]),
        atol=st.sampled_from([1e-3, 1e-6]),
        first_step=st.one_of(st.just("heuristic"), st.just("span"), st.floats(1e-2, 1)),
    ),
)


def linear_field(size, *, scale, seed):
    A = scale * torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return lambda t, y: (y[:, None, :] * A).sum(2)


@st.composite
def problems(draw):
    """(which field, its arguments, y0 [B, F], t0 [B], t1 [B])."""
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
@given(problem=problems(), integrator=integrators, compact=st.booleans())
def test_solo_is_batched(field_of, problem, integrator, compact):
    kind, arguments, y0, t0, t1 = problem
    f = field_of(kind, arguments)
    together = run(f, y0, t0, t1, integrator, compact=compact)
    for i in range(len(y0)):
        one = slice(i, i + 1)
        assert_rows_equal(together, one, run(f, y0[one], t0[one], t1[one], integrator, compact=compact))


@few
@given(problem=problems(), integrator=integrators, compact=st.booleans(), random=st.randoms(use_true_random=False))
def test_order_does_not_matter(field_of, problem, integrator, compact, random):
    kind, arguments, y0, t0, t1 = problem
    f, order = field_of(kind, arguments), random.sample(range(len(y0)), len(y0))
    together = run(f, y0, t0, t1, integrator, compact=compact)
    assert_rows_equal(together, order, run(f, y0[order], t0[order], t1[order], integrator, compact=compact))


@few
@given(problem=problems(), integrator=integrators)
def test_nfe_counts_the_rows_that_f_sees(field_of, record, problem, integrator):
    kind, arguments, y0, t0, t1 = problem
    f = record(field_of(kind, arguments))
    solution = solve(f, y0, t0, t1, integrator, compact=True)
    assert f.rows == solution.nfe.sum()
    assert f.calls == solution.calls == solution.nfe.max()


@few
@given(problem=problems(), integrator=integrators)
def test_nfe_follows_from_the_steps(field_of, problem, integrator):
    kind, arguments, y0, t0, t1 = problem
    solution = solve(field_of(kind, arguments), y0, t0, t1, integrator)
    if isinstance(integrator, Dopri5):
        first, each = (2 if integrator.first_step == "heuristic" else 1), 6
    else:
        first, each = 0, {Euler: 1, RK4: 4}[type(integrator)]
    expected = torch.where(t0 == t1, 0, first + each * solution.n_steps)
    assert solution.nfe.tolist() == expected.tolist()


@few
@given(problem=problems())
def test_forth_and_back_returns(field_of, problem):
    kind, arguments, y0, t0, t1 = problem
    f, integrator = field_of(kind, arguments), Dopri5(rtol=1e-9, atol=1e-9)
    there = solve(f, y0, t0, t1, integrator).y
    torch.testing.assert_close(solve(f, there, t1, t0, integrator).y, y0, rtol=1e-3, atol=1e-3)


@few
@given(problem=problems(), integrator=integrators)
def test_a_dead_neighbour_is_not_noticed(field_of, problem, integrator):
    kind, arguments, y0, t0, t1 = problem
    f, n = field_of(kind, arguments), len(y0)
    y0, t0, t1 = (torch.cat([x, x[:1]]) for x in (y0, t0, t1))
    y0[n] = torch.nan
    beside = run(f, y0, t0, t1, integrator, throw=False)
    assert_rows_equal(beside, slice(0, n), run(f, y0[:n], t0[:n], t1[:n], integrator))
