"""Samples are independent of each other, and each is charged for exactly what it needed."""

import math

import pytest
import torch

from dise import RK4, Dopri5, Euler, HeunEuler, SolveError, Statistic, Status, solve
from dise.integrate.stepping.rows import WAITING_NUMEL, WAITING_PARTS, DroppedRows, LoopRows

TIGHT = {"rtol": 1e-12, "atol": 1e-12}
PER_SAMPLE = ("y", "t", "nfe", "n_steps", "n_accepted", "error", "status", "dt", "accumulated")
INTEGRATORS = [
    Euler(1),
    RK4(1),
    RK4(3),
    Dopri5(rtol=1e-6, atol=1e-6),
    Dopri5(rtol=1e-6, atol=1e-6, first_step="span"),
    Dopri5(rtol=1e-6, atol=1e-6, first_step=0.05),
]
integrators = pytest.mark.parametrize("integrator", INTEGRATORS, ids=str)
compacts = pytest.mark.parametrize("drop_finished", [False, True], ids=["whole", "drop_finished"])


@pytest.fixture
def spans():
    """Samples that start and end at their own times, one of them backwards."""
    t0 = torch.tensor([0.0, 0.5, -1.0, 1.0, 0.0], dtype=torch.float64)
    t1 = torch.tensor([1.0, 3.0, 1.0, 0.2, 1.5], dtype=torch.float64)
    return t0, t1


# ---- the company a sample keeps does not matter


@integrators
@compacts
def test_solo_is_batched(tanh_field, starts, spans, integrator, drop_finished):
    f, y0, (t0, t1) = tanh_field(3), starts(5, 3), spans
    options = {"drop_finished": drop_finished, "accumulate": lambda step: step.dt**2}
    with torch.no_grad():
        together = solve(f, y0, t0, t1, integrator, **options)
        for i in range(5):
            alone = solve(f, y0[i : i + 1], t0[i], t1[i], integrator, **options)
            for name in PER_SAMPLE:
                one = getattr(together, name)[i : i + 1]
                torch.testing.assert_close(one, getattr(alone, name), **TIGHT, equal_nan=True)
    if isinstance(integrator, Dopri5):
        assert len(together.n_steps.unique()) > 2  # or nothing was tested


@pytest.mark.parametrize("features", [1, 2, 150], ids=["waiting", "two features", "taken at once"])
@pytest.mark.parametrize("gradients", [False, True], ids=["", "gradients"])
def test_samples_that_leave_one_by_one_are_as_alone(features, gradients):
    """More rounds drop samples than may wait to be taken out; y' = −y has the same steps for all features."""
    number = 3 * WAITING_PARTS
    y0 = torch.linspace(0.5, 2.0, number, dtype=torch.float64)[:, None].expand(-1, features).contiguous()
    t1 = torch.linspace(0.5, 12.0, number, dtype=torch.float64)[
        torch.randperm(number, generator=torch.Generator().manual_seed(0))
    ]
    solver = Dopri5(rtol=1e-7, atol=1e-7)
    assert (y0.numel() > WAITING_NUMEL) is (features == 150)
    with torch.set_grad_enabled(gradients):
        start = y0.requires_grad_(gradients)
        together = solve(lambda t, y: -y, start, 0.0, t1, solver)
        torch.testing.assert_close(together.y, y0 * torch.exp(-t1)[:, None], rtol=1e-4, atol=1e-6)
        assert len(together.n_steps.unique()) > WAITING_PARTS  # or nothing was tested
        for i in range(0, number, 5):
            alone = solve(lambda t, y: -y, y0[i : i + 1], 0.0, t1[i : i + 1], solver)
            for name in PER_SAMPLE:
                if name != "accumulated":
                    one = getattr(together, name)[i : i + 1]
                    torch.testing.assert_close(one, getattr(alone, name), **TIGHT, equal_nan=True)
        if gradients:
            (slope,) = torch.autograd.grad(together.y[:, 0].sum(), start)
            torch.testing.assert_close(slope[:, 0], torch.exp(-t1), rtol=1e-4, atol=1e-6)


