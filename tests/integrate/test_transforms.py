"""Fixed-step solves under torch.func, as torch.export graphs, and in ONNX Runtime."""

import math

import onnxruntime
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dise import RK4, RKC1, Adams, Cascade, Dopri5, Dynamic, Euler, Heun, HeunEuler, NeuralODE, StepDoubling, solve

fixed = pytest.mark.parametrize("integrator", [Euler(1), Heun(2), RK4(2), RKC1(2, 3)], ids=str)


class Model(nn.Module):
    """A head on a NeuralODE whose field is time-dependent."""

    def __init__(self, integrator, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)
        self.block = NeuralODE(Field(self.net), integrator)
        self.head = nn.Linear(2, 3).to(dtype)

    def forward(self, y):
        return self.head(self.block(y))


class Field(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, t, y):
        return self.net(y) * torch.cos(t)


@pytest.fixture
def y():
    return torch.randn(4, 2, generator=torch.Generator().manual_seed(1))


# ---- torch.func


@fixed
def test_vmap_is_a_batch(y, integrator):
    model = Model(integrator)
    assert_close(torch.func.vmap(lambda row: model(row[None])[0])(y), model(y))


def test_vmap_over_parameters():
    """y' = w·y for many w at once."""
    rates = torch.linspace(-1, 1, 5, dtype=torch.float64)
    y0 = torch.ones(3, 2, dtype=torch.float64)
    ends = torch.func.vmap(lambda w: solve(lambda t, y: w * y, y0, 0.0, 1.0, RK4(20)).y)(rates)
    assert_close(ends, rates.exp()[:, None, None].expand(5, 3, 2), rtol=1e-6, atol=0)


