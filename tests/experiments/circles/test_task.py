import math

import pytest
import torch
from PIL import Image
from torch import nn

from dise import RK4, Bosh3, Dopri5, Dynamic, Euler, Midpoint
from dise.flow import TransportCost
from dise.regularize import L1, L2, ErrorEstimate, NoRegularizer, UnscaledErrorEstimate
from dise.select import Costs, Outcomes, TaskErrorCost, collect_costs, concatenate_state, count_macs
from dise_experiments.circles import evaluate, figure
from dise_experiments.circles.model import hypernetwork_flow
from dise_experiments.circles.paper import TABLE_8, TABLE_9
from dise_experiments.circles.points import FreshBatches, sets
from dise_experiments.circles.presets import Preset
from dise_experiments.circles.selector import PaperNetwork, SetNetwork
from dise_experiments.circles.task import CirclesTask, likelihood_gap
from dise_experiments.common.task import REGULARIZERS
from dise_experiments.run.registry import TASKS

SMALL = Preset(epochs=1, iterations=2, batch_size=40, selection_sets=6, test_sets=3)


@pytest.fixture(scope="module")
def task():
    return CirclesTask()


@pytest.fixture(scope="module")
def flow(linear_flow):
    """dz/dt = z/2 on [0, 2], from N(0, 0.1·I)."""
    return linear_flow(0.5)


def nll(x, variance=0.1):
    """Of the flow above: x was x/e, and ∫ div f dt is 2."""
    return (x.double() / math.e).square().sum(-1) / (2 * variance) + math.log(2 * math.pi * variance) + 2


# ---- settings


def test_registry_has_the_task():
    assert isinstance(TASKS["circles"], CirclesTask)


def test_candidates(task):
    assert task.candidates == (
        *(RK4(2), RK4(5), RK4(10), RK4(16)),
        *(Euler(50), Euler(100)),
        *(Midpoint(10), Midpoint(20)),
        Bosh3(rtol=1e-3, atol=1e-3),
        *(Dopri5(rtol=tol, atol=tol) for tol in (1e-2, 1e-3, 1e-4, 1e-5)),
    )
    assert task.reference == Dopri5(rtol=1e-5, atol=1e-5) == hypernetwork_flow().block.integrator


def test_the_papers_candidates_are_among_ours(task):
    assert set(TABLE_9) <= {str(candidate).partition("(")[0] for candidate in task.candidates}


def test_every_row_of_table_8_is_a_run_that_there_is(task):
    assert {row.reg for row in TABLE_8} <= set(task.weights)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("none", NoRegularizer),
        ("kinetic", TransportCost),
        ("l1", L1),
        ("l2", L2),
        ("error", ErrorEstimate),
        ("raw-error", UnscaledErrorEstimate),
    ],
)
def test_regularizers(task, name, kind):
    assert type(task.regularizers[name]()) is kind
    assert list(task.regularizers) == list(REGULARIZERS)


def test_selectors(task):
    units = {name: (spec.costs, spec.tolerance) for name, spec in task.selectors.items()}
    assert units == {
        "table-7": ("set, Eq. 5", None),
        "set": ("set, Eq. 5", 1e-2),
        "point": ("point, Eq. 5", 1e-2),
    }
    networks = {name: spec.network(hypernetwork_flow(), 13) for name, spec in task.selectors.items()}
    assert [type(network) for network in networks.values()] == [PaperNetwork, SetNetwork, SetNetwork]
    for name, shape in (("table-7", (5, 32, 3)), ("set", (5, 32, 3)), ("point", (5, 3))):
        assert networks[name](torch.zeros(shape), torch.zeros(shape)).shape == (5, 13)


# ---- Eq. 5


