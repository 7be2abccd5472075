"""What a user sees: right answers, any span, any state, arguments that reach f, and messages for wrong ones."""

import math

import pytest
import torch

from dise import RK4, Dopri5, Euler, Solution, Status, solve

DOPRI = Dopri5(rtol=1e-9, atol=1e-9)
METHODS = [Euler(1), RK4(3), Dopri5(), Dopri5(first_step="span"), Dopri5(first_step=0.05)]
methods = pytest.mark.parametrize("integrator", METHODS, ids=str)


def rows(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


# ---- closed forms; each solution as a function of (t, t0, y0)

PROBLEMS = {
    "linear": (lambda t, y: -1.5 * y, lambda t, t0, y0: y0 * torch.exp(-1.5 * (t - t0))),
    "sine": (
        lambda t, y: torch.stack([y[:, 1], -4 * y[:, 0]], dim=1),
        lambda t, t0, y0: torch.cat(
            [
                y0[:, :1] * torch.cos(2 * (t - t0)) + y0[:, 1:] / 2 * torch.sin(2 * (t - t0)),
                y0[:, 1:] * torch.cos(2 * (t - t0)) - 2 * y0[:, :1] * torch.sin(2 * (t - t0)),
            ],
            dim=1,
        ),
    ),
    "time": (lambda t, y: 3 * t**2 + 0 * y, lambda t, t0, y0: y0 + t**3 - t0**3),
    "gaussian": (lambda t, y: -2 * t * y, lambda t, t0, y0: y0 * torch.exp(t0**2 - t**2)),
    "logistic": (lambda t, y: y * (1 - y), lambda t, t0, y0: 1 / (1 + (1 / y0 - 1) * torch.exp(t0 - t))),
}
closed_forms = pytest.mark.parametrize(("f", "exact"), PROBLEMS.values(), ids=PROBLEMS.keys())


@closed_forms
@pytest.mark.parametrize(("integrator", "accuracy"), [(Euler(1000), 2e-2), (RK4(100), 1e-6), (DOPRI, 1e-7)])
def test_closed_forms(f, exact, integrator, accuracy):
    """Each sample over its own span: forwards, backwards, and none at all."""
    y0 = rows([0.5, 0.2], [0.9, 1.5], [0.3, 0.7])
    t0, t1 = rows(0.0, 1.0, 0.4), rows(1.5, 0.3, 0.4)
    solution = solve(f, y0, t0, t1, integrator)
    torch.testing.assert_close(solution.y, exact(t1[:, None], t0[:, None], y0), rtol=accuracy, atol=accuracy)
    assert solution.t.tolist() == t1.tolist()
    assert solution.status.tolist() == [Status.SUCCESS] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@methods
def test_dtypes_are_kept(integrator, dtype):
    solution = solve(lambda t, y: -y * t, torch.ones(2, 3, dtype=dtype), 0, 1, integrator, accumulate=lambda s: s.dt)
    assert {x.dtype for x in (solution.y, solution.error, solution.accumulated)} == {dtype}
    assert solution.t.dtype == solution.dt.dtype == torch.float64  # the clock's
    counts = (solution.nfe, solution.n_steps, solution.n_accepted, solution.status)
    assert {x.dtype for x in counts} == {torch.int64}
    assert {x.shape for x in (*counts, solution.t, solution.error, solution.dt)} == {(2,)}


def test_the_time_that_f_sees_has_the_states_dtype():
    def f(t, y):
        assert t.dtype == y.dtype == torch.float32
        return (-y * t).double()  # and what f returns is cast

    t1 = torch.tensor([1, 2])  # int64
    assert solve(f, torch.ones(2, 3), 0, t1, RK4(1)).y.dtype == torch.float32


# ---- spans


@methods
def test_an_empty_span_needs_no_evaluation(integrator, record):
    f, y0 = record(lambda t, y: -y), rows([1.0], [2.0])
    solution = solve(f, y0, rows(1.0, -3.0), rows(1.0, -3.0), integrator, accumulate=lambda step: step.dt)
    assert f.calls == solution.calls == 0
    assert solution.y.tolist() == y0.tolist()
    assert solution.t.tolist() == [1, -3]
    for zero in (solution.nfe, solution.n_steps, solution.n_accepted, solution.error, solution.status):
        assert zero.tolist() == [0, 0]
    assert solution.accumulated.tolist() == [0, 0]


@methods
def test_empty_spans_beside_others(integrator, record):
    f, y0 = record(lambda t, y: -y), rows([1.0], [2.0], [3.0])
    solution = solve(f, y0, 0.0, rows(1.0, 0.0, 2.0), integrator)
    others = solve(lambda t, y: -y, y0[[0, 2]], 0.0, rows(1.0, 2.0), integrator)
    assert solution.nfe.tolist() == [others.nfe[0], 0, others.nfe[1]]
    torch.testing.assert_close(solution.y, torch.stack([others.y[0], y0[1], others.y[1]]), rtol=1e-13, atol=0)
    assert f.calls == solution.calls == others.calls


@methods
def test_an_empty_batch_needs_no_evaluation(integrator, record):
    f = record(lambda t, y: -y)
    solution = solve(f, torch.zeros(0, 3), torch.zeros(0), 1.0, integrator)
    assert f.calls == solution.calls == 0
    assert solution.y.shape == (0, 3)
    assert solution.nfe.shape == solution.error.shape == solution.status.shape == (0,)


@methods
def test_backwards_is_forwards_on_a_mirrored_clock(tanh_field, starts, integrator):
    f, y0 = tanh_field(3), starts(4, 3)
    back = solve(f, y0, 1.5, -0.5, integrator)
    mirrored = solve(lambda t, y: -f(-t, y), y0, -1.5, 0.5, integrator)
    torch.testing.assert_close(back.y, mirrored.y, rtol=1e-12, atol=1e-12)
    assert back.n_steps.tolist() == mirrored.n_steps.tolist()
    assert (back.dt < 0).all()


def test_forth_and_back_returns(tanh_field, starts):
    f, y0, t0, t1 = tanh_field(3), starts(4, 3), rows(0.0, 1, -1, 2), rows(1.0, -1, 1, 0.5)
    back = solve(f, solve(f, y0, t0, t1, DOPRI).y, t1, t0, DOPRI)
    torch.testing.assert_close(back.y, y0, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("integrator", [*METHODS, RK4(1)], ids=str)
def test_f_is_never_evaluated_outside_the_span(integrator, dtype):
    """Not even by a rounding: f may be a table, a logarithm or a root that ends there."""
    draw = torch.Generator().manual_seed(0)
    t0, t1 = (torch.randn(500, generator=draw, dtype=torch.float64).to(dtype) for _ in range(2))
    low, high = torch.minimum(t0, t1)[:, None], torch.maximum(t0, t1)[:, None]
    outside = 0

    def f(t, y, low, high):
        nonlocal outside
        outside += ((t < low) | (t > high)).sum().item()
        return -y

    solve(f, torch.ones(500, 1, dtype=dtype), t0, t1, integrator, sample_args=(low, high))
    assert outside == 0


def test_f_sees_no_time_but_the_spans_beside_a_failing_sample(record):
    f = record(lambda t, y: -y)
    solve(f, rows([1.0], [math.nan]), 0.0, 1.0, Dopri5(), throw=False)
    times = torch.cat(f.times)
    assert ((times >= 0) & (times <= 1)).all()


# ---- states


@methods
def test_a_conv_shaped_state_is_a_flat_one(integrator):
    y0 = torch.linspace(-1, 2, 2 * 3 * 4 * 5, dtype=torch.float64).view(2, 3, 4, 5)

    def f(t, y):
        assert t.shape == (2, 1, 1, 1)
        return torch.sin(y) * torch.ones_like(y[:, :1]) * t

    shaped = solve(f, y0, 0.0, 1.0, integrator, drop_finished=False)
    flat = solve(lambda t, y: torch.sin(y) * t, y0.flatten(1), 0.0, 1.0, integrator)
    assert shaped.y.shape == y0.shape
    torch.testing.assert_close(shaped.y.flatten(1), flat.y, rtol=1e-12, atol=1e-12)
    assert shaped.nfe.tolist() == flat.nfe.tolist()


def test_a_state_without_features():
    def f(t, y):
        assert t.shape == y.shape == (len(y),)
        return -y

    torch.testing.assert_close(solve(f, rows(1.0, 2.0), 0.0, 1.0, DOPRI).y, rows(1.0, 2.0) * math.exp(-1))


@pytest.mark.parametrize("batched", [True, False])
def test_a_tuple_state_is_its_parts_side_by_side(batched):
    """A fixed step's result does not depend on the norm, so it is that of one concatenated tensor."""
    a, b = rows([1.0, 2.0], [3.0, 4.0]), rows([[0.5]], [[-0.5]])

    def f(t, y):
        assert isinstance(y, tuple)
        return y[1][:, 0] * y[0], -y[1] + t.reshape(-1, 1, 1)

    def f_flat(t, y):
        return torch.cat([y[:, 2:] * y[:, :2], -y[:, 2:] + t.reshape(-1, 1)], dim=1)

    y = solve(f, (a, b), 0.0, 1.0, RK4(3), batched=batched).y
    flat = solve(f_flat, torch.cat([a, b[:, 0]], dim=1), 0.0, 1.0, RK4(3)).y
    assert isinstance(y, tuple)
    torch.testing.assert_close(y, (flat[:, :2], flat[:, 2:, None]))


def test_a_tuple_of_one_stays_a_tuple():
    (y,) = solve(lambda t, y: (-y[0],), (torch.ones(2, 3),), 0.0, 1.0, RK4(1)).y
    assert y.shape == (2, 3)


@methods
def test_unbatched_is_one_system(integrator, record):
    y0 = rows([1.0, 2.0, 3.0], [-1.0, 0.5, 10.0])

    def f(t, y):
        assert t.shape == ()
        assert y.shape == (2, 3)
        return torch.sin(y) * t

    f = record(f)
    one = solve(f, y0, 0.5, 2.0, integrator, batched=False, accumulate=lambda step: step.dt)
    row = solve(lambda t, y: torch.sin(y) * t, y0.reshape(1, 6), 0.5, 2.0, integrator)
    torch.testing.assert_close(one.y, row.y.view(2, 3), rtol=1e-13, atol=1e-13)
    assert one.nfe == row.nfe[0] == f.calls
    for x in (one.t, one.nfe, one.n_steps, one.n_accepted, one.error, one.status, one.dt, one.accumulated):
        assert x.shape == ()
    assert one.accumulated == 1.5


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)])
def test_unbatched_takes_any_shape(shape):
    y0 = torch.full(shape, 2.0, dtype=torch.float64)
    solution = solve(lambda t, y: -y, y0, 0.0, 1.0, DOPRI, batched=False)
    torch.testing.assert_close(solution.y, y0 * math.exp(-1))


