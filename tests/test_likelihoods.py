"""Densities: exact ones, tolerances of log p, grids on the way back, and rows that do not depend on their batch."""

import math

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import nn
from torch.testing import assert_close

import dise
from dise import (
    DiagonalNormal,
    Dopri5,
    Euler,
    ExactDivergence,
    Flow,
    Guided,
    HutchinsonDivergence,
    Midpoint,
    Multistep,
    MultistepTable,
    StepDoubling,
    StraightPath,
    grids,
    solve,
)

DOUBLE = torch.float64


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def standard(dim):
    return DiagonalNormal(torch.zeros(dim, dtype=DOUBLE), torch.ones(dim, dtype=DOUBLE))


# ---- exact densities of closed-form fields


class GaussianPath(nn.Module):
    """The straight path's field for data N(mean, R diag(deviation²) Rᵀ), with R orthogonal."""

    def __init__(self, dim):
        super().__init__()
        self.rotation = torch.linalg.qr(noise(dim, dim, seed=dim))[0]
        self.mean, self.deviation = noise(dim, seed=1), torch.linspace(0.2, 1.5, dim, dtype=DOUBLE)

    def forward(self, t, x):
        variance = (t * self.deviation) ** 2 + (1 - t) ** 2
        slope = (t * self.deviation**2 - (1 - t)) / variance
        return self.mean + ((x - t * self.mean) @ self.rotation * slope) @ self.rotation.T

    def log_prob(self, x):
        scale = (self.rotation * self.deviation) @ self.rotation.T
        return torch.distributions.MultivariateNormal(self.mean, scale @ scale.T).log_prob(x)

    def draw(self, n):
        return self.mean + noise(n, len(self.mean), seed=2) * self.deviation @ self.rotation.T


class MixturePath(nn.Module):
    """The straight path's field for data from five normal distributions with deviation ½."""

    def __init__(self, dim):
        super().__init__()
        self.centers = 1.5 * noise(5, dim, seed=dim)

    def forward(self, t, x):
        variance = t**2 / 4 + (1 - t) ** 2
        to_centers = x[:, None] - t[..., None] * self.centers
        weights = (-to_centers.square().sum(2) / 2 / variance).softmax(1)
        velocities = self.centers + ((t / 4 - (1 - t)) / variance)[..., None] * to_centers
        return (weights[..., None] * velocities).sum(1)

    def log_prob(self, x):
        squares = (x[:, None] - self.centers).square().sum(2)
        return (-2 * squares).logsumexp(1) - math.log(5) - x.shape[1] / 2 * math.log(math.pi / 2)

    def draw(self, n):
        return self.centers[torch.arange(n) % 5] + noise(n, self.centers.shape[1], seed=2) / 2


@pytest.mark.parametrize("dim", [2, 16, pytest.param(64, marks=pytest.mark.long)])
@pytest.mark.parametrize("make", [GaussianPath, MixturePath])
def test_exact_densities_are_within_1e_5_nats(make, dim):
    field = make(dim)
    x = field.draw(6)
    with torch.no_grad():
        found = Flow(field, standard(dim), Dopri5(rtol=1e-9, atol=1e-9)).log_prob(x)
    assert_close(found, field.log_prob(x), rtol=0, atol=1e-5)


# ---- tolerances of log p


class Wave(nn.Module):
    """Points at rest, and a divergence size · cos(frequency · t): only log p needs steps."""

    def __init__(self, size, frequency=12.0):
        super().__init__()
        self.size, self.frequency = size, frequency

    def forward(self, t, z):
        return torch.zeros_like(z)

    def with_divergence(self, t, z):
        return torch.zeros_like(z), self.size * torch.cos(self.frequency * t).expand_as(z[..., :1])

    def change(self):
        return self.size * math.sin(self.frequency) / self.frequency


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7])
def test_log_p_is_within_its_own_tolerance(tolerance):
    field, x = Wave(5.0), noise(4, 2)
    expected = standard(2).log_prob(x) - field.change()
    loose = Dopri5(rtol=10.0, atol=10.0, first_step=0.1)
    alone, plain = Flow(field, standard(2), loose).solve(x)
    found, solution = Flow(field, standard(2), loose, log_prob_tolerance=tolerance).solve(x)
    assert ((alone - expected).abs() > 1e-2).all()
    assert ((found - expected).abs() < tolerance).all()
    assert (solution.nfe > plain.nfe).all()


