"""What users of such libraries do with solvers, varied: the right value, or an error that says what to do."""

import inspect
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchdiffeq
from torch import nn
from torch.func import functional_call, jacrev, vmap
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import dise.torchdiffeq
from dise import RK4, Bosh3, Cascade, Dopri5, Heun, NeuralODE, Tsit5, resume, solve
from dise.torchdiffeq import odeint, odeint_adjoint

DOUBLE = torch.float64


class Net(nn.Module):
    def __init__(self, size=2, dtype=DOUBLE):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(size, size, dtype=dtype)
        self.dtypes = []

    def forward(self, t, y):
        value = self.layer(y)
        self.dtypes.append(value.dtype)
        return torch.tanh(value) * (1 + t)


@pytest.mark.parametrize("batched", [True, False])
def test_f_that_scales_t_in_place_backwards(batched):
    def f(t, y):
        t.mul_(2)
        return {"y": t * y["y"]}

    with pytest.raises(RuntimeError, match="f: changed t in place; work on a copy"):
        solve(f, {"y": torch.ones(2, 1)}, 1.0, 0.0, Bosh3(), batched=batched)
    plain = lambda t, y: t.mul_(2) * y  # noqa: E731
    y = odeint(plain, torch.ones(1).double(), torch.tensor([1.0, 0.0]).double(), method="bosh3", rtol=1e-6, atol=1e-8)
    assert y[1].item() == pytest.approx(math.exp(-1), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stamps_of_today_backwards(dtype):
    epoch, y0 = 1.7e9, torch.ones(1, 1, dtype=dtype)
    saved = solve(lambda t, y: -0.1 * y, y0, epoch + 10, epoch, Tsit5(), save_at=[epoch + 5]).saved
    assert saved.item() == pytest.approx(math.exp(0.5), rel=1e-2)
    with pytest.raises(dise.SolveError, match="precision"):
        solve(lambda t, y: -0.1 * y, y0, 1e17, 1e17 + 64, Tsit5())


@pytest.mark.parametrize("interface", [odeint, odeint_adjoint])
def test_half_precision_in_a_tuple(interface):
    class Field(nn.Module):
        def forward(self, t, y):
            assert {t.dtype, y[0].dtype, y[1].dtype} == {torch.bfloat16}
            return torch.cat([y[0], t.expand(3, 1)], 1)[:, 1:] - y[0], -y[1]

    y0 = torch.ones(3, 2, dtype=torch.bfloat16), torch.ones(1, dtype=torch.bfloat16)
    y = interface(Field(), y0, torch.tensor([0.0, 1.0]), method="rk4", options={"step_size": 0.25})
    assert y[1].dtype == torch.bfloat16
    assert y[1][1].item() == pytest.approx(math.exp(-1), rel=2e-2)


def test_options_of_another_method_going_back():
    f, y0 = Net(dtype=torch.float32), torch.ones(3, 2, requires_grad=True)
    call = {"method": "euler", "options": {"step_size": 0.1, "max_num_steps": 9}, "adjoint_method": "bosh3"}
    with pytest.warns(UserWarning, match="options: euler ignores 'max_num_steps'"):
        y = odeint_adjoint(f, y0, torch.tensor([0.0, 1.0]), adjoint_options={"step_size": 0.1}, **call)
    with pytest.warns(UserWarning, match="options: bosh3 ignores 'step_size'"):
        y[1].sum().backward()
    assert y0.grad.isfinite().all()


def test_defaults_in_float32_far_from_zero():
    """The spiral of torchdiffeq's README with its default tolerances, which float32 cannot reach."""
    matrix, y0 = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]]), torch.tensor([[2.0, 0.0]])
    t, calls = torch.tensor([3000.0, 3005.0]), [0, 0]
    for k, module in enumerate((dise.torchdiffeq, torchdiffeq)):

        def f(t, y, k=k):
            calls[k] += 1
            return y**3 @ matrix

        y = module.odeint(f, y0, t)
    exact = odeint(lambda t, y: y**3 @ matrix.double(), y0.double(), t.double() - 3000)
    assert_close(odeint(f, y0, t)[1].double(), exact[1], rtol=2e-3, atol=2e-3)
    assert_close(y[1].double(), exact[1], rtol=2e-3, atol=2e-3)
    assert calls[0] / 2 <= 1.5 * calls[1]


def test_two_crossings_within_a_step_backwards():
    straight = lambda t, y: torch.ones_like(y)  # noqa: E731
    event = lambda t, y: (y[:, 0] - 2.5) * (y[:, 0] - 5)  # noqa: E731
    solution = solve(straight, torch.full((2, 1), 10.0).double(), 10.0, 0.0, Tsit5(first_step=10.0), event=event)
    assert_close(solution.t, torch.tensor([5.0, 5.0]).double())
    assert solution.event.all()


