"""`Multistep` as an integrator: batches, gradients, failures, compilation, policies."""

import itertools
import weakref

import pytest
import torch
from torch import nn

import dise
from dise import Dynamic, Euler, Multistep, MultistepTable, NeuralODE, Status, grids

DOUBLE = torch.float64
Y0 = torch.tensor([[1.0, 0.3], [0.2, -1.0], [2.0, 0.1]], dtype=DOUBLE)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2)).double()

    def forward(self, t, y):
        return self.layers(torch.cat([y, t.to(y).expand_as(y[:, :1])], 1))


def by_hand(f, y, times):
    """Adams–Bashforth 2, step by step."""
    before = None
    for a, b in itertools.pairwise(times):
        v = f(torch.full((len(y), 1), a, dtype=DOUBLE), y)
        step, last = b - a, a if before is None else before[0]
        slope = 0 if before is None else (v - before[1]) / (a - last)
        y = y + step * v + step**2 / 2 * slope
        before = a, v
    return y


def test_second_order_by_hand_with_gradients():
    f, grid = Net(), grids.sway(6)
    y0 = Y0.clone().requires_grad_()
    expected = by_hand(f, y0, [3 * x for x in grid.fractions])
    for gradient in ("direct", "checkpoint"):
        solution = dise.solve(f, y0, 0.0, 3.0, Multistep.adams(grid), gradient=gradient)
        torch.testing.assert_close(solution.y, expected, rtol=1e-12, atol=1e-12)
        ours, theirs = (torch.autograd.grad(y.square().sum(), [y0, *f.parameters()], retain_graph=True)
                        for y in (solution.y, expected))  # fmt: skip
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_gradients_in_the_ends_of_the_span():
    f = Net()
    t0, t1 = torch.tensor([0.0, 0.5, 1.0], dtype=DOUBLE), torch.tensor([1.0, 0.1, 3.0], dtype=DOUBLE)
    solve = lambda t0, t1: dise.solve(f, Y0, t0, t1, Multistep.adams(5, 3)).y  # noqa: E731
    assert torch.autograd.gradcheck(solve, (t0.requires_grad_(), t1.requires_grad_()))


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE, torch.complex64, torch.bfloat16])
@pytest.mark.parametrize("span", [(0.0, 1.0), (1.3, -0.4), (-2, 5)])
def test_a_span_as_numbers_is_the_span_as_tensors(span, dtype):
    """A span in numbers takes another way: one number for its length, and times made one by one."""

    def solve(t0, t1, method):
        times = []

        def f(t, y):
            times.append(t)
            return 0.3 * y * t.to(y.dtype) - y

        return dise.solve(f, Y0.to(dtype), t0, t1, method).y, torch.stack(times)

    for method in (Multistep.adams(grids.sway(5), 3), Multistep.of(dise.RK4(2)), Multistep.ipndm(4)):
        expected, expected_times = solve(*(torch.tensor(float(t), dtype=DOUBLE) for t in span), method)
        got, times = solve(*span, method)
        rounding = 20 * torch.finfo(dtype).eps
        torch.testing.assert_close(got, expected, rtol=rounding, atol=rounding)
        torch.testing.assert_close(times, expected_times, rtol=rounding, atol=rounding)
        assert times.dtype == expected_times.dtype == dtype.to_real()
        assert times.shape == expected_times.shape


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda v, y, t: v[:, :1], ValueError, "expected dy/dt of shape"),
        (lambda v, y, t: v.sum(), ValueError, "expected dy/dt of shape"),
        (lambda v, y, t: None, ValueError, "expected dy/dt of shape"),
        (lambda v, y, t: v.to(torch.complex128), TypeError, "expected a real dy/dt"),
        (lambda v, y, t: y.mul_(2), RuntimeError, "changed y in place"),
        (lambda v, y, t: v + t.add_(1), RuntimeError, "changed t in place"),
    ],
)
def test_a_field_that_goes_wrong_midway_is_refused(change, error, message):
    calls = itertools.count()

    def f(t, y):
        value = -y
        return change(value, y, t) if next(calls) == 3 else value

    with torch.no_grad(), pytest.raises(error, match=message):
        dise.solve(f, Y0.clone(), 0.0, 1.0, Multistep.adams(6))


def test_memory_that_f_returns_twice_is_refused():
    out = torch.empty_like(Y0)
    with torch.no_grad(), pytest.raises(RuntimeError, match="returned memory that it returned before"):
        dise.solve(lambda t, y: torch.neg(y, out=out), Y0, 0.0, 1.0, Multistep.adams(6))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_a_row_alone_is_the_row_in_its_batch(order):
    f, t1 = Net(), torch.tensor([1.0, -2.0, 0.0], dtype=DOUBLE)
    whole = dise.solve(f, Y0, 0.0, t1, Multistep.adams(7, order))
    for i in range(3):
        alone = dise.solve(f, Y0[i : i + 1], 0.0, t1[i : i + 1], Multistep.adams(7, order))
        torch.testing.assert_close(alone.y[0], whole.y[i], rtol=1e-12, atol=1e-12)
        assert alone.nfe[0] == whole.nfe[i]
    assert whole.nfe.tolist() == [7 + 2 * (order == 4)] * 2 + [0]