# ---- arguments of f


@methods
@pytest.mark.parametrize("drop_finished", [True, False])
def test_each_sample_gets_its_own_sample_args(integrator, drop_finished):
    rate, shift = rows([0.1], [10.0], [-1.0], [3.0]), rows(1.0, 2.0, 3.0, 4.0)

    def f(t, y, scale, rate, shift):
        return scale * rate * (shift[:, None] - y)

    args = {"args": (0.5,), "sample_args": (rate, shift), "drop_finished": drop_finished}
    together = solve(f, torch.ones(4, 2, dtype=torch.float64), 0.0, rows(1.0, 1, 0, 2), integrator, **args)
    for i, t1 in enumerate([1.0, 1, 0, 2]):
        y = solve(
            lambda t, y, i=i: 0.5 * rate[i] * (shift[i] - y), torch.ones(1, 2, dtype=torch.float64), 0.0, t1, integrator
        ).y
        torch.testing.assert_close(together.y[i : i + 1], y, rtol=1e-12, atol=1e-12)


def test_args_and_sample_args_follow_t_and_y():
    def f(t, y, text, number, rate):
        assert (text, number) == ("a", 2)
        return rate * y

    y = solve(f, rows([1.0], [1.0]), 0.0, 1.0, DOPRI, args=["a", 2], sample_args=[rows([1.0], [-2.0])]).y
    torch.testing.assert_close(y, rows([1.0], [-2.0]).exp())


