import pytest
import torch

from dise import Dopri5, Euler
from dise_experiments.flows.cases import cases
from dise_experiments.flows.frechet import digit_classifier
from dise_experiments.flows.measure.distances import compare, measure_of
from dise_experiments.flows.measure.errors import outcome, tight_draws
from dise_experiments.flows.measure.solvers import Solver
from dise_experiments.mnist.data import load_mnist_sample

SOLVERS = [Solver("exact", "Dopri5", Dopri5(rtol=1e-6, atol=1e-6)), Solver("one step", "Euler", Euler(1))]


def compared(case, sizes, measure):
    draws = tight_draws(case, sizes.draws, batch=sizes.batch, seed=1)
    ends = {solver.name: outcome(case, solver.integrator, draws, batch=sizes.batch).ends for solver in SOLVERS}
    return compare(case, SOLVERS, draws, ends, measure, sizes)


@pytest.mark.parametrize("task", ["moons", "gaussian_linear"])
def test_points_are_compared_with_the_tight_solve_and_the_data(task, stored, tiny, tmp_path):
    (case,) = cases(stored(task))
    found = compared(case, tiny, measure_of(case, tiny, None, None, tmp_path))
    assert found["name"] == "C2ST"
    assert set(found["solvers"]) == {"exact", "one step"}
    # the noise is the same as that of the floor, so the exact solver reaches the floor
    assert found["solvers"]["exact"]["tight"] == pytest.approx(found["floor"], abs=0.03)
    assert len(found["data"]) == (2 if task == "gaussian_linear" else 1)


def test_a_posterior_without_data_has_no_distance_from_it(stored, tiny, tmp_path):
    (case,) = cases(stored("slcp"))
    found = compared(case, tiny, measure_of(case, tiny, tmp_path, None, tmp_path))
    assert found["data"] is None
    assert found["solvers"]["exact"]["data"] is None


def test_digits_are_compared_by_a_classifier(stored, tiny, tmp_path):
    case, _ = cases(stored("digits"))
    digits = load_mnist_sample()
    digit_classifier(digits.train, tmp_path / "classifier.safetensors", iterations=30)
    measure = measure_of(case, tiny, None, digits, tmp_path)
    test = measure.data(1)
    assert measure.name == "Fréchet distance"
    assert (test.min(), test.max()) == (-1, 1)
    assert measure.distance(test, test[:500]) < 0.2 * measure.distance(test, torch.randn(500, 1, 28, 28))


def test_a_draw_that_is_not_finite_has_no_distance(stored, tiny, tmp_path):
    (case,) = cases(stored("moons"))
    draws = tight_draws(case, tiny.draws, batch=tiny.batch, seed=1)
    ends = {"exact": draws.ends, "one step": torch.full_like(draws.ends, torch.nan)}
    found = compare(case, SOLVERS, draws, ends, measure_of(case, tiny, None, None, tmp_path), tiny)
    assert found["solvers"]["one step"] == {"tight": None, "data": None}


def test_digits_need_images(stored, tiny, tmp_path):
    case, _ = cases(stored("digits"))
    with pytest.raises(ValueError, match="digits"):
        measure_of(case, tiny, None, None, tmp_path)
