from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dise import RK4, Bosh3, Dopri5, Dynamic, Euler
from dise.select import BinaryCost, TaskErrorCost
from dise_experiments.common.errors import DataError
from dise_experiments.physionet import task as physionet_task
from dise_experiments.physionet.data import PhysionetSplits, load_physionet_sample
from dise_experiments.physionet.loss import latent_ode_loss
from dise_experiments.physionet.model import LatentODE
from dise_experiments.physionet.presets import BETA, PREVALENCE, Preset
from dise_experiments.physionet.records import Scaling
from dise_experiments.physionet.starts import encoded
from dise_experiments.physionet.stays import Stays
from dise_experiments.physionet.task import PhysionetTask, probability_gap
from dise_experiments.run.registry import TASKS

SMALL = Preset(data="sample", epochs=1, batch_size=10)
PARTS = ("train", "held_out", "test", "set_b")


@pytest.fixture(scope="module")
def task():
    return PhysionetTask()


@pytest.fixture(scope="module")
def whole(task):
    return task.load(SMALL, None)


@pytest.fixture(scope="module")
def splits(whole):
    """The sample's first records of each part, and of both outcomes."""
    return PhysionetSplits(whole.train[:25], whole.held_out[:12], whole.test[:20], whole.set_b[:15])


def model(head="z_end"):
    torch.manual_seed(0)
    return LatentODE(head)


# ---- settings


def test_candidates_are_the_papers_and_more(task):
    reference = Dopri5(rtol=1e-3, atol=1e-4)
    assert task.candidates[-1] == task.reference == model().block.integrator == reference
    assert {Bosh3(rtol=1e-2, atol=1e-3, first_step="span"), replace(reference, first_step="span")} < set(
        task.candidates
    )
    for name in ("paper", "paper-dropout", "paper-gap"):
        assert task.selectors[name].choosable(task.candidates) == (Euler(), RK4(), reference)
    assert task.selectors["pooled"].choosable(task.candidates) == task.candidates


def test_baselines_are_a_sweep_of_tolerances(task):
    assert [(b.rtol, b.atol) for b in task.baselines] == [(0.1, 0.01), (0.01, 1e-3), (1e-5, 1e-6)]
    assert {b.first_step for b in task.baselines} == {"heuristic"}


def test_selectors_are_the_papers_with_and_without_dropout_and_more(task):
    settings = {name: (spec.equation, spec.tolerance) for name, spec in task.selectors.items()}
    assert settings == {"paper": (4, None), "paper-dropout": (4, None), "paper-gap": (5, None), "pooled": (5, 0.02)}
    assert {spec.unit for spec in task.selectors.values()} == {"record"}
    h0 = torch.zeros(2, 20)
    networks = {name: spec.network(model(), 3) for name, spec in task.selectors.items()}
    assert all(network(h0, h0).shape == (2, 3) for network in networks.values())
    dropout = {
        name: [m.p for m in network.modules() if isinstance(m, nn.Dropout)] for name, network in networks.items()
    }
    assert dropout == {"paper": [0.0], "paper-dropout": [0.25], "paper-gap": [0.0], "pooled": []}


def test_equation_4_answers_by_prevalence(task):
    assert task.rule(None, None, 4) == BinaryCost(alpha=0.05, M=1000, threshold=PREVALENCE)
    assert task.rule(0.1, 50, 4) == BinaryCost(alpha=0.1, M=50, threshold=PREVALENCE)
    # a death at a probability of 0.2 is a right answer
    error = task.rule(None, None, 4).error(torch.tensor([[0.2, 0.1]]).logit(), torch.tensor([1]))
    assert error.tolist() == [[0, 1]]


def test_equation_5_lets_nfe_decide_among_candidates_near_the_reference(task):
    rule = task.rule(None, None, 5)
    assert isinstance(rule, TaskErrorCost)
    assert (rule.alpha, rule.M) == (0.05, 1000)
    assert (task.rule(0.1, 50, 5).alpha, task.rule(0.1, 50, 5).M) == (0.1, 50)
    p, nfe = torch.tensor([[0.519, 0.501, 0.45, 0.5]]), torch.tensor([[1, 4, 2, 20]])
    error = rule.error(p.logit(), torch.zeros(1))
    assert_close(error, torch.tensor([[0.019, 0.001, 0.05, 0.0]]), atol=1e-6, rtol=0)
    expected = [[(1 * BETA) ** 0.05, (4 * BETA) ** 0.05, 1000**0.05, (20 * BETA) ** 0.05]]
    assert_close(rule(nfe, error), torch.tensor(expected))


def test_the_gap_is_to_the_last_candidate():
    logits = torch.tensor([[0.2, 0.7, 0.5], [0.9, 0.1, 0.9]]).logit()
    assert_close(probability_gap(logits, torch.zeros(2)), torch.tensor([[0.3, 0.2, 0.0], [0.0, 0.8, 0.0]]))