def test_unbatched_sample_args_are_passed_whole():
    def f(t, y, rate):
        return rate * y

    y = solve(f, rows([1.0], [1.0]), 0.0, 1.0, DOPRI, sample_args=(rows([1.0], [-2.0]),), batched=False).y
    torch.testing.assert_close(y, rows([1.0], [-2.0]).exp())


# ---- what is wrong is named


@pytest.mark.parametrize(
    ("y0", "error", "message"),
    [
        ([[1.0]], TypeError, "y0: expected a tensor, or a tuple or dict of tensors, got list"),
        (1.0, TypeError, "y0: expected a tensor, or a tuple or dict of tensors, got float"),
        ((), TypeError, "y0: expected a tensor, or a tuple or dict of tensors"),
        ((torch.ones(1), 2.0), TypeError, "y0: expected a tensor, or a tuple or dict of tensors"),
        ({}, TypeError, "y0: expected a tensor, or a tuple or dict of tensors"),
        ({"a": torch.ones(1), "b": 2.0}, TypeError, "y0: expected a tensor, or a tuple or dict of tensors"),
        ({1: torch.ones(1)}, TypeError, r"y0: expected a dict whose keys are strings, got \[1\]"),
        *(
            (torch.ones(2, 3).to(dtype), TypeError, f"y0: expected a floating-point or complex dtype, got {dtype}")
            for dtype in (torch.int64, torch.bool, torch.float8_e5m2)
        ),
        ((torch.ones(2), torch.ones(2).double()), TypeError, "y0: expected tensors of one dtype"),
        ((torch.ones(2, 1), torch.ones(3, 1)), ValueError, "y0: expected tensors .* same number of samples"),
        (torch.tensor(1.0), ValueError, r"y0: expected tensors \[B, ...\]"),
    ],
)
def test_a_bad_y0_is_named(y0, error, message):
    with pytest.raises(error, match=message):
        solve(lambda t, y: y, y0, 0.0, 1.0, Euler())


