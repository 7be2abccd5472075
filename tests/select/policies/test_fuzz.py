"""A policy gives each sample what its chosen candidate gives it alone, at the cost of the candidates that it tried."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st

from dise import (
    RK4,
    RK38,
    Adams,
    Bosh3,
    Cascade,
    Dopri5,
    Dynamic,
    Euler,
    Fehlberg2,
    Heun,
    HeunEuler,
    Midpoint,
    Ralston,
    StepDoubling,
    Tsit5,
    resume,
    solve,
)

SUCCESS = 0
CLOSE = {"rtol": 1e-9, "atol": 1e-9, "equal_nan": True}

fixed = st.builds(
    lambda method, steps: method(steps), st.sampled_from([Euler, Midpoint, Heun, Ralston, RK4, RK38]), st.integers(1, 4)
)
adaptive = st.builds(
    lambda method, tolerance, **options: method(rtol=tolerance, atol=tolerance, **options),
    st.sampled_from([HeunEuler, Fehlberg2, Bosh3, Dopri5, Tsit5, Adams]),
    st.sampled_from([1e-1, 1e-2, 1e-4]),
    first_step=st.sampled_from(["heuristic", "span", 0.1]),
    max_steps=st.sampled_from([1, 3, 40]),
    dt_max=st.sampled_from([math.inf, math.inf, 0.3]),
)
methods = st.one_of(fixed, adaptive, fixed.map(StepDoubling))


@dataclass(frozen=True)
class Rule:
    """Accepts states by a number that depends on the state alone, and never those with NaN."""

    scale: float
    least: float

    def __call__(self, y):
        return (self.scale * y.sum(1)).sin() >= self.least


@dataclass(frozen=True)
class Scores:
    """Scores that depend on h0 and k1, and on the condition if it is given; some are NaN."""

    number: int
    scale: float
    nan_above: float
    conditional: bool

    def __call__(self, h0, k1, *conditions):
        assert len(conditions) == self.conditional
        angle = self.scale * (h0.sum(1, keepdim=True) + 0.3 * k1.sum(1, keepdim=True) + sum(conditions))
        scores = torch.sin(angle * torch.arange(1, self.number + 1, dtype=h0.dtype))
        return scores.masked_fill(scores > self.nan_above, torch.nan)


rules = st.builds(Rule, st.floats(0.5, 5), st.sampled_from([-2.0, -0.5, 0.0, 0.5, 2.0]))


@st.composite
def cascades(draw, parts):
    candidates = draw(st.lists(parts, min_size=1, max_size=4))
    kind = draw(st.sampled_from(["none", "one", "each"]))
    accept = None if kind == "none" else draw(rules)
    if kind == "each":
        accept = [draw(rules) for _ in candidates[1:]]
    return Cascade(candidates, accept)


@st.composite
def dynamics(draw, parts):
    candidates = draw(st.lists(parts, min_size=1, max_size=4))
    scale, nan_above, conditional = (
        draw(st.floats(0.5, 5)),
        draw(st.sampled_from([2.0, 0.5, -2.0])),
        draw(st.booleans()),
    )
    return Dynamic(candidates, Scores(len(candidates), scale, nan_above, conditional))


flat = st.one_of(cascades(methods), dynamics(methods))
policies = st.one_of(flat, flat, cascades(st.one_of(methods, flat)), dynamics(st.one_of(methods, flat)))


def field(t, y, rate):
    """Linear, turning and driven; NaN for a NaN rate, and beyond the pole of its square root for some."""
    turned = torch.stack([-y[:, -1], y[:, 0]], 1) if y.shape[1] == 2 else -y
    return rate * turned + torch.sin(5 * t) + (1.5 - rate * t).sqrt() - 0.1 * y**3


@dataclass(frozen=True)
class Task:
    """Initial value problems of a batch."""

    y0: torch.Tensor
    t0: torch.Tensor
    t1: torch.Tensor
    rate: torch.Tensor

    def take(self, rows):
        return Task(self.y0[rows], self.t0[rows], self.t1[rows], self.rate[rows])

    def solve(self, integrator, f=field, **options):
        return solve(f, self.y0, self.t0, self.t1, integrator, sample_args=(self.rate,), throw=False, **options)


@st.composite
def tasks(draw):
    number, size = draw(st.integers(1, 6)), draw(st.integers(1, 2))
    noise = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    rates = st.sampled_from([0.5, 1.0, 2.0, -1.0, 3.0, math.nan])
    spans = st.tuples(st.sampled_from([0.0, 0.2]), st.sampled_from([0.0, 0.2, 0.7, 1.0, -0.5]))
    ends = torch.tensor(draw(st.lists(spans, min_size=number, max_size=number)), dtype=torch.float64)
    rate = torch.tensor(draw(st.lists(rates, min_size=number, max_size=number)), dtype=torch.float64)
    y0 = torch.randn(number, size, dtype=torch.float64, generator=noise)
    return Task(y0, ends[:, 0], ends[:, 1], rate[:, None])


def expected(task, policy):
    """[choice, solutions] of one sample by the rules of the policy: its tried candidates' own solves."""
    if isinstance(policy, Dynamic):
        k1 = field(task.t0[:, None], task.y0, task.rate)
        scores = policy.selector(task.y0, k1, *[task.rate] * policy.selector.conditional)[0].tolist()
        known = [(score, i) for i, score in enumerate(scores) if not math.isnan(score)]
        choice = min(known)[1] if known else len(scores) - 1
        return choice, [task.solve(policy.candidates[choice])]
    solved = []
    for choice, candidate in enumerate(policy.candidates):
        solution = task.solve(candidate)
        solved.append(solution)
        accept = policy.accept[choice : choice + 1] if isinstance(policy.accept, list) else [policy.accept]
        accepted = all(rule is None or bool(rule(solution.y)) for rule in accept)
        if choice + 1 == len(policy.candidates) or (solution.status.item() == SUCCESS and accepted):
            return choice, solved
    raise AssertionError