def test_few_dropped_rows_wait():
    """Memory does not grow with the number of rounds that drop samples, and large states never wait."""
    y, numbers, times = torch.ones(8, 2), torch.arange(8), torch.ones(8, dtype=torch.float64)
    step = LoopRows(numbers, times, y, y, times, numbers, numbers, torch.ones(8), numbers, times)
    dropped = DroppedRows()
    for round_ in range(40):
        dropped = dropped.with_rows(step._replace(sample=torch.arange(8) + 8 * round_), torch.tensor([round_ % 8]))
        assert len(dropped.parts) < WAITING_PARTS
    assert dropped.taken().sample.tolist() == [8 * round_ + round_ % 8 for round_ in range(40)]
    large = step._replace(y=torch.ones(8, WAITING_NUMEL), k1=torch.ones(8, WAITING_NUMEL))
    ((rows, which),) = DroppedRows().with_rows(large, torch.tensor([3])).parts
    assert which is None
    assert rows.sample.tolist() == [3]


@integrators
@compacts
def test_order_does_not_matter(tanh_field, starts, spans, integrator, drop_finished):
    f, y0, (t0, t1) = tanh_field(3), starts(5, 3), spans
    order = torch.tensor([3, 0, 4, 2, 1])
    options = {"drop_finished": drop_finished, "accumulate": lambda step: step.dt**2}
    with torch.no_grad():
        expected = solve(f, y0, t0, t1, integrator, **options)
        permuted = solve(f, y0[order], t0[order], t1[order], integrator, **options)
    for name in PER_SAMPLE:
        want = getattr(expected, name)[order]
        torch.testing.assert_close(getattr(permuted, name), want, **TIGHT, equal_nan=True)


# ---- counts


@integrators
def test_nfe_is_a_solo_count_of_calls(tanh_field, starts, spans, record, integrator):
    y0, (t0, t1) = starts(5, 3), spans
    together = solve(tanh_field(3), y0, t0, t1, integrator)
    assert together.nfe.dtype == torch.int64
    for i in range(5):
        f = record(tanh_field(3))
        alone = solve(f, y0[i : i + 1], t0[i], t1[i], integrator)
        assert together.nfe[i] == f.calls == alone.calls


@pytest.mark.parametrize(
    ("integrator", "first", "each"),
    [
        (Euler(7), 0, 1),
        (RK4(3), 0, 4),
        (Dopri5(rtol=1e-6, atol=1e-6), 2, 6),
        (Dopri5(rtol=1e-6, atol=1e-6, first_step="span"), 1, 6),
        (Dopri5(rtol=1e-6, atol=1e-6, first_step=0.05), 1, 6),
    ],
    ids=str,
)
def test_nfe_by_formula(tanh_field, starts, integrator, first, each):
    solution = solve(tanh_field(3), starts(5, 3), 0.0, 1.0, integrator)
    assert solution.nfe.tolist() == (first + each * solution.n_steps).tolist()


def test_rejected_steps_are_counted(tanh_field, starts):
    solution = solve(tanh_field(3), starts(5, 3), 0.0, 2.0, Dopri5(rtol=1e-6, atol=1e-6, first_step="span"))
    assert (solution.n_accepted < solution.n_steps).all()
    assert solution.nfe.tolist() == (1 + 6 * solution.n_steps).tolist()


@integrators
def test_with_compaction_the_work_is_the_sum_of_nfe(tanh_field, starts, spans, record, integrator):
    f = record(tanh_field(3))
    solution = solve(f, starts(5, 3), *spans, integrator, drop_finished=True)
    assert f.rows == solution.nfe.sum()
    assert f.calls == solution.calls == solution.nfe.max()


@integrators
def test_without_compaction_f_sees_the_whole_batch(tanh_field, starts, spans, record, integrator):
    f = record(tanh_field(3))
    solution = solve(f, starts(5, 3), *spans, integrator, drop_finished=False)
    assert {len(t) for t in f.times} == {5}
    assert f.calls == solution.calls == solution.nfe.max()