@pytest.mark.parametrize("name", ["t0", "t1"])
@pytest.mark.parametrize(
    ("t", "error", "message"),
    [
        ("1", TypeError, "expected a number or a tensor, got str"),
        (None, TypeError, "expected a number or a tensor, got NoneType"),
        (True, TypeError, "expected a number or a tensor, got bool"),
        ([0.0, 1.0], TypeError, "expected a number or a tensor, got list"),
        (torch.tensor(True), TypeError, "expected real times, got torch.bool"),
        (torch.tensor(1j), TypeError, "expected real times, got torch.complex64"),
        (torch.zeros(3), ValueError, r"expected a number or a tensor of shape \(2,\), got shape \(3,\)"),
        (torch.zeros(1), ValueError, r"expected a number or a tensor of shape \(2,\), got shape \(1,\)"),
        (torch.zeros(2, 1), ValueError, r"expected a number or a tensor of shape \(2,\), got shape \(2, 1\)"),
        (math.inf, ValueError, "expected finite times, got inf"),
        (torch.tensor([0.0, math.nan]), ValueError, "expected finite times, got tensor"),
    ],
)
def test_a_bad_time_is_named(name, t, error, message):
    times = {"t0": 0.0, "t1": 1.0} | {name: t}
    with pytest.raises(error, match=f"{name}: {message}"):
        solve(lambda t, y: y, torch.ones(2, 3), integrator=Euler(), **times)


def test_an_unbatched_system_has_one_time():
    with pytest.raises(ValueError, match=r"t1: expected a number \(batched=False has one time\), got shape \(2,\)"):
        solve(lambda t, y: y, torch.ones(2, 3), 0.0, torch.ones(2), Euler(), batched=False)