@pytest.mark.parametrize("backwards", [False, True])
def test_doses_at_different_numbers_of_times(backwards):
    dose = torch.tensor([[2.0, 6.0], [5.3, 0.0], [7.7, 8.0]], dtype=DOUBLE)
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    width, t0, t1 = 0.01, *((10.0, 0.0) if backwards else (0.0, 10.0))

    def f(t, y, dose, mask):
        given = (t >= dose) & (t < dose + width) & mask
        return -0.2 * y + 100 * given.sum(1, keepdim=True)

    jumps = torch.cat([dose, dose + width], 1)
    options = {"sample_args": (dose, mask), "jump_at": jumps, "jump_mask": mask.repeat(1, 2)}
    solution = solve(f, torch.ones(3, 1, dtype=DOUBLE), t0, t1, Bosh3(rtol=1e-7, atol=1e-7), **options)
    decayed = lambda since: torch.exp(-0.2 * (t1 - since))  # noqa: E731
    doses = 500 * (decayed(dose + width) - decayed(dose)) * mask * (-1 if backwards else 1)
    exact = decayed(torch.tensor(t0)) + doses.sum(1, keepdim=True)
    assert_close(solution.y, exact, rtol=1e-4, atol=1e-6)


def test_transforms_of_tuples():
    f = lambda t, y: (-y[0], y[0] - y[1])  # noqa: E731
    run = lambda x: solve(f, (x, 0 * x), 0.0, 1.0, Tsit5(rtol=1e-10, atol=1e-10), batched=False).y[1]  # noqa: E731
    x = torch.tensor([0.3, 2.0], dtype=DOUBLE)
    assert_close(jacrev(run)(x), torch.eye(2, dtype=DOUBLE) * math.exp(-1))
    with pytest.raises(ValueError, match="integrator: an adaptive solve"):
        vmap(run)(x[:, None])
    with pytest.raises(ValueError, match="integrator: an adaptive solve"):
        vmap(lambda x: odeint(lambda t, y: -y, x, torch.tensor([0.0, 1.0])))(x[:, None])


