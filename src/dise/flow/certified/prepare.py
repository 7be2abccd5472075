"""What comes before the test of a sampler: draws, outcomes of all candidates, and the choice of what to test."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dise.flow.certified.choice import Choice, choose, run_all
from dise.flow.certified.exactness import own_losses
from dise.flow.certified.families import MakeFamily
from dise.flow.certified.fitted_tables import FittedTables, draws_to_fit, fit_tables
from dise.flow.density import FlowDensity
from dise.flow.fitting.draws import DrawConditions, draw_starts, solve_draws
from dise.flow.flow import Flow
from dise.flow.guidance import Guided
from dise.flow.sampler import FlowSampler
from dise.integrate import Integrator
from dise.integrate.exact import inner
from dise.nn import NeuralODE
from dise.select.guarantee.calibrate import Calibration, SettingTest, calibrate, suitable_p_value
from dise.select.guarantee.risk import LogProbDeviation, Risk
from dise.select.make_dynamic.comparison import Comparison
from dise.select.make_dynamic.families import ONE_FOR_ALL
from dise.select.make_dynamic.report import Report
from dise.select.make_dynamic.timing import served_batches, time_policy, time_served
from dise.select.model.data import Batch
from dise.select.model.inputs import Inputs

ONE = "No policy is cheaper than the best single candidate: all draws have one integrator."
Numbers = tuple[int, int, int]  # of draws to learn from, to choose on and to test on


@dataclass(frozen=True)
class Prepared:
    """A flow's model, what is to be tested, and draws to test it on.

    Attributes:
        model: of samples or densities, with the flow's own integrator.
        choice: what is to be tested.
        test: draws that nothing has seen.
        reference, risk, numbers: see `make_sampler`.
        fits: tables that were fitted, on draws of their own.
        doubt: a note if the reference is not exact to the risk's tolerance; None if nothing is known against it.
    """

    model: FlowSampler | FlowDensity
    choice: Choice
    test: list[Batch]
    reference: Integrator
    risk: Risk
    numbers: Numbers
    fits: FittedTables
    doubt: str | None

    @property
    def block(self) -> NeuralODE:
        """The model's block."""
        return self.model.block

    def certify(self, epsilon: float, delta: float) -> Calibration:
        """The test of both sequences on the draws to test on."""
        return calibrate(
            self.model,
            self.choice.sequences,
            self.test,
            reference=self.reference,
            epsilon=epsilon,
            delta=delta,
            risk=self.risk,
            p_value=suitable_p_value(self.risk),
            block=self.block,
        )

    def faster(self, found: Calibration, size: int) -> Calibration:
        """The test with the best single candidate as its result, if that takes less time on batches of a size."""
        single, policy = self._single(found), found.integrator
        if single is None or policy in (single.integrator, self.reference):
            return found
        served = served_batches([batch.inputs for batch in self.test], size)
        times = time_served(self.model, self.block, {"policy": policy, "single": single.integrator}, served)
        return replace(found, integrator=single.integrator) if times["single"] < times["policy"] else found

    def _single(self, found: Calibration) -> SettingTest | None:
        """The test of the cheapest single candidate that is certified."""
        singles = [test for test in found.tests if test.certified and test.integrator in self.choice.singles]
        return min(singles, key=lambda test: test.nfe, default=None)

    def report(self, found: Calibration, size: int | None = None) -> Report:
        """The report of a test, whose result the block has already, with times of batches of a size."""
        single = self._single(found)
        chosen = next((test for test in found.tests if test.integrator is found.integrator), None)
        one = found.integrator in self.choice.singles
        inputs = [batch.inputs for batch in self.test]
        return Report.of_calibration(
            found,
            self.reference,
            family=ONE_FOR_ALL if one else self.choice.family,
            families=self.choice.estimates,
            notes=[
                note for note in (self._why_one(found) if one else None, self.fits.note, self.doubt) if note is not None
            ],
            autocast=self.block.autocast,
            timing=time_policy(
                self.model,
                self.block,
                found.integrator,
                reference=self.reference,
                single=None if single is None else single.integrator,
                batches=inputs if size is None else served_batches(inputs, size),
            ),
            comparison=Comparison(
                single=None if single is None else str(single.integrator),
                single_nfe=None if single is None else single.nfe,
                oracle=self.choice.oracle,
                overhead=0.0 if chosen is None else chosen.overhead,
                model_calls=self._model_calls(),
                draws=self.numbers,
                fitted=len(self.fits.solvers),
                fit_draws=self.fits.draws,
                fit_seconds=self.fits.seconds,
            ),
        )

    def _why_one(self, found: Calibration) -> str:
        """Why all draws have one integrator."""
        certified = {test.integrator: test.nfe for test in found.tests if test.certified}
        policy = min((nfe for setting, nfe in certified.items() if setting in self.choice.policies), default=math.inf)
        if policy >= certified[found.integrator]:
            return ONE
        return f"All draws have one integrator, which is faster than the policy of {policy:.2f} evaluations."

    @torch.no_grad()
    def _model_calls(self) -> float:
        """Calls of the network per draw of a batch."""
        inputs = self.test[0].inputs
        f = self.model.flow.f if isinstance(self.model, FlowDensity) else self.block.f
        with self.block.recording(throw=False) as solves:
            if isinstance(f, Guided):
                with f.counting() as counted:
                    inputs.call(self.model)
                return counted.rows / len(inputs)
            inputs.call(self.model)
        return float(solves[0].solution.nfe.double().mean())


