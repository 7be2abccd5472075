"""Which cells the grid has, what each needs, and which are done."""

import pytest

from dise_experiments.common.task import AsPublished
from dise_experiments.reproduce.grid import REGULARIZERS, Cell, Part, State, grid, with_trainings
from dise_experiments.reproduce.logs import log_file, note_failure
from dise_experiments.run.config import ExperimentError, RunConfig
from dise_experiments.run.rundir import claim_run

TASKS = ("mnist", "physionet", "circles")


def rows(cells):
    return {(cell.config.model, cell.config.reg, cell.config.seed, str(cell.part)) for cell in cells}


def test_mnist_has_the_papers_rows_and_those_of_the_literature():
    regs = {
        "none",
        "kinetic",
        "l1",
        "l2",
        "error",
        "jacobian",
        "taylor2",
        "taylor3",
        "stiffness",
        "weighted-error",
        "steer",
    }
    expected = {("odenet", reg, seed, part) for reg in regs for seed in (0, 1) for part in ("standard", "published")}
    # the published selector is the ODE-Net's
    expected |= {(model, "none", seed, "standard") for model in ("resnet", "rknet") for seed in (0, 1)}
    assert rows(grid(["mnist"], "sample", seeds=2)) == expected


@pytest.mark.parametrize(("task", "without"), [("physionet", {"steer"}), ("circles", set())])
def test_a_task_has_the_regularizers_that_it_knows(task, without):
    assert {cell.config.reg for cell in grid([task], "sample", seeds=1)} == set(REGULARIZERS) - without


def test_no_two_cells_have_the_same_name():
    names = [cell.name for cell in grid(TASKS, "cpu", seeds=3)]
    assert len(set(names)) == len(names) == 3 * (2 * 11 + 2 + 2 * 10 + 2 * 11)


def test_rows_are_chosen_by_regularizer_model_and_selector():
    options = {"seeds": 1, "parts": [Part.standard]}
    assert rows(grid(["mnist"], "sample", regs=["jacobian"], **options)) == {("odenet", "jacobian", 0, "standard")}
    assert rows(grid(["mnist"], "sample", models=["resnet"], **options)) == {("resnet", "none", 0, "standard")}
    both = grid(["mnist", "physionet"], "sample", regs=["steer"], **options)
    assert [cell.config.task for cell in both] == ["mnist"]
    twice = grid(["circles"], "sample", regs=["none", "none"], **options)
    assert len(twice) == 1


@pytest.mark.parametrize(
    ("tasks", "options", "message"),
    [
        (["digits"], {}, "task: there is no 'digits'"),
        (["physionet"], {"regs": ["steer"]}, "reg: there is no 'steer'"),
        (["circles"], {"models": ["odenet"]}, "model: there is no 'odenet'"),
        (["mnist"], {"models": ["resnet"], "regs": ["error"]}, "no cell is left"),
        (["mnist"], {"models": ["resnet"], "parts": [Part.published]}, "no cell is left"),
        (["circles"], {"changes": ["epochs=0"]}, "set: epochs"),
    ],
)
def test_what_is_not_there_is_refused(tasks, options, message):
    with pytest.raises(ExperimentError, match=message):
        grid(tasks, "sample", seeds=1, **options)


def cell(part, reg="none", task="circles", preset="sample", **options):
    return Cell(RunConfig.of(task, preset, reg=reg, **options), part)


def needs(one):
    return [f"{needed.config.name}/{needed.part}" for needed in one.needs]


def test_what_a_cell_needs():
    assert needs(cell(Part.train)) == []
    assert needs(cell(Part.standard, "l1")) == ["flow-l1-seed0/train"]
    assert needs(cell(Part.published, "error")) == ["flow-error-seed0/train"]
    assert needs(cell(Part.published, task="mnist")) == ["odenet-none-seed0/train"]
    # β of Eq. 5
    assert needs(cell(Part.published, "l1", seed=2)) == ["flow-l1-seed2/train", "flow-error-seed2/train"]
    assert needs(cell(Part.published, changes=["epochs=3"])) == [
        "flow-none-epochs=3-seed0/train",
        "flow-error-epochs=3-seed0/train",
    ]


def test_beta_is_of_the_run_that_the_preset_has():
    # in preset paper R is a sum by default, whatever the run's own regularizer is
    for reg in ("none", "l2", "error"):
        assert needs(cell(Part.published, reg, preset="paper"))[-1] == "flow-error-sum-seed0/train"


# ---- states


@pytest.fixture
def stored(tmp_path):
    """stored(cell): write the cell's last file, in its run's directory."""

    def store(done):
        claim_run(done.config.directory(tmp_path), done.config)
        file = done.results(tmp_path)
        file.parent.mkdir(exist_ok=True)
        file.touch()

    return store


def test_states(tmp_path, stored):
    waiting, begun, failed, done = (cell(Part.standard, reg) for reg in ("none", "l1", "l2", "error"))
    log_file(tmp_path, begun.name).parent.mkdir(parents=True)
    log_file(tmp_path, begun.name).write_text("epoch 1\n")
    note_failure(tmp_path, failed.name, "out of\nluck")
    stored(done)
    found = [one.state(tmp_path) for one in (waiting, begun, failed, done)]
    assert found == [State.waiting, State.begun, State.failed, State.done]


def test_each_part_has_results_of_its_own(tmp_path, stored):
    parts = [cell(part) for part in Part] + [Cell(cell(Part.train).config, Part.published, AsPublished(limit=64))]
    for number, one in enumerate(parts):
        assert [other.state(tmp_path) is State.done for other in parts] == [True] * number + [False] * (4 - number)
        stored(one)


def test_a_directory_of_another_run_is_not_done(tmp_path, stored):
    done = cell(Part.train)
    stored(done)
    assert done.state(tmp_path) is State.done
    other = done.config.model_copy(update={"settings": done.config.settings | {"epochs": 99}})
    (done.config.directory(tmp_path) / "config.json").write_text(other.model_dump_json())
    assert done.state(tmp_path) is State.waiting


def test_trainings_come_before_the_cells_that_need_them(tmp_path):
    cells = [cell(part, reg) for reg in ("none", "error") for part in (Part.standard, Part.published)]
    names = [f"{one.config.reg}/{one.part}" for one in with_trainings(cells, tmp_path)]
    assert names == [
        "none/train", "none/standard", "error/train", "none/published", "error/standard", "error/published",
    ]  # fmt: skip


def test_a_done_cell_needs_no_training(tmp_path, stored):
    """Committed results may lack the model."""
    done = cell(Part.standard)
    stored(done)
    assert with_trainings([done], tmp_path) == [done]
