"""Training of the tiny run of conftest.py: 8 batches of 8 images an epoch, 2 epochs."""

import csv
import json
import signal

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from dise import RK4, Dopri5, SolveError
from dise.regularize import NoRegularizer, RandomEndTime
from dise_experiments.common.errors import UserError
from dise_experiments.common.task import Coarse
from dise_experiments.mnist import task as mnist_task
from dise_experiments.mnist.model import odenet, resnet
from dise_experiments.run.config import ExperimentError, RunConfig
from dise_experiments.run.rundir import load_model, read_json
from dise_experiments.run.train import Training, coarsely, random_end, read_log, train_run

STEPS = 8


def weights(path):
    return load_file(path / "model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ---- what a training leaves


def test_files_of_a_finished_training(finished):
    path = finished["trained"]
    files = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    assert {
        "config.json",
        "model.safetensors",
        "training.json",
        "checkpoints/last.ckpt",
        "logs/csv/metrics.csv",
    } <= files
    assert not [name for name in files if name.endswith(".partial")]


def test_summary_of_a_finished_training(finished):
    summary = json.loads((finished["trained"] / "training.json").read_text())
    assert summary["seconds"] > 0
    assert summary["threads"] == 1
    assert summary["train/penalty"] == pytest.approx(0.005 * summary["train/error"], rel=1e-5)
    # DOPRI: 2 + 6·steps
    assert summary["train/nfe"] >= 8
    assert summary["held_out/nfe_batch"] % 6 == 2
    assert 0 <= summary["held_out/accuracy"] <= 1


def test_penalty_is_logged_beside_the_loss(finished):
    # every tenth of the 16 steps
    (row,) = read_log(finished["trained"])
    assert row["step"] == 9
    assert row["train/penalty"] == pytest.approx(0.005 * row["train/error"], rel=1e-5)
    assert row["train/loss"] > row["train/penalty"] > 0


def test_training_is_sgd_on_eq3_written_out(finished, tiny):
    config = finished["config"]
    task, settings = config.found
    torch.manual_seed(config.seed)
    model = task.models["odenet"]()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.6 * 8 / 128, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.6 * 8 / 128, total_steps=2 * STEPS)
    for epoch in range(2):
        for x, y in task.training_batches(tiny, settings, seed=config.seed, epoch=epoch):
            solution = model.block.solve(model.stem(x))
            optimizer.zero_grad()
            (torch.nn.functional.cross_entropy(model.head(solution.y), y) + 0.005 * solution.error.mean()).backward()
            optimizer.step()
            schedule.step()
    for name, value in weights(finished["trained"]).items():
        assert_close(value, model.state_dict()[name], rtol=1e-4, atol=1e-5, msg=name)


# ---- Eq. 3


@pytest.mark.parametrize(("reg", "model"), [("none", "odenet"), ("l1", "odenet"), ("l2", "odenet"), ("l2", "resnet")])
def test_loss_with_norms_of_the_parameters(tiny, reg, model):
    config = RunConfig.of("mnist", "sample", reg=reg, model=model, weight=0.01)
    torch.manual_seed(0)
    training = Training(config, tiny)
    x, y = next(iter(training.train_dataloader()))
    norm = {"none": lambda p: 0 * p, "l1": torch.abs, "l2": torch.square}[reg]
    R = sum(norm(p).sum() for p in training.model.dynamics.parameters())
    expected = torch.nn.functional.cross_entropy(training.model(x), y) + 0.01 * R
    assert_close(training.training_step((x, y), 0), expected)


@pytest.mark.parametrize("reg", ["error", "raw-error", "kinetic"])
def test_loss_with_what_the_solver_sums(tiny, reg):
    # the weight is the only difference, so R follows from two losses; it is checked against the solver's own numbers
    x, y = None, None
    losses = []
    for weight in (0.0, 2.0):
        torch.manual_seed(0)
        training = Training(RunConfig.of("mnist", "sample", reg=reg, weight=weight), tiny)
        x, y = next(iter(training.train_dataloader()))
        losses.append(training.training_step((x, y), 0))
    solution = training.model.solve(x, accumulate=training.regularizer.accumulate)[1]
    R = solution.error.mean() if reg == "error" else solution.accumulated.mean()
    assert_close(losses[1] - losses[0], 2 * R, rtol=1e-3, atol=1e-5)
    assert R > 0