def test_structured_states_and_whole_batches():
    f = lambda t, state: (state["b"], -state["a"] * t)  # noqa: E731
    named = lambda t, state: dict(zip("ab", f(t, state), strict=True))  # noqa: E731
    state = {"a": Y0, "b": Y0 + 1}
    batch = dise.solve(named, state, 0.0, 1.0, Multistep.adams(6))
    whole = dise.solve(named, state, 0.0, 1.0, Multistep.adams(6), batched=False)
    torch.testing.assert_close(batch.y, whole.y)
    assert whole.nfe.ndim == 0


def test_a_sample_whose_f_is_not_finite_fails_alone():
    f = lambda t, y: torch.where((y[:, :1] < 0.25) & (t > 0.3), torch.nan, -y)  # noqa: E731
    solution = dise.solve(f, Y0, 0.0, 1.0, Multistep.adams(5), throw=False)
    assert solution.status.tolist() == [Status.SUCCESS, Status.NON_FINITE, Status.SUCCESS]
    assert torch.equal(solution.y[1], Y0[1])
    assert solution.t.tolist() == [1.0, 0.0, 1.0]
    assert torch.equal(solution.y[::2], dise.solve(f, Y0[::2], 0.0, 1.0, Multistep.adams(5)).y)


def test_states_without_further_use_are_freed():
    table, alive = Multistep.adams(9, 3).table, 1
    for freed in table.last_used:
        alive += 1 - len(freed)
        assert alive <= 2  # a step's start and its prediction
    assert Multistep.of(dise.RK4(2)).table.last_used[3] == (0, 3)  # a step's start, when its last stage is done


def test_values_of_f_are_freed_with_their_last_use():
    alive, most = weakref.WeakSet(), 0

    def f(t, y):
        nonlocal most
        value = torch.cos(y)
        alive.add(value)
        most = max(most, len(alive))
        return value

    with torch.no_grad():
        dise.solve(f, torch.zeros(2, 3), 0.0, 1.0, Multistep.adams(20, order=2))
    assert most <= 3
    table = Multistep.of(dise.RK4(2)).table
    assert sorted(k for freed in table.values_last_used for k in freed) == list(range(8))


def test_half_precision_adds_up_in_float32():
    f = Net().bfloat16()
    y = dise.solve(f, Y0.bfloat16(), 0.0, 1.0, Multistep.adams(8)).y
    assert y.dtype is torch.bfloat16
    torch.testing.assert_close(y.double(), by_hand(Net(), Y0, [i / 8 for i in range(9)]), rtol=0.05, atol=0.05)


def test_compiled():
    f = Net().float()
    y0 = Y0.float()
    eager, compiled = (dise.solve(f, y0, 0.0, 1.0, Multistep.adams(4), compile=c).y for c in (False, True))
    torch.testing.assert_close(compiled, eager)


class FewestSteps(nn.Module):
    """Scores that choose the second candidate for the second sample, else the first."""

    def forward(self, h0, k1):
        second = torch.arange(len(h0)) == 1
        return torch.stack([second.double(), 1 - second.double()], 1)


def test_candidates_of_a_policy():
    f = Net()
    candidates = (Multistep.adams(4, 2), Multistep.adams(grids.power(9, 2.0), 3))
    solution = dise.solve(f, Y0, 0.0, 1.0, Dynamic(candidates, FewestSteps()))
    for i, chosen in enumerate((0, 1, 0)):
        alone = dise.solve(f, Y0[i : i + 1], 0.0, 1.0, candidates[chosen])
        torch.testing.assert_close(solution.y[i], alone.y[0], rtol=1e-12, atol=1e-12)
        assert solution.nfe[i] == alone.nfe[0]
    assert solution.calls == 9


def test_policies_of_tables_and_grids_are_saved(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2).double(), NeuralODE(Net(), Multistep.adams(4)))
    for integrator in (
        Multistep.dpmpp2m(5, dise.StraightPath()),
        Euler(grids.sway(6)),
        Euler(grids.of([0.0, 0.3, 1.0])),
    ):
        model[1].integrator = integrator
        dise.save_policy(model, tmp_path / str(integrator))
        model[1].integrator = Euler()
        dise.load_policy(model, tmp_path / str(integrator))
        assert model[1].integrator == integrator
        assert str(model[1].integrator) == str(integrator)


@pytest.mark.parametrize(
    "asked",
    [
        {"save_at": [0.5]},
        {"dense": True},
        {"record": True},
        {"event": lambda t, y: y[:, 0]},
        {"accumulate": lambda step: step.t},
        {"progress": print},
    ],
    ids=lambda asked: next(iter(asked)),
)
def test_what_needs_steps_is_refused(asked):
    with pytest.raises(ValueError, match="a Multistep method has no steps to interpolate"):
        dise.solve(lambda t, y: y, Y0, 0.0, 1.0, Multistep.adams(4), **asked)