def test_looser_log_densities_need_fewer_evaluations():
    field = MixturePath(2)
    x, integrator = field.draw(20), Dopri5(rtol=1e-3, atol=1e-3)
    nfe, errors = [], []
    for tolerance in (1e-7, 1e-5, 1e-3, 1e3):
        found, solution = Flow(field, standard(2), integrator, log_prob_tolerance=tolerance).solve(x)
        nfe.append(solution.nfe.sum().item())
        errors.append((found - field.log_prob(x)).abs().max().item())
    assert nfe == sorted(nfe, reverse=True)
    assert len(set(nfe)) == 4
    assert errors[0] < 1e-5 < errors[2] < errors[3]
    # with a log p that any step satisfies, the points alone choose the steps
    points = solve(field, x, 1.0, 0.0, integrator)
    assert solution.nfe.tolist() == points.nfe.tolist()


class Recorded(nn.Module):
    """A function as a module."""

    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, t, z):
        return self.f(t, z)


def test_the_tolerance_applies_to_densities_of_samples_to_policies_and_to_parts(record):
    field, integrator = MixturePath(2), Dopri5(rtol=1e-2, atol=1e-2)

    def rows(integrator, tolerance, call):
        f = record(field)
        call(Flow(Recorded(f), standard(2), integrator, log_prob_tolerance=tolerance))
        return f.rows

    x = field.draw(5)
    policy = dise.Dynamic([Euler(2), integrator], lambda h0, k1: torch.tensor([[1.0, 0.0]]).expand(len(h0), 2))
    for call, how in [
        (lambda flow: flow.sample(5, with_log_prob=True), integrator),
        (lambda flow: flow.until(0.9).log_prob(x), integrator),
        (lambda flow: flow.log_prob(x), dise.Cascade([integrator])),
        (lambda flow: flow.log_prob(x), policy),
    ]:
        torch.manual_seed(0)
        few = rows(how, None, call)
        torch.manual_seed(0)
        assert rows(how, 1e-6, call) > 1.3 * few
    torch.manual_seed(0)
    x = Flow(field, standard(2), integrator).sample(5)
    torch.manual_seed(0)
    assert torch.equal(Flow(field, standard(2), integrator, log_prob_tolerance=1e-9).sample(5), x)


def test_points_may_have_a_tolerance_per_coordinate_beside_that_of_log_p():
    field = MixturePath(2)
    flow = Flow(field, standard(2), Dopri5(rtol=torch.tensor([1e-4, 1e-5])), log_prob_tolerance=1e-4)
    x = field.draw(5)
    assert_close(flow.log_prob(x), field.log_prob(x), rtol=0, atol=1e-2)


@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan, "1e-3", True])
def test_bad_tolerances_are_refused(value):
    with pytest.raises(ValueError, match="log_prob_tolerance: expected a finite number above 0"):
        Flow(MixturePath(2), standard(2), Dopri5(), log_prob_tolerance=value)


# ---- grids on the way back


class Clock(nn.Module):
    """A field at rest that keeps the times at which it is evaluated."""

    def __init__(self):
        super().__init__()
        self.times = []

    def forward(self, t, z):
        self.times.append(t.flatten()[0].item())
        return z * 0


def times_of(call, integrator, **options):
    field = Clock()
    call(Flow(field, standard(2), integrator, **options))
    return field.times


def log_prob(flow):
    return flow.log_prob(torch.zeros(3, 2, dtype=DOUBLE))


def sample(flow):
    return flow.sample(3)


GRID = grids.power(4, 2.0)  # 0, 1/16, 1/4, 9/16, 1