def test_what_selects(task):
    assert task.selects(model("z_end"))
    assert not task.selects(model("z0"))
    assert not task.selects(nn.Linear(1, 1))
    assert list(task.models) == ["z_end", "z0"]
    assert {name: make().head for name, make in task.models.items()} == {"z_end": "z_end", "z0": "z0"}


def test_registry_has_the_task():
    assert isinstance(TASKS["physionet"], PhysionetTask)


# ---- data


def test_every_part_is_scaled_as_the_training_part_says(whole):
    raw = load_physionet_sample()
    scaling = Scaling.fit(raw.train)
    for part in PARTS:
        ours, expected = getattr(whole, part), scaling(getattr(raw, part))
        assert torch.equal(ours.values, expected.values)
        assert torch.equal(ours.ids, expected.ids)
    assert whole.train.values.max() <= 1


@pytest.mark.parametrize("q", [0.016, 1.0])
def test_times_are_rounded_as_the_preset_says(task, q):
    times = task.load(SMALL.model_copy(update={"quantization": q}), None).test.times.double()
    assert_close(times, (times / q).round() * q, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("held_out", "number"), [(640, 50), (20, 20)])
def test_the_sample_sets_apart_at_most_what_it_has(task, held_out, number):
    splits = task.load(SMALL.model_copy(update={"held_out": held_out}), None)
    assert [len(getattr(splits, part)) for part in PARTS] == [200, number, 50, 20]


def test_the_sample_preset_reads_the_sample_whatever_the_folder(task, tmp_path, whole):
    assert torch.equal(task.load(SMALL, tmp_path / "missing").test.values, whole.test.values)


def test_other_presets_read_the_folder(task, tmp_path):
    with pytest.raises(DataError, match="missing"):
        task.load(task.presets["cpu"], tmp_path / "missing")


def test_other_presets_read_what_they_say(task, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        physionet_task, "load_physionet", lambda *arguments, **options: seen.update(options) or load_physionet_sample()
    )
    task.load(task.presets["cpu"].model_copy(update={"quantization": 0.5, "held_out": 99}), None)
    assert seen == {"q": 0.5, "held_out": 99}


# ---- batches


def test_training_batches_change_with_the_epoch(task, splits):
    preset = SMALL.model_copy(update={"samples": 2})
    first, again, other = (list(task.training_batches(splits, preset, seed=3, epoch=e)) for e in (0, 0, 1))
    assert [len(x) for x in first] == [10, 10, 5]
    assert {x.noise.shape[0] for x in first} == {2}
    assert all(
        torch.equal(a.noise, b.noise) and torch.equal(a.values, b.values) for a, b in zip(first, again, strict=True)
    )
    assert not torch.equal(first[0].noise, other[0].noise)


def test_what_is_monitored_is_the_held_out_part_in_one_batch(task, splits):
    (x,), (again,) = (task.monitored_batches(splits, SMALL) for _ in range(2))
    assert torch.equal(x.values, Stays.of(splits.held_out).values)
    assert x.noise.shape == (3, 12, 20)
    assert torch.equal(x.noise, again.noise)


@pytest.mark.parametrize(("on", "part"), [("held-out", "held_out"), ("train", "train")])
def test_selection_batches(task, splits, on, part, monkeypatch):
    monkeypatch.setattr(physionet_task, "TEST_BATCH", 5)
    xs, labels = zip(*task.selection_batches(None, splits, on=on, unit="record"), strict=True)
    assert [len(x) for x in xs] == [5, 5, 2]
    records = getattr(splits, part)[:12]
    assert torch.equal(torch.cat([x.values for x in xs]), records.values)
    assert torch.equal(torch.cat(labels), records.labels.float())


@pytest.mark.parametrize(("size", "number", "sizes"), [(6, 1, [6]), (6, 9, [6, 6, 6]), (60, 9, [20])])
def test_timed_batches_are_whole_ones_of_the_test_part(task, splits, monkeypatch, size, number, sizes):
    monkeypatch.setattr(physionet_task, "TEST_BATCH", size)
    xs = list(task.timed_batches(splits, number, unit="record"))
    assert [len(x) for x in xs] == sizes
    assert torch.equal(torch.cat([x.values for x in xs]), splits.test[: sum(sizes)].values)


# ---- loss and optimizer


def test_the_loss_of_a_preset_may_be_the_cross_entropy(task, splits):
    preset = SMALL.model_copy(update={"loss": "cross-entropy"})
    (x, *_), (held_out,) = (
        task.training_batches(splits, preset, seed=0, epoch=11),
        task.monitored_batches(splits, preset),
    )
    for batch in (x, x[:4], held_out):
        loss = task.loss(model(), batch, None)
        assert torch.equal(loss.value, loss.metrics["cross_entropy"])