@pytest.mark.parametrize("name", ["jump_at", "step_at"])
@pytest.mark.parametrize("times", [[0.5], torch.full((3, 1), 0.5, dtype=DOUBLE), [5.0]], ids=["T", "BJ", "outside"])
def test_break_points_are_refused(name, times):
    with pytest.raises(ValueError, match="jump_at, step_at: a Multistep method steps where its table says"):
        dise.solve(lambda t, y: y, Y0, 0.0, 1.0, Multistep.adams(4), **{name: times})


def test_backsolve_is_refused():
    y0 = Y0.clone().requires_grad_()
    for integrator in (Multistep.adams(4), Euler(grids.sway(4))):
        with pytest.raises(ValueError, match=r"gradient: backsolve cannot use .* made for the forward direction"):
            dise.solve(Net(), y0, 0.0, 1.0, integrator, gradient="backsolve")
        back = dise.Backsolve(integrator=dise.Dopri5(rtol=1e-10, atol=1e-10))
        dise.solve(Net(), y0, 0.0, 1.0, integrator, gradient=back).y.sum().backward()


def test_a_table_that_scales_the_state_is_refused_for_structures():
    table = Multistep.dpmpp2m(grids.of([0.9, 0.5, 0.1]), dise.CosinePath())
    with pytest.raises(ValueError, match="scales the state"):
        dise.solve(lambda t, y: y, (Y0, Y0), 0.9, 0.1, table)


@pytest.mark.parametrize("names", [None, "abc"])
def test_further_parts_of_a_state_have_weights_of_their_own(names):
    """∫ t dt and ∫ t² dt over [1, 3] by Gauss's nodes, beside a state that Euler's method moves to t = 3."""
    nodes = [(1 - 3**-0.5) / 2, (1 + 3**-0.5) / 2]
    table = MultistepTable(tuple(nodes), (1.0, 1.0, 0.5), ((), (0.0,), (1.0, 0.0)), quadrature=(0.5, 0.5))

    def f(t, state):
        values = torch.ones_like(Y0), t.expand(3, 1), t**2 * torch.ones(3, 4, dtype=DOUBLE)
        return values if names is None else dict(zip(names, values, strict=True))

    start = Y0, Y0[:, :1], torch.zeros(3, 4, dtype=DOUBLE)
    start = start if names is None else dict(zip(names, start, strict=True))
    end = dise.solve(f, start, 1.0, 3.0, Multistep(table)).y
    x, first, second = end if names is None else end.values()
    torch.testing.assert_close(x, Y0 / 2 + 2)
    torch.testing.assert_close(first, Y0[:, :1] + 4)
    torch.testing.assert_close(second, torch.full((3, 4), 26 / 3, dtype=DOUBLE))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((), (1.0,), ((),)), "times: expected at least one"),
        (((0.0,), (1.0,), ((), (1.0,))), "scales: expected 2 numbers, the first 1"),
        (((0.0,), (1.0, 1.0), ((), ())), "weights: expected rows of 0 to 1 numbers"),
        (((0.0,), (1.0, 1.0), ((), (float("nan"),))), "weights: row 1: expected finite numbers"),
        (((0.0,), (1.0, 1.0), ((), ("b",))), "weights: row 1: expected finite numbers, got .*b"),
        (((0.0,), (1.0, 1.0), (1, (1.0,))), "weights: row 0: expected finite numbers, got 1"),
        ((("a",), (1.0, 1.0), ((), (1.0,))), "times: expected finite numbers"),
        (((0.0,), (1.0, 1.0), ((), (1.0,)), (0.0,)), "span: expected 2 numbers"),
        (((0.0,), (1.0, 1.0), ((), (1.0,)), (0.0, None)), "span: expected finite numbers"),
        (((0.0,), (1.0, 1.0), ((), (1.0,)), None, (1.0, 0.0)), "quadrature: expected 1 numbers"),
        (((0.0,), (1.0, 1.0), ((), (1.0,)), None, (float("inf"),)), "quadrature: expected finite numbers"),
    ],
)
def test_bad_tables_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MultistepTable(*arguments)


def test_a_table_of_ones_own():
    """Ralston's method of one step, as a table."""
    table = MultistepTable((0.0, 2 / 3), (1.0, 1.0, 1.0), ((), (2 / 3,), (1 / 4, 3 / 4)))
    ours, ralston = (dise.solve(Net(), Y0, 0.0, 1.0, m).y for m in (Multistep(table), dise.Ralston(1)))
    torch.testing.assert_close(ours, ralston, rtol=1e-14, atol=1e-14)
    assert str(Multistep(table)) == "Multistep(2 evaluations)"
    with pytest.raises(TypeError, match="table: expected a MultistepTable, got tuple"):
        Multistep((1, 2))
