"""Break points: jump_at and step_at."""

from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

import dise
from dise import RK4, Adams, Bosh3, Dopri5, Euler, Heun, HeunEuler, Midpoint, StepDoubling, Tsit5, solve

DOUBLE = torch.float64


class AdaptiveRK4(dise.Adaptive):
    """A method whose last stage is not the next step's first."""

    tableau = dise.RK4.tableau.doubled()


TIGHT = Dopri5(rtol=1e-9, atol=1e-9)
EVERY = [
    Dopri5(rtol=1e-7, atol=1e-7),
    Tsit5(rtol=1e-7, atol=1e-7),
    HeunEuler(rtol=1e-5, atol=1e-5),
    Adams(rtol=1e-6, atol=1e-6),
    RK4(40),
    Midpoint(400),
]


def dosed(t, y, dose, width):
    """A pulse of height 100 from `dose` on, and decay."""
    return -y + 100 * ((t >= dose) & (t < dose + width)).to(y.dtype)


def after_dose(y0, t0, t1, dose, width):
    """The closed form of `dosed`, for pulses inside the span."""
    decayed = lambda since: torch.exp(-(t1 - since))  # noqa: E731
    return y0 * decayed(t0) + 100 * (decayed(dose + width) - decayed(dose))


def column(*values, dtype=DOUBLE):
    return torch.tensor(values, dtype=dtype)[:, None]


DOSES = column(2.0, 5.3, 7.7)


@pytest.mark.parametrize(
    ("integrator", "options"),
    [
        *((integrator, {}) for integrator in EVERY),
        (EVERY[0], {"drop_finished": False}),
        (EVERY[0], {"gradient": "checkpoint"}),
        (EVERY[2], {"gradient": "checkpoint"}),
        pytest.param(Bosh3(rtol=1e-7, atol=1e-7), {"compile": True}, marks=pytest.mark.slow),
        (RK4(40), {"compile": {"backend": "eager"}}),
    ],
    ids=str,
)
def test_short_doses_at_each_samples_own_times(integrator, options):
    y0, width = column(1.0, 0.5, 2.0).requires_grad_("gradient" in options), 0.01
    args = (DOSES, torch.full_like(DOSES, width))
    jump_at = torch.cat([DOSES, DOSES + width], 1)
    solution = solve(dosed, y0, 0.0, 10.0, integrator, sample_args=args, jump_at=jump_at, **options)
    assert_close(solution.y, after_dose(y0, torch.tensor(0.0), torch.tensor(10.0), *args), rtol=1e-2, atol=1e-5)
    assert solution.status.eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(
    "integrator",
    [Dopri5(rtol=1e-2, atol=1e-2), HeunEuler(rtol=1e-2, atol=1e-2), Adams(), RK4(7), StepDoubling(RK4(5))],
    ids=str,
)
def test_f_receives_times_on_the_steps_own_side(integrator, sign, dtype):
    """Each call of f lies strictly on one side of each jump; the last before and the first after are neighbours."""
    seen = []

    def f(t, y):
        assert t.dtype == dtype
        seen.append(t.flatten().double())
        return torch.where(t * sign > 0.3, 3.0, 1.0).to(dtype).expand_as(y)

    jump = torch.tensor(0.3 * sign, dtype=DOUBLE).to(dtype)  # as f sees it
    y0 = torch.zeros(2, 1, dtype=dtype)
    ends = torch.tensor([1.0, 0.1]).double() * sign  # the second sample does not come so far
    solution = solve(f, y0, 0.0, ends, integrator, jump_at=[0.3 * sign])
    expected = sign * (0.3 + 3 * 0.7)
    assert solution.y[0].item() == pytest.approx(expected, rel=2 * torch.finfo(dtype).eps)
    times = torch.cat(seen) * sign
    assert (times != jump.double() * sign).all()
    near = (times - 0.3).abs() <= 4 * torch.finfo(dtype).eps
    assert (times[near] < jump.double() * sign).any()
    assert (times[near] > jump.double() * sign).any() or dtype == torch.bfloat16