@pytest.mark.parametrize(
    "make",
    [
        Euler,
        lambda grid: Multistep.adams(grid, 1),
        lambda grid: Multistep.adams(grid, 2),
        lambda grid: Multistep.ipndm(grid),
        lambda grid: Multistep.of(Euler(grid)),
        lambda grid: dise.Cascade([Euler(grid)]),
        lambda grid: dise.Dynamic([Euler(grid)], lambda h0, k1: torch.zeros(len(h0), 1)),
    ],
    ids=["Euler", "AB1", "AB2", "iPNDM", "table", "Cascade", "Dynamic"],
)
@pytest.mark.parametrize("grid", [GRID, grids.of([0.0, 1 / 16, 1 / 4, 9 / 16, 1.0])], ids=["fractions", "times"])
def test_densities_use_the_times_of_samples(make, grid):
    assert times_of(sample, make(grid)) == pytest.approx([0, 1 / 16, 1 / 4, 9 / 16])
    assert times_of(log_prob, make(grid)) == pytest.approx([1, 9 / 16, 1 / 4, 1 / 16])
    with_log_prob = times_of(lambda flow: flow.sample(3, with_log_prob=True), make(grid))
    assert with_log_prob == pytest.approx([0, 1 / 16, 1 / 4, 9 / 16])


def test_step_doubling_and_stages_use_the_times_of_samples():
    assert times_of(log_prob, Midpoint(GRID)) == pytest.approx(
        [1, 25 / 32, 9 / 16, 13 / 32, 1 / 4, 5 / 32, 1 / 16, 1 / 32]
    )
    assert times_of(log_prob, StepDoubling(Euler(grids.power(1, 1.0)))) == pytest.approx([1, 0.5])
    doubled = StepDoubling(Euler(GRID))
    assert doubled.reversed().reversed() == StepDoubling(Euler(GRID.reversed().reversed()))


def test_flows_from_1_to_0_count_from_their_base():
    times = times_of(sample, Euler(GRID), t0=1.0, t1=0.0)
    assert times == pytest.approx([1, 15 / 16, 3 / 4, 7 / 16])
    assert times_of(log_prob, Euler(GRID), t0=1.0, t1=0.0) == pytest.approx([0, 7 / 16, 3 / 4, 15 / 16])


@pytest.mark.parametrize(
    "make", [Euler, lambda grid: Multistep.adams(grid, 3), Midpoint], ids=["Euler", "AB3", "Midpoint"]
)
def test_the_way_back_is_the_way_there_of_a_linear_field_to_the_methods_order(make):
    field = GaussianPath(2)
    x = field.draw(4)
    errors = []
    for n in (60, 120):
        flow = Flow(field, standard(2), make(grids.power(n, 1.2)))
        errors.append((flow.log_prob(x) - field.log_prob(x)).abs().max().item())
    order = {Euler: 1, Midpoint: 2}.get(make, 3)
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.4)


def test_transport_goes_both_ways():
    z = torch.zeros(2, 2, dtype=DOUBLE)
    assert times_of(lambda flow: flow.transport(z, 1.0, 0.0), Euler(GRID)) == pytest.approx([1, 9 / 16, 1 / 4, 1 / 16])
    back = torch.tensor([1.0, 1.0], dtype=DOUBLE)
    assert times_of(lambda flow: flow.transport(z, back, 0.0), Euler(GRID)) == pytest.approx([1, 9 / 16, 1 / 4, 1 / 16])
    assert times_of(lambda flow: flow.transport(z, 0.0, back), Euler(GRID)) == pytest.approx([0, 1 / 16, 1 / 4, 9 / 16])
    mixed = torch.tensor([1.0, -1.0], dtype=DOUBLE)
    with pytest.raises(
        ValueError, match=r"t0, t1: Euler\(.* has a grid, for spans in one direction, got spans in both"
    ):
        times_of(lambda flow: flow.transport(z, 0.0, mixed), Euler(GRID))
    assert len(times_of(lambda flow: flow.transport(z, 0.0, mixed), Euler(4))) == 4


def test_tables_without_a_way_back_are_refused():
    path = StraightPath()
    own = Multistep(MultistepTable((0.0,), (1.0, 1.0), ((), (1.0,))))
    with pytest.raises(ValueError, match=r"integrator: .* is for solves from noise to data only"):
        times_of(log_prob, own)
    for sampler in (Multistep.dpmpp2m(4, path), Multistep.unipc(4, path)):
        with pytest.raises(ValueError, match=r"scales the state|for solves from 0 to 1 only"):
            times_of(log_prob, sampler)
    back = Multistep(MultistepTable((0.0,), (1.0, 1.0), ((), (1.0,)), span=(1.0, 0.0)))
    assert times_of(log_prob, back) == [1.0]  # for densities alone
    with pytest.raises(ValueError, match="for solves from 1 to 0 only"):
        times_of(sample, back)
    assert times_of(log_prob, Multistep(own.table, reverse=own.table)) == [1.0]
    with pytest.raises(TypeError, match="reverse: expected a MultistepTable, got int"):
        Multistep(own.table, reverse=1)


