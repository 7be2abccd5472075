"""Accepted steps on record, and progress."""

from weakref import WeakSet

import pytest
import torch
from torch.testing import assert_close

from dise import RK4, Bosh3, Cascade, Dopri5, Dynamic, solve

DOPRI = Dopri5(rtol=1e-6, atol=1e-6)


@pytest.fixture
def problem(tanh_field, starts):
    t0 = torch.tensor([0.0, 0.5, -1.0, 1.0, 0.0], dtype=torch.float64)
    t1 = torch.tensor([1.0, 3.0, 1.0, 0.2, 0.0], dtype=torch.float64)  # one backwards, one of no length
    return tanh_field(3), starts(5, 3), t0, t1


# ---- record


@pytest.mark.parametrize("gradient", ["direct", "checkpoint", "backsolve"])
@pytest.mark.parametrize("drop_finished", [True, False])
def test_record_is_what_was_accepted(problem, drop_finished, gradient):
    f, y0, t0, t1 = problem
    seen = []

    def keep(step):
        seen.append(step)
        return torch.zeros_like(step.t)

    solution = solve(f, y0, t0, t1, DOPRI, record=True, drop_finished=drop_finished, gradient=gradient)
    solve(f, y0, t0, t1, DOPRI, accumulate=keep)
    t, ratio = solution.steps
    assert t.shape == ratio.shape == (5, solution.n_accepted.max())
    assert t.isfinite().sum(1).tolist() == ratio.isfinite().sum(1).tolist() == solution.n_accepted.tolist()
    assert (ratio.nan_to_num() <= 1).all()
    assert_close(ratio.nansum(1), solution.error)
    for i in range(5):
        ends = t[i, : solution.n_accepted[i]]
        assert (ends.diff() * (t1[i] - t0[i]) > 0).all()
        if len(ends):
            assert ends[-1] == t1[i]
    tried = torch.cat([step.t + step.dt for step in seen])
    assert (torch.cdist(t[t.isfinite()][:, None], tried[:, None]).amin(1) < 1e-12).all()


def test_rejected_steps_are_not_on_record(problem):
    f, y0, t0, t1 = problem
    solution = solve(f, y0, t0, t1, Dopri5(rtol=1e-6, atol=1e-6, first_step="span"), record=True)
    assert (solution.n_accepted < solution.n_steps).any()
    assert solution.steps.t.isfinite().sum(1).tolist() == solution.n_accepted.tolist()


def test_fixed_steps_are_a_grid():
    t, ratio = solve(lambda t, y: -y, torch.ones(2, 1), 0.0, 2.0, RK4(4), record=True).steps
    assert t.tolist() == [[0.5, 1.0, 1.5, 2.0]] * 2
    assert ratio.isnan().all()


def test_one_system_has_one_record(problem):
    f, y0, *_ = problem
    solution = solve(f, y0, 0.0, 1.0, DOPRI, record=True, batched=False)
    assert solution.steps.t.shape == (solution.n_accepted,)


def test_of_a_cascade_the_kept_candidates_steps_are_on_record(problem):
    f, y0, *_ = problem
    cascade = Cascade([Bosh3(rtol=1e-2, atol=1e-2, first_step="span", max_steps=1), DOPRI])
    solution = solve(f, y0, 0.0, 1.0, cascade, record=True)
    assert len(solution.choice.unique()) == 2
    assert solution.steps.t.isfinite().sum(1).tolist() == solution.n_accepted.tolist()


def test_ratios_have_gradients(problem):
    f, y0, t0, t1 = problem
    solution = solve(f, y0, t0, t1, DOPRI, record=True)
    of_steps, of_sum = (
        torch.autograd.grad(x, f.W, retain_graph=True)[0]
        for x in (solution.steps.ratio.nan_to_num().sum(), solution.error.sum())
    )
    assert_close(of_steps, of_sum)


def test_nothing_is_recorded_unasked():
    assert solve(lambda t, y: -y, torch.ones(1, 1), 0.0, 1.0, DOPRI).steps is None


def test_a_solve_without_steps_has_an_empty_record():
    solution = solve(lambda t, y: -y, torch.ones(2, 1), 1.0, 1.0, DOPRI, record=True)
    assert solution.steps.t.shape == (2, 0)


@pytest.mark.parametrize(("options", "grows"), [({"record": True}, False), ({"record": True, "dense": True}, True)])
def test_a_record_alone_keeps_no_stages(options, grows):
    """The largest number of stages alive during a solve, for a short span and one of many more steps."""

    def most_alive(t1):
        stages, most = WeakSet(), 0

        def f(t, y):
            nonlocal most
            value = -y
            stages.add(value)
            most = max(most, len(stages))
            return value

        with torch.no_grad():
            solution = solve(f, torch.ones(1, 1), 0.0, t1, Dopri5(dt_max=0.1), **options)
        assert solution.steps.t.shape == (1, solution.n_accepted)
        return most

    assert (most_alive(20.0) > most_alive(2.0)) == grows


# ---- progress


@pytest.mark.parametrize("gradient", ["direct", "checkpoint"])
def test_progress_goes_from_nothing_to_all(problem, gradient):
    f, y0, t0, t1 = problem
    seen = []
    solution = solve(
        f, y0, t0, t1, DOPRI, gradient=gradient, progress=lambda p: seen.append((p.rounds, p.t, p.fraction))
    )
    rounds, times, fractions = zip(*seen, strict=True)
    assert list(rounds) == list(range(1, len(seen) + 1))
    assert len(seen) == solution.n_steps.max()
    fractions = torch.stack(fractions)
    assert (fractions.diff(dim=0) >= 0).all()
    assert (fractions[0, :4] < 1).all()
    assert fractions[0, 4] == 1  # its span has no length
    assert (fractions[-1] == 1).all()
    assert_close(times[-1], t1)


def test_progress_stops_where_a_sample_fails():
    def f(t, y):
        return torch.where((y > 1.5) & (t > 0.5), torch.nan, 0 * y)

    last = []
    y0 = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    solve(f, y0, 0.0, 1.0, Dopri5(), throw=False, progress=lambda p: last.append(p.fraction))
    assert last[-1][0] == 1
    assert 0.4 < last[-1][1] <= 0.5


def test_progress_of_integrators_that_choose(problem):
    f, y0, *_ = problem
    dynamic = Dynamic([RK4(3), DOPRI], lambda h, k1: torch.stack([h[:, 0], -h[:, 0]], 1))
    for integrator in (dynamic, Cascade([RK4(2), DOPRI], accept=lambda y: y[:, 0] > 0)):
        last = []
        solve(f, y0, 0.0, 1.0, integrator, progress=lambda p, last=last: last.append(p.fraction))
        assert (last[-1] == 1).all()


def test_progress_changes_nothing(problem):
    f, y0, t0, t1 = problem
    quiet = solve(f, y0, t0, t1, DOPRI)
    watched = solve(f, y0, t0, t1, DOPRI, record=True, progress=lambda p: None)
    assert_close(watched.y, quiet.y, rtol=0, atol=0)
    assert watched.calls == quiet.calls