@pytest.mark.parametrize(
    "integrator", [*(m(rtol=1e-6, atol=1e-6) for m in (Dopri5, Tsit5, Adams)), HeunEuler(rtol=1e-3, atol=1e-3)], ids=str
)
@pytest.mark.parametrize("kind", ["jump_at", "step_at"])
def test_evaluations_are_those_of_the_pieces(integrator, kind):
    """At most 1.05 times as many as one solve for each piece needs."""
    jumps = kind == "jump_at"

    def f(t, y):
        return torch.sin(3 * y) + torch.cos(5 * t) * (torch.floor(t) + 1 if jumps else 1)

    breaks = torch.arange(1, 9, dtype=DOUBLE)  # the last one is t1, before which the last step stays, too
    y = y0 = torch.tensor([[0.3], [1.0]], dtype=DOUBLE)
    nfe = 0
    for a, b in pairwise([0.0, *breaks.tolist()]):
        factor = a + 1 if jumps else 1
        piece = solve(lambda t, y, factor=factor: torch.sin(3 * y) + torch.cos(5 * t) * factor, y, a, b, integrator)
        y, nfe = piece.y, nfe + piece.nfe
    whole = solve(f, y0, 0.0, 8.0, integrator, **{kind: breaks})
    assert_close(whole.y, y, rtol=2e-2, atol=2e-2)
    assert (whole.nfe <= 1.05 * nfe).all()


def test_every_evaluation_is_counted(record):
    for integrator in EVERY[:4]:
        f = record(lambda t, y: -y)
        whole = solve(
            f, column(1.0, 2.0), 0.0, torch.tensor([1.0, 0.6]).double(), integrator, jump_at=[0.5, 0.7], step_at=[0.2]
        )
        assert whole.nfe.sum() == f.rows


def test_steps_end_at_break_points_and_only_jumps_cost_an_evaluation():
    plain, stepped, jumped = (
        solve(lambda t, y: 1 + 0 * y, column(0.0), 0.0, 1.0, Dopri5(first_step=0.1, dt_max=0.1), record=True, **given)
        for given in ({}, {"step_at": [0.25]}, {"jump_at": [0.25]})
    )
    assert 0.25 in stepped.steps.t[0].tolist()
    assert 0.25 in jumped.steps.t[0].tolist()
    assert stepped.nfe == plain.nfe + 6 * (stepped.n_steps - plain.n_steps)
    assert jumped.nfe == stepped.nfe + 1


def test_fixed_steps_have_the_break_points_as_further_ends():
    given = torch.tensor([[0.3, 0.5, 9.0], [0.8, -1.0, 0.8]]).double()
    solution = solve(lambda t, y: y, column(1.0, 1.0), 0.0, 1.0, Euler(4), step_at=given, record=True)
    assert solution.steps.t[0].tolist() == pytest.approx([0.25, 0.3, 0.5, 0.75, 1.0])
    assert solution.steps.t[1, :5].tolist() == pytest.approx([0.25, 0.5, 0.75, 0.8, 1.0])
    assert solution.nfe.tolist() == [5, 5]  # 0.5 is a step's end already, 9 and −1 are outside
    assert_close(solution.y, column(1.25 * 1.05 * 1.2 * 1.25 * 1.25, 1.25 * 1.25 * 1.25 * 1.05 * 1.2))


def test_masks_and_spans_in_both_directions():
    """f is 1 before the jump and 2 after it, in time, for spans that lie before, around and after it."""
    t0 = torch.tensor([0.0, 1.0, 0.0, 0.6, 0.5]).double()
    t1 = torch.tensor([1.0, 0.0, 0.4, 1.0, 0.0]).double()
    f = lambda t, y: torch.where(t > 0.5, 2.0, 1.0).to(y.dtype).expand_as(y)  # noqa: E731
    at, mask = torch.tensor([[0.5, 0.1]]).double().expand(5, -1), torch.tensor([[True, False]]).expand(5, -1)
    for integrator in (TIGHT, Heun(3)):
        solution = solve(
            f, torch.zeros(5, 1, dtype=DOUBLE), t0, t1, integrator, jump_at=at, jump_mask=mask, record=True
        )
        assert_close(solution.y[:, 0], torch.tensor([1.5, -1.5, 0.4, 0.8, -0.5]).double())
        assert not (solution.steps.t == 0.1).any() or isinstance(integrator, Heun)


