"""What is saved instead of states: functions of the state, at save points."""

import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.testing import assert_close

from dise import RK4, Bosh3, Cascade, Dopri5, Dynamic, NeuralODE, solve

TIGHT = Dopri5(rtol=1e-9, atol=1e-9)
every = pytest.mark.parametrize("integrator", [RK4(40), Bosh3(rtol=1e-7, atol=1e-7), TIGHT], ids=str)


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def decay(t, y, rate):
    return -rate * y


def energy(t, y, rate):
    return {"energy": (y**2).sum(1), "phase": t.flatten() > 1}


@pytest.fixture
def problem():
    """Four samples, y0, t0, t1 and rate of each, and save points [4, 6]."""
    draw = torch.Generator().manual_seed(0)
    t0, t1 = torch.tensor([0.0, 3.0, 1.0, 1.0]).double(), torch.tensor([2.0, 0.5, 1.0, 4.0]).double()
    times = t0[:, None] + (t1 - t0)[:, None] * torch.rand(4, 6, generator=draw, dtype=torch.float64)
    return torch.randn(4, 3, generator=draw, dtype=torch.float64), t0, t1, column(0.5, 1.0, 2.0, -1.0), times


@every
@pytest.mark.parametrize("drop_finished", [True, False])
def test_values_are_those_of_the_saved_states(problem, integrator, drop_finished):
    y0, t0, t1, rate, times = problem
    mask = torch.arange(6) < torch.tensor([6, 2, 3, 0])[:, None]
    options = {"sample_args": (rate,), "save_at": times, "save_mask": mask, "drop_finished": drop_finished}
    states = solve(decay, y0, t0, t1, integrator, **options).saved
    values = solve(decay, y0, t0, t1, integrator, save=energy, **options).saved
    assert_close(values["energy"], (states**2).sum(-1), rtol=1e-13, atol=0)
    assert torch.equal(values["phase"], mask & (times > 1))
    exact = torch.where(mask, (y0**2).sum(1, keepdim=True) * torch.exp(-2 * rate * (times - t0[:, None])), 0)
    assert_close(values["energy"], exact, rtol=1e-5, atol=1e-5)


def test_one_system_and_a_tuple():
    y0 = (torch.ones(2, 3, dtype=torch.float64), torch.zeros(4, dtype=torch.float64))
    f = lambda t, y: (y[0], 0 * y[1] + 1)  # noqa: E731
    saved = solve(
        f, y0, 0.0, 2.0, TIGHT, batched=False, save_at=[2.0, 0.5], save=lambda t, y: (t, y[0].sum(), y[1][:2])
    ).saved
    assert saved[0].tolist() == [2.0, 0.5]
    assert_close(saved[1], 6 * torch.tensor([2.0, 0.5]).double().exp(), rtol=1e-7, atol=0)
    assert_close(saved[2], torch.tensor([[2.0, 2.0], [0.5, 0.5]]).double())


def test_the_end_has_the_value_of_the_end():
    y0, value = column(1.0, 2.0), lambda t, y, rate: y.sin()
    solution = solve(decay, y0, 0.0, 3.0, TIGHT, args=(0.7,), save_at=[0.0, 3.0], save=value)
    assert torch.equal(solution.saved[:, 1], solution.y.sin())
    assert torch.equal(solution.saved[:, 0], y0.sin())


@pytest.mark.parametrize("gradient", ["direct", "checkpoint", "backsolve"])
def test_gradients(gradient):
    """In the state, the rate and the save points; d/dt of sin(y) is cos(y)·y'."""

    def saved(y0, rate, times):
        f = lambda t, y, rate: torch.tanh(rate * y) + 0.1 * t  # noqa: E731
        value = lambda t, y, rate: (y.sin(), t * y[:, :1])  # noqa: E731
        options = {"sample_args": (rate,), "save_at": times, "save": value, "gradient": gradient}
        return solve(f, y0, 0.0, torch.tensor([2.0, 0.0]).double(), Dopri5(rtol=1e-10, atol=1e-10), **options).saved

    times = torch.tensor([[0.3, 2.0, 1.1], [0.0, 0.0, 0.0]]).double()
    inputs = tuple(x.requires_grad_() for x in (torch.tensor([[0.4, -0.7], [0.2, 1.0]]).double(), column(0.5, 1.5)))
    inside = times[:, [0, 2]].detach()
    assert gradcheck(lambda y0, rate: saved(y0, rate, times), inputs, atol=1e-6, rtol=1e-5)
    one = inside[:1].clone().requires_grad_()
    rest = inside[1:]
    assert gradcheck(lambda t: saved(*inputs, torch.cat([t, rest]))[0][:1], (one,), atol=1e-6, rtol=1e-5)


def test_gradients_of_a_cascade_are_those_of_the_kept_candidates():
    y0 = column(0.5, 2.0, 3.0).requires_grad_()
    field, options = lambda t, y: -(y**2), {"save_at": torch.linspace(0, 1, 7).double()}
    first, last = Bosh3(rtol=1e-2, atol=1e-2), Dopri5(rtol=1e-8, atol=1e-8)
    solution = solve(field, y0, 0.0, 1.0, Cascade([first, last], lambda y: y[:, 0] < 0.4), **options)
    assert solution.choice.tolist() == [0, 1, 1]
    for i, integrator in enumerate([first, last, last]):
        alone = solve(field, y0[i : i + 1], 0.0, 1.0, integrator, **options)
        assert_close(solution.saved[i : i + 1], alone.saved, rtol=1e-13, atol=1e-13)
        ours, theirs = (
            torch.autograd.grad(x.sum(), y0, retain_graph=True)[0] for x in (solution.saved[i], alone.saved)
        )
        assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_candidate_that_fails_earlier_leaves_nan(tanh_field):
    """The first candidate reaches t1, is not accepted, and the second one fails after two steps."""
    cascade = Cascade([RK4(4), Dopri5(rtol=1e-9, atol=1e-9, max_steps=3)], lambda y: y[:, 0] > 9)
    with torch.no_grad():
        solution = solve(tanh_field(3), torch.ones(2, 3).double(), 0.0, 4.0, cascade, save_at=[0.0, 3.9], throw=False)
    assert solution.saved[:, 0].isfinite().all()
    assert solution.saved[:, 1].isnan().all()