def test_vmap_over_spans():
    """y' = −y to many ends at once, one of which is the start."""
    y0, ends = torch.ones(3, 2, dtype=torch.float64), torch.linspace(-1, 1, 5, dtype=torch.float64)
    states = torch.func.vmap(lambda t1: solve(lambda t, y: -y, y0, 0.0, t1, RK4(20)).y)(ends)
    assert_close(states, (-ends).exp()[:, None, None].expand(5, 3, 2), rtol=1e-6, atol=0)
    ends = ends[ends != 0]
    slope = torch.func.vmap(torch.func.jacrev(lambda t1: solve(lambda t, y: -y, y0, 0.0, t1, RK4(20)).y.sum()))(ends)
    assert_close(slope, -6 * (-ends).exp(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("jacobian", [torch.func.jacrev, torch.func.jacfwd])
def test_jacobians_are_matrix_exponentials(jacobian):
    """y' = A y: the Jacobian of y(1) in y(0) is exp(A)."""
    A = torch.tensor([[0.3, -1.0], [0.7, -0.2]], dtype=torch.float64)

    def end(y0):
        return solve(lambda t, y: y @ A.T, y0[None], 0.0, 1.0, RK4(50)).y[0]

    assert_close(jacobian(end)(torch.ones(2, dtype=torch.float64)), torch.linalg.matrix_exp(A), rtol=1e-7, atol=1e-8)


VAN_DER_POL = torch.tensor([[1.0, 0.5], [0.3, -1.0]], dtype=torch.float64)


def van_der_pol(t, y):
    return torch.stack((y[..., 1], 2 * (1 - y[..., 0] ** 2) * y[..., 1] - y[..., 0]), -1)


def assert_forward_mode_is_reverse_mode(function, x):
    """By `torch.func.jvp` and by dual numbers, in the direction of ones."""
    direction = torch.ones_like(x)
    leaf = x.clone().requires_grad_()
    (backward,) = torch.autograd.grad(function(leaf).sum(), leaf)
    _, tangent = torch.func.jvp(function, (x,), (direction,))
    assert_close(tangent.sum(), backward.sum(), rtol=1e-9, atol=1e-9)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, direction)
        tangent = torch.autograd.forward_ad.unpack_dual(function(dual)).tangent
    assert_close(tangent.sum(), backward.sum(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("differentiate_step_sizes", [False, True])
@pytest.mark.parametrize("first_step", ["heuristic", "scale", 0.1])
@pytest.mark.parametrize("method", [Dopri5, HeunEuler, Adams])
def test_forward_mode_takes_step_sizes_as_reverse_mode_does(method, first_step, differentiate_step_sizes):
    """At a loose tolerance the derivative of the step sizes would be as large as the rest."""
    integrator = method(rtol=1e-3, atol=1e-3, first_step=first_step)
    options = {"differentiate_step_sizes": differentiate_step_sizes}
    assert_forward_mode_is_reverse_mode(lambda y: solve(van_der_pol, y, 0.0, 3.0, integrator, **options).y, VAN_DER_POL)


def test_forward_mode_of_times():
    """An event's time by the implicit function theorem, ends of spans, and points at and after the start."""
    y0, integrator = VAN_DER_POL, Dopri5(rtol=1e-6, atol=1e-6)
    time = lambda y: solve(van_der_pol, y, 0.0, 20.0, integrator, event=lambda t, y: y[..., 0] + 0.2).t  # noqa: E731
    assert_forward_mode_is_reverse_mode(time, y0)
    bound = torch.tensor(0.2, dtype=torch.float64)
    time = lambda c: solve(van_der_pol, y0, 0.0, 20.0, integrator, event=lambda t, y: y[..., 0] + c).t  # noqa: E731
    assert_forward_mode_is_reverse_mode(time, bound)
    points = torch.tensor([0.0, 0.5, 1.7, 3.0], dtype=torch.float64)
    saved = lambda t: solve(van_der_pol, y0, 0.0, 3.0, integrator, save_at=t).saved  # noqa: E731
    assert_forward_mode_is_reverse_mode(saved, points)
    for span in (lambda t: (t, 3.0), lambda t: (0.0, t)):
        end = lambda t, span=span: solve(van_der_pol, y0, *span(t), integrator).y  # noqa: E731
        assert_forward_mode_is_reverse_mode(end, torch.tensor(1.0, dtype=torch.float64))


def test_jacobians_of_a_batch(y):
    model = Model(RK4(2))
    one_by_one = torch.stack([torch.func.jacrev(lambda row: model(row[None])[0])(row) for row in y])
    together = torch.func.vmap(torch.func.jacrev(lambda row: model(row[None])[0]))(y)
    assert_close(together, one_by_one)
    full = torch.autograd.functional.jacobian(model, y)
    assert_close(together, torch.stack([full[i, :, i] for i in range(4)]))


BY_VALUES = {
    "adaptive": Dopri5(),
    "not FSAL": HeunEuler(),
    "chosen": Dynamic([RK4(2), Euler(1)], lambda h0, k1: torch.stack([h0[:, 0], -h0[:, 0]], 1)),
    "cascade": Cascade([StepDoubling(Euler(1)), RK4(1)], accept=lambda y: y[:, 0] > 0),
}
by_values = pytest.mark.parametrize("integrator", BY_VALUES.values(), ids=BY_VALUES.keys())


@by_values
def test_values_cannot_be_mapped(y, integrator):
    """Over states, parameters or spans; and Jacobians sample by sample."""

    def end(row, rate=1.0, t1=1.0):
        return solve(lambda t, y: rate * y, row[None], 0.0, t1, integrator).y[0]

    runs = [
        lambda: torch.func.vmap(end)(y),
        lambda: torch.func.vmap(torch.func.jacrev(end))(y),
        lambda: torch.func.vmap(lambda rate: end(y[0], rate))(torch.ones(3)),
    ]
    if not isinstance(integrator, Dynamic):  # whose choice is made at the start
        runs.append(lambda: torch.func.vmap(lambda t1: end(y[0], 1.0, t1))(torch.ones(3)))
    for run in runs:
        with pytest.raises(ValueError, match=r"integrator: .*torch.vmap.*RK4.*sample_args"):
            run()


@by_values
def test_jacobians_need_no_map(integrator):
    """Samples do not depend on each other, so the Jacobian of the sum has each sample's."""
    y0, one = torch.randn(3, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    jacobians = torch.func.jacrev(lambda y: solve(lambda t, y: -y, y, 0.0, 1.0, integrator).y.sum(0))(y0)
    assert jacobians.shape == (2, 3, 2)
    alone = torch.func.jacrev(lambda y: solve(lambda t, y: -y, y, 0.0, 1.0, integrator).y.sum(0))
    assert_close(jacobians[:, 1], alone(y0[1:2])[:, 0])
    assert alone(one).shape == (2, 1, 2)


@by_values
def test_values_cannot_be_traced(y, integrator):
    """torch.jit.trace keeps the example's steps and choices: wrong for other inputs."""
    model = Model(integrator)
    for run in (
        lambda: torch.jit.trace(model, (y,)),
        lambda: torch.export.export(model, (y,), strict=False),
    ):
        with pytest.raises(Exception, match=r"integrator: .*(torch.jit.trace|torch.export).*RK4"):
            run()


@pytest.mark.parametrize(
    "options",
    [{"save_at": [0.5]}, {"dense": True}, {"event": lambda t, y: y[:, 0] - 0.5}, {"record": True}],
    ids=lambda options: next(iter(options)),
)
def test_what_is_kept_of_steps_cannot_be_mapped(y, options):
    with pytest.raises(ValueError, match=r"save_at, dense, record, progress or event .*torch.vmap"):
        torch.func.vmap(lambda row: solve(lambda t, y: -y, row[None], 0.0, 1.0, RK4(2), **options).y)(y)


def test_events_cannot_be_traced(y):
    stop = lambda t, y: y[:, 0] - 0.5  # noqa: E731
    with pytest.raises(ValueError, match=r"progress or event depends on values, but torch.jit.trace"):
        torch.jit.trace(lambda y: solve(lambda t, y: -y, y, 0.0, 1.0, RK4(2), event=stop).y, (y,))


@fixed
def test_a_traced_solve_of_fixed_steps_is_the_solve(y, integrator):
    model = Model(integrator)
    traced = torch.jit.trace(model, (y,), check_trace=False)
    for inputs in (5 * y, torch.randn(7, 2)):
        assert_close(traced(inputs), model(inputs))


@pytest.mark.parametrize("gradient", ["checkpoint", "backsolve"])
def test_transforms_differentiate_direct_solves_only(y, gradient):
    def end(y, gradient):
        return solve(lambda t, y: -y, y, 0.0, 1.0, RK4(2), gradient=gradient).y.sum()

    for transform in (torch.func.grad, torch.func.jacrev, torch.func.jacfwd):
        with pytest.raises(ValueError, match=r"gradient: torch.func's transforms .*gradient='direct'"):
            transform(end)(y, gradient)
        assert_close(transform(end)(y, "direct"), torch.full_like(y, math.exp(-1)), atol=1e-3, rtol=0)


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacrev, torch.func.vmap])
def test_transforms_and_graphs_do_not_go_together(y, transform):
    def end(y):
        return solve(lambda t, y: -y, y.reshape(-1, 1), 0.0, 1.0, RK4(2), compile=True).y.sum()

    with pytest.raises(ValueError, match=r"compile: torch.func's transforms .*compile=False"):
        transform(end)(y)


# ---- export


@fixed
def test_exported_graph_is_the_solve(y, integrator):
    model = Model(integrator)
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (y,), dynamic_shapes={"y": {0: batch}}, strict=False)
    for inputs in (y, torch.randn(7, 2)):
        assert_close(program.module()(inputs), model(inputs))


def test_the_end_of_the_span_may_be_an_input(y):
    class ToTheEnd(nn.Module):
        def forward(self, y, t1):
            return solve(lambda t, y: -2 * t * y, y, 0.0, t1, RK4(6)).y

    program = torch.export.export(ToTheEnd(), (y, torch.ones(4)), strict=False).module()
    t1 = torch.tensor([0.5, -1.0, 0.0, 0.9])
    assert_close(program(y, t1), y * (-(t1**2)).exp()[:, None], rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="torch 2.6 cannot decompose addcmul of any batch size")
@pytest.mark.parametrize("integrator", [Heun(2), RKC1(1, 3)], ids=str)
def test_onnx_runtime_computes_the_solve(y, integrator, tmp_path):
    model = Model(integrator).eval()
    program = torch.onnx.export(
        model, (y,), dynamo=True, dynamic_shapes={"y": {0: torch.export.Dim("batch")}}, verbose=False
    )
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for inputs in (y, torch.randn(7, 2)):
        (found,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
        assert_close(torch.from_numpy(found), model(inputs).detach(), rtol=1e-5, atol=1e-6)


def test_onnx_runtime_knows_the_exponential(tmp_path):
    """A reference that neither torch nor this library computed."""

    class Decay(nn.Module):
        def forward(self, y):
            return solve(lambda t, y: -2 * t * y, y, 0.0, 1.0, RK4(3)).y

    program = torch.onnx.export(Decay().eval(), (torch.ones(3, 1),), dynamo=True, verbose=False)
    program.save(tmp_path / "decay.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "decay.onnx")
    (end,) = session.run(None, {session.get_inputs()[0].name: torch.tensor([[1.0], [2.0], [-3.0]]).numpy()})
    assert end[:, 0].tolist() == pytest.approx([math.exp(-1), 2 * math.exp(-1), -3 * math.exp(-1)], rel=1e-3)