def test_the_papers_costs(task):
    rule = TaskErrorCost(0.03, 1000, task_error=likelihood_gap, beta=0.02, resolution=0.02)
    assert task.rule(None, None, 5) == rule
    assert (task.rule(0.1, None, 5).alpha, task.rule(0.1, None, 5).M) == (0.1, 1000)
    assert (task.rule(None, 50, 5).alpha, task.rule(None, 50, 5).M) == (0.03, 50)


def test_errors_of_opposite_sign_do_not_cancel():
    """Two sets of three points and two candidates; the means of (−2.5, −2, −1.5) and (−1, −2, −3) are the same."""
    target = torch.tensor([[-1.0, -2.0, -3.0], [0.0, 0.0, 0.0]])
    output = torch.tensor([[[-1.0, -2.0, -3.0], [-2.5, -2.0, -1.5]], [[3.0, -3.0, 0.75], [-0.5, -0.5, -0.5]]])
    assert likelihood_gap(output, target).tolist() == [[0, 1], [2.25, 0.5]]


def test_the_gap_of_points_is_their_own():
    output, target = torch.tensor([[-1.0, 2.0], [0.5, -0.25]]), torch.tensor([-1.5, 0.5])
    assert likelihood_gap(output, target).tolist() == [[0.5, 3.5], [0, 0.75]]


def test_eq_5_by_hand(task):
    """Candidates of 4, 60 and 200 evaluations of f; the middle one reports a better likelihood than there is."""
    target = torch.zeros(2, 4)
    gaps = torch.tensor([[-0.5, 0.019, 0.0], [0.02, 0.01, 1e-6]])
    output = gaps[:, :, None].expand(2, 3, 4)
    nfe = torch.tensor([[4, 60, 200], [4, 60, 200]])
    outcomes = Outcomes(task.candidates[:3], target, target, nfe, output, target)
    costs = Costs.of(outcomes, task.rule(None, None, 5))
    assert costs.adequate.tolist() == [[False, True, True], [True, True, True]]
    # (Δ·β)^α: NFE alone decides; M^α where Γ > 0.02
    bases = [[1000, 60 * 0.02, 200 * 0.02], [4 * 0.02, 60 * 0.02, 200 * 0.02]]
    assert costs.cost.tolist() == [pytest.approx([base**0.03 for base in row]) for row in bases]
    assert costs.cost.argmin(1).tolist() == [1, 0]


def test_overstating_the_likelihood_is_not_cheap(task, linear_flow):
    """Euler says of dz/dt = z/2 what the model does not have, and is not adequate."""
    data = task.selection_batches(linear_flow(0.5), SMALL, on="held-out", unit="set")
    data = [((x,), target) for x, target in data]
    costs = collect_costs(linear_flow(0.5), data, (Euler(3), task.reference), task.rule(None, None, 5))
    assert costs.adequate.tolist() == [[False, True]] * 6
    assert costs.cost[:, 0].tolist() == pytest.approx([1000**0.03] * 6)


# ---- batches


def test_the_preset_is_all_there_is_of_data(task, tmp_path):
    assert task.load(SMALL, None) == task.load(SMALL, tmp_path / "missing") == SMALL


def test_training_batches_are_fresh(task):
    assert task.training_batches(SMALL, SMALL, seed=3, epoch=1) == FreshBatches(SMALL, 3, 1)
    assert [tuple(x.shape) for x in task.training_batches(SMALL, SMALL, seed=0, epoch=0)] == [(1, 40, 2)] * 2


def test_monitored_batches_are_one_batch_of_512_points(task):
    (first,), (again,) = task.monitored_batches(SMALL, SMALL), task.monitored_batches(SMALL, SMALL)
    assert first.shape == (16, 32, 2)
    assert torch.equal(first, again)
    (moons,) = task.monitored_batches(*[SMALL.model_copy(update={"target": "moons"})] * 2)
    assert not torch.equal(first, moons)