def test_selection_runs_candidates_on_the_times_of_samples():
    field = Clock()
    flow = Flow(field, standard(2), Euler(GRID))
    field.times.clear()
    dise.run_candidates(flow, [((torch.zeros(3, 2, dtype=DOUBLE),), torch.zeros(3))], [Euler(GRID)])
    assert set(field.times) == {1.0, 9 / 16, 1 / 4, 1 / 16}


# ---- jumps


class Switch(nn.Module):
    """dz/dt = z until t = 0.3, then −2 z."""

    def forward(self, t, z):
        return torch.where(t < 0.3, z, -2 * z)


def test_jumps_of_the_field_end_steps():
    x, change = noise(4, 2), 0.3 - 2 * 0.7
    expected = standard(2).log_prob(x * math.exp(-change)) - 2 * change
    for integrator in (Dopri5(rtol=1e-8, atol=1e-8), dise.RK4(80)):
        flow = Flow(Switch(), standard(2), integrator, jump_at=[0.3])
        assert_close(flow.log_prob(x), expected, rtol=0, atol=1e-6)
        assert_close(flow.transport(x, 1.0, 0.0), x * math.exp(-change), rtol=1e-6, atol=0)
        z, density = flow.sample(3, with_log_prob=True)
        assert_close(flow.log_prob(z), density, rtol=0, atol=1e-6)
        assert_close(flow.until(0.3).transport(x, 0.0, 0.3), x * math.exp(0.3), rtol=1e-6, atol=0)
    sampler = dise.FlowSampler(Flow(Switch(), standard(2), dise.RK4(21), jump_at=[0.3], step_at=[0.9]))
    with sampler.block.recording() as records:
        assert_close(sampler(x), x * math.exp(change), rtol=1e-5, atol=0)
    assert (records[0].solution.n_steps == 23).all()  # the jump and the step's end each divide a step
    blind = Flow(Switch(), standard(2), Dopri5(rtol=1e-8, atol=1e-8)).solve(x)[1]
    kinked = Flow(Switch(), standard(2), Dopri5(rtol=1e-8, atol=1e-8), jump_at=[0.3]).solve(x)[1]
    assert (kinked.nfe < blind.nfe).all()


# ---- a row alone is the row in a batch


class Conditional(nn.Module):
    """A nonlinear field with a label and a vector as conditions."""

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.weights = nn.Parameter(1.5 * torch.randn(3, 2, 2, generator=draw, dtype=DOUBLE))

    def forward(self, t, z, label, vector):
        pushed = (z[..., None, :] * self.weights[label]).sum(-1) + vector * torch.sin(5 * t)
        return torch.tanh(pushed) * (1 + label[:, None])


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("how", [ExactDivergence(), HutchinsonDivergence()], ids=str)
def test_a_row_alone_is_the_row_in_a_batch(guided, how):
    field = Conditional()
    if guided:
        field = Guided(field, 2.0, null=(0, torch.zeros(2, dtype=DOUBLE)), interval=(0.2, 0.6))
    sizes = torch.logspace(-1, 0.5, 4, dtype=DOUBLE)[:, None]
    x, conditions = noise(4, 2) * sizes, (torch.tensor([0, 1, 2, 1]), noise(4, 2, seed=1) * sizes)
    flow = Flow(
        field, standard(2), Dopri5(rtol=1e-2, atol=1e-2), divergence=how, log_prob_tolerance=1e-3, jump_at=[0.2, 0.6]
    )
    block, further = flow.block, (*conditions, *flow.block.f.probes(x))
    solves = {
        "density": lambda rows: block.solve((x[rows], x.new_zeros(len(x[rows]), 1)), sample_args=each(rows)),
        "sample with density": lambda rows: block.solve(
            (x[rows], x.new_zeros(len(x[rows]), 1)), t0=0.0, t1=1.0, sample_args=each(rows)
        ),
        "sample": lambda rows: solve(field, x[rows], 0.0, 1.0, block.integrator, sample_args=each(rows)[:2]),
    }

    def each(rows):
        return tuple(part[rows] for part in further)

    for run in solves.values():
        whole = run(slice(None))
        assert len(set(whole.nfe.tolist())) > 1
        for i in range(4):
            alone = run(slice(i, i + 1))
            assert alone.nfe[0] == whole.nfe[i]
            parts = (alone.y, whole.y) if isinstance(whole.y, tuple) else ((alone.y,), (whole.y,))
            for one, all_of_them in zip(*parts, strict=True):
                assert_close(one[0], all_of_them[i], rtol=0, atol=1e-6)


