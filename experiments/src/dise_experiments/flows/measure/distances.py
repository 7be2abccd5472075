"""Distances between distributions: a solver's draws, the tight solve's from other noise, and the data's own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dise.flow.fitting.draws import Draws
from dise_experiments.common.errors import DataError
from dise_experiments.flows.c2st import c2st
from dise_experiments.flows.cases import Case
from dise_experiments.flows.frechet import digit_classifier, frechet_distance
from dise_experiments.flows.measure.errors import free_draws, outcome, tight_draws
from dise_experiments.flows.measure.sizes import Sizes
from dise_experiments.flows.measure.solvers import Solver
from dise_experiments.flows.simulators.posteriors import posterior
from dise_experiments.flows.simulators.tasks import SIMULATORS
from dise_experiments.flows.targets import TARGETS
from dise_experiments.mnist.data import MnistSplits, to_input

FIRST = 1  # the observation at which all solvers are compared
SEEDS = (2, 3)  # of the tight solve that others are compared with, and of the others


@dataclass(frozen=True)
class Measure:
    """A distance between two sets of draws.

    Attributes:
        name: as in tables.
        distance: (reference draws, draws) → number.
        data: draws of the data's distribution by the observation's index; None where there are none.
    """

    name: str
    distance: Callable[[Tensor, Tensor], float]
    data: Callable[[int], Tensor | None]


def measure_of(case: Case, sizes: Sizes, data_dir: Path | None, digits: MnistSplits | None, folder: Path) -> Measure:
    """C2ST of points; the Fréchet distance of digits, whose classifier is kept in the folder."""
    if case.images:
        if digits is None:
            raise ValueError("digits: expected images for the classifier, got None")
        classifier = digit_classifier(digits.train, folder / "classifier.safetensors")

        @torch.no_grad()
        def distance(x: Tensor, y: Tensor) -> float:
            return frechet_distance(classifier.features(x.float()), classifier.features(y.float()))

        test = 2 * to_input(digits.test.images) - 1
        return Measure("Fréchet distance", distance, lambda index: test)
    return Measure("C2ST", partial(c2st, epochs=sizes.epochs), partial(_data, case, sizes.compared, data_dir))


def _data(case: Case, number: int, data_dir: Path | None, index: int) -> Tensor | None:
    """Draws of a target, or of the posterior of an observation, in the field's unit."""
    generator = torch.Generator().manual_seed(index)
    if case.task in TARGETS:
        return TARGETS[case.task](number, generator)
    try:
        theta = posterior(case.task, index, number, generator, data_dir)
    except DataError:
        return None
    return SIMULATORS[case.task].standardized(theta)


def compare(
    case: Case, solvers: Sequence[Solver], draws: Draws, ends: Mapping[str, Tensor], measure: Measure, sizes: Sizes
) -> dict[str, Any]:
    """The distances of all solvers, and the floor below which a distance says nothing.

    Args:
        case: the field.
        solvers: to be compared.
        draws: with tight ends; used where conditions are no observations.
        ends: by the solver's name what it makes of `draws`.
        measure: the distance.
        sizes: numbers of draws.

    Returns:
        "name"; "floor": of two seeds of the tight solve; "data": of the tight solve from the data, for each observation
        (None without data); "solvers": by name the distances from the tight solve and from the data.
    """
    number = sizes.draws if case.images else sizes.compared
    fixed = replace(case, condition=case.observed(FIRST))
    if case.task in SIMULATORS:  # one observation for all draws
        draws = tight_draws(fixed, number, batch=sizes.batch, seed=SEEDS[1])
        ends = {s.name: outcome(fixed, s.integrator, draws, batch=sizes.batch).ends for s in solvers}
    first = tight_draws(fixed, number, batch=sizes.batch, seed=SEEDS[0]).ends
    data = measure.data(FIRST)
    rows = {
        solver.name: {
            "tight": _finite(measure, first, ends[solver.name][:number]),
            "data": None if data is None else _finite(measure, data, ends[solver.name][:number]),
        }
        for solver in solvers
    }
    return {
        "name": measure.name,
        "floor": measure.distance(first, draws.ends[:number]),
        "data": _from_data(case, first, measure, sizes),
        "solvers": rows,
    }


def _from_data(case: Case, first: Tensor, measure: Measure, sizes: Sizes) -> list[float] | None:
    """The tight solve beside the data, the field's own error, at each observation that is compared."""
    found = []
    for index in range(FIRST, (sizes.observations if case.task in SIMULATORS else FIRST) + 1):
        data, ends = measure.data(index), first
        if data is None:
            return None
        if index != FIRST:
            fixed = replace(case, condition=case.observed(index))
            free = free_draws(fixed, len(first), seed=SEEDS[0])
            ends = outcome(fixed, case.flow.block.integrator, free, batch=sizes.batch).ends
        found.append(measure.distance(data, ends))
    return found


def _finite(measure: Measure, reference: Tensor, ends: Tensor) -> float | None:
    """The distance; None if a draw is not finite."""
    return measure.distance(reference, ends) if bool(ends.isfinite().all()) else None