@pytest.mark.parametrize("integrator", ["dopri5", Dopri5, None])
def test_an_unknown_integrator_is_named(integrator):
    with pytest.raises(TypeError, match="integrator: expected an integrator such as"):
        solve(lambda t, y: y, torch.ones(2, 3), 0.0, 1.0, integrator)


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (lambda y: None, "NoneType"),
        (lambda y: y[:, :2], r"\(2, 2\)"),
        (lambda y: y[0], r"\(3,\)"),
        (lambda y: y.sum(), r"\(\)"),
        (lambda y: (y,), r"\[\(2, 3\)\]"),
        (lambda y: [y], "list"),
        (lambda y: {"y": y}, r"\{'y': \(2, 3\)\}"),
    ],
)
@pytest.mark.parametrize("batched", [True, False])
def test_what_f_returns_is_checked(value, got, batched):
    with pytest.raises(ValueError, match=rf"f: expected dy/dt of shape \(2, 3\) like y, got {got}"):
        solve(lambda t, y: value(y), torch.ones(2, 3), 0.0, 1.0, Euler(), batched=batched)


@pytest.mark.parametrize("value", [lambda y: y[0], lambda y: list(y), lambda y: y[::-1], lambda y: (*y, y[0])])
def test_f_of_a_tuple_returns_such_a_tuple(value):
    with pytest.raises(ValueError, match=r"f: expected dy/dt of shape \[\(2, 3\), \(2,\)\] like y"):
        solve(lambda t, y: value(y), (torch.ones(2, 3), torch.ones(2)), 0.0, 1.0, Euler())


@pytest.mark.parametrize("arg", [torch.ones(3), torch.ones(1, 2), torch.tensor(1.0), 2.0, [1.0, 2.0]], ids=str)
def test_sample_args_of_another_length_are_named(arg):
    with pytest.raises(ValueError, match=r"sample_args\[1\]: expected a tensor \[B, ...\] with B=2"):
        solve(lambda t, y: y, torch.ones(2, 3), 0.0, 1.0, Euler(), sample_args=(torch.ones(2), arg))


FAST_AND_SLOW = rows([1.0], [1.0], [1.0], [30.0])


@pytest.mark.parametrize(
    "f",
    [
        lambda t, y: -y * FAST_AND_SLOW,  # broadcasting fails in f, a RuntimeError of torch's
        lambda t, y: (-FAST_AND_SLOW + t[:1]) + 0 * y[:1],  # f succeeds and returns the whole batch
    ],
    ids=["f raises", "f returns"],
)
def test_a_closure_over_the_batch_is_told_of_sample_args(f):
    y0 = torch.ones(4, 1, dtype=torch.float64)
    with pytest.raises((RuntimeError, ValueError)) as caught:
        solve(f, y0, 0.0, 1.0, Dopri5())
    message = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert "sample_args=" in message
    assert "drop_finished=False" in message
    assert isinstance(solve(f, y0, 0.0, 1.0, Dopri5(), drop_finished=False), Solution)  # the remedy works


def test_a_closure_over_the_batch_works_without_compaction_though_spans_are_empty():
    t1 = rows(1.0, 0.0, 1.0, 1.0)
    y = solve(
        lambda t, y: -y * FAST_AND_SLOW, torch.ones(4, 1, dtype=torch.float64), 0.0, t1, DOPRI, drop_finished=False
    ).y
    torch.testing.assert_close(y, (-FAST_AND_SLOW * t1[:, None]).exp(), rtol=1e-6, atol=1e-6)


def test_an_error_of_f_itself_keeps_its_text():
    """A note says how f was called, and nothing of sample_args, since f was called on all samples."""

    def f(t, y):
        raise RuntimeError("out of cheese")

    with pytest.raises(RuntimeError, match=r"^out of cheese\n") as caught:
        solve(f, torch.ones(2, 3), 0.0, 1.0, Euler())
    assert caught.value.args == ("out of cheese",)
    assert "sample_args" not in "".join(caught.value.__notes__)