def test_training_batches_change_with_the_epoch(tiny, monkeypatch):
    training = Training(RunConfig.of("mnist", "sample"), tiny)
    first = [y for _, y in training.train_dataloader()]
    monkeypatch.setattr(Training, "current_epoch", 1)
    assert not torch.equal(torch.cat(first), torch.cat([y for _, y in training.train_dataloader()]))


# ---- interrupted; an RKNet, which is trained quickly, breaks as an ODE-Net does


class PowerCut(Exception):
    pass


@pytest.fixture
def cut_at(monkeypatch):
    """cut_at(step, error): training breaks at that step; cut_at(None): at none. It gives a list of the steps begun."""
    untouched = Training.training_step

    def at(step, error=PowerCut):
        begun = []

        def training_step(self, batch, index):
            begun.append(self.global_step)
            if self.global_step == step:
                raise error
            return untouched(self, batch, index)

        monkeypatch.setattr(Training, "training_step", training_step)
        return begun

    yield at
    # Lightning ignores Ctrl-C after having seen one
    signal.signal(signal.SIGINT, signal.default_int_handler)


def broken_then_resumed(config, path, cut_at, step):
    """Weights of a run that breaks at a step and is continued."""
    cut_at(step)
    with pytest.raises(PowerCut):
        train_run(config, path, device="cpu")
    assert not (path / "model.safetensors").exists()
    began = cut_at(None)
    torch.manual_seed(12345)  # another process would have another state
    assert train_run(config, path, device="cpu")
    assert began[0] == step // STEPS * STEPS  # the end of the last whole epoch
    return weights(path)


@pytest.fixture(scope="module")
def rknet(small, tmp_path_factory):
    """A model that is trained quickly, and the directory of its unbroken run."""
    path = tmp_path_factory.mktemp("rknet") / "run"
    with small():
        config = RunConfig.of("mnist", "sample", model="rknet")
        train_run(config, path, device="cpu")
    return config, path


@pytest.mark.parametrize("step", [3, STEPS, STEPS + 5], ids=["in the first epoch", "between epochs", "in the second"])
def test_a_resumed_run_is_bitwise_the_unbroken_one(rknet, tiny, tmp_path, cut_at, step):
    config, unbroken = rknet
    assert same(broken_then_resumed(config, tmp_path / "run", cut_at, step), weights(unbroken))


@pytest.mark.slow
def test_a_resumed_odenet_is_bitwise_the_unbroken_one(finished, tiny, tmp_path, cut_at):
    resumed = broken_then_resumed(finished["config"], tmp_path / "run", cut_at, STEPS)
    assert same(resumed, weights(finished["trained"]))


def test_a_resumed_run_keeps_a_schedule_in_epochs(tiny_steps, tmp_path, cut_at, monkeypatch):
    monkeypatch.setattr(mnist_task, "_DECAY_EPOCHS", (1,))
    config = RunConfig.of("mnist", "sample", model="rknet")
    train_run(config, tmp_path / "unbroken", device="cpu")
    resumed = broken_then_resumed(config, tmp_path / "run", cut_at, STEPS + 5)
    assert same(resumed, weights(tmp_path / "unbroken"))


def test_the_log_of_a_resumed_run_has_every_row_once(rknet, tiny, tmp_path, cut_at):
    # cut after step 9 was logged: the resumed run logs it again
    config, unbroken = rknet
    broken_then_resumed(config, tmp_path / "run", cut_at, STEPS + 5)
    assert [row["step"] for row in read_log(unbroken)] == [9]
    assert [row["step"] for row in read_log(tmp_path / "run")] == [9]


