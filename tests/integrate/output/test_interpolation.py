"""Save points: states at the user's times, interpolated."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import scipy.integrate
import torch
import torchdiffeq
from torch.autograd import gradcheck
from torch.testing import assert_close

from dise import (
    RK4,
    RK38,
    RKC1,
    Adams,
    Bosh3,
    ButcherTableau,
    Cascade,
    Dopri5,
    Dopri8,
    Dynamic,
    Euler,
    Fehlberg2,
    Heun,
    HeunEuler,
    Midpoint,
    NeuralODE,
    Ralston,
    Status,
    Tsit5,
    solve,
)
from dise.integrate import FixedStep

ALL = [
    *(method(3) for method in (Euler, Midpoint, Heun, Ralston, RK4, RK38, RKC1)),
    *(method(rtol=1e-3, atol=1e-3) for method in (HeunEuler, Fehlberg2, Bosh3)),
    *(method(rtol=1e-4, atol=1e-4) for method in (Dopri5, Tsit5, Dopri8, Adams)),
]
every = pytest.mark.parametrize("integrator", ALL, ids=str)


def linear(t, y):
    """y' = cos(t)·y, whose solution is y0·exp(sin t − sin t0)."""
    return torch.cos(t) * y


def exact(y0, t0, times):
    return y0[:, None] * (times.sin() - t0.sin()[:, None]).exp()[..., None]


@pytest.fixture
def problem():
    """Five samples: forwards, backwards, of no length; y0 [5, 2], t0 and t1 [5], times [5, 7] in no order."""
    draw = torch.Generator().manual_seed(0)
    y0 = torch.randn(5, 2, generator=draw, dtype=torch.float64)
    t0 = torch.tensor([0.0, 3.0, 1.0, -2.0, 1.0], dtype=torch.float64)
    t1 = torch.tensor([4.0, -1.0, 1.0, 0.5, 1.5], dtype=torch.float64)
    times = t0[:, None] + (t1 - t0)[:, None] * torch.rand(5, 7, generator=draw, dtype=torch.float64)
    return y0, t0, t1, times


# ---- values


@pytest.mark.host
@pytest.mark.parametrize(
    ("integrator", "tolerance"),
    [
        (Euler(1000), 1.2e-2),
        (Midpoint(200), 3e-4),
        (Heun(200), 3e-4),
        (Ralston(200), 3e-4),
        (RK4(100), 2e-7),
        (RK38(100), 2e-7),
        (RKC1(1000), 1.2e-2),
        (HeunEuler(rtol=1e-6, atol=1e-6), 2e-5),
        (Fehlberg2(rtol=1e-7, atol=1e-7), 1e-4),
        (Bosh3(rtol=1e-7, atol=1e-7), 2e-6),
        (Dopri5(rtol=1e-9, atol=1e-9), 1e-7),
        (Tsit5(rtol=1e-9, atol=1e-9), 1e-7),
        (Dopri8(rtol=1e-9, atol=1e-9), 5e-5),
        *((Adams(order, rtol=1e-7, atol=1e-7), 2e-6) for order in (3, 4, 5)),
    ],
    ids=str,
)
def test_closed_form(problem, integrator, tolerance):
    y0, t0, t1, times = problem
    saved = solve(linear, y0, t0, t1, integrator, save_at=times).saved
    assert_close(saved, exact(y0, t0, times), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    ("method", "order"), [(Euler, 1), (Midpoint, 2), (Heun, 2), (Ralston, 2), (RK4, 4), (RK38, 4), (RKC1, 1)]
)
def test_save_points_are_of_the_methods_order(method, order):
    """The largest error over times within the steps falls with the method's power of the step."""
    y0, t0, times = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1), torch.linspace(0, 2, 61)[None]
    times = times.double()
    errors = [
        (solve(linear, y0, 0.0, 2.0, method(steps), save_at=times).saved - exact(y0, t0, times)).abs().max().item()
        for steps in (16, 32, 64, 128)
    ]
    slopes = [np.log2(a / b) for a, b in pairwise(errors)]
    assert slopes[-1] == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize(
    ("method", "order"), [(HeunEuler, 2), (Fehlberg2, 2), (Bosh3, 3), (Dopri5, 4), (Tsit5, 4), (Dopri8, 5), (Adams, 2)]
)
def test_order_of_the_dense_output_of_one_step(method, order):
    """A loose tolerance accepts every step; the first step is then the only one, of the span's length."""
    spans, errors = [0.4, 0.2, 0.1, 0.05], []
    for span in spans:
        times = torch.linspace(0, span, 31, dtype=torch.float64)[None]
        y0 = torch.ones(1, 1, dtype=torch.float64)
        solution = solve(linear, y0, 0.0, span, method(rtol=1, atol=1, first_step="span"), save_at=times)
        assert solution.n_steps.item() == 1
        errors.append((solution.saved - exact(y0, torch.zeros(1), times)).abs().max().item())
    assert np.polyfit(np.log(spans), np.log(errors), 1)[0] == pytest.approx(order + 1, abs=0.3)