@pytest.mark.fuzz
@given(task=tasks(), policy=policies)
def test_a_sample_gets_its_candidates_own_answer(record, task, policy):
    finite = []

    def watched(t, y, rate):
        value = field(t, y, rate)
        finite.append(bool(value.isfinite().all()))
        return value

    f = record(watched)
    together = task.solve(policy, f)
    event(f"{type(policy).__name__} of {len(policy.candidates)}")
    event(f"failures: {bool((together.status != SUCCESS).any())}")
    # evaluations after a failure, of a candidate that was tried first too, are made but not needed
    assert int(together.nfe.sum()) == f.rows or (not all(finite) and int(together.nfe.sum()) < f.rows)
    for i in range(len(task.y0)):
        one = task.take([i])
        choice, tried = expected(one, policy)
        alone = tried[-1]
        for name in ("y", "t", "status", "n_steps", "n_accepted", "error"):
            torch.testing.assert_close(getattr(together, name)[i : i + 1], getattr(alone, name), **CLOSE)
        if task.t0[i] == task.t1[i]:
            assert together.nfe[i] == 0
            continue
        assert together.choice[i] == choice
        itself = one.solve(policy)
        assert torch.equal(itself.nfe, together.nfe[i : i + 1])
        if isinstance(policy, Dynamic):
            assert torch.equal(alone.nfe, itself.nfe)
        else:
            assert alone.nfe <= itself.nfe <= sum(solution.nfe for solution in tried) - choice


@pytest.mark.fuzz
@given(task=tasks(), policy=policies, method=st.one_of(adaptive, fixed), more=st.floats(0.1, 1))
def test_a_solve_is_resumed_with_a_policy_as_with_its_candidate(task, policy, method, more):
    first = task.solve(method)
    options = {"sample_args": (task.rate,), "throw": False}
    end = first.t + more * torch.sign(task.t1 - task.t0 + 1e-9)
    together = resume(first, field, end, policy, **options)
    for index, candidate in enumerate(policy.candidates):
        alone = resume(first, field, end, candidate, **options)
        rows = together.choice == index
        for name in ("y", "t", "status"):
            torch.testing.assert_close(getattr(together, name)[rows], getattr(alone, name)[rows], **CLOSE)


@pytest.mark.fuzz
@given(task=tasks(), policy=policies, points=st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_save_points_are_those_of_the_chosen_candidate(task, policy, points):
    at = task.t0[:, None] + (task.t1 - task.t0)[:, None] * torch.tensor(points, dtype=torch.float64)
    together = task.solve(policy, save_at=at)
    for index, candidate in enumerate(policy.candidates):
        rows = (together.choice == index).nonzero().flatten()
        alone = task.take(rows).solve(candidate, save_at=at[rows]) if len(rows) else None
        if alone is not None:
            torch.testing.assert_close(together.saved[rows], alone.saved, **CLOSE)