def test_ctrl_c_is_a_keyboard_interrupt(tiny, tmp_path, cut_at):
    # the command line turns it into "interrupted; the same command continues"
    cut_at(2, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        train_run(RunConfig.of("mnist", "sample", model="rknet"), tmp_path / "run", device="cpu")


def test_a_damaged_checkpoint_is_one_line(finished, tiny, tmp_path, stage):
    path = stage("trained")
    (path / "model.safetensors").unlink()
    checkpoint = path / "checkpoints" / "last.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(UserError) as caught:
        train_run(finished["config"], path, device="cpu")
    assert "last.ckpt" in str(caught.value)
    assert "\n" not in str(caught.value)


class Crafted:
    """An object whose unpickling runs code: it creates a file."""

    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return type(self.witness).touch, (self.witness,)


def test_a_crafted_checkpoint_is_refused_and_runs_no_code(finished, tiny, tmp_path, stage):
    path, witness = stage("trained"), tmp_path / "code was run"
    (path / "model.safetensors").unlink()
    checkpoint = path / "checkpoints" / "last.ckpt"
    torch.save(torch.load(checkpoint, weights_only=True) | {"state_dict": Crafted(witness)}, checkpoint)
    with pytest.raises(ExperimentError, match=r"last\.ckpt is damaged, or contains objects that"):
        train_run(finished["config"], path, device="cpu")
    assert not witness.exists()
    torch.load(checkpoint, weights_only=False)  # as unpickling would
    assert witness.exists()


def test_a_training_that_diverges_is_one_line(tiny, tmp_path):
    config = RunConfig.of("mnist", "sample", model="rknet", changes=["learning_rate=1e30"])
    with pytest.raises(ExperimentError, match=r"^training diverged at step \d+: .*NON_FINITE") as caught:
        train_run(config, tmp_path / "run", device="cpu")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, SolveError)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_divergence_says_at_which_step(tiny, tmp_path, cut_at):
    cut_at(3, SolveError("by hand", None))
    with pytest.raises(ExperimentError, match=r"^training diverged at step 3: by hand$"):
        train_run(RunConfig.of("mnist", "sample", model="rknet"), tmp_path / "run", device="cpu")


# ---- finished, or another's


def test_a_finished_run_is_reused(finished, tiny, stage, snapshot):
    path = stage("trained")
    before = snapshot(path)
    assert train_run(finished["config"], path, device="cpu") is False
    assert snapshot(path) == before


@pytest.mark.parametrize("done", [True, False], ids=["finished", "unfinished"])
@pytest.mark.parametrize("change", [{"seed": 1}, {"weight": 0.5}])
def test_a_run_with_other_settings_is_refused(finished, tiny, stage, snapshot, done, change):
    path = stage("trained")
    if not done:
        (path / "model.safetensors").unlink()
    before = snapshot(path)
    with pytest.raises(ExperimentError, match="holds a run with other settings"):
        train_run(finished["config"].model_copy(update=change), path, device="cpu")
    assert snapshot(path) == before


def test_without_resume_an_existing_directory_is_refused(finished, tiny, stage, snapshot):
    path = stage("trained")
    before = snapshot(path)
    with pytest.raises(ExperimentError, match="exists; omit --no-resume"):
        train_run(finished["config"], path, device="cpu", resume=False)
    assert snapshot(path) == before


def test_missing_data_leave_no_directory(tmp_path):
    with pytest.raises(UserError, match="missing"):
        train_run(RunConfig.of("mnist", "cpu"), tmp_path / "run", data_dir=tmp_path / "none", device="cpu")
    assert not (tmp_path / "run").exists()


def test_training_json_is_json_where_there_is_no_error_estimate(rknet):
    # RK4 embeds none; NaN is not JSON
    def refuse(constant):
        raise ValueError(constant)

    text = (rknet[1] / "training.json").read_text()
    assert json.loads(text, parse_constant=refuse)["train/nfe"] == 4