def test_dopri5_agrees_with_scipys_dense_output_on_the_same_steps():
    """SciPy's RK45 with its own steps fixed from outside: one step of length 0.3."""
    f = lambda t, y: np.array([y[1], np.sin(t) - y[0]])  # noqa: E731
    theirs = scipy.integrate.RK45(f, 0.0, [1.0, 0.5], 0.3, rtol=1, atol=1, first_step=0.3)
    theirs.step()
    times = np.linspace(0, 0.3, 13)
    field = lambda t, y: torch.stack([y[:, 1], t[:, 0].sin() - y[:, 0]], 1)  # noqa: E731
    ours = solve(
        field,
        torch.tensor([[1.0, 0.5]], dtype=torch.float64),
        0.0,
        0.3,
        Dopri5(rtol=1, atol=1, first_step="span"),
        save_at=times.tolist(),
    )
    np.testing.assert_allclose(ours.saved[0].numpy().T, theirs.dense_output()(times), rtol=1e-13, atol=1e-14)


def test_torchdiffeq_gives_the_same_within_the_interpolations_accuracy(tanh_field):
    f, y0 = tanh_field(3), torch.tensor([[0.3, -1.0, 0.5]], dtype=torch.float64)
    times = torch.linspace(0, 2, 23, dtype=torch.float64)
    theirs = torchdiffeq.odeint(f, y0, times, rtol=1e-8, atol=1e-8, method="dopri5")
    ours = solve(f, y0, 0.0, 2.0, Dopri5(rtol=1e-8, atol=1e-8), save_at=times).saved
    assert_close(ours.transpose(0, 1), theirs, atol=1e-6, rtol=1e-6)


# ---- what they do not change


@every
@pytest.mark.parametrize("drop_finished", [True, False])
def test_the_solve_is_the_same_with_and_without(problem, integrator, drop_finished):
    y0, t0, t1, times = problem
    without = solve(linear, y0, t0, t1, integrator, drop_finished=drop_finished)
    saving = solve(linear, y0, t0, t1, integrator, drop_finished=drop_finished, save_at=times)
    assert without.saved is None
    assert without.calls == saving.calls
    for field in dataclasses.fields(without):
        value = getattr(without, field.name)
        if isinstance(value, torch.Tensor):
            assert torch.equal(value.nan_to_num(7), getattr(saving, field.name).nan_to_num(7)), field.name


@every
def test_both_ends_are_exact(problem, integrator):
    y0, t0, t1, _ = problem
    solution = solve(linear, y0, t0, t1, integrator, save_at=torch.stack([t1, t0], 1))
    assert torch.equal(solution.saved[:, 0], solution.y)
    assert torch.equal(solution.saved[:, 1], y0)


@every
def test_each_sample_is_on_its_own(problem, integrator):
    y0, t0, t1, times = problem
    saved = solve(linear, y0, t0, t1, integrator, save_at=times).saved
    order = torch.tensor([3, 0, 4, 2, 1])
    permuted = solve(linear, y0[order], t0[order], t1[order], integrator, save_at=times[order]).saved
    assert_close(permuted, saved[order], atol=1e-13, rtol=1e-13)
    for i in range(5):
        row = slice(i, i + 1)
        alone = solve(linear, y0[row], t0[row], t1[row], integrator, save_at=times[row]).saved
        assert_close(alone, saved[row], atol=1e-13, rtol=1e-13)