@pytest.mark.parametrize("integrator", [TIGHT, HeunEuler(rtol=1e-7, atol=1e-7), Adams(rtol=1e-7, atol=1e-7)], ids=str)
def test_save_points_dense_output_and_events(integrator):
    f = lambda t, y: torch.where(t > 0.5, 2.0, 1.0).to(y.dtype).expand_as(y)  # noqa: E731
    times = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=DOUBLE)
    expected = torch.tensor([0.0, 0.25, 0.5, 1.0, 1.5]).double()
    y0 = torch.zeros(2, 1, dtype=DOUBLE)
    solution = solve(f, y0, 0.0, 1.0, integrator, jump_at=[0.5], save_at=times, dense=True)
    assert_close(solution.saved[0, :, 0], expected)
    assert_close(solution.evaluate(times)[1, :, 0], expected)
    for level, time in ((0.3, 0.3), (0.5, 0.5), (1.0, 0.75)):
        stopped = solve(f, y0, 0.0, 1.0, integrator, jump_at=[0.5], event=lambda t, y, level=level: y[:, 0] - level)
        assert stopped.event.all()
        assert_close(stopped.t, torch.full((2,), time, dtype=DOUBLE))


def test_policies_follow_the_break_points():
    f = lambda t, y, at: torch.where(t > at, 2.0, 1.0).to(y.dtype).expand_as(y)  # noqa: E731
    at, y0 = column(0.2, 0.5, 0.7, 0.9), torch.zeros(4, 1, dtype=DOUBLE)
    cascade = dise.Cascade([Heun(2), RK4(3)], accept=lambda y: y.flatten() > 1.5)
    solution = solve(f, y0, 0.0, 1.0, cascade, sample_args=(at,), jump_at=at)
    assert_close(solution.y, 2 - at)
    assert solution.choice.unique().numel() == 2


@pytest.mark.parametrize("gradient", ["direct", "checkpoint"])
@pytest.mark.parametrize("integrator", [TIGHT, AdaptiveRK4(rtol=1e-9, atol=1e-9), RK4(60)], ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_gradients_in_jump_times(integrator, gradient, sign):
    """Against central differences; f depends on t beside its jumps."""

    def f(t, y, at):
        s = t * sign
        return sign * (
            torch.sin(y) + torch.where(s > at[:, :1], 3 * torch.cos(s), 1.0) + torch.where(s > at[:, 1:], y, 0.0)
        )

    def squares(at, gradient="direct"):
        y0 = torch.tensor([[0.3], [0.7]], dtype=DOUBLE).repeat(len(at) // 2, 1)
        options = {"sample_args": (at.detach(),), "jump_at": at * sign, "gradient": gradient}
        return solve(f, y0, 0.0, 2.0 * sign, integrator, **options).y.square()

    at = torch.tensor([[0.5, 1.3], [0.8, 1.1]], dtype=DOUBLE, requires_grad=True)
    (analytic,) = torch.autograd.grad(squares(at, gradient).sum(), at)
    changes = 1e-5 * torch.eye(4, dtype=DOUBLE).view(4, 2, 2)
    with torch.no_grad():  # all changed times are samples of one solve
        sums = squares((at + torch.stack([changes, -changes])).view(-1, 2)).view(2, 4, 2).sum(-1)
    numeric = ((sums[0] - sums[1]) / 2e-5).view(2, 2)
    assert_close(analytic, numeric, rtol=1e-4 if isinstance(integrator, RK4) else 1e-6, atol=0)


def test_resume_continues_with_the_break_points():
    f = lambda t, y: torch.where(t > 0.5, 2.0, 1.0).to(y.dtype).expand_as(y)  # noqa: E731
    first = solve(f, torch.zeros(1, 1, dtype=DOUBLE), 0.0, 0.5, TIGHT, jump_at=[0.5])
    assert_close(first.y, column(0.5))
    second = dise.resume(first, lambda t, y: f(t, y), 1.0, TIGHT, jump_at=[0.5])
    assert_close(second.y, column(1.5))


def test_one_system():
    f = lambda t, y: torch.where(t > 0.5, 2.0, 1.0).to(y.dtype).expand_as(y)  # noqa: E731
    for integrator in (TIGHT, RK4(3)):
        solution = solve(f, torch.zeros(3, dtype=DOUBLE), 0.0, 1.0, integrator, jump_at=[0.5], batched=False)
        assert_close(solution.y, torch.full((3,), 1.5, dtype=DOUBLE))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"jump_mask": torch.ones(1, 1, dtype=torch.bool)}, "jump_mask: it marks padding, but jump_at"),
        ({"step_at": "noon"}, "step_at: expected times"),
        ({"jump_at": [0.5, float("nan")]}, "jump_at: expected times, got nan; padding is False in jump_mask"),
        (
            {"step_at": [0.5, float("nan")], "step_mask": torch.tensor([False, True])},
            "step_at: expected times, got nan; padding is False in step_mask",
        ),
        ({"step_at": torch.ones(3, 2)}, "step_at: expected shape"),
        ({"jump_at": [0.5], "jump_mask": torch.ones(2, dtype=torch.bool)}, "jump_mask: expected the shape of jump_at"),
        ({"jump_at": [0.5, 0.5 + 1e-9]}, "jump_at: torch.float32, in which f receives t, has no number between"),
    ],
)
def test_bad_break_points(given, message):
    with pytest.raises((TypeError, ValueError), match=message):
        solve(lambda t, y: y, torch.ones(2, 1), 0.0, 1.0, RK4(), **given)