@pytest.mark.parametrize(("unit", "number", "rows"), [("set", 70, 70), ("point", 70, 8 * 32), ("point", 4, 2 * 32)])
def test_selection_batches_have_the_references_likelihood(task, flow, unit, number, rows):
    preset = SMALL.model_copy(update={"selection_sets": number})
    data = list(task.selection_batches(flow, preset, on="held-out", unit=unit))
    x, target = (torch.cat(column) for column in zip(*data, strict=True))
    assert x.shape == ((rows, 32, 2) if unit == "set" else (rows, 2))
    assert target.shape == x.shape[:-1]
    torch.testing.assert_close(-target.double(), nll(x), rtol=1e-6, atol=1e-6)
    assert max(len(x) for x, _ in data) == min(rows, 64 * (1 if unit == "set" else 32))


def test_all_points_are_fresh_so_training_data_are_too(task, flow):
    drawn = [next(iter(task.selection_batches(flow, SMALL, on=on, unit="set")))[0] for on in ("held-out", "train")]
    assert torch.equal(*drawn)


def test_nothing_is_fitted_to_or_watched_on_test_points(task, flow):
    """Which points a part has depends on its name and on their number, so the same number is compared."""
    ((selection, _),) = task.selection_batches(flow, SMALL, on="held-out", unit="set")
    (monitored,) = task.monitored_batches(SMALL, SMALL)
    for x in (selection, monitored):
        parts = [x, sets("circles", len(x), "test"), sets("circles", len(x), "large test")]
        points = [set(map(tuple, part.reshape(-1, 2).tolist())) for part in parts]
        assert len(set.union(*points)) == 3 * len(x) * 32
    assert not torch.equal(selection, monitored[: len(selection)])


@pytest.mark.parametrize(("number", "count"), [(1, 1), (5, 5), (30, 16)])
def test_timed_batches_are_rows_of_the_papers_size(task, number, count):
    of_sets, of_points = (list(task.timed_batches(SMALL, number, unit=unit)) for unit in ("set", "point"))
    assert [tuple(x.shape) for x in of_sets] == [(1, 32, 2)] * count
    assert [tuple(x.shape) for x in of_points] == [(32, 2)] * count
    assert torch.equal(torch.cat(of_sets), torch.stack(of_points))
    assert torch.equal(torch.cat(of_sets), sets("circles", 16, "test")[:count])


# ---- loss and optimizer