@every
def test_samples_that_stay_in_the_batch_save_the_same(problem, integrator):
    y0, t0, t1, times = problem
    compacted, whole = (
        solve(linear, y0, t0, t1, integrator, save_at=times, drop_finished=drop_finished).saved
        for drop_finished in (True, False)
    )
    assert_close(compacted, whole, atol=1e-13, rtol=1e-13)


@pytest.mark.parametrize("integrator", [Bosh3(rtol=1e-6, atol=1e-6, first_step=1.0), Dopri5(rtol=1e-8, atol=1e-8)])
def test_rejected_steps_leave_nothing(integrator):
    """y' = 50 / (1 + 2500 t²) has y = arctan(50 t) + c: steps that grew on the way to t = 0 are too long there."""
    y0, times = torch.tensor([[1.0], [2.0]], dtype=torch.float64), torch.linspace(-1, 1, 41, dtype=torch.float64)
    solution = solve(lambda t, y: 50 / (1 + (50 * t) ** 2) + 0 * y, y0, -1.0, 1.0, integrator, save_at=times)
    assert (solution.n_steps > solution.n_accepted).all()
    assert_close(solution.saved[..., 0], y0 + (50 * times).atan() + np.arctan(50), atol=1e-5, rtol=1e-5)


def test_times_for_all_samples():
    y0, times = torch.ones(3, 2, dtype=torch.float64), [0.5, 0.0, 1.0]
    shared = solve(linear, y0, 0.0, 1.0, RK4(3), save_at=times).saved
    each = solve(linear, y0, 0.0, 1.0, RK4(3), save_at=torch.tensor(times).expand(3, 3)).saved
    assert shared.shape == (3, 3, 2)
    assert torch.equal(shared, each)


@every
def test_float32_and_inference_mode(problem, integrator):
    y0, t0, t1, times = (x.float() for x in problem)
    with torch.inference_mode():
        saved = solve(linear, y0, t0, t1, integrator, save_at=times.clamp(min=-2)).saved
    assert saved.dtype == torch.float32
    reference = solve(linear, *(x.double() for x in (y0, t0, t1)), integrator, save_at=times.double()).saved
    assert_close(saved.double(), reference, atol=2e-3, rtol=2e-3)


# ---- evaluate


@every
def test_evaluate_is_what_save_at_gives(problem, integrator):
    y0, t0, t1, times = problem
    saved = solve(linear, y0, t0, t1, integrator, save_at=times).saved
    dense = solve(linear, y0, t0, t1, integrator, dense=True)
    assert dense.saved is None
    assert torch.equal(dense.evaluate(times), saved)
    assert torch.equal(dense.evaluate(t1[:, None])[:, 0], dense.y)


def test_evaluate_takes_a_number_times_for_all_and_times_for_each():
    y0 = torch.ones(3, 2, dtype=torch.float64)
    solution = solve(linear, y0, 0.0, 2.0, RK4(9), dense=True)
    each = solution.evaluate(torch.tensor([[0.5, 1.5]] * 3, dtype=torch.float64))
    assert each.shape == (3, 2, 2)
    assert torch.equal(solution.evaluate([0.5, 1.5]), each)
    for number in (0.5, torch.tensor(0.5)):
        assert torch.equal(solution.evaluate(number), each[:, 0])
    assert solution.evaluate(1).shape == (3, 2)
    assert solution.evaluate([]).shape == (3, 0, 2)


def test_evaluate_of_one_system_and_of_a_tuple():
    y0 = (torch.ones(2, 3), torch.zeros(4))
    solution = solve(lambda t, y: (y[0], 0 * y[1] + 1), y0, 0.0, 2.0, RK4(4), batched=False, dense=True)
    assert [part.shape for part in solution.evaluate(1.0)] == [(2, 3), (4,)]
    assert [part.shape for part in solution.evaluate([0.5, 1.0])] == [(2, 2, 3), (2, 4)]
    assert_close(solution.evaluate(1.0)[1], torch.ones(4))


def test_evaluate_has_gradients_in_the_time_and_the_state():
    y0 = torch.tensor([[0.4], [-0.7]], dtype=torch.float64, requires_grad=True)
    times = torch.tensor([[0.3, 0.9], [0.6, 0.1]], dtype=torch.float64, requires_grad=True)

    def evaluate(y0, times):
        return solve(linear, y0, 0.0, 1.0, RK4(2), dense=True).evaluate(times)

    assert gradcheck(evaluate, (y0, times), atol=1e-8, rtol=1e-6)


