"""Fitted tables and the certified sampler of a field, kept in its directory."""

from collections.abc import Callable, Sequence
from pathlib import Path

from dise.flow import Flow, FlowSampler, fit_solver, make_sampler
from dise.flow.certified.candidates import default_candidates
from dise.integrate import Adams, Integrator, Multistep
from dise.select import OutputDeviation, load_policy, save_policy
from dise.select.make_dynamic.report import Report
from dise_experiments.flows.cases import Case
from dise_experiments.flows.measure.sizes import Sizes
from dise_experiments.flows.measure.solvers import FITTED, POLICY, SINGLE, Solver

Log = Callable[[str], None]


def fitted_solvers(case: Case, sizes: Sizes, folder: Path, log: Log) -> list[Solver]:
    """Tables fitted to the field's samples, by `fit_solver`."""
    return [
        Solver(f"fitted table, {n} evaluations", FITTED, _fitted(case, n, sizes, folder / f"fitted-{n}", log), False)
        for n in sizes.fitted
    ]


def certified_solvers(
    case: Case, sizes: Sizes, fitted: Sequence[Solver], folder: Path, log: Log
) -> tuple[list[Solver], Report | None]:
    """The policy that `make_sampler` certifies, the best single candidate that it certifies, and its report.

    The fitted tables are candidates, too. Without draws for it in `sizes` there are none.
    """
    if not sizes.sampler_draws:
        return [], None
    risk = OutputDeviation(sizes.tolerance)
    usual = default_candidates(risk) if sizes.many_candidates else few_candidates(sizes.tolerance)
    candidates = [*usual, *(solver.integrator for solver in fitted)]

    def make() -> FlowSampler:
        log(f"{case.name}: certifying a sampler")
        return make_sampler(
            case.flow,
            risk=risk,
            draws=sizes.sampler_draws,
            condition=case.condition,
            reference=case.flow.block.integrator,
            candidates=candidates,
            epsilon=sizes.epsilon,
            delta=sizes.delta,
            batch=sizes.batch,
        )

    sampler = kept(folder / "certified", case.flow, make)
    report: Report = sampler.report
    comparison = report.comparison
    decisions = 0.0 if comparison is None else comparison.overhead
    solvers = [Solver(POLICY, POLICY, sampler.block.integrator, False, decisions)]
    single = None if comparison is None else comparison.single
    solvers += [Solver(f"{SINGLE}: {c}", SINGLE, c, False) for c in candidates if str(c) == single][:1]
    return solvers, report


def few_candidates(tolerance: float) -> list[Integrator]:
    """Adams–Bashforth tables and own steps, where each evaluation is expensive."""
    tables = [Multistep.adams(n, order) for n in (4, 6, 8, 12, 16, 24) for order in (2, 3)]
    return [*tables, *(Adams(rtol=tolerance * x, atol=tolerance * x) for x in (2.0, 0.5, 0.1))]


def kept(folder: Path, flow: Flow, make: Callable[[], FlowSampler]) -> FlowSampler:
    """The sampler with a policy from the folder; it is made and saved there if there is none."""
    if (folder / "policy.json").exists():
        sampler = FlowSampler(flow).eval()
        load_policy(sampler, folder)
        return sampler
    sampler = make()
    save_policy(sampler, folder)
    return sampler


def _fitted(case: Case, n: int, sizes: Sizes, folder: Path, log: Log) -> Integrator:
    def make() -> FlowSampler:
        log(f"{case.name}: fitting a solver of {n} evaluations")
        fit = fit_solver(
            case.flow,
            n,
            condition=case.condition,
            draws=sizes.fit_draws,
            loss="log" if case.images else "mse",
            reference=case.flow.block.integrator,
            iterations=sizes.fit_iterations,
            batch=sizes.batch,
        )
        sampler = FlowSampler(case.flow).eval()
        sampler.block.integrator = fit.solver
        return sampler

    return kept(folder, case.flow, make).block.integrator
