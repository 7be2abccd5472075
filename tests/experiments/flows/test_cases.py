import pytest
import torch

from dise import Euler
from dise.flow import Guided
from dise_experiments.flows.cases import cases
from dise_experiments.flows.config import FieldConfig
from dise_experiments.flows.measure.errors import free_draws, outcome, summary
from dise_experiments.flows.measure.solvers import Solver
from dise_experiments.flows.simulators.reference import observation
from dise_experiments.flows.sources import field
from dise_experiments.flows.stored import claim
from dise_experiments.run.config import ExperimentError
from dise_experiments.run.rundir import MODEL, save_weights


def stored(task, out):
    config = FieldConfig.of(task, "sample")
    path = config.directory(out)
    claim(path, config)
    save_weights(field(task), path / MODEL)
    return path


def test_a_target_in_the_plane_has_no_condition(tmp_path):
    (case,) = cases(stored("moons", tmp_path))
    assert (case.name, case.condition, case.observed(1), case.calls_per_evaluation) == ("moons", None, None, 1)
    assert case.flow.sample(5).shape == (5, 2)


def test_a_posterior_is_conditioned_on_simulated_data_and_observed_at_the_benchmarks(tmp_path):
    (case,) = cases(stored("gaussian_linear", tmp_path))
    first, second = case.condition(3), case.condition(3)
    assert first.shape == (3, 10)
    assert not torch.equal(first, second)
    assert torch.equal(case.observed(4)(2), observation("gaussian_linear", 4).expand(2, 10))
    assert case.flow.sample(3, first).shape == (3, 10)


def test_digits_have_labels_and_are_also_guided(tmp_path):
    plain, guided = cases(stored("digits", tmp_path))
    assert (plain.name, guided.name) == ("digits", "digits, guidance 2")
    assert (plain.stem, guided.stem) == ("digits", "digits-guidance-2")
    assert isinstance(guided.flow.f, Guided)
    labels = guided.condition(4)
    with torch.no_grad(), guided.flow.f.counting() as counted:
        guided.flow.f(torch.tensor(0.5), torch.randn(4, 1, 28, 28), labels)
    assert counted.rows == 4 * guided.calls_per_evaluation
    assert plain.calls_per_evaluation == 1


def test_points_are_solved_tightly_by_a_copy_in_double_precision(tmp_path):
    (case,) = cases(stored("moons", tmp_path))
    assert {p.dtype for p in case.exact.parameters()} == {torch.float64}
    assert {p.dtype for p in case.flow.parameters()} == {torch.float32}


def test_a_field_must_be_trained(tmp_path):
    with pytest.raises(ExperimentError, match="no trained field"):
        cases(tmp_path)


def test_a_guided_evaluation_is_two_calls_of_the_network_in_a_solve(tmp_path):
    _, guided = cases(stored("digits", tmp_path))
    draws = free_draws(guided, 2, seed=0)
    with guided.flow.f.counting() as counted:
        found = outcome(guided, Euler(2), draws, batch=2)
    row = summary(guided, Solver("Euler", "Euler", Euler(2)), found, 0.1)
    assert row["nfe"] == {"mean": 2.0, "max": 2}
    assert row["model_calls"] == {"mean": counted.rows / 2, "max": 4}
    assert found.ends.shape == (2, 1, 28, 28)