@pytest.mark.parametrize("gradient", ["checkpoint", "backsolve"])
def test_weights_given_to_a_block(gradient):
    model = nn.Sequential(NeuralODE(Net(), RK4(8) if gradient == "checkpoint" else Tsit5(rtol=1e-9, atol=1e-9)))
    model.requires_grad_(False)
    x, found = torch.tensor([[0.4, -1.0]], dtype=DOUBLE), {}
    for mode in ("direct", gradient):
        model[0].options = replace(model[0].options, gradient=mode)
        weights = {name: (2 * value).detach().requires_grad_() for name, value in model.named_parameters()}
        functional_call(model, weights, (x,)).sum().backward()
        found[mode] = [weight.grad for weight in weights.values()]
    assert_close(found[gradient], found["direct"], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("gradient", ["checkpoint", "backsolve"])
def test_autocast_of_one_system(gradient):
    f, y0 = Net(dtype=torch.float32), torch.ones(3, 2, requires_grad=True)
    field = lambda t, y: f(t, y).float()  # noqa: E731
    with torch.autocast("cpu", torch.bfloat16):
        y = solve(field, y0, 0.0, 1.0, Heun(steps=4), batched=False, gradient=gradient if gradient != "backsolve" else
                  dise.Backsolve(integrator=Heun(steps=4))).y  # fmt: skip
    f.dtypes.clear()
    y.sum().backward()
    assert set(f.dtypes) == {torch.bfloat16}


@pytest.mark.parametrize("second", [Heun(2), Bosh3(rtol=1e-3, atol=1e-3, first_step="span")], ids=str)
def test_a_cascade_resumed_backwards(second):
    f, y0 = (lambda t, y: torch.sin(3 * y) + t), torch.linspace(-1, 1, 3, dtype=DOUBLE)[:, None]
    first = solve(f, y0, 3.0, torch.tensor([2.5, 2.0, 2.9], dtype=DOUBLE), Tsit5(rtol=1e-6, atol=1e-6))
    never = lambda y: torch.zeros(len(y), dtype=torch.bool)  # noqa: E731
    probe = Bosh3(rtol=1e-2, atol=1e-2, first_step="span", max_steps=1)
    chosen = resume(first, f, 0.5, Cascade((probe, second), never))
    assert chosen.choice.tolist() == [1, 1, 1]
    assert_close(chosen.y, resume(first, f, 0.5, second).y, rtol=1e-12, atol=1e-12)


def test_an_infinite_neighbour_of_a_cascade_is_alone():
    f = lambda t, y, p: torch.where(p > 5, torch.inf, -p * y)  # noqa: E731
    p = torch.tensor([[1.0], [9.0], [2.0]], dtype=DOUBLE)
    y0, accept = torch.ones(3, 1, dtype=DOUBLE), lambda y: y[:, 0] < 3
    cascade = Cascade((Heun(), Bosh3(first_step="span")), accept)
    whole = solve(f, y0, 1.0, 0.0, cascade, sample_args=(p,), throw=False)
    assert whole.choice.tolist()[::2] == [0, 1]
    for i in range(3):
        row = slice(i, i + 1)
        alone = solve(f, y0[row], 1.0, 0.0, cascade, sample_args=(p[row],), throw=False)
        assert (alone.status[0], alone.choice[0]) == (whole.status[i], whole.choice[i])
        assert_close(alone.y[0], whole.y[i], rtol=1e-14, atol=0)


def test_save_points_of_steps_finer_than_the_clock():
    t1 = 1e7 + 1e-6
    solution = solve(lambda t, y: -y, torch.ones(1, 1), 1e7, t1, RK4(50), save_at=[1e7, t1], throw=False)
    if solution.status == 0:
        assert_close(solution.saved.flatten(), torch.ones(2))
    else:
        assert solution.status == dise.Status.STEP_UNDERFLOW
    a = torch.nn.Parameter(torch.ones(1, 1))
    saved = solve(lambda t, y: -a * y, torch.ones(1, 1), 1.0, 1.00001, Heun(200), save_at=[1.00001, 1.0]).saved
    saved.sum().backward()
    assert a.grad.item() == pytest.approx(-1e-5, rel=1e-2)


def test_an_f_that_mixes_rows_has_all_of_them():
    f = lambda t, y: y - y.mean(0)  # noqa: E731
    y0 = torch.linspace(-1, 2, 4)[:, None].double()
    one = solve(f, y0, 1.0, 0.0, Dopri5(rtol=1e-9, atol=1e-9), batched=False).y
    assert_close(one, (y0 - y0.mean()) / math.e + y0.mean(), rtol=1e-7, atol=1e-7)
    sizes = []
    seen = lambda t, y: (sizes.append(len(y)), f(t, y))[1]  # noqa: E731
    t1 = torch.tensor([0.1, 0.5, 1.0, 2.0]).double()
    solve(seen, y0, 0.0, t1, Dopri5(), drop_finished=False)
    assert set(sizes) == {4}


@pytest.mark.filterwarnings("ignore")
def test_traced_blocks_are_refused():
    block = NeuralODE(Net(dtype=torch.float32), Tsit5())
    with pytest.raises(Exception, match=r"trac|export"):
        torch.jit.trace(block, torch.ones(2, 2))


def test_errors_in_f_say_how_it_was_called():
    with pytest.raises(IndexError) as caught:
        solve(lambda t, y: y[5], {"a": torch.ones(3, 2)}["a"], 1.0, 0.0, RK4(2))
    assert "f was called with t of shape (3, 1) and y of shape (3, 2)" in "".join(caught.value.__notes__)


def test_an_event_that_never_happens_backwards():
    with pytest.raises(dise.SolveError, match="event"):
        solve(lambda t, y: -y, torch.ones(2, 1), 0.0, -math.inf, Dopri5(max_steps=40), event=lambda t, y: t[:, 0] - 1)


class Operators(TorchDispatchMode):
    number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.number += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("points", [2, 9])
def test_samples_that_are_alike_cost_no_more_than_one_system(dtype, points):
    """Backwards, with save points: operators of `solve` beside those of `odeint`, which has one step for all."""
    f, y0, t = Net(dtype=dtype), torch.ones(64, 2, dtype=dtype), torch.linspace(2, 0, points, dtype=DOUBLE)
    number, calls = [], []
    for run in (
        lambda: solve(f, y0, 2.0, 0.0, Tsit5(rtol=1e-4, atol=1e-4), save_at=t if points > 2 else None),
        lambda: odeint(f, y0, t, method="tsit5", rtol=1e-4, atol=1e-4),
    ):
        f.dtypes.clear()
        with torch.no_grad(), Operators() as operators:
            run()
        number.append(operators.number)
        calls.append(len(f.dtypes))
    assert calls[0] <= calls[1]
    assert number[0] <= 1.1 * number[1]


@pytest.mark.parametrize("method", [Bosh3, Dopri5, Tsit5, dise.Dopri8, dise.HeunEuler, dise.Fehlberg2])
def test_default_tolerances_are_those_of_the_page_on_moving(method):
    page = (Path(__file__).parents[2] / "docs/guide/moving.md").read_text(encoding="utf-8")
    assert "`odeint` has rtol = 1e-7 and atol = 1e-9, `Dopri5()` has 1e-3 for both" in page
    for interface in (odeint, odeint_adjoint, torchdiffeq.odeint):
        defaults = inspect.signature(interface).parameters
        assert (defaults["rtol"].default, defaults["atol"].default) == (1e-7, 1e-9)
    assert (method().rtol, method().atol) == (1e-3, 1e-3)
