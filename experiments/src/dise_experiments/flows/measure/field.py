"""All measurements of a trained field, in its directory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dise.select.make_dynamic.report import Report
from dise_experiments.flows.cases import Case, cases
from dise_experiments.flows.measure.clock import milliseconds
from dise_experiments.flows.measure.densities import density_errors
from dise_experiments.flows.measure.distances import compare, measure_of
from dise_experiments.flows.measure.errors import Outcome, outcome, summary, tight_draws
from dise_experiments.flows.measure.figures import draw_budgets, draw_pareto
from dise_experiments.flows.measure.policies import certified_solvers, fitted_solvers
from dise_experiments.flows.measure.sizes import SIZES, Sizes
from dise_experiments.flows.measure.solvers import POLICY, Solver, usual_solvers
from dise_experiments.flows.stored import read_config
from dise_experiments.mnist.data import MnistSplits, load_mnist, load_mnist_sample
from dise_experiments.run.config import ExperimentError
from dise_experiments.run.rundir import read_json, write_json

SOLVERS, TIMES = "solvers.json", "times.json"
Log = Callable[[str], None]


def measure_field(path: Path, *, data_dir: Path | None = None, log: Log = lambda line: None) -> bool:
    """Measure a trained field's solvers, and draw their figures; does nothing if that is done.

    Args:
        path: directory of the field.
        data_dir: folder of the benchmark's posteriors and of MNIST.
        log: is called with lines on the progress.

    Returns:
        whether anything was measured.

    Raises:
        ExperimentError: the field is not trained, or the directory holds measurements with other settings.
        DataError: MNIST is missing or damaged.
    """
    sizes = sizes_of(path)
    if (path / SOLVERS).exists():
        if Sizes.model_validate(read_json(path / SOLVERS)["settings"]) != sizes:
            raise ExperimentError(f"{path / SOLVERS}: has other settings; move it and policies/ away to measure again")
        return False
    config = read_config(path)
    digits = _digits(config.preset, data_dir) if config.task == "digits" else None
    found = {case.name: _measure(case, sizes, path, data_dir, digits, log) for case in cases(path)}
    write_json(path / SOLVERS, {"settings": sizes.model_dump(mode="json"), "torch": torch.__version__, "cases": found})
    return True


def time_field(path: Path, *, log: Log = lambda line: None) -> bool:
    """Measure milliseconds per batch; does nothing if that is done.

    Returns:
        whether anything was measured.

    Raises:
        ExperimentError: the field is not trained.
    """
    if (path / TIMES).exists():
        return False
    sizes, found = sizes_of(path), {}
    for case in cases(path):
        log(f"{case.name}: timing")
        solvers, _ = solvers_of(case, sizes, path, log)
        found[case.name] = milliseconds(case, solvers, sizes.timed)
    write_json(path / TIMES, found)
    return True


def sizes_of(path: Path) -> Sizes:
    """The settings of a field's measurements, those of its preset."""
    config = read_config(path)
    return SIZES[config.preset]["digits" if config.task == "digits" else "points"]


def solvers_of(case: Case, sizes: Sizes, path: Path, log: Log) -> tuple[list[Solver], Report | None]:
    """All solvers that are compared, and the report of the certified one."""
    reference = Solver(str(case.flow.block.integrator), "Dopri5", case.flow.block.integrator)
    folder = path / "policies" / case.stem
    fitted = fitted_solvers(case, sizes, folder, log)
    certified, report = certified_solvers(case, sizes, fitted, folder, log)
    solvers = [*usual_solvers(few=case.images), reference, *fitted, *certified]
    return list({solver.name: solver for solver in solvers}.values()), report


def _digits(preset: str, data_dir: Path | None) -> MnistSplits:
    return load_mnist_sample() if preset == "sample" else load_mnist(data_dir)


def _measure(
    case: Case, sizes: Sizes, path: Path, data_dir: Path | None, digits: MnistSplits | None, log: Log
) -> dict[str, Any]:
    solvers, report = solvers_of(case, sizes, path, log)
    log(f"{case.name}: {len(solvers)} solvers on {sizes.draws} draws")
    draws = tight_draws(case, sizes.draws, batch=sizes.batch, seed=1)
    outcomes = {solver.name: outcome(case, solver.integrator, draws, batch=sizes.batch) for solver in solvers}
    rows = [summary(case, solver, outcomes[solver.name], sizes.tolerance) for solver in solvers]
    density = density_errors(case, solvers, draws[: sizes.density_draws]) if sizes.density_draws else None
    log(f"{case.name}: distances")
    measure = measure_of(case, sizes, data_dir, digits, path)
    ends = {name: found.ends for name, found in outcomes.items()}
    distances = compare(case, solvers, draws, ends, measure, sizes)
    draw_pareto(rows, case.name, sizes.tolerance, path / f"pareto-{case.stem}.png")
    _draw_budgets(case, draws, outcomes, path / f"budgets-{case.stem}.png")
    return {"rows": rows, "policy": _policy(report), "log_prob": density, "distances": distances}


def _draw_budgets(case: Case, draws: Any, outcomes: dict[str, Outcome], file: Path) -> None:
    """The figure by the policy's budgets, or those of own-step Adams where no policy was made."""
    name = POLICY if POLICY in outcomes else next(name for name in outcomes if name.startswith("Adams"))
    shown = outcomes[name]
    draw_budgets(case, case.flow.block.integrator, draws, shown.ends, shown.nfe, file)


def _policy(report: Report | None) -> dict[str, Any] | None:
    """What the report of the certified sampler says, in numbers and as text."""
    if report is None:
        return None
    comparison = report.comparison
    known = {} if comparison is None else vars(comparison) | {"share": comparison.share(report.nfe)}
    return {
        "family": report.family,
        "nfe": report.nfe,
        "reference_nfe": report.reference_nfe,
        "risk": report.risk,
        "epsilon": report.epsilon,
        "delta": report.delta,
        **known,
        "report": str(report),
    }