def prepare(
    flow: Flow,
    numbers: Numbers,
    *,
    risk: Risk,
    condition: DrawConditions | None,
    reference: Integrator,
    candidates: Sequence[Integrator],
    fitted: Sequence[int],
    families: Sequence[MakeFamily],
    epsilon: float,
    batch: int,
    seed: int,
    log: Callable[[str], None],
    autocast: torch.dtype | None = None,
) -> Prepared:
    """Draw, fit tables, run all candidates on the draws to learn from and to choose on, and choose a family.

    Args:
        fitted: evaluations of f of the tables to fit, on draws of their own.
        flow, risk, condition, reference, candidates, families, epsilon, batch, seed, log: see `make_sampler`.
        numbers: of draws to learn from, to choose on and to test on.
        autocast: of the model's block; the reference is `Exact` then.
    """
    density = isinstance(risk, LogProbDeviation)
    model = (FlowDensity if density else FlowSampler)(flow).eval()
    number = sum(numbers)
    further = draws_to_fit(number, flow) if fitted else 0
    noise, conditions = draw_starts(flow, number + further, condition, seed=seed)
    fits = FittedTables()
    if fitted:
        log(f"fitting {len(fitted)} tables to {further} draws")
        own = noise[number:], tuple(part[number:] for part in conditions)
        fits = fit_tables(flow, *own, fitted, reference=inner(reference), risk=risk, batch=batch, log=log)
        log(fits.note or f"fitted in {fits.seconds:.0f} s")
    drawn = noise[:number], tuple(part[:number] for part in conditions)
    inputs = _inputs(flow, *drawn, inner(reference), density, batch)
    learn, choosing, test = (_batches(part, batch) for part in _split(inputs, numbers))
    candidates = list(dict.fromkeys([*candidates, *fits.solvers]))
    model.block.autocast = autocast
    doubt = own_losses(model, model.block, choosing, reference, risk)
    if doubt is not None:
        log(doubt)
    log(f"running {len(candidates)} candidates and the reference on {numbers[0] + numbers[1]} draws")
    costs = run_all(model, model.block, [*learn, *choosing], (*candidates, reference), risk)
    choice = choose(
        model, model.block, costs, choosing, families=families, risk=risk, epsilon=epsilon, seed=seed, log=log
    )
    log(f"{sum(map(len, choice.sequences))} settings to test on {numbers[2]} draws: {choice.family}")
    return Prepared(model, choice, test, reference, risk, numbers, fits, doubt)


def draw_inputs(
    flow: Flow,
    number: int,
    condition: DrawConditions | None,
    reference: Integrator,
    *,
    density: bool,
    batch: int,
    seed: int,
) -> Inputs:
    """Noise, or points that the reference makes of it, and conditions."""
    noise, conditions = draw_starts(flow, number, condition, seed=seed)
    return _inputs(flow, noise, conditions, reference, density, batch)


def _inputs(
    flow: Flow, noise: Tensor, conditions: tuple[Tensor, ...], reference: Integrator, density: bool, batch: int
) -> Inputs:
    """The model's inputs: noise, or the points that the reference makes of it, and conditions."""
    if density:
        noise = solve_draws(flow, noise, conditions, reference, density=False, batch=batch).ends
    return Inputs((noise, *conditions))


def _split(inputs: Inputs, numbers: Sequence[int]) -> list[Inputs]:
    ends = torch.tensor(numbers).cumsum(0).tolist()
    return [inputs.take(slice(end - number, end)) for end, number in zip(ends, numbers, strict=True)]


def _batches(inputs: Inputs, size: int) -> list[Batch]:
    return [Batch(part, None) for part in inputs.split(size)]