def test_compaction_is_the_default(tanh_field, starts, record):
    f = record(tanh_field(3))
    solution = solve(f, starts(5, 3), 0.0, 1.0, Dopri5(rtol=1e-6, atol=1e-6))
    assert solution.nfe.max() > solution.nfe.min()
    assert f.rows == solution.nfe.sum()


def test_without_compaction_f_sees_the_whole_batch_even_if_a_span_is_empty(record):
    f, t1 = record(lambda t, y: -y), torch.tensor([1.0, 0.0, 2.0])
    solution = solve(f, torch.ones(3, 1), 0.0, t1, Dopri5(), drop_finished=False)
    assert solution.nfe[1] == 0
    assert {len(t) for t in f.times} == {3}


def test_a_sample_that_is_dead_from_the_start_costs_no_steps(record):
    f = record(lambda t, y: -y)
    y0 = torch.tensor([[1.0], [math.nan], [2.0]], dtype=torch.float64)
    solution = solve(f, y0, 0.0, 1.0, Dopri5(), drop_finished=True, throw=False)
    assert f.rows == solution.nfe.sum()


# ---- accumulate


@integrators
@compacts
def test_accumulate_is_a_sum_over_accepted_steps(tanh_field, starts, spans, integrator, drop_finished):
    y0, (t0, t1) = starts(5, 3), spans

    def lengths_and_ones(step):
        assert step.y.shape == step.y_next.shape == step.stages[0].shape == (len(step.t), 3)
        assert len(step.stages) == step.tableau.stages
        return step.dt

    lengths = solve(tanh_field(3), y0, t0, t1, integrator, accumulate=lengths_and_ones, drop_finished=drop_finished)
    torch.testing.assert_close(lengths.accumulated, t1 - t0, **TIGHT)
    ones = solve(
        tanh_field(3),
        y0,
        t0,
        t1,
        integrator,
        accumulate=lambda step: torch.ones_like(step.t),
        drop_finished=drop_finished,
    )
    assert ones.accumulated.tolist() == ones.n_accepted.tolist()


@pytest.mark.parametrize(("integrator", "accuracy"), [(RK4(20), 1e-5), (Dopri5(rtol=1e-9, atol=1e-9), 1e-8)])
def test_accumulate_is_a_quadrature(integrator, accuracy):
    """∫ ‖y'‖² along y = y0 e^(−t) is y0² (1 − e^(−2T)) / 2."""

    def kinetic(step):
        return step.dt * sum(b * k.square().sum(1) for b, k in zip(step.tableau.b, step.stages, strict=True))

    y0 = torch.tensor([[1.0], [-3.0]], dtype=torch.float64)
    solution = solve(lambda t, y: -y, y0, 0.0, 2.0, integrator, accumulate=kinetic)
    expected = y0.flatten() ** 2 * (1 - math.exp(-4)) / 2
    torch.testing.assert_close(solution.accumulated, expected, rtol=accuracy, atol=0)


def test_nothing_is_accumulated_unasked():
    assert solve(lambda t, y: -y, torch.ones(1, 1), 0.0, 1.0, Euler()).accumulated is None


@pytest.mark.parametrize("value", [lambda s: s.dt.sum(), lambda s: s.dt[:, None], lambda s: None, lambda s: 1.0])
def test_what_accumulate_returns_is_checked(value):
    with pytest.raises((TypeError, ValueError), match=r"accumulate: expected .*\(2,\)"):
        solve(lambda t, y: -y, torch.ones(2, 1), 0.0, 1.0, Euler(), accumulate=value)


# ---- a sample that fails, fails alone. Sample 1 of three is the bad one


def poisoned(t, y):
    return torch.sin(3 * y) + t