def test_break_points_cost_only_where_they_are():
    """Samples without one inside their spans make the steps of a solve without."""
    f = lambda t, y: torch.cos(3 * t) * y  # noqa: E731
    y0 = column(1.0, 2.0)
    for integrator in EVERY:
        plain = solve(f, y0, 0.0, 1.0, integrator)
        with_breaks = solve(f, y0, 0.0, 1.0, integrator, jump_at=torch.tensor([[0.5], [2.0]]).double())
        assert with_breaks.nfe[1] == plain.nfe[1]
        assert with_breaks.y[1].item() == pytest.approx(plain.y[1].item(), rel=1e-12)


@pytest.mark.parametrize("integrator", [TIGHT, RK4(60)], ids=str)
def test_backsolve_takes_each_step_on_its_side(integrator):
    """Gradients of the start, of a parameter and of both ends, one of which is a jump, are direct's."""
    rate = torch.tensor([0.7], dtype=DOUBLE, requires_grad=True)
    f = lambda t, y, rate: rate * torch.where((t > 0.5) & (t < 1), y.sin() + t, y.cos())  # noqa: E731
    results = []
    for gradient in ("direct", "backsolve"):
        y0 = column(0.3, 0.8).requires_grad_()
        t1 = torch.tensor(1.0, dtype=DOUBLE, requires_grad=True)
        solution = solve(f, y0, 0.0, t1, integrator, args=(rate,), jump_at=[0.5, 1.0], save_at=[0.7], gradient=gradient)
        loss = solution.y.square().sum() + solution.saved.sum()
        results.append((solution.y, *torch.autograd.grad(loss, (y0, rate, t1))))
    for direct, back in zip(*results, strict=True):
        assert_close(back, direct, rtol=1e-6, atol=1e-6)


def test_backsolve_refuses_gradients_in_jump_times():
    at = torch.tensor([0.5], dtype=DOUBLE, requires_grad=True)
    with pytest.raises(ValueError, match="jump_at, step_at: backsolve has no gradients in them"):
        solve(lambda t, y: y, column(1.0).requires_grad_(), 0.0, 1.0, TIGHT, jump_at=at, gradient="backsolve")


@pytest.mark.parametrize("integrator", [TIGHT, HeunEuler(rtol=1e-7, atol=1e-7), Heun(5)], ids=str)
def test_events_that_change_the_state_beside_jumps(integrator):
    """y grows at rate 1, from t = 0.5 on at rate 2, and falls back by 0.3 whenever it reaches 0.4."""
    f = lambda t, y: torch.where(t > 0.5, 2.0, 1.0).to(y.dtype).expand_as(y)  # noqa: E731
    event = dise.Event(lambda t, y: y[:, 0] - 0.4, change=lambda t, y: y - 0.3)
    solution = solve(f, torch.zeros(2, 1, dtype=DOUBLE), 0.0, 0.8, integrator, jump_at=[0.5], event=event)
    # 0.4 at t = 0.4, then 0.1; 0.2 at 0.5, 0.4 at 0.6, then 0.1; 0.4 at 0.75, then 0.1
    assert_close(solution.y, torch.full((2, 1), 0.2, dtype=DOUBLE))
    at_jump = solve(
        f, torch.zeros(2, 1, dtype=DOUBLE), 0.0, 1.0, integrator, jump_at=[0.5], event=lambda t, y: y[:, 0] - 0.5
    )
    assert at_jump.event.all()
    assert_close(at_jump.t, torch.full((2,), 0.5, dtype=DOUBLE))