def test_the_density_of_a_row_alone_is_that_in_a_batch():
    flow = Flow(Conditional(), standard(2), Dopri5(rtol=1e-4, atol=1e-4))
    x, conditions = noise(5, 2), (torch.arange(5) % 3, noise(5, 2, seed=1))
    whole, solution = flow.solve(x, conditions)
    for i in range(5):
        alone, one = flow.solve(x[i : i + 1], tuple(part[i : i + 1] for part in conditions))
        assert one.nfe[0] == solution.nfe[i]
        assert_close(alone[0], whole[i], rtol=0, atol=1e-6)
    torch.manual_seed(1)
    drawn = flow.sample(5, conditions)
    torch.manual_seed(1)
    z = flow.base.sample((5,))
    for i in range(5):
        alone = flow.transport(z[i : i + 1], 0.0, 1.0, tuple(part[i : i + 1] for part in conditions))
        assert_close(alone[0], drawn[i], rtol=0, atol=1e-6)


# ---- gradients


@pytest.mark.parametrize("how", [ExactDivergence(), ExactDivergence(mode="forward"), HutchinsonDivergence()], ids=str)
def test_backsolve_has_the_gradients_of_backpropagation(how):
    """Derivatives within f make leaves of their own, which are no parameters."""
    x, conditions = noise(3, 2), (torch.arange(3), noise(3, 2, seed=1))
    found = {}
    for gradient in ("direct", "checkpoint", "backsolve"):
        field = Conditional()
        tight = Dopri5(rtol=1e-5, atol=1e-5)
        flow = Flow(field, standard(2), tight, divergence=how, gradient=gradient, log_prob_tolerance=1e-6)
        torch.manual_seed(0)
        flow.log_prob(x, conditions).sum().backward()
        found[gradient] = field.weights.grad
    assert_close(found["checkpoint"], found["direct"])
    assert_close(found["backsolve"], found["direct"], rtol=1e-3, atol=1e-3)


class Bent(nn.Module):
    """A field whose Jacobian is not symmetric, for points of any number."""

    def forward(self, t, x):
        return torch.sin(x.flip(-1) * torch.tensor([0.7, 1.3], dtype=x.dtype)) * (1 + t) - 0.3 * x


SOLVES = {
    "stages": {"integrator": dise.RK4(3)},
    "forward": {"integrator": dise.RK4(3), "divergence": ExactDivergence(mode="forward")},
    "lobatto": {"integrator": Dopri5(rtol=1e-7, atol=1e-7), "quadrature": "lobatto"},
}


@pytest.mark.parametrize("options", SOLVES.values(), ids=SOLVES)
def test_transforms_of_torch_func_see_through_a_density(options):
    flow, x = Flow(Bent(), standard(2), **options), noise(4, 2)
    leaf = x.clone().requires_grad_()
    values = flow.log_prob(leaf)
    (gradient,) = torch.autograd.grad(values.sum(), leaf)
    assert_close(torch.func.grad(lambda x: flow.log_prob(x).sum())(x), gradient)
    _, slope = torch.func.jvp(flow.log_prob, (x,), (x,))
    # forward derivatives include those of the step sizes
    assert_close(slope, (gradient * x).sum(1), rtol=1e-5, atol=1e-6)
    with torch.no_grad():  # which does not apply to forward derivatives
        assert_close(torch.func.jvp(flow.log_prob, (x,), (x,))[1], slope)
        if options is not SOLVES["forward"]:  # torch does not nest dual numbers
            with forward_ad.dual_level():
                dual = flow.log_prob(forward_ad.make_dual(x, x))
                assert_close(forward_ad.unpack_dual(dual).tangent, slope)
    if options["integrator"] == dise.RK4(3):
        assert_close(torch.vmap(lambda point: flow.log_prob(point[None])[0])(x), values.detach())