def test_evaluate_of_a_failed_sample_is_nan_beyond_its_end():
    y0 = torch.tensor([[0.1], [2.0]], dtype=torch.float64)
    solution = solve(explodes, y0, 0.0, 1.0, Dopri5(max_steps=60), dense=True, throw=False)
    assert solution.evaluate(0.3).isfinite().all()
    assert solution.evaluate(0.9).isnan().flatten().tolist() == [False, True]


def test_evaluate_unasked_says_how_to_ask():
    with pytest.raises(ValueError, match=r"evaluate: .*solve\(\.\.\., dense=True\)"):
        solve(linear, torch.ones(2, 3), 0.0, 1.0, RK4()).evaluate(0.5)


@pytest.mark.parametrize(
    ("t", "kind", "message"),
    [
        (1.5, ValueError, r"t: expected times within the span, \[0, 1\] of sample 0, got 1.5"),
        (float("nan"), ValueError, "t: expected times within the span"),
        (torch.zeros(3, 2), ValueError, r"t: expected shape \[T\], or \[B, T\] with B=2, got \(3, 2\)"),
        ("noon", TypeError, "t: expected times, numbers or a tensor, got str"),
        (None, TypeError, "t: expected times, numbers or a tensor, got NoneType"),
        (torch.tensor(1j), TypeError, "t: expected real times, got torch.complex64"),
    ],
)
def test_evaluate_at_bad_times(t, kind, message):
    solution = solve(linear, torch.ones(2, 3), 0.0, 1.0, RK4(), dense=True)
    with pytest.raises(kind, match=message):
        solution.evaluate(t)


# ---- structure


def test_tuples_and_shapes():
    y0 = (torch.ones(4, 2, 3), torch.zeros(4, 1))
    saved = solve(lambda t, y: (y[0], 0 * y[1] + 1), y0, 0.0, 2.0, RK4(4), save_at=[0.0, 1.0]).saved
    assert [part.shape for part in saved] == [(4, 2, 2, 3), (4, 2, 1)]
    assert_close(saved[1][..., 0], torch.tensor([[0.0, 1.0]] * 4))


@pytest.mark.parametrize(
    "integrator", [Euler(2000), Bosh3(rtol=1e-7, atol=1e-7), Dopri5(rtol=1e-9, atol=1e-9)], ids=str
)
def test_one_system_backwards_of_a_tuple(integrator):
    """One step size for all; the tensors may be of any shape."""
    y0 = (torch.ones(4, 2, dtype=torch.float64), torch.full((3,), 2.0, dtype=torch.float64))
    times = torch.tensor([2.0, 1.3, 0.1, 0.0], dtype=torch.float64)
    f = lambda t, y: (torch.cos(t) * y[0], -y[1])  # noqa: E731
    saved = solve(f, y0, 2.0, 0.0, integrator, batched=False, save_at=times).saved
    first = (times.sin() - np.sin(2.0)).exp()[:, None, None].expand(4, 4, 2)
    second = 2 * (2.0 - times).exp()[:, None].expand(4, 3)
    assert_close(saved, (first, second), atol=3e-2 if isinstance(integrator, Euler) else 1e-6, rtol=1e-6)


def test_one_system():
    y0 = torch.ones(4, 2)
    solution = solve(lambda t, y: -y, y0, 0.0, 1.0, RK4(8), batched=False, save_at=[0.0, 0.5, 1.0])
    assert solution.saved.shape == (3, 4, 2)
    assert_close(solution.saved[1], y0 * np.exp(-0.5), atol=1e-5, rtol=1e-5)


def test_no_save_points_and_no_samples():
    assert solve(linear, torch.ones(2, 3), 0.0, 1.0, RK4(), save_at=[]).saved.shape == (2, 0, 3)
    assert solve(linear, torch.ones(0, 3), 0.0, 1.0, RK4(), save_at=[0.5]).saved.shape == (0, 1, 3)
    assert solve(linear, torch.ones(2, 3), 1.0, 1.0, RK4(), save_at=[1.0]).saved.tolist() == [[[1.0] * 3]] * 2


