import pytest

from dise_experiments.common.task import REGULARIZERS, Run, SelectorSpec, Task
from dise_experiments.run.registry import TASKS

ROWS = [{"policy": name} for name in ("Euler", "DISE (paper)", "random, mix of paper", "DISE (pooled)")]


@pytest.fixture
def run():
    return Run("r", "odenet", "none", 0.0, 0, metrics={"policies": ROWS}, training={}, timing=None)


@pytest.mark.parametrize(
    ("prefix", "names"),
    [
        ("", ["Euler", "DISE (paper)", "random, mix of paper", "DISE (pooled)"]),
        ("DISE", ["DISE (paper)", "DISE (pooled)"]),
        ("mix", []),
    ],
)
def test_policies_of_a_run(run, prefix, names):
    assert [row["policy"] for row in run.policies(prefix)] == names


def test_a_selector_decides_a_sample_each_unless_told_otherwise():
    assert SelectorSpec(lambda model, candidates: None).costs == "sample, Eq. 4"


def test_a_selector_chooses_from_all_candidates_unless_told_otherwise():
    spec = SelectorSpec(lambda model, candidates: None)
    assert spec.choosable("abc") == ("a", "b", "c")
    assert spec._replace(candidates=(2, 0)).choosable("abc") == ("c", "a")


# ---- every task of the registry


@pytest.fixture(params=TASKS.values(), ids=TASKS)
def task(request):
    return request.param


def test_registry_has_tasks_under_their_names():
    assert "mnist" in TASKS
    assert {name: task.name for name, task in TASKS.items()} == {name: name for name in TASKS}


def test_the_reference_is_the_last_candidate(task):
    assert task.candidates[-1] == task.reference


def test_policies_have_names_of_their_own(task):
    names = [str(integrator) for integrator in (*task.candidates, *task.baselines)]
    assert len(set(names)) == len(names)


def test_every_weight_is_of_a_regularizer(task):
    assert set(task.weights) <= set(task.regularizers)
    assert set(task.regularizers) <= set(REGULARIZERS)


def test_models_go_without_regularizer(task):
    assert [task.check(model, "none") for model in task.models] == [None] * len(task.models)


def test_nothing_is_refused_by_default(task):
    assert Task.check(task, "any", "any") is None