@pytest.mark.parametrize("shape", [(1, 40, 2), (16, 32, 2)])
def test_loss_is_the_negative_log_likelihood(task, flow, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    loss = task.loss(flow, x, None)
    assert loss.value.item() == pytest.approx(nll(x).mean().item(), abs=1e-4)
    assert loss.value.requires_grad
    assert loss.solution.nfe.shape == shape[:1]
    assert loss.dynamics is flow.f
    assert loss.metrics == {}


def test_kinetic_energy_is_that_of_the_points(task, flow):
    """dz/dt = z/2: ∫ |z/2|² dt = |x|² ∫ e^(t − 2)/4 dt over [0, 2]. The log-density's share would be 2 · 1."""
    x = torch.randn(3, 20, 2, generator=torch.Generator().manual_seed(0))
    cost = task.regularizers["kinetic"]()
    loss = task.loss(flow, x, cost.accumulate)
    expected = x.square().sum(-1).mean().item() * (1 - math.exp(-2)) / 4
    assert cost(loss.solution, loss.dynamics).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("reg", [reg for reg in REGULARIZERS if reg != "steer"])
def test_every_regularizer_has_a_gradient(task, linear_flow, reg):
    flow, regularizer = linear_flow(0.5), task.regularizers[reg]()
    loss = task.loss(flow, sets("circles", 2, "here"), regularizer.accumulate)
    (loss.value + task.weights[reg] * regularizer(loss.solution, loss.dynamics)).backward()
    assert flow.f.A.grad.isfinite().all()
    assert flow.f.A.grad.abs().max() > 0


@pytest.mark.parametrize("reg", [reg for reg in REGULARIZERS if reg not in ("none", "steer")])
def test_every_regularizer_has_a_gradient_in_the_weights_of_the_paper_s_field(task, reg):
    torch.manual_seed(0)
    flow, regularizer = hypernetwork_flow(), task.regularizers[reg]()
    loss = task.loss(flow, sets("circles", 2, "here"), regularizer.accumulate)
    cost = regularizer(loss.solution, loss.dynamics)
    slopes = torch.autograd.grad(cost, list(flow.parameters()), allow_unused=True, materialize_grads=True)
    assert all(slope.isfinite().all() for slope in slopes)
    assert any(slope.abs().max() > 0 for slope in slopes)


@pytest.mark.parametrize("reg", ["jacobian", "taylor2", "taylor3"])
def test_path_integrals_are_of_the_points_alone(task, flow, reg):
    """dz/dt = z/2: ‖∂f/∂z‖² = 2/4 and d^K z/dt^K = z/2^K; the log-density would add to both."""
    x = torch.randn(3, 20, 2, generator=torch.Generator().manual_seed(0))
    cost = task.regularizers[reg]()
    loss = task.loss(flow, x, cost.accumulate)
    energy = x.square().sum(-1).mean().item() * (1 - math.exp(-2))
    expected = {"jacobian": 2 * 0.5, "taylor2": energy / 16, "taylor3": energy / 64}
    assert cost(loss.solution, loss.dynamics).item() == pytest.approx(expected[reg], rel=1e-3)


def test_only_flows_have_a_likelihood(task):
    with pytest.raises(TypeError, match="model: expected a Flow, got Linear"):
        task.loss(nn.Linear(2, 2), torch.zeros(1, 4, 2), None)


def test_adam(task):
    model = hypernetwork_flow()
    made = task.optimizer(model, SMALL.model_copy(update={"learning_rate": 0.02}), 10)
    optimizer = made.pop("optimizer")
    assert made == {}
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.param_groups[0]["lr"] == 0.02
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in model.parameters()}


def test_a_step_of_training_is_a_function_of_the_seed(task):
    def trained():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = hypernetwork_flow()
        optimizer = task.optimizer(model, SMALL, 2)["optimizer"]
        losses = []
        for x in task.training_batches(SMALL, SMALL, seed=0, epoch=0):
            loss = task.loss(model, x, None).value
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    assert trained() == trained()


# ---- evaluation


def last(h0, k1):
    return -nn.functional.one_hot(torch.full((len(h0),), 12), 13).float()


@pytest.fixture(scope="module")
def metrics(task, flow):
    """A small test of 2 sets, as `SMALL` has 3 for the large one."""
    dynamics = {name: Dynamic(task.candidates, last) for name in task.selectors}
    with pytest.MonkeyPatch.context() as patch:
        for module in ("evaluate", "task"):
            patch.setattr(f"dise_experiments.circles.{module}.SMALL", 2)
        return task.metrics(flow, dynamics, {"table-7": 0.18, "set": 0.3, "point": 0.17}, SMALL)


def test_evaluate_has_every_policy_for_sets_and_for_points(task, metrics):
    names = [str(candidate) for candidate in task.candidates]
    assert [(row["policy"], row["unit"]) for row in metrics["policies"]] == [
        *((name, "set") for name in (*names, "oracle")),
        *((name, "set") for name in ("DISE (table-7)", "random, mix of table-7", "DISE (set)", "random, mix of set")),
        *((name, "point") for name in (*names, "oracle", "DISE (point)", "random, mix of point")),
    ]
    macs = {row["policy"]: row["selector_macs"] for row in metrics["policies"] if "selector_macs" in row}
    assert macs == {"DISE (table-7)": 0.18, "DISE (set)": 0.3, "DISE (point)": 0.17}


