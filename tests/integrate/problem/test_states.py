"""Every kind of state: structures and dtypes, their values, norms and gradients."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch.autograd import gradcheck
from torch.testing import assert_close

from dise import (
    RK4,
    Adams,
    Bosh3,
    Cascade,
    Dopri5,
    Dopri8,
    Dynamic,
    Euler,
    HeunEuler,
    KineticEnergy,
    NeuralODE,
    PIController,
    Status,
    StepDoubling,
    Tsit5,
    max_norm,
    solve,
)

INTEGRATORS = [
    Euler(3),
    StepDoubling(RK4(2)),
    *(method(rtol=1e-4, atol=1e-4) for method in (HeunEuler, Bosh3, Dopri5, Tsit5, Dopri8, Adams)),
    Dopri5(rtol=1e-4, atol=1e-4, controller=PIController(), norm=max_norm),
]
every = pytest.mark.parametrize("integrator", INTEGRATORS, ids=str)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ---- structures


def swirl(a, b):
    return torch.sin(3 * a) + b.mean(dim=(1, 2))[:, None], torch.cos(b) * a[:, :2, None]


def swirl_tuple(t, y):
    return swirl(*y)


def swirl_dict(t, y):
    assert isinstance(y, dict)
    assert list(y) == ["position", "field"]
    assert t.shape == (len(y["position"]), 1)
    da, db = swirl(y["position"], y["field"])
    return {"field": db, "position": da}  # in another order than y


A, B = draw(3, 2), draw(3, 2, 2, seed=1)


@every
def test_a_dict_is_a_tuple_with_names(integrator):
    options = {"save_at": [0.2, 0.7], "accumulate": lambda step: step.dt}
    as_tuple = solve(swirl_tuple, (A, B), 0.0, 1.0, integrator, **options)
    as_dict = solve(swirl_dict, {"position": A, "field": B}, 0.0, 1.0, integrator, **options)
    assert type(as_dict.y) is dict
    assert list(as_dict.y) == list(as_dict.saved) == ["position", "field"]
    assert_close(tuple(as_dict.y.values()), as_tuple.y, rtol=0, atol=0)
    assert_close(tuple(as_dict.saved.values()), as_tuple.saved, rtol=0, atol=0)
    assert_close(as_dict.error, as_tuple.error, rtol=0, atol=0, equal_nan=True)
    assert as_dict.nfe.tolist() == as_tuple.nfe.tolist()


@pytest.mark.parametrize("batched", [True, False])
def test_the_structure_comes_back(batched):
    for y0 in (A, (A,), (A, B), {"position": A}, {"position": A, "field": B}):
        f = lambda t, y: y  # noqa: E731
        solution = solve(f, y0, 0.0, 1.0, RK4(1), batched=batched, save_at=[0.5])
        for state, times in ((solution.y, ()), (solution.saved, (1,))):
            assert type(state) is type(y0)
            parts = state.values() if isinstance(state, dict) else state if isinstance(state, tuple) else (state,)
            starts = y0.values() if isinstance(y0, dict) else y0 if isinstance(y0, tuple) else (y0,)
            for part, start in zip(parts, starts, strict=True):
                shape = (3, *times, *start.shape[1:]) if batched else (*times, *start.shape)
                assert part.shape == shape


def test_samples_of_a_dict_leave_the_batch_on_their_own(record):
    y0, rate = {"a": torch.ones(4, 2), "b": torch.ones(4)}, torch.tensor([1.0, 50.0, 5.0, 0.1])
    f = lambda t, y, rate: {"a": -rate[:, None] * y["a"], "b": y["a"].sum(1)}  # noqa: E731
    counted = record(f)
    solution = solve(counted, y0, 0.0, 1.0, Dopri5(), sample_args=(rate,))
    assert counted.rows == solution.nfe.sum()
    assert_close(solution.y["a"], torch.exp(-rate)[:, None].expand(4, 2), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    "value",
    [
        lambda y: y["a"],
        lambda y: (y["a"], y["b"]),
        lambda y: {"a": y["a"]},
        lambda y: {"a": y["a"], "b": y["b"], "c": y["b"]},
        lambda y: {"a": y["b"], "b": y["a"]},
        lambda y: {"a": y["a"], "b": None},
    ],
)
def test_f_of_a_dict_returns_such_a_dict(value):
    y0 = {"a": torch.ones(2, 3), "b": torch.ones(2)}
    with pytest.raises(ValueError, match=r"f: expected dy/dt of shape \{'a': \(2, 3\), 'b': \(2,\)\} like y, got"):
        solve(lambda t, y: value(y), y0, 0.0, 1.0, Euler())


def test_integrators_that_choose_take_dicts():
    """Selectors see the tensors side by side; rules that accept see the dict."""
    y0, seen = {"a": A, "b": draw(3, 1)}, []

    def selector(h0, k1):
        seen.append((h0.shape, k1.shape))
        return torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])

    f = lambda t, y: {"a": -y["a"], "b": y["a"].sum(1, keepdim=True)}  # noqa: E731
    dynamic = solve(f, y0, 0.0, 1.0, Dynamic([Euler(1), RK4(2)], selector))
    assert seen == [((3, 3), (3, 3))]
    for i, integrator in enumerate([Euler(1), RK4(2), Euler(1)]):
        alone = solve(f, {name: part[i : i + 1] for name, part in y0.items()}, 0.0, 1.0, integrator)
        assert_close({name: part[i : i + 1] for name, part in dynamic.y.items()}, alone.y)
    cascade = solve(f, y0, 0.0, 1.0, Cascade([Euler(1), RK4(2)], lambda y: y["a"][:, 0] > 0))
    assert cascade.choice.tolist() == [int(x <= 0) for x in solve(f, y0, 0.0, 1.0, Euler(1)).y["a"][:, 0]]


def test_a_block_takes_dicts_and_complex_states():
    class Field(torch.nn.Module):
        def forward(self, t, y):
            return {name: t * part for name, part in y.items()}

    block = NeuralODE(Field(), RK4(1))
    y0 = {"a": draw(2, 3, dtype=torch.complex64), "b": draw(2, 1, dtype=torch.complex64)}
    assert list(block(y0)) == ["a", "b"]
    assert_close(block.first_stage(y0, t0=2.0), {name: 2 * part for name, part in y0.items()})


# ---- complex states


def rabi(t, y, detuning=0.3, frequency=2.0):
    """i ψ' = H ψ of a driven two-level system; |ψ₁|² is Rabi's formula."""
    return -0.5j * torch.stack([-detuning * y[:, 0] + frequency * y[:, 1], frequency * y[:, 0] + detuning * y[:, 1]], 1)


def rabis_formula(t, detuning=0.3, frequency=2.0):
    general = math.sqrt(detuning**2 + frequency**2)
    return (frequency / general * math.sin(general * t / 2)) ** 2


@pytest.mark.parametrize(
    ("integrator", "accuracy"),
    [
        (RK4(200), 1e-7),
        (Bosh3(rtol=1e-7, atol=1e-7), 1e-5),
        (Dopri5(rtol=1e-9, atol=1e-9), 1e-7),
        (Tsit5(rtol=1e-9, atol=1e-9, controller=PIController()), 1e-7),
        (Dopri8(rtol=1e-9, atol=1e-9), 1e-7),
    ],
    ids=str,
)
def test_rabi_oscillations(integrator, accuracy):
    y0 = torch.tensor([[1.0, 0.0]], dtype=torch.complex128).expand(3, 2)
    ends = torch.tensor([0.5, 3.0, -2.0], dtype=torch.float64)
    solution = solve(rabi, y0, 0.0, ends, integrator)
    assert solution.t.dtype == solution.error.dtype == solution.dt.dtype == torch.float64
    excited = torch.tensor([rabis_formula(t) for t in ends.tolist()], dtype=torch.float64)
    assert_close(solution.y[:, 1].abs() ** 2, excited, rtol=0, atol=accuracy)
    assert_close((solution.y.abs() ** 2).sum(1), torch.ones(3, dtype=torch.float64), rtol=0, atol=accuracy)


@pytest.mark.host
def test_scipy_agrees_on_a_complex_state():
    theirs = solve_ivp(lambda t, y: 1j * np.sin(t) * y + np.conj(y), (0, 2), [1 + 1j], "DOP853", rtol=1e-11, atol=1e-11)
    y0 = torch.tensor([[1 + 1j]], dtype=torch.complex128)
    ours = solve(lambda t, y: 1j * torch.sin(t) * y + y.conj(), y0, 0.0, 2.0, Dopri5(rtol=1e-10, atol=1e-10)).y
    np.testing.assert_allclose(ours[0], theirs.y[:, -1], rtol=1e-8)


@every
def test_a_complex_state_is_not_two_real_ones_for_the_norm(integrator):
    """The modulus is what is scaled and normed: turning the phase changes no step."""
    y0 = draw(3, 2, dtype=torch.complex128)
    f = lambda t, y: -y * y.abs() + 1j * torch.cos(3 * t) * y  # noqa: E731
    turned = solve(f, y0 * np.exp(0.7j), 0.0, 1.0, integrator)
    solution = solve(f, y0, 0.0, 1.0, integrator)
    assert turned.nfe.tolist() == solution.nfe.tolist()
    assert_close(turned.error, solution.error, rtol=1e-6, atol=1e-9, equal_nan=True)
    assert_close(turned.y, solution.y * np.exp(0.7j), rtol=1e-10, atol=1e-12)


@every
def test_real_numbers_held_as_complex_take_the_same_steps(integrator):
    y0 = draw(3, 2)
    f = lambda t, y: torch.sin(3 * y) + t  # noqa: E731
    real = solve(f, y0, 0.0, 1.0, integrator, save_at=[0.1, 0.6])
    held = solve(f, y0.to(torch.complex128), 0.0, 1.0, integrator, save_at=[0.1, 0.6])
    assert held.nfe.tolist() == real.nfe.tolist()
    assert_close(held.error, real.error, equal_nan=True, rtol=1e-7, atol=1e-12)
    assert_close(held.saved, real.saved.to(torch.complex128))
    assert_close(held.y, real.y.to(torch.complex128))


def test_a_norm_of_a_complex_state_sees_moduli():
    def norm(error):
        assert error.dtype == torch.float64
        assert (error >= 0).all()
        return error.amax(1)

    y0 = draw(2, 3, dtype=torch.complex128)
    ours = solve(lambda t, y: 1j * y, y0, 0.0, 1.0, Dopri5(norm=norm))
    assert_close(ours.error, solve(lambda t, y: 1j * y, y0, 0.0, 1.0, Dopri5(norm=max_norm)).error)


def test_kinetic_energy_of_a_complex_state_is_of_moduli():
    y0 = draw(2, 3, dtype=torch.complex128)
    energy = solve(lambda t, y: 1j * y, y0, 0.0, 2.0, RK4(40), accumulate=KineticEnergy.accumulate).accumulated
    assert_close(energy, 2 * (y0.abs() ** 2).sum(1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("y0", [torch.ones(2, 3), (torch.ones(2, 3), torch.ones(2))])
def test_a_complex_derivative_of_a_real_state_is_refused(y0):
    f = lambda t, y: tuple(1j * part for part in y) if isinstance(y, tuple) else 1j * y  # noqa: E731
    with pytest.raises(TypeError, match=r"f: expected a real dy/dt like y, of torch.float32, got a complex one"):
        solve(f, y0, 0.0, 1.0, Euler())


def test_a_real_derivative_of_a_complex_state_is_a_complex_one():
    y = solve(lambda t, y: y.real, torch.tensor([[1 + 2j]]), 0.0, 1.0, Euler()).y
    assert_close(y, torch.tensor([[2 + 2j]]))


# ---- half precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every
def test_half_precision_is_fs_alone(integrator, dtype):
    """f gets and gives it, t too; errors and the sum of steps are float32, the clock is float64."""

    def f(t, y):
        assert (t.dtype, y.dtype) == (dtype, dtype)
        return -y

    y0 = draw(4, 3, dtype=torch.float32).to(dtype)
    solution = solve(f, y0, 0.0, 1.0, integrator, save_at=[0.5])
    assert solution.y.dtype == solution.saved.dtype == dtype
    assert solution.error.dtype == torch.float32
    assert solution.t.dtype == solution.dt.dtype == torch.float64
    assert solution.status.eq(Status.SUCCESS).all()
    exact = y0.double() * math.exp(-1)
    accuracy = 0.3 if isinstance(integrator, Euler) else 4 * torch.finfo(dtype).eps
    assert_close(solution.y.double(), exact, rtol=accuracy, atol=accuracy)


def test_small_steps_are_not_lost_in_half_precision():
    """A thousand steps of 1/1000 from 1 to 2: in bfloat16, 1 + 1/1000 is 1."""
    y0 = torch.ones(1, 1, dtype=torch.bfloat16)
    assert solve(lambda t, y: torch.ones_like(y), y0, 0.0, 1.0, Euler(1000)).y.item() == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_network_trains(dtype):
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 3, dtype=dtype)
    y0 = draw(4, 3, dtype=torch.float32).to(dtype).requires_grad_()
    solution = solve(lambda t, y: torch.tanh(layer(y)), y0, 0.0, 1.0, Dopri5(rtol=1e-2, atol=1e-2))
    (solution.y.float().square().mean() + solution.error.mean()).backward()
    for x in (y0, *layer.parameters()):
        assert x.grad.dtype == dtype
        assert x.grad.isfinite().all()
        assert x.grad.abs().max() > 0


# ---- gradients, against finite differences

FIXED = [Euler(2), RK4(2), StepDoubling(RK4(1))]
GIVEN = [Dopri5(rtol=0.1, atol=0.1, first_step="span"), Tsit5(rtol=0.1, atol=0.1, first_step="span", norm=max_norm)]


@pytest.mark.parametrize("integrator", FIXED + GIVEN, ids=str)
def test_gradients_of_a_complex_state(integrator):
    y0, weight = (draw(2, 2, seed=seed, dtype=torch.complex128).requires_grad_() for seed in (3, 4))
    t0, t1 = (torch.tensor(t, dtype=torch.float64, requires_grad=True) for t in ([0.1, 0.5], [0.6, 0.1]))

    def ends(y0, weight, t0, t1):
        f = lambda t, y: y @ weight + 1j * torch.sin(t) * y.conj()  # noqa: E731
        solution = solve(f, y0, t0, t1, integrator, save_at=[0.2, 0.4])
        return solution.y, solution.saved

    assert gradcheck(ends, (y0, weight, t0, t1), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("integrator", [StepDoubling(RK4(1)), *GIVEN], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_gradients_of_the_error(integrator, dtype):
    y0, weight = (draw(2, 2, seed=seed, dtype=dtype).requires_grad_() for seed in (3, 4))

    def error(y0, weight):
        return solve(lambda t, y: y @ weight + torch.cos(t) * y, y0, 0.0, 0.5, integrator).error

    assert gradcheck(error, (y0, weight), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("controller", [PIController(), PIController(proportional=0.7, integral=0.4)])
def test_gradients_through_the_pi_controller(controller):
    """Steps that depend on y0 through errors and memory, differentiated exactly."""
    y0, weight = (draw(2, 2, seed=seed).requires_grad_() for seed in (3, 4))
    integrator = Dopri5(rtol=1e-4, atol=1e-4, controller=controller, first_step=0.05)

    def end(y0, weight):
        f = lambda t, y: torch.tanh(3 * y @ weight + t)  # noqa: E731
        solution = solve(f, y0, 0.0, 1.0, integrator, differentiate_step_sizes=True)
        assert (solution.n_accepted > 3).all()
        return solution.y, solution.error

    assert gradcheck(end, (y0, weight), atol=5e-6, rtol=1e-3)


@pytest.mark.parametrize("integrator", FIXED + GIVEN, ids=str)
@pytest.mark.parametrize("names", [None, ("position", "field")])
def test_gradients_of_structured_states(integrator, names):
    a, b = A[:2].clone().requires_grad_(), B[:2].clone().requires_grad_()

    def ends(a, b):
        y0 = (a, b) if names is None else dict(zip(names, (a, b), strict=True))
        y = solve(swirl_tuple if names is None else swirl_dict, y0, 0.0, 0.7, integrator).y
        return y if names is None else tuple(y.values())

    assert gradcheck(ends, (a, b), atol=1e-7, rtol=1e-6)


# ---- every state with the loop's other modes


def parts_of(state):
    return tuple(state.values()) if isinstance(state, dict) else state if isinstance(state, tuple) else (state,)


def decay(t, y):
    if isinstance(y, dict):
        return {name: -part for name, part in y.items()}
    return tuple(-part for part in y) if isinstance(y, tuple) else -y


STATES = {
    "complex": A.to(torch.complex128),
    "bfloat16": A.bfloat16(),
    "dict": {"a": A, "b": B},
    "tuple": (A, B),
    "image": B,
}


def gradients(y0, integrator=None, **options):
    parts = [part.detach().clone().requires_grad_() for part in parts_of(y0)]
    start = dict(zip(y0, parts, strict=True)) if isinstance(y0, dict) else tuple(parts)
    start = start if isinstance(y0, dict | tuple) else parts[0]
    y = solve(decay, start, 0.0, 1.0, integrator or Dopri5(), **options).y
    sum(part.abs().square().sum() for part in parts_of(y)).backward()
    return [part.grad for part in parts]


def test_checkpoints_give_the_same_gradients():
    for y0 in STATES.values():
        assert_close(gradients(y0, gradient="checkpoint"), gradients(y0))


@pytest.mark.host
@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.long)])
def test_one_f_compiles_for_states_of_every_kind(backend):
    for y0 in STATES.values():
        compiled = gradients(y0, Bosh3(), compile={"backend": backend})
        assert_close(compiled, gradients(y0, Bosh3()), rtol=1e-2, atol=1e-2)


def test_dense_output_and_events_know_every_state():
    for y0 in STATES.values():
        half = lambda t, y: (parts_of(y)[0].abs().flatten(1).sum(1) - 0.5).to(t.dtype)  # noqa: E731
        solution = solve(decay, y0, 0.0, 4.0, Tsit5(rtol=1e-6, atol=1e-6), event=half, dense=True)
        assert solution.event.all()
        assert [part.dtype for part in parts_of(solution.evaluate(solution.t[:, None]))] == [
            part.dtype for part in parts_of(y0)
        ]
        accuracy = 2e-2 if y0 is STATES["bfloat16"] else 1e-4
        size = parts_of(solution.y)[0].abs().flatten(1).sum(1).double()
        assert_close(size, torch.full_like(size, 0.5), rtol=accuracy, atol=accuracy)