def nan_from_half(t, y):
    """Of the sample whose first feature says so, NaN from t > 0.5 on."""
    bad = (y[:, 1:] == 1) & (t > 0.5)
    return torch.stack([torch.where(bad[:, 0], torch.nan, -y[:, 0]), 0 * y[:, 1]], dim=1)


def square(t, y):
    """y = y0 / (1 − y0 t) is infinite at t = 1/y0."""
    return y**2


def slow(t, y):
    """The second feature is the frequency of the first."""
    return torch.stack([torch.cos(y[:, 1] * t[:, 0]), 0 * y[:, 1]], dim=1)


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


DOPRI = Dopri5(max_steps=1000)  # ample for giving up
FEW_STEPS = Dopri5(rtol=1e-6, atol=1e-6, max_steps=30)
FAILURES = {
    "NaN in y0": (poisoned, rows([1.0], [math.nan], [2.0]), DOPRI, Status.NON_FINITE, 0.0),
    "inf in y0": (
        poisoned,
        rows([1.0], [math.inf], [2.0]),
        Dopri5(first_step="span", max_steps=1000),
        Status.NON_FINITE,
        0.0,
    ),
    "NaN from t > 0.5": (nan_from_half, rows([1.0, 0], [2, 1], [3, 0]), DOPRI, Status.NON_FINITE, 0.5),
    "y' = y² past its pole": (square, rows([0.1], [2.0], [-1.0]), DOPRI, None, 0.5),
    "too many steps": (slow, rows([1.0, 1], [1, 1e3], [1, 2]), FEW_STEPS, Status.MAX_STEPS, None),
    "NaN in y0, RK4": (poisoned, rows([1.0], [math.nan], [2.0]), RK4(3), Status.NON_FINITE, 0.0),
    "NaN from t > 0.5, RK4": (nan_from_half, rows([1.0, 0], [2, 1], [3, 0]), RK4(4), Status.NON_FINITE, 0.5),
    "NaN from t > 0.5, Euler": (nan_from_half, rows([1.0, 0], [2, 1], [3, 0]), Euler(4), Status.NON_FINITE, 0.75),
}
failures = pytest.mark.parametrize(("f", "y0", "integrator", "status", "t"), FAILURES.values(), ids=FAILURES.keys())


@failures
@compacts
def test_neighbours_of_a_failing_sample_do_not_notice(f, y0, integrator, status, t, drop_finished):
    good = torch.tensor([0, 2])
    options = {"drop_finished": drop_finished, "accumulate": lambda step: step.dt}
    beside = solve(f, y0, 0.0, 1.0, integrator, throw=False, **options)
    without = solve(f, y0[good], 0.0, 1.0, integrator, **options)
    for name in PER_SAMPLE:
        torch.testing.assert_close(getattr(beside, name)[good], getattr(without, name), **TIGHT, equal_nan=True)


@failures
@compacts
def test_a_failing_sample_keeps_its_last_good_state(f, y0, integrator, status, t, drop_finished):
    solution = solve(f, y0, 0.0, 1.0, integrator, throw=False, drop_finished=drop_finished)
    failed = Status(solution.status[1].item())
    assert failed in ((status,) if status else (Status.NON_FINITE, Status.STEP_UNDERFLOW))
    assert solution.t[1] < 1
    if t is not None:
        assert solution.t[1].item() == pytest.approx(t, abs=1e-3)
    if y0[1].isfinite().all():
        assert solution.y[1].isfinite().all()
    if f is nan_from_half and isinstance(integrator, Dopri5):
        assert solution.y[1, 0].item() == pytest.approx(2 * math.exp(-0.5), rel=1e-3)
    if f is square:
        # the pole of the numerical solution is near that of the exact one, where y = 1 / (1/2 − t)
        assert solution.y[1, 0] > 1e3


@failures
def test_throw_names_the_sample(f, y0, integrator, status, t):
    with pytest.raises(SolveError, match="1 of 3 samples failed; first: sample 1 at t=") as caught:
        solve(f, y0, 0.0, 1.0, integrator)
    solution = caught.value.solution
    assert Status(solution.status[1].item()).name in str(caught.value)
    assert f"t={solution.t[1].item():.6g}" in str(caught.value)
    assert solution.status[[0, 2]].tolist() == [0, 0]