def test_evaluate_says_what_it_was_done_on(metrics):
    assert metrics["target"] == "circles"
    assert metrics["samples"] == 5 * 32
    nfe_sums = [metrics["policies"][0][part]["nfe_sum"] for part in ("small", "large")]
    assert nfe_sums == [2 * 8, 3 * 8]  # RK4 with 2 steps on 2 and 3 sets


def test_evaluate_takes_the_test_points(metrics):
    """Of the large test, single points see an eighth of the sets, but one at least."""
    small, large = nll(sets("circles", 2, "test")), nll(sets("circles", 3, "large test"))
    for row in metrics["policies"]:
        if row["policy"] == "RK4(steps=16)":
            part = large if row["unit"] == "set" else large[:1]
            assert row["small"]["nll"] == pytest.approx(small.mean().item(), abs=1e-5)
            assert row["large"]["nll"] == pytest.approx(part.mean().item(), abs=1e-5)


def test_evaluate_on_another_target(task, flow, monkeypatch):
    for module in ("evaluate", "task"):
        monkeypatch.setattr(f"dise_experiments.circles.{module}.SMALL", 1)
    monkeypatch.setattr(CirclesTask, "candidates", (RK4(8),))
    metrics = task.metrics(flow, {}, {}, SMALL.model_copy(update={"target": "checkerboard"}))
    assert metrics["target"] == "checkerboard"
    expected = nll(sets("checkerboard", 3, "large test")).mean().item()
    assert metrics["policies"][0]["large"]["nll"] == pytest.approx(expected, abs=1e-4)


def test_the_papers_test_is_16_batches_of_32():
    assert evaluate.SMALL == 16


def test_multiply_adds_of_the_selectors_in_units_of_f(task):
    """0.18, 0.30 and 0.17; the paper says 0.018 of its own."""
    model = hypernetwork_flow()
    hypernetwork, points = 32 + 32 * 32 + 32 * 448, 32 * (2 * 64 + 2 * 64 + 64)
    expected = {
        "table-7": (32 * 3 + 32 * 64 + 64 * 32 + 32 * 13) / (hypernetwork + points),
        "set": (32 * 5 * 32 + 64 * 32 + 32 * 13) / (hypernetwork + points),
        "point": (5 * 32 + 64 * 32 + 32 * 13) / (hypernetwork + points / 32),
    }
    for name, spec in task.selectors.items():
        network = spec.network(model, 13)
        x = next(iter(task.timed_batches(SMALL, 1, unit=spec.unit)))[:1]
        state = (x, torch.zeros(*x.shape[:-1], 1))
        with torch.no_grad():
            f = count_macs(lambda state=state: model.block.first_stage(state))
        h0 = concatenate_state(state)
        assert count_macs(lambda network=network, h0=h0: network(h0, h0)) / f == pytest.approx(expected[name])


# ---- tables


def titles(tables):
    return [table.title.partition(":")[0] for table in tables]


def test_tables_of_the_paper(task, run):
    tables = task.tables([run(), run("error")])
    assert titles(tables) == ["Table 8", "Table 9", "Larger test", "DOPRI at 1e-5, over seeds"]


def test_tables_of_another_target_alone(task, run):
    tables = task.tables([run(target="moons")])
    assert titles(tables) == ["Other targets", "Other targets", "Larger test", "DOPRI at 1e-5, over seeds"]


def test_tables_keep_the_targets_apart(task, run):
    moons = run(target="moons", name="flow-none-target=moons-seed0")
    table_8, table_9, likelihoods, shares, _, seeds = task.tables([moons, run("error")])
    for table in (table_8, table_9):
        assert "two circles" in table.title
        assert "moons" not in table.markdown()
        assert "flow-error-seed0" in table.markdown()
    for table in (likelihoods, shares):
        assert "flow-none-target=moons-seed0" in table.markdown()
        assert "flow-error-seed0" not in table.markdown()
    assert [row[0] for row in seeds.rows] == ["flow-none-target=moons", "flow-error"]