def test_ragged_times(problem):
    y0, t0, t1, times = problem
    mask = torch.arange(7) < torch.tensor([7, 3, 0, 1, 5])[:, None]
    whole = solve(linear, y0, t0, t1, RK4(5), save_at=times).saved
    padded = torch.where(mask, times, torch.nan)
    saved = solve(linear, y0, t0, t1, RK4(5), save_at=padded, save_mask=mask).saved
    assert torch.equal(saved, torch.where(mask[..., None], whole, 0))


def test_the_block_passes_them_on(tanh_field):
    block, y0 = NeuralODE(tanh_field(3), RK4(2)), torch.ones(2, 3, dtype=torch.float64)
    ends = torch.tensor([0.5, 2.0], dtype=torch.float64)
    times = ends[:, None] * torch.tensor([0.0, 0.5, 1.0])
    mask = torch.tensor([[True, True, True], [True, False, True]])
    ours = block.solve(y0, t0=0.0, t1=ends, save_at=times, save_mask=mask)
    theirs = solve(block.f, y0, 0.0, ends, RK4(2), save_at=times, save_mask=mask)
    assert torch.equal(ours.saved, theirs.saved)
    assert torch.equal(block(y0, t1=ends), theirs.y)


# ---- failures


def explodes(t, y):
    """y' = y², which is infinite at t = 1 / y0."""
    return y**2


def test_a_failed_sample_is_nan_beyond_its_end_and_its_neighbours_are_not():
    y0 = torch.tensor([[0.1], [2.0]], dtype=torch.float64)
    times = torch.tensor([[0.0, 0.3, 1.0], [0.0, 0.3, 1.0]], dtype=torch.float64)
    solution = solve(explodes, y0, 0.0, 1.0, Dopri5(rtol=1e-8, atol=1e-8, max_steps=60), save_at=times, throw=False)
    assert solution.status[0] == Status.SUCCESS
    assert solution.status[1] != Status.SUCCESS
    assert_close(solution.saved[0, :, 0], 1 / (10 - times[0]), atol=1e-7, rtol=1e-7)
    assert_close(solution.saved[1, :2, 0], 1 / (0.5 - times[1, :2]), atol=1e-5, rtol=1e-5)
    assert solution.saved[1, 2].isnan().all()


# ---- integrators that choose