@pytest.mark.parametrize("integrator", [*INTEGRATORS, HeunEuler(rtol=1e-3, atol=1e-3)], ids=str)
@pytest.mark.parametrize("worst", [1.0, 30.0, math.nan], ids=["fine", "fails on its way", "fails at once"])
def test_looking_at_values_changes_none(monkeypatch, starts, spans, integrator, worst):
    """On the host a look tells whether all samples are fine; where a device has to be waited for nobody looks."""
    (t0, t1), rate = spans, torch.tensor([1.0, 0.1, worst, 0.5, 2.0]).double()[:, None]
    how = {"sample_args": (rate,), "accumulate": lambda step: step.dt**2, "throw": False}
    solutions = []
    for seen in (True, False):
        if not seen:
            monkeypatch.setattr("dise.integrate.tracing.on_host", lambda x: False)
        solutions.append(solve(lambda t, y, rate: rate * y**3, starts(5, 3), t0, t1, integrator, **how))
    for name in (*PER_SAMPLE, "k1"):
        torch.testing.assert_close(*(getattr(s, name) for s in solutions), rtol=0, atol=0, equal_nan=True)


def test_a_failing_sample_does_not_touch_its_neighbours_gradients():
    values = [[1.0, 0], [2, 1], [3, 0]]
    beside, without = (rows(*v).requires_grad_() for v in (values, values[::2]))
    solve(nan_from_half, beside, 0.0, 1.0, Dopri5(), throw=False).y[[0, 2]].sum().backward()
    solve(nan_from_half, without, 0.0, 1.0, Dopri5()).y.sum().backward()
    torch.testing.assert_close(beside.grad[[0, 2]], without.grad, **TIGHT)


@pytest.mark.parametrize(("dtype", "big"), [(torch.float32, 1e25), (torch.float64, 1e200)])
@pytest.mark.parametrize("integrator", [Euler(1), Dopri5()], ids=str)
def test_a_large_finite_state_is_finite(dtype, big, integrator):
    """Its square overflows; nothing else does."""
    solution = solve(lambda t, y: 0 * y, torch.full((1, 2), big, dtype=dtype), 0.0, 1.0, integrator, throw=False)
    assert solution.status == Status.SUCCESS


# ---- a step that leaves f's domain is no failure: a shorter one is tried


def root(t, y):
    """y' = −2√y, y = (1 − t)² from y0 = 1; NaN below 0."""
    return -2 * y.sqrt()


def sinh(t, y):
    """y' = −sinh y, tanh(y/2) = tanh(y0/2) e^(−t); overflows beyond |y| = 710."""
    return -torch.sinh(y)


RECOVERIES = [
    (root, 1.0, 0.95, 0.05**2),
    (sinh, 5.0, 10.0, 2 * math.atanh(math.tanh(2.5) * math.exp(-10))),
]


@pytest.mark.parametrize(("f", "y0", "t1", "expected"), RECOVERIES)
def test_a_step_out_of_the_domain_is_retried(f, y0, t1, expected):
    values = []

    def watched(t, y):
        values.append(f(t, y))
        return values[-1]

    integrator = Dopri5(rtol=1e-7, atol=1e-9, first_step="span")
    solution = solve(watched, rows([y0]), 0.0, t1, integrator)
    assert not torch.cat(values).isfinite().all()  # or nothing was tested
    assert solution.n_accepted < solution.n_steps
    assert solution.y.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.xfail(
    strict=True, reason="0 · NaN in f's backward pass; documented in `solve`, cured by a smaller first_step"
)
@pytest.mark.parametrize("differentiate_step_sizes", [False, True])
@pytest.mark.parametrize(("f", "y0", "t1", "expected"), RECOVERIES)
def test_a_step_out_of_the_domain_leaves_no_nan_in_gradients(f, y0, t1, expected, differentiate_step_sizes):
    """Every sample succeeded: the gradient is that of the accepted steps, here of a run that rejects none for NaN."""

    def gradients(first_step):
        rate, start = torch.ones((), dtype=torch.float64, requires_grad=True), rows([y0]).requires_grad_()
        options = {"args": (rate,), "differentiate_step_sizes": differentiate_step_sizes}
        integrator = Dopri5(rtol=1e-9, atol=1e-9, first_step=first_step)
        y = solve(lambda t, y, rate: f(t, y) * rate, start, 0.0, t1, integrator, **options).y
        return torch.autograd.grad(y.sum(), (rate, start))

    torch.testing.assert_close(gradients("span"), gradients(1e-4), rtol=1e-4, atol=1e-8)


