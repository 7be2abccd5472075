"""From a flow to one whose draws each have their own budget, in one call."""

import math
from collections.abc import Callable, Sequence
from typing import TypedDict, Unpack, overload

import torch

from dise.flow.certified.candidates import default_candidates
from dise.flow.certified.families import FAMILIES, MakeFamily
from dise.flow.certified.fitted_tables import EVALUATIONS
from dise.flow.certified.prepare import Numbers, prepare
from dise.flow.density import FlowDensity
from dise.flow.fitting.draws import DrawConditions, check_drawable
from dise.flow.flow import Flow
from dise.flow.sampler import FlowSampler
from dise.integrate import Dopri5, Integrator, Multistep
from dise.integrate.exact import Exact
from dise.integrate.integrator import as_integrators
from dise.integrate.value import as_whole, check_callable, check_whole
from dise.nn import check_lower_precision
from dise.select.guarantee.calibrate import check_levels, samples_needed
from dise.select.guarantee.risk import LogProbDeviation, Risk, check_risk
from dise.select.make_dynamic.families import FEWEST

LEARN, CHOOSE = 0.5, 0.1  # parts of the draws; the others are tested, which takes the fewest evaluations per draw
SEQUENCES = 2  # single candidates and policies, each with half of δ


class SamplerOptions(TypedDict, total=False):
    """The further arguments of `make_sampler`."""

    draws: int
    condition: DrawConditions | None
    reference: Integrator | None
    candidates: Sequence[Integrator] | None
    fitted: Sequence[int] | None
    families: Sequence[MakeFamily]
    autocast: torch.dtype | None
    epsilon: float
    delta: float
    batch: int
    batch_size: int | None
    seed: int
    log: Callable[[str], None]


@overload
def make_sampler(  # type: ignore[overload-overlap]
    flow: Flow, *, risk: LogProbDeviation, **options: Unpack[SamplerOptions]
) -> FlowDensity: ...


@overload
def make_sampler(flow: Flow, *, risk: Risk, **options: Unpack[SamplerOptions]) -> FlowSampler: ...


def make_sampler(
    flow: Flow,
    *,
    risk: Risk,
    draws: int = 20_000,
    condition: DrawConditions | None = None,
    reference: Integrator | None = None,
    candidates: Sequence[Integrator] | None = None,
    fitted: Sequence[int] | None = None,
    families: Sequence[MakeFamily] = FAMILIES,
    autocast: torch.dtype | None = None,
    epsilon: float = 0.01,
    delta: float = 0.05,
    batch: int = 1024,
    batch_size: int | None = None,
    seed: int = 0,
    log: Callable[[str], None] = lambda line: None,
) -> FlowSampler | FlowDensity:
    """Make a flow's samples, or its densities, cheap, with a guarantee on how many are far from the exact ones.

    With confidence 1 − δ a part of at most ε of the draws to come has a loss, which compares a draw with what the
    reference makes of the same noise. The data are noise, so they cost nothing but evaluations: on a part of the draws
    all candidates are run and selectors are fitted that give each draw an integrator of its own; on another part the
    kind of policy is chosen; on the rest single candidates and the chosen policy's settings are tested by Learn then
    Test, each of the two sequences with δ/2. The cheapest certified setting is taken, so the result never costs more
    than the best single candidate that the same test certifies. That one integrator for all draws is best is a possible
    result, which the report states.

        sampler = dise.make_sampler(flow, risk=dise.select.OutputDeviation(0.03), draws=20_000)
        print(sampler.report)
        x = sampler.sample(10_000)

    Args:
        flow: with `batched=True`; it is put in evaluation mode, and its own integrator is not changed.
        risk: the loss per draw, 0 or 1: `OutputDeviation(tolerance)` of samples, in the data's unit, or
            `OutputDeviation.of_decibels`; `LogProbDeviation(tolerance)` of log-densities, in nats; `disagreement` or
            another function (samples, reference's samples, None) → [n] losses in [0, 1].
        draws: number of draws. Half of them must suffice to certify ε with δ/2.
        condition: number of draws → their conditions (see `Flow`), one for each, drawn as in use; called once.
        reference: what draws are compared with; None: `Dopri5(rtol=1e-6, atol=1e-6)`.
        candidates: integrators to choose from; None: `default_candidates(risk)`, without multistep tables if the flow
            has jumps.
        fitted: evaluations of f of the tables that are fitted to the flow as further candidates, as by `fit_solver`, on
            draws of their own: at most a tenth of `draws`, added to them. (): no tables. None:
            (2, 3, 4, 5, 6, 8) beside the default candidates; no tables if the flow has jumps, or for log-densities.
        families: makers of policies (see `dise.flow.certified.families`); () compares single candidates alone.
        autocast: torch.bfloat16 or torch.float16: all solves but the reference's are under `torch.autocast` in it, in
            use, too (`block.autocast`). Rounding then counts in the losses, so the guarantee covers it. None: they run
            as the reference does.
        epsilon, delta: ε and δ, in (0, 1).
        batch: draws per solve; bounds the memory.
        batch_size: number of draws per batch in use. The result is then the faster of the cheapest certified single
            candidate and the cheapest certified policy, by the times of such batches on this machine, which the report
            has. Default: the one that needs fewer evaluations of f, and times of batches of `batch`.
        seed: of the draws and the fits; torch's global generators are left as they were.
        log: is called with lines on the progress.

    Returns:
        a `FlowSampler`, or with `LogProbDeviation` a `FlowDensity`, whose points are draws of the flow by the
        reference. `save_policy` and `load_policy` take both. If nothing is certified, it has the reference.

    Raises:
        TypeError, ValueError: an argument (named in the message) is not as described, or there are too few draws.
        SolveError: the reference could not integrate a draw whose log-density is to be compared.

    Source: Angelopoulos et al., Learn then Test, 2021 (fixed-sequence testing from several starts).
    """
    check_drawable(flow, condition, reference, seed)
    reference = Dopri5(rtol=1e-6, atol=1e-6) if reference is None else reference
    _check(risk, reference, families, batch, batch_size, log)
    check_lower_precision(autocast, optional=True)
    compared = reference if autocast is None else Exact(reference)
    with torch.inference_mode(False):
        prepared = prepare(
            flow,
            share_draws(draws, epsilon, delta),
            risk=risk,
            condition=condition,
            reference=compared,
            candidates=_candidates(candidates, flow, risk),
            fitted=_fitted(fitted, candidates, flow, risk),
            families=families,
            autocast=autocast,
            epsilon=epsilon,
            batch=batch,
            seed=seed,
            log=log,
        )
    found = prepared.certify(epsilon, delta)
    if batch_size is not None:
        found = prepared.faster(found, batch_size)
    prepared.block.integrator = found.integrator
    prepared.block.report = prepared.report(found, batch_size)
    if found.integrator is compared:
        prepared.block.integrator, prepared.block.autocast = reference, None
    log(str(prepared.block.report))
    return prepared.model