def test_dynamic_saves_what_each_samples_candidate_does(problem, tanh_field):
    _, t0, t1, times = problem
    f, y0 = tanh_field(3), torch.randn(5, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    candidates = (Euler(2), Dopri5(rtol=1e-5, atol=1e-5), RK4(1))
    choice = torch.tensor([0, 1, 2, 2, 1])
    scores = lambda h0, k1: 1.0 - torch.nn.functional.one_hot(choice[torch.arange(5) != 2], 3)  # noqa: E731
    solution = solve(f, y0, t0, t1, Dynamic(candidates, scores), save_at=times)
    for i in range(5):
        row = slice(i, i + 1)
        alone = solve(f, y0[row], t0[row], t1[row], candidates[choice[i]], save_at=times[row])
        assert_close(solution.saved[row], alone.saved, atol=1e-13, rtol=1e-13)


def test_a_cascade_forgets_what_it_did_not_accept(tanh_field):
    f, y0 = tanh_field(3), torch.randn(4, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    times = torch.linspace(0, 1, 5, dtype=torch.float64)
    seen = []

    def accept(y):
        seen.append(len(y))
        return torch.arange(len(y)) % 2 == 0

    candidates = (Euler(7), RK4(3), Dopri5(rtol=1e-6, atol=1e-6))
    solution = solve(f, y0, 0.0, 1.0, Cascade(candidates, accept), save_at=times)
    assert seen == [4, 2]
    assert solution.choice.tolist() == [0, 1, 0, 2]
    for i, choice in enumerate(solution.choice.tolist()):
        alone = solve(f, y0[i : i + 1], 0.0, 1.0, candidates[choice], save_at=times)
        assert_close(solution.saved[i : i + 1], alone.saved, atol=1e-13, rtol=1e-13)


def test_integrators_that_choose_within_integrators_that_choose(problem, tanh_field):
    """A cascade that one of Dynamic's candidates is, beside samples of no length."""
    _, t0, t1, times = problem
    f, y0 = tanh_field(3), torch.randn(5, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    loose = Bosh3(rtol=1e-2, atol=1e-2, first_step="span", max_steps=1)
    candidates = (Cascade((loose, Dopri5(rtol=1e-6, atol=1e-6))), RK4(3))
    scores = lambda h0, k1: torch.nn.functional.one_hot(torch.tensor([1, 1, 0, 1]), 2).double()  # noqa: E731
    solution = solve(f, y0, t0, t1, Dynamic(candidates, scores), save_at=times)
    for i, choice in enumerate([0, 0, 0, 1, 0]):
        row = slice(i, i + 1)
        alone = solve(f, y0[row], t0[row], t1[row], candidates[choice], save_at=times[row])
        assert_close(solution.saved[row], alone.saved, atol=1e-13, rtol=1e-13)
    assert len(set(solution.nfe.tolist())) > 2


# ---- gradients


@pytest.mark.parametrize(
    "integrator",
    [Euler(2), Midpoint(2), RK4(2), *(m(rtol=0.1, atol=0.1, first_step="span") for m in (Bosh3, Dopri5))],
    ids=str,
)
def test_gradients_of_states_times_and_parameters(integrator):
    draw = torch.Generator().manual_seed(5)
    y0, weight = (torch.randn(2, 2, generator=draw, dtype=torch.float64, requires_grad=True) for _ in range(2))
    t0, t1 = torch.tensor([0.1, 1.2], dtype=torch.float64), torch.tensor([1.0, 0.3], dtype=torch.float64)
    inside = torch.tensor([[0.2, 0.9, 0.5], [1.0, 0.4, 0.7]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, True], [True, False, True]])

    def saved(y0, weight, t0, t1, times):
        field = lambda t, y: torch.tanh(y @ weight + t)  # noqa: E731
        return solve(field, y0, t0, t1, integrator, save_at=times, save_mask=mask).saved

    inputs = (y0, weight, t0.requires_grad_(), t1.requires_grad_(), inside)
    assert gradcheck(saved, inputs, atol=1e-7, rtol=1e-6)


def test_padding_and_samples_of_no_length_leave_gradients_alone(tanh_field):
    """Padding that is NaN, and a sample without a step beside one whose steps are minute."""
    f, y0 = tanh_field(3), torch.ones(3, 3, dtype=torch.float64, requires_grad=True)
    t0, t1 = (torch.tensor(t, dtype=torch.float64) for t in ([0.0, 1e6, 0.0], [1e-200, 1e6, 1.0]))
    times = torch.tensor([[1e-200, 0.0], [1e6, 1e6], [0.5, 1.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True], [True, True], [True, False]])
    padded = torch.where(mask, times, torch.nan).requires_grad_()
    saved = solve(f, y0, t0, t1, Dopri5(first_step="span"), save_at=padded, save_mask=mask).saved
    gradients = torch.autograd.grad(saved.sum(), (y0, padded, f.W))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert_close(gradients[0][1], torch.full((3,), 2.0, dtype=torch.float64))
    assert gradients[1][2, 1] == 0
    assert gradients[1][2, 0] != 0


def test_gradients_at_the_end_are_those_of_the_end(tanh_field):
    f, y0 = tanh_field(3), torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    solution = solve(f, y0, 0.0, 1.0, Dopri5(rtol=1e-5, atol=1e-5), save_at=[1.0])
    of_end, of_saved = (torch.autograd.grad(x.sum(), f.W, retain_graph=True)[0] for x in (solution.y, solution.saved))
    assert_close(of_end, of_saved, atol=1e-12, rtol=1e-10)


# ---- errors


class Untabled(FixedStep):
    tableau = ButcherTableau(c=(0.0, 1.0), a=((), (1.0,)), b=(0.5, 0.5), order=2)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"save_at": [0.5, 1.5]}, ValueError, r"save_at: expected times within the span, \[0, 1\] of sample 0, got 1"),
        ({"save_at": [0.5, float("nan")]}, ValueError, "within the span"),
        ({"save_at": torch.zeros(3, 2)}, ValueError, r"expected shape \[T\], or \[B, T\] with B=2, got \(3, 2\)"),
        ({"save_at": torch.zeros(2, 2, 1)}, ValueError, "save_at: expected shape"),
        ({"save_at": 0.5}, ValueError, "save_at: expected shape"),
        (
            {"save_at": [0.5], "batched": False, "save_mask": torch.ones(2, 1) > 0},
            ValueError,
            "save_mask: expected shape",
        ),
        ({"save_at": "noon"}, TypeError, "save_at: expected times, numbers or a tensor, got str"),
        ({"save_at": torch.tensor([True])}, TypeError, "save_at: expected real times, got torch.bool"),
        (
            {"save_at": [0.5], "save_mask": torch.ones(2, 1)},
            TypeError,
            "save_mask: expected a tensor of bool, got torch.float32",
        ),
        ({"save_at": [0.5], "save_mask": [True]}, TypeError, "save_mask: expected a tensor of bool, got list"),
        ({"save_at": [0.5], "save_mask": torch.ones(2, 3) > 0}, ValueError, "save_mask: expected the shape of save_at"),
        ({"save_mask": torch.ones(2, 1) > 0}, ValueError, "save_at was not given"),
    ],
)  # fmt: skip
def test_bad_save_points(options, kind, message):
    with pytest.raises(kind, match=message):
        solve(linear, torch.ones(2, 3), 0.0, 1.0, RK4(), **options)