# ---- fields that autograd cannot see through


class Growth(nn.Module):
    """dz/dt = z/2, computed in one way or another: log p(0) = log N(0; 0, 1) − D/2."""

    def __init__(self, value):
        super().__init__()
        self.rate, self.value = nn.Parameter(torch.tensor(0.5, dtype=DOUBLE)), value

    def forward(self, t, z):
        return self.value(self.rate, z)


HIDDEN = {
    "no_grad": torch.no_grad()(lambda rate, z: rate * z),
    "inference mode": torch.inference_mode()(lambda rate, z: rate * z),
    "detached": lambda rate, z: rate * z.detach(),
    "numpy": lambda rate, z: torch.as_tensor(0.5 * z.detach().numpy()),
}
DIVERGENCES = (ExactDivergence(), ExactDivergence(mode="forward"), HutchinsonDivergence())


@pytest.mark.parametrize("how", DIVERGENCES, ids=str)
@pytest.mark.parametrize("hidden", HIDDEN)
def test_a_field_in_which_autograd_sees_no_z_has_no_divergence_of_zero(hidden, how):
    """Forward derivatives see through no_grad."""
    flow = Flow(Growth(HIDDEN[hidden]), standard(3), Dopri5(rtol=1e-8, atol=1e-8), divergence=how)
    x = torch.zeros(2, 3, dtype=DOUBLE)
    if hidden == "no_grad" and how == ExactDivergence(mode="forward"):
        assert_close(flow.log_prob(x), standard(3).log_prob(x) - 1.5)
        return
    with pytest.raises((ValueError, RuntimeError), match=r"autograd sees no z in it|doesn't have storage"):
        flow.log_prob(x)


@pytest.mark.parametrize("hidden", ["no_grad", "detached"])
def test_transforms_refuse_a_field_in_which_autograd_sees_no_z(hidden):
    flow, x = Flow(Growth(HIDDEN[hidden]), standard(3), Euler(3)), noise(2, 3)
    with pytest.raises(ValueError, match="autograd sees no z in it"):
        torch.func.grad(lambda x: flow.log_prob(x).sum())(x)
    with pytest.raises(ValueError, match="autograd sees no z in it"):
        torch.func.jvp(flow.log_prob, (x,), (x,))
    with pytest.raises(ValueError, match="autograd sees no z in it"), forward_ad.dual_level():
        flow.log_prob(forward_ad.make_dual(x, x))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("how", DIVERGENCES, ids=str)
def test_constant_fields_have_no_divergence(how, grad):
    """dz/dt = 1/2 moves all points by 1/2."""
    fields = (lambda rate, z: torch.full_like(z, 0.5), lambda rate, z: rate * torch.ones_like(z))
    for value in fields:
        x = noise(2, 3)
        with torch.set_grad_enabled(grad):
            log_prob = Flow(Growth(value), standard(3), Euler(3), divergence=how).log_prob(x)
            slope = torch.func.jvp(Flow(Growth(value), standard(3), Euler(3), divergence=how).log_prob, (x,), (x,))[1]
        assert_close(log_prob.detach(), standard(3).log_prob(x - 0.5))
        assert_close(slope, -((x - 0.5) * x).sum(1))


@pytest.mark.parametrize("value", [lambda rate, z: (rate * z,), lambda rate, z: None], ids=["tuple", "None"])
@pytest.mark.parametrize("how", DIVERGENCES, ids=str)
def test_a_field_that_returns_no_tensor_is_named(value, how):
    with pytest.raises(ValueError, match=r"f: expected dz/dt of shape \[2, 3\] like z, got (tuple|NoneType)"):
        Flow(Growth(value), standard(3), Euler(1), divergence=how).log_prob(noise(2, 3))


def test_no_images_have_no_log_densities():
    """Whatever torch.distributions makes of them."""
    normal = torch.distributions.Normal(torch.zeros(2, 3, 2), torch.ones(2, 3, 2))
    flow = Flow(Bent(), torch.distributions.Independent(normal, 3), Euler(2))
    assert flow.log_prob(torch.zeros(0, 2, 3, 2)).shape == (0,)
    assert [part.shape for part in flow.sample(0, with_log_prob=True)] == [(0, 2, 3, 2), (0,)]