def _candidates(given: Sequence[Integrator] | None, flow: Flow, risk: Risk) -> tuple[Integrator, ...]:
    candidates = default_candidates(risk) if given is None else as_integrators("candidates", given)
    if given is None and _has_jumps(flow):  # tables step where they say
        candidates = tuple(candidate for candidate in candidates if not isinstance(candidate, Multistep))
    if not candidates:
        raise ValueError("candidates: expected at least one integrator, got none")
    return candidates


def _fitted(
    given: Sequence[int] | None, candidates: Sequence[Integrator] | None, flow: Flow, risk: Risk
) -> tuple[int, ...]:
    if given is None:
        useful = candidates is None and not _has_jumps(flow) and not isinstance(risk, LogProbDeviation)
        return EVALUATIONS if useful and float(flow.t0) != float(flow.t1) else ()
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise TypeError(f"fitted: expected numbers of evaluations such as (4, 6), or (), got {given!r}")
    return tuple(dict.fromkeys(as_whole("fitted", n) for n in given))


def _has_jumps(flow: Flow) -> bool:
    return flow.jump_at is not None or flow.step_at is not None


def share_draws(draws: int, epsilon: float, delta: float) -> Numbers:
    """Numbers of draws to learn from, to choose on and to test on."""
    check_whole("draws", draws)
    check_levels(epsilon, delta)
    needed = samples_needed(epsilon, delta / SEQUENCES)
    learn, choosing = math.floor(LEARN * draws), math.floor(CHOOSE * draws)
    test = draws - learn - choosing
    least = max(math.ceil(needed / (1 - LEARN - CHOOSE)), math.ceil(FEWEST / LEARN))
    if draws < least:
        raise ValueError(
            f"draws: expected at least {least}, as {needed} are needed to certify epsilon={epsilon:g} with "
            f"delta={delta:g} even without a loss; got {draws}"
        )
    return learn, choosing, test


def _check(
    risk: object, reference: Integrator, families: object, batch: int, batch_size: int | None, log: object
) -> None:
    check_risk(risk)
    if reference.chooses:
        raise ValueError(f"reference: expected an integrator that is the same for each draw, got {reference}")
    if not isinstance(families, Sequence) or not all(callable(make) for make in families):
        raise TypeError(f"families: expected a list of functions (see dise.flow.certified.families), got {families!r}")
    check_whole("batch", batch)
    if batch_size is not None:
        check_whole("batch_size", batch_size)
    check_callable("log", log)
