import pytest
import torch

from dise import Flow
from dise.integrate import Dopri5
from dise_experiments.flows.cases import cases
from dise_experiments.flows.measure.errors import free_draws, outcome
from dise_experiments.flows.measure.solvers import usual_solvers

SOLVERS = usual_solvers()


def test_names_are_distinct():
    assert len({solver.name for solver in SOLVERS}) == len(SOLVERS)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.name)
def test_solvers_have_the_budget_and_the_direction_that_they_say(solver, stored):
    (case,) = cases(stored("moons"))
    found = outcome(case, solver.integrator, free_draws(case, 6, seed=0), batch=4)
    budget = {"Midpoint": 2, "Heun": 2, "RK4": 4}.get(solver.family, 1)
    if hasattr(solver.integrator, "steps") and isinstance(solver.integrator.steps, int):
        assert found.nfe.unique().tolist() == [budget * solver.integrator.steps]
    flow = Flow(case.flow.f, case.flow.base, solver.integrator)
    if solver.density:
        assert flow.log_prob(torch.randn(3, 2)).isfinite().all()
    else:
        with pytest.raises(ValueError, match=r"from 0 to 1|scales the state"):
            flow.log_prob(torch.randn(3, 2))


def test_few_solvers_are_the_cheaper_ones_of_each_family():
    few = usual_solvers(few=True)
    assert {solver.family for solver in few} == {solver.family for solver in SOLVERS}
    assert {solver.name for solver in SOLVERS} - {solver.name for solver in few} >= {"Euler(steps=100)", "AB2(16)"}
    assert set(few) < set(SOLVERS)


def test_there_is_an_own_step_method_of_the_usual_tolerance():
    assert Dopri5(rtol=1e-5, atol=1e-5) in [solver.integrator for solver in SOLVERS]