def test_a_time_of_another_samples_span():
    ends = torch.tensor([1.0, 2.0])
    with pytest.raises(ValueError, match=r"\[0, 1\] of sample 0, got 1.5"):
        solve(linear, torch.ones(2, 3), 0.0, ends, RK4(), save_at=torch.tensor([[1.5], [1.5]]))
    assert (
        solve(linear, torch.ones(2, 3), 0.0, ends, RK4(), save_at=torch.tensor([[1.0], [1.5]])).saved.isfinite().all()
    )


def test_autocast_does_not_round_save_points():
    """It is meant for f; this f has no operation that autocast runs in bfloat16, so nothing may change."""
    y0, times = torch.tensor([[1.0, -2.0], [0.5, 3.0]]), torch.linspace(0, 3, 9)
    options = {"save_at": times, "dense": True, "event": lambda t, y: y[:, 0] - 1.5}
    integrator = Dopri5(rtol=1e-5, atol=1e-5)
    plain = solve(linear, y0, 0.0, 3.0, integrator, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = solve(linear, y0, 0.0, 3.0, integrator, **options)
        between = cast.evaluate(times[:2])
    assert plain.event.any()
    for name in ("saved", "y", "t", "error"):
        assert_close(getattr(cast, name), getattr(plain, name), rtol=0, atol=0, equal_nan=True)
    assert_close(between, plain.saved[:, :2], rtol=0, atol=0)
    assert_close(cast.saved[:, :2], exact(y0, torch.zeros(2), times[:2]), rtol=1e-4, atol=1e-4)


def test_a_method_without_interpolant():
    with pytest.raises(ValueError, match="the integrator's tableau has no interpolant"):
        solve(linear, torch.ones(2, 3), 0.0, 1.0, Untabled(), save_at=[0.5])
    assert solve(linear, torch.ones(2, 3), 0.0, 1.0, Untabled()).y.isfinite().all()


@pytest.mark.parametrize(
    ("t0", "t1", "integrator", "dtype"),
    [(1.0, 1.00001, Euler(200), torch.float32), (1e9, 1e9 + 1e-5, RK4(120), torch.float64)],
)
def test_a_step_that_rounding_left_without_length_has_its_state(t0, t1, integrator, dtype):
    """120 steps between 84 numbers: y' = −y changes by 1e-5."""
    y0 = torch.ones(1, 1, dtype=dtype, requires_grad=True)
    times = torch.tensor([[t0, t1]], dtype=dtype, requires_grad=True)
    solution = solve(lambda t, y: -y, y0, t0, t1, integrator, save_at=times, dense=True)
    assert solution.saved[0, 0].item() == solution.evaluate(t0).item() == 1
    assert solution.saved[0, 1].item() == solution.y.item()
    of_y0, of_times = torch.autograd.grad(solution.saved.sum(), (y0, times))
    assert of_y0.item() == pytest.approx(2, abs=1e-4)
    assert of_times.isfinite().all()