# ---- running statistics


def trapezoid(step):
    return step.dt[:, None] * (step.y + step.y_next) / 2


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=[pytest.mark.slow, pytest.mark.host])])
def test_statistics_of_any_shape(compile):
    """Means, maxima and minima of circles, without the states; one sample has no span, one goes backwards."""
    y0, t1 = torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 1.0]]).double(), torch.tensor([3.0, -7.0, 0.0]).double()
    statistics = {
        "integral": Statistic(trapezoid),
        "highest": Statistic(lambda step: torch.maximum(step.y, step.y_next), "max"),
        "lowest": Statistic(lambda step: step.y_next[:, 0], "min"),
    }
    solution = solve(Circle(), y0, 0.0, t1, Dopri5(rtol=1e-8, atol=1e-8), accumulate=statistics, compile=compile)
    end = solution.y
    exact = torch.stack([y0[:, 1] - end[:, 1], end[:, 0] - y0[:, 0]], 1)  # x' = y, y' = −x
    torch.testing.assert_close(solution.accumulated["integral"], exact, rtol=0, atol=5e-3)
    highest, lowest = solution.accumulated["highest"], solution.accumulated["lowest"]
    torch.testing.assert_close(highest[:2, 0], torch.tensor([1.0, 2.0]).double(), rtol=0, atol=1e-2)
    assert lowest[1].item() == pytest.approx(-2, abs=1e-2)
    assert highest[2].tolist() == [-math.inf] * 2
    assert lowest[2].item() == math.inf


class Circle(torch.nn.Module):
    def forward(self, t, y):
        return torch.stack([y[:, 1], -y[:, 0]], 1)


@pytest.mark.parametrize("gradient", ["direct", "checkpoint"])
def test_statistics_have_gradients(gradient):
    y0 = torch.tensor([[0.3, 1.0]]).double().requires_grad_()

    def run(y0):
        options = {"accumulate": Statistic(trapezoid), "gradient": gradient}
        return solve(Circle(), y0, 0.0, 1.0, RK4(3), **options).accumulated

    assert torch.autograd.gradcheck(run, (y0,))


def test_statistics_of_one_system_and_of_an_empty_span():
    one = solve(lambda t, y: -y, torch.ones(2, 3), 0.0, 1.0, RK4(4), batched=False, accumulate=Statistic(trapezoid))
    assert one.accumulated.shape == (6,)
    empty = solve(lambda t, y: -y, torch.ones(2, 3), 1.0, 1.0, RK4(4), accumulate=Statistic(trapezoid))
    assert empty.accumulated.tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Statistic(1.0), TypeError, "accumulate: expected a function of a step, got float"),
        (lambda: Statistic(trapezoid, "mean"), ValueError, "reduce: expected 'sum', 'max' or 'min', got 'mean'"),
        (
            lambda: Statistic(lambda step: step.y.sum()),
            ValueError,
            r"accumulate: expected a tensor of shape \(2, ...\)",
        ),
    ],
)
def test_bad_statistics(make, error, message):
    with pytest.raises(error, match=message):
        solve(lambda t, y: -y, torch.ones(2, 1), 0.0, 1.0, Euler(), accumulate=make())