def test_tables_of_a_run_without_selectors(task, run):
    one = run(dise=False)
    assert len(task.tables([one])) == 4
    assert task.details(one)[0].title == "flow-none-seed0: all policies"


# ---- plots


def test_files_of_plots(task, flow, run, tmp_path, monkeypatch):
    for name, value in (("GRID", 10), ("SAMPLES", 50), ("TARGET_POINTS", 50), ("FRAMES", 2)):
        monkeypatch.setattr(figure, name, value)
    (tmp_path / "flow-none-seed0").mkdir()
    files = task.plots([run()], tmp_path, lambda one: flow)
    assert [str(file.relative_to(tmp_path)) for file in files] == [
        "figure-3.png",
        "flow.gif",
        "flow-none-seed0/nll-nfe.png",
    ]
    for file in files:
        with Image.open(file) as image:
            assert image.format == ("GIF" if file.suffix == ".gif" else "PNG")
            assert min(image.size) > 100


@pytest.fixture
def plots(task, flow, tmp_path, monkeypatch):
    """plots(runs): files, names of the runs that were loaded, and what was to be drawn: by file, or of policies."""
    drawn, policies, loaded = {}, [], []
    patched = {
        "draw_flows": lambda flows, target, file: drawn.update({file.name: (list(flows), target)}),
        "animate": lambda flow, file: drawn.update({file.name: None}),
        "quality_against_nfe": lambda rows, *arguments, **options: policies.append((rows, options)),
    }
    for name, function in patched.items():
        monkeypatch.setattr(f"dise_experiments.circles.task.{name}", function)

    def plot(runs):
        files = task.plots(runs, tmp_path, lambda one: loaded.append(one.name) or flow)
        return [str(file.relative_to(tmp_path)) for file in files], loaded, drawn, policies

    return plot


def test_figure_3_has_the_runs_of_the_first_seed_in_the_papers_order(plots, run):
    files, loaded, drawn, _ = plots([run("error", seed=2), run("l1", seed=1), run("none", seed=1)])
    assert drawn == {"figure-3.png": (["none", "l1"], "circles"), "flow.gif": None}
    assert loaded == ["flow-none-seed1", "flow-l1-seed1"]
    runs = ("flow-error-seed2", "flow-l1-seed1", "flow-none-seed1")
    assert files == ["figure-3.png", "flow.gif", *(f"{name}/nll-nfe.png" for name in runs)]


def test_runs_of_one_regularizer_have_their_names(plots, run):
    names = ["flow-error-0.5-seed0", "flow-error-seed0"]
    assert plots([run("error", name=name) for name in names])[2]["figure-3.png"] == (names, "circles")


def test_every_target_has_a_figure_of_its_own(plots, run):
    moons = [run(target="moons", seed=1, name="a"), run("error", target="moons", seed=1, name="b")]
    files, _, drawn, _ = plots([moons[0], run(), moons[1]])
    assert drawn == {
        "figure-3-moons.png": (["none", "error"], "moons"),
        "flow-moons.gif": None,
        "figure-3.png": (["none"], "circles"),
        "flow.gif": None,
    }
    assert set(drawn) <= set(files)


def test_the_plot_of_a_run_is_of_sets_on_the_large_test(plots, run):
    one = run()
    ((rows, options),) = plots([one])[3]
    assert [row["policy"] for row in rows] == [row["policy"] for row in one.policies() if row["unit"] == "set"]
    # on the large test the first is 0.5 above the reference, and the second 0.25 below
    assert [options["quality"](row) for row in rows[:2]] == pytest.approx([0.5, 0.25])
    assert options["log"]


def test_only_flows_are_drawn(task, run, tmp_path):
    with pytest.raises(TypeError, match="model: expected a Flow, got Linear"):
        task.plots([run()], tmp_path, lambda one: nn.Linear(2, 2))