def test_the_weights_kept_are_those_of_the_best_epoch(tmp_path):
    """PhysioNet keeps the epoch of the largest held-out area under the ROC curve."""
    config = RunConfig.of("physionet", "sample", changes=["epochs=4", "quantization=4"])
    path = tmp_path / "run"
    train_run(config, path, device="cpu")
    task, preset = config.found
    batches = task.monitored_batches(task.load(preset, None), preset)
    model = load_model(path, config)
    with torch.no_grad():
        (kept,) = [float(task.loss(model, batch, None).metrics["auroc"]) for batch in batches]
    with next((path / "logs").glob("csv*/metrics.csv")).open() as lines:
        logged = [float(row["held_out/auroc"]) for row in csv.DictReader(lines) if row["held_out/auroc"]]
    assert len(logged) == 4
    assert kept == pytest.approx(max(logged), abs=1e-6)
    assert read_json(path / "training.json")["best_epoch"] == logged.index(max(logged)) + 1
    assert len(set(logged)) > 1


def test_steer_trains_on_spans_with_random_ends():
    model = odenet()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        with random_end(model, RandomEndTime(0.25)):
            end = model.block.t1
    assert 0.75 <= end <= 1.25
    assert end != 1
    assert model.block.t1 == 1
    with random_end(model, NoRegularizer()):
        assert model.block.t1 == 1


# ---- coarse epochs


def coarse_batch(tiny, reg, **settings):
    """The loss of a batch in a coarse epoch, and the training."""
    config = RunConfig.of("mnist", "sample", reg=reg, changes=[f"{k}={v}" for k, v in settings.items()])
    torch.manual_seed(0)
    training = Training(config, tiny)
    training._log = lambda *args: None
    batch = next(iter(training.task.training_batches(tiny, training.settings, seed=0, epoch=0)))
    return training, training.training_step(batch, 0), batch


def test_a_coarse_epoch_is_trained_by_rk4(tiny):
    training, loss, (x, y) = coarse_batch(tiny, "none", coarse_epochs=1)
    model, own = training.model, training.model.block.integrator
    assert own == training.task.reference
    model.block.integrator = RK4(steps=1)
    assert_close(loss, torch.nn.functional.cross_entropy(model(x), y), atol=0, rtol=0)


def test_a_coarse_epoch_regularizes_the_error_of_one_step_of_dopri(tiny):
    training, loss, (x, y) = coarse_batch(tiny, "error", coarse_epochs=1)
    model = training.model
    model.block.integrator = Dopri5(rtol=1e-3, atol=1e-3, first_step="span", dt_min=1.0, accept_at_dt_min=True)
    logits, solution = model.solve(x)
    expected = torch.nn.functional.cross_entropy(logits, y) + training.config.weight * solution.error.mean()
    assert_close(loss, expected, atol=0, rtol=1e-6)


def test_bfloat16_leaves_states_and_weights_in_single_precision(tiny):
    training, loss, (x, _) = coarse_batch(tiny, "none", coarse_epochs=1, precision="bfloat16")
    _, single, _ = coarse_batch(tiny, "none", coarse_epochs=1)
    assert loss.dtype == torch.float32
    assert loss != single
    assert_close(loss, single, atol=0.02, rtol=0)
    with coarsely(training.model, training.task.coarse(training.settings, 0, "none")):
        _, solution = training.model.solve(x)
    assert solution.y.dtype == torch.float32


def test_bfloat16_alone_keeps_the_integrator(tiny):
    training, loss, (x, y) = coarse_batch(tiny, "none", precision="bfloat16")
    with torch.autocast("cpu", torch.bfloat16):
        logits, solution = training.model.solve(x)
    assert (solution.n_accepted > 1).all()
    assert_close(loss, torch.nn.functional.cross_entropy(logits.float(), y), atol=1e-3, rtol=0)


def test_a_coarse_epoch_leaves_the_integrator_even_on_an_error():
    model = odenet()
    own = model.block.integrator

    def stop():
        with coarsely(model, Coarse(RK4(steps=1), torch.bfloat16)):
            assert model.block.integrator == RK4(steps=1)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop()
    assert model.block.integrator == own
    assert not torch.is_autocast_enabled("cpu")


def test_a_model_without_an_ode_can_be_coarse():
    with coarsely(resnet(), Coarse(RK4(steps=1), torch.bfloat16)):
        assert torch.is_autocast_enabled("cpu")
