"""Random sets of events, some with changes of state, against the closed form, whose roots SciPy finds one by one."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import brentq

from dise import Dopri5, Dopri8, Event, Tsit5, solve

pytestmark = pytest.mark.fuzz

NEAR = 3e-3  # events that are closer together, or to no event at all, are left out
MOST = 20  # events of a sample


@dataclass(frozen=True)
class Rule:
    """The event that weights·y = level, and the change of y to factors·y + shift."""

    weights: tuple[float, float]
    level: float
    direction: str
    terminal: bool | int
    change: tuple[tuple[float, float], tuple[float, float]] | None

    def event(self):
        """As `solve` takes it."""
        weights = torch.tensor(self.weights, dtype=torch.float64)
        function = lambda t, y, p: y @ weights - self.level  # noqa: E731
        if self.change is None:
            return Event(function, self.direction, terminal=self.terminal)
        factors, shift = torch.tensor(self.change, dtype=torch.float64)
        return Event(function, self.direction, terminal=self.terminal, change=lambda t, y, p: factors * y + shift)

    def value(self, y):
        """[...] the function of states [..., 2]."""
        return y @ np.array(self.weights) - self.level

    def changed(self, y):
        """The state after the event."""
        return y if self.change is None else np.array(self.change[0]) * y + np.array(self.change[1])


def f(t, y, p):
    """A damped rotation, of a frequency and a damping per sample."""
    turn, damping = p[:, :1], p[:, 1:]
    return turn * torch.stack([y[:, 1], -y[:, 0]], 1) - damping * y


def flow(y, since, p):
    """[..., 2] the state after times [...]."""
    turn, damping = p
    cos, sin = np.cos(turn * since), np.sin(turn * since)
    return np.exp(-damping * since)[..., None] * np.stack([cos * y[0] + sin * y[1], cos * y[1] - sin * y[0]], -1)


def first_crossing(rules, y, t, t1, p):
    """The number and time of the next event; None: there is none. Rejects what is too close to call."""
    sign = math.copysign(1, t1 - t)
    grid = np.concatenate([[1e-9], np.linspace(1e-4, max(abs(t1 - t), 2e-4), 4000)])
    found = []
    for number, rule in enumerate(rules):
        values = rule.value(flow(y, sign * grid, p))
        touches = (np.abs(values[1:-1]) < 1e-4) & (np.sign(np.diff(values[:-1])) != np.sign(np.diff(values[1:])))
        assume(not touches.any())
        for i in np.nonzero(values[:-1] * values[1:] < 0)[0]:
            if rule.direction != "any" and (values[i + 1] > 0) != (rule.direction == "rising"):
                continue
            at = lambda s, rule=rule: rule.value(flow(y, np.array(sign * s), p))  # noqa: E731
            found.append((brentq(at, grid[i], grid[i + 1], xtol=1e-13), number))
            break
    found.sort()
    found = [(since, number) for since, number in found if since < abs(t1 - t)]
    if not found:
        return None
    later = [since for since, _ in found[1:]] + [abs(t1 - t)]
    assume(min(later) - found[0][0] > NEAR)
    return found[0][1], t + sign * found[0][0]


def expected(rules, y, t, t1, p):
    """The numbers and times of a sample's events, whether it was stopped, and its last state."""
    happened, counts = [], [0] * len(rules)
    while True:
        crossing = first_crossing(rules, y, t, t1, p)
        if crossing is None:
            return happened, False, flow(y, np.array(t1 - t), p)
        number, time = crossing
        y, t = flow(y, np.array(time - t), p), time
        happened.append(crossing)
        assume(len(happened) <= MOST)
        counts[number] += 1
        if counts[number] == int(rules[number].terminal):
            return happened, True, y
        y = rules[number].changed(y)
        for other, rule in enumerate(rules):  # after a change no function is near 0; without, the event's own is
            assume(abs(rule.value(y)) > NEAR or (other == number and rule.change is None))


numbers = st.floats(-2, 2).map(lambda x: round(x, 3))
pairs = st.tuples(numbers, numbers)
changes = st.one_of(st.none(), st.tuples(pairs, pairs))


@st.composite
def rule(draw):
    change = draw(changes)
    terminal = draw(st.sampled_from([False, False, 3] if change else [False, True, 2]))
    weights = draw(pairs.filter(lambda pair: math.hypot(*pair) > 0.3))
    return Rule(weights, draw(numbers), draw(st.sampled_from(["any", "rising", "falling"])), terminal, change)


@given(
    rules=st.lists(rule(), min_size=1, max_size=3),
    y0=st.lists(pairs, min_size=1, max_size=3),
    spans=st.lists(st.tuples(st.floats(-3, 3), st.floats(-4, 4)), min_size=3, max_size=3),
    p=st.lists(st.tuples(st.floats(0.5, 3), st.floats(-0.1, 0.3)), min_size=3, max_size=3),
    method=st.sampled_from([Dopri5, Tsit5, Dopri8]),
    drop_finished=st.booleans(),
)
def test_events_and_changes_are_those_of_the_closed_form(rules, y0, spans, p, method, drop_finished):
    n = len(y0)
    t0, length = (np.array(column[:n]) for column in zip(*spans, strict=True))
    t1 = t0 + length
    start = np.array(y0)
    assume(all(abs(rule.value(y)) > NEAR for rule in rules for y in start))
    answers = [expected(rules, start[i], t0[i], t1[i], p[i]) for i in range(n)]
    tensor = lambda x: torch.tensor(x, dtype=torch.float64)  # noqa: E731
    integrator, events = method(rtol=1e-9, atol=1e-9, dt_max=0.5), [rule.event() for rule in rules]
    options = {"sample_args": (tensor(p[:n]),), "event": events, "drop_finished": drop_finished}
    solution = solve(f, tensor(start), tensor(t0), tensor(t1), integrator, **options)
    for i, (happened, stopped, last) in enumerate(answers):
        which = solution.events.which[i]
        assert which[which >= 0].tolist() == [number for number, _ in happened]
        times = solution.events.t[i][which >= 0].tolist()
        assert times == pytest.approx([time for _, time in happened], abs=1e-5)
        assert solution.event[i].item() == stopped
        np.testing.assert_allclose(solution.y[i], last, atol=1e-4)