@pytest.mark.parametrize("head", ["z_end", "z0"])
def test_loss_is_the_published_one(task, splits, head):
    latent = model(head)
    (x, *_) = task.training_batches(splits, SMALL, seed=0, epoch=11)
    loss = task.loss(latent, x, lambda step: step.dt)
    made = latent.reconstruct(x)
    value, parts = latent_ode_loss(made, x)
    assert_close(loss.value, value)
    assert set(loss.metrics) == set(parts)
    assert loss.dynamics is latent.block.f
    # the solver goes with every sample of z(0) to the end of its stay
    assert_close(loss.solution.accumulated, x.end.repeat(3))
    assert len(loss.solution.nfe) == 30


def test_outside_of_training_the_area_is_told(task, splits):
    latent = model().eval()
    (x,) = task.monitored_batches(splits, SMALL)
    loss = task.loss(latent, x, None)
    logits = latent.reconstruct(x).logits
    positive, negative = logits[:, x.labels == 1].flatten(), logits[:, x.labels == 0].flatten()
    expected = (positive[:, None] > negative).float().mean()
    assert_close(loss.metrics["auroc"], expected, atol=1e-5, rtol=0)


def test_only_latent_odes(task, splits):
    with pytest.raises(TypeError, match="model: expected a LatentODE, got Linear"):
        task.loss(nn.Linear(1, 1), None, None)
    with pytest.raises(TypeError, match="model: expected a LatentODE, got Linear"):
        task.metrics(nn.Linear(1, 1), {}, {}, splits)


@pytest.mark.parametrize(("decay", "floor"), [(0.999, 0.001), (0.9, 0.001), (0.9, 0.02)])
def test_the_rate_falls_with_every_batch_down_to_its_floor(task, decay, floor):
    preset = SMALL.model_copy(update={"decay": decay, "floor": floor})
    made = task.optimizer(nn.Linear(1, 1), preset, 10)
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]
    assert type(optimizer) is torch.optim.Adamax
    assert schedule["interval"] == "step"
    rates = []
    for _ in range(60):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule["scheduler"].step()
    assert rates == pytest.approx([max(0.01 * decay**i, floor) for i in range(60)])


# ---- evaluation


def all_to_euler(h0, k1):
    return torch.tensor([[0.0, 1.0, 1.0]]).expand(len(h0), 3)


def test_evaluate_takes_both_test_parts_and_the_tasks_integrators(task, splits):
    latent = model().eval()
    dynamics = {"e": Dynamic(task.selectors["paper"].choosable(task.candidates), all_to_euler)}
    metrics = task.metrics(latent, dynamics, {"e": 0.5}, splits)
    names = [str(integrator) for integrator in (*task.candidates, *task.baselines)]
    for suffix, records in (("", splits.test), ("_b", splits.set_b)):
        rows = {row["policy"]: row for row in metrics[f"policies{suffix}"]}
        assert list(rows) == [*names, "oracle", "DISE (e)", "random, mix of e"]
        assert metrics[f"samples{suffix}"] == len(records)
        assert rows["DISE (e)"]["shares"] == {"Euler": 1, "RK4": 0, str(task.reference): 0}
        with torch.no_grad():
            logits = latent(Stays.of(records))
            nfe = latent.block.solve(encoded(latent, records)[0][0].mean, t1=Stays.of(records).end).nfe
        own = rows[str(task.reference)]
        labels = records.labels
        wins = logits[labels == 1][:, None] > logits[labels == 0]
        assert own["auroc"] == pytest.approx(wins.double().mean().item(), abs=1e-6)
        assert own["nfe"] == pytest.approx(nfe.double().mean().item())
        assert {"auroc", "auprc", "ece", "interval"} == set(metrics[f"published{suffix}"])


def test_evaluate_without_a_solve(task, splits):
    metrics = task.metrics(model("z0").eval(), {}, {}, splits)
    for suffix in ("", "_b"):
        (row,) = metrics[f"policies{suffix}"]
        assert (row["policy"], row["nfe"]) == ("no ODE", 0)


# ---- tables and plots


def test_tables_are_the_papers_and_more(task, run):
    assert [table.title.split(":")[0] for table in task.tables([run(), run(model="z0")])] == [
        "Table 5",
        "Table 6",
        "DISE against DOPRI on the same model",
        "Models with their own integrator, over seeds",
    ]
    assert len(task.details(run())) == 2


def test_a_plot_for_each_model_with_a_solve(task, run, tmp_path):
    runs = [run(), run(model="z0")]
    for one in runs:
        (tmp_path / one.name).mkdir()
    files = task.plots(runs, tmp_path, load=None)
    assert files == [tmp_path / "z_end-none-seed0" / "gap-nfe.png"]
    assert files[0].read_bytes().startswith(b"\x89PNG")


def test_the_plot_is_of_the_distance_to_the_reference(task, run, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        physionet_task, "quality_against_nfe", lambda rows, *arguments, **options: seen.append((rows, options))
    )
    task.plots([run()], tmp_path, load=None)
    ((rows, options),) = seen
    # neither the reference, whose gap is 0, nor random routing, which has none
    assert [row["policy"] for row in rows] == ["Euler", "DISE (paper)", "DISE (pooled)"]
    assert [options["quality"](row) for row in rows] == [row["gap"] for row in rows]
    assert options["log"]