def test_dynamic_and_a_block_pass_it_on(tanh_field):
    y0, times = torch.randn(4, 3).double(), torch.linspace(0, 1, 9).double()
    choice, candidates = torch.tensor([0, 1, 1, 0]), (RK4(5), Dopri5(rtol=1e-6, atol=1e-6))
    scores = lambda h0, k1: 1.0 - torch.nn.functional.one_hot(choice, 2)  # noqa: E731
    value = lambda t, y: y[:, :1] * t  # noqa: E731
    block = NeuralODE(tanh_field(3), Dynamic(candidates, scores))
    saved = block.solve(y0, save_at=times, save=value).saved
    for i in range(4):
        alone = solve(block.f, y0[i : i + 1], 0.0, 1.0, candidates[choice[i]], save_at=times, save=value)
        assert_close(saved[i : i + 1], alone.saved, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"save": 1.0}, TypeError, "save: expected a function, got float"),
        ({"save": lambda t, y: 1.0}, TypeError, "save: expected a tensor, or a tuple or dict of tensors, from its fu"),
        ({"save": lambda t, y: y[:1]}, ValueError, r"save: expected tensors \[n, ...\] from its function, with n=2"),
        ({"save": lambda t, y: y.sum()}, ValueError, r"save: expected tensors \[n, ...\] from its function, with n=2"),
        ({"save": lambda t, y: y if t[0] == 0 else y[:, :1]}, ValueError, r"save: expected values of shape \(3,\)"),
        ({"save": lambda t, y: y, "save_at": None}, ValueError, "save: it says what to save, but neither save_at"),
    ],
)
def test_bad_functions(options, error, message):
    with pytest.raises(error, match=message):
        solve(lambda t, y: -y, torch.ones(2, 3), 0.0, 1.0, RK4(2), **({"save_at": [0.3]} | options))


def test_waiting_steps_change_nothing(monkeypatch, problem):
    """A lookup for every step, and one for all."""
    from dise.integrate.output import saving

    y0, t0, t1, rate, times = problem
    options = {"sample_args": (rate,), "save_at": times}
    once = solve(decay, y0, t0, t1, TIGHT, **options).saved
    for number in (1, 100, math.inf):
        monkeypatch.setattr(saving, "WAITING_NUMEL", number)
        assert_close(solve(decay, y0, t0, t1, TIGHT, **options).saved, once, rtol=1e-14, atol=1e-14)


# ---- every n-th step


@pytest.mark.parametrize("gradient", ["direct", "checkpoint"])
@pytest.mark.parametrize("every", [1, 3, 1000])
def test_every_nth_accepted_step(problem, every, gradient):
    y0, t0, t1, rate, _ = problem
    options = {"sample_args": (rate,), "gradient": gradient, "record": True, "dense": True}
    solution = solve(decay, y0.requires_grad_(), t0, t1, Dopri5(first_step="span"), save_every=every, **options)
    assert (solution.n_accepted < solution.n_steps).any()
    assert solution.saved_t.shape[1] == int(solution.n_accepted.max()) // every
    for i in range(4):
        number = int(solution.n_accepted[i]) // every
        t, y = solution.saved_t[i], solution.saved[i]
        assert torch.equal(t[:number], solution.steps.t[i, every - 1 :: every][:number])
        assert_close(
            y[:number],
            solution.evaluate(
                solution.saved_t.nan_to_num(nan=0.0).clamp(t0.minimum(t1)[:, None], t0.maximum(t1)[:, None])
            )[i, :number],
        )
        assert t[number:].isnan().all()
        assert y[number:].isnan().all()
    if every == 1:
        assert torch.autograd.grad(solution.saved.nan_to_num().sum(), y0)[0].abs().sum() > 0


def test_every_nth_step_of_functions_one_system_and_cascades():
    field = lambda t, y: -(y**2)  # noqa: E731
    one = solve(field, torch.ones(2, 3), 0.0, 1.0, RK4(6), batched=False, save_every=2, save=lambda t, y: (t, y.sum()))
    assert one.saved_t.tolist() == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert one.saved[0].tolist() == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert one.saved[1].shape == (3,)
    assert one.saved[1][-1] == one.y.sum()
    y0, first, last = column(0.5, 2.0), RK4(2), RK4(5)
    kept = solve(field, y0, 0.0, 1.0, Cascade([first, last], lambda y: y[:, 0] < 0.5), save_every=1)
    assert kept.choice.tolist() == [0, 1]
    assert kept.saved_t.isfinite().sum(1).tolist() == [2, 5]
    assert torch.equal(kept.saved[1, -1], kept.y[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"save_every": 0}, "save_every: expected a whole number of at least 1, got 0"),
        ({"save_every": 2, "save_at": [0.3]}, "save_every: values are saved at save_at already"),
        ({"save_every": 2, "gradient": "backsolve"}, "save_every: backsolve has no gradients at steps"),
    ],
)
def test_a_bad_save_every(options, message):
    with pytest.raises(ValueError, match=message):
        solve(lambda t, y: -y, torch.ones(2, 3).requires_grad_(), 0.0, 1.0, RK4(2), **options)
