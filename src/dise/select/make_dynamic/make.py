"""From a trained model to a fast one, in one call."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from dise.integrate import RK4, Adaptive, Euler, Integrator, Midpoint
from dise.integrate.exact import Exact, inner
from dise.integrate.integrator import as_integrators, check_integrator
from dise.integrate.value import check_callable, check_seed, check_whole
from dise.nn import NeuralODE, check_lower_precision
from dise.select.guarantee.calibrate import PValue, calibrate, samples_needed, suitable_p_value
from dise.select.guarantee.kind import is_state, suitable_risk
from dise.select.guarantee.risk import Risk
from dise.select.make_dynamic.block import place_block
from dise.select.make_dynamic.choice import Choice, choose_family
from dise.select.make_dynamic.families import Family
from dise.select.make_dynamic.report import Report
from dise.select.make_dynamic.samples import Samples, check_number, collect_samples, split_samples
from dise.select.make_dynamic.stem import without_stem
from dise.select.make_dynamic.timing import time_policy
from dise.select.model.block import check_model, device_of
from dise.select.model.data import Data
from dise.select.model.head import find_head
from dise.select.model.inputs import Inputs
from dise.select.model.run import run_model

CANDIDATES = (Euler(1), Euler(2), Midpoint(1), RK4(1), RK4(2), RK4(4))
FIT_PART = 0.3  # of the samples: to fit selectors and to choose the family on


def make_dynamic(
    model: nn.Module,
    data: Data,
    *,
    epsilon: float = 0.001,
    delta: float = 0.05,
    risk: Risk | None = None,
    block: str | None = None,
    f: str | None = None,
    span: Sequence[float] | None = None,
    reference: Integrator | None = None,
    head: nn.Module | None = None,
    candidates: Sequence[Integrator] = CANDIDATES,
    settings: Sequence[Integrator] | None = None,
    learn_from: Data | None = None,
    batch_size: int | None = None,
    autocast: torch.dtype | None = None,
    seed: int = 0,
    log: Callable[[str], None] = lambda line: None,
) -> nn.Module:
    """Make a trained model choose its integrator for each sample, with a guarantee on how often its answers change.

    The model is changed in place and returned. It is called as before, and with confidence 1 − δ its answers differ
    from those with the reference integrator on a part of at most ε of the inputs to come. On three tenths of the data,
    drawn at random, selectors are fitted and the kind of policy is chosen; on the others its settings are tested by
    Learn then Test (`dise.calibrate`). With `learn_from` all of the data is for the test, which may then allow for a
    loss more. If nothing is certified, the model keeps the reference.

    A sample that a candidate or setting cannot integrate, or for which its output is not finite, is lost. The report
    names the risk, and has the NFE and milliseconds per batch of the policy, the reference and the best single
    candidate, and their accuracy if there are labels.

    Args:
        model: trained; it is put in evaluation mode. It contains a `dise.NeuralODE` and calls it once, or a block
            written on torchdiffeq, to be named.
        data: held-out batches of inputs or (inputs, target), independent draws of the inputs to come, not used for
            anything before; or all samples in the form of one batch. Inputs are a tensor, or a tuple or dict of tensors
            for a model of several inputs (see `dise.select.model.data.as_batches`). They are kept in memory.
        epsilon, delta: ε and δ, in (0, 1).
        risk: the loss per sample, 0 or 1: `disagreement` (in the predicted class; needs no labels), `lost_accuracy`,
            `ProbabilityShift(τ)` (a probability changes), `OutputDeviation(tolerance)` (an output of any kind changes);
            or (output, reference's output, target) → [n] losses in [0, 1], with None as target without targets.
            Default: `disagreement` if outputs and targets are those of a classifier, else an error that asks for it.
        block: name of the submodule that integrates, e.g. "feature_layers.0"; default: the model's one NeuralODE. If it
            is written on torchdiffeq, a `dise.NeuralODE` takes its place (see `dise.select.model.adapt`). Make several
            blocks dynamic one after the other: their ε and δ add up.
        f, span: for a block written on torchdiffeq: the name of its vector field, and (t0, t1), where they cannot be
            read from the block.
        reference: integrator to compare with; default: the block's own, or Dopri5 at 1e-3 for one on torchdiffeq.
        head: what the model does with h(t1), for the confidence of its answers; default: the modules after the
            block, if those are all.
        candidates: integrators to choose from. The reference is added, and if it is adaptive also the reference with
            its first step over the whole span.
        settings: integrators to test instead of the built-in families, the safest first.
        learn_from: batches like those of `data` to fit selectors and to choose the kind of policy on. The guarantee
            does not depend on them, so they may be the model's training data, unless the risk needs labels.
        batch_size: number of samples per batch when the model is served. The kind of policy is then chosen by measured
            milliseconds of such batches on this machine, of the model without the layers before the block, and the
            report has the times of such batches. Each kind is timed with its cheapest setting that would be certified
            if the tested samples lost as many as those for fitting. Default: by evaluations of f, which cost the most
            in large batches.
        autocast: torch.bfloat16 or torch.float16: all of the block's solves but the reference's are under
            `torch.autocast` in it, in use, too (`block.autocast`). Rounding then counts in the losses, so the guarantee
            covers it. None: they run as the reference does.
        seed: of the split and the fits. torch's global generator is left alone.
        log: is called with lines on the progress.

    Returns:
        the model; `find_block(model, block).report` says what was done.

    Raises:
        ValueError: a model, block or data that cannot be used, a risk that does not suit them, an f that mixes samples,
            or too few data (the message says how many are needed).
    """
    _check(model, reference, candidates, settings, head, autocast, seed, log)
    needed = samples_needed(epsilon, delta)
    given, fit_part = _collect(model, data, learn_from, settings, needed)
    model.eval()
    inputs, served = given[0].inputs.split(given[0].size), _served(given[0], batch_size)
    own = place_block(model, block, f=f, span=span, reference=reference, inputs=inputs[0])
    reference = _suitable_reference(reference, own, autocast)
    risk = _suitable_risk(risk, model, own, reference, given[0])
    notes: list[str] = []
    head = head or _find_head(model, own, reference, inputs[0], notes)
    part, given = (model, given) if head is None else without_stem(model, own, head, reference, given)
    fit, test = split_samples(given, needed, fit_part=fit_part, seed=seed)
    p_value, levels = suitable_p_value(risk), {"epsilon": epsilon, "delta": delta}
    passes = partial(_passes, p_value, sum(len(inputs) for inputs, _ in test), **levels)
    pick = partial(choose_family, risk=risk, epsilon=epsilon, seed=seed, log=log, passes=passes, batch_size=batch_size)
    with own.autocasting(autocast):
        everyone = (*candidates, *_one_step_first(reference), reference)
        choice = _as_given(settings) if settings else pick(part, own, head, fit, everyone)
        name, family = choice.family.name, choice.family.settings
        log(f"testing {len(family)} settings of: {name}")
        found = calibrate(part, family, test, reference=reference, risk=risk, p_value=p_value, block=own, **levels)
        timing = time_policy(model, own, found.integrator, reference=reference, single=choice.single, batches=served)
    kept = found.integrator is reference
    own.integrator, own.autocast = (inner(reference), None) if kept else (found.integrator, autocast)
    notes += choice.notes
    own.report = Report.of_calibration(
        found, reference, family=name, families=choice.estimates, notes=notes, autocast=autocast, timing=timing
    )
    log(str(own.report))
    return model


def _check(
    model: object,
    reference: object,
    candidates: object,
    settings: object,
    head: object,
    autocast: object,
    seed: object,
    log: object,
) -> None:
    check_model(model)
    check_lower_precision(autocast, optional=True)
    check_integrator(reference, "reference", optional=True)
    for name, values in (("candidates", candidates), ("settings", settings)):
        if values is not None or name == "candidates":
            as_integrators(name, values)
    check_callable("head", head, "a module", optional=True)
    check_seed(seed)
    check_callable("log", log)


def _passes(p_value: PValue, samples: int, loss: float, *, epsilon: float, delta: float) -> bool:
    """Whether the test certifies a setting with a mean loss on so many samples."""
    return p_value(loss, samples, epsilon) <= delta


def _as_given(settings: Sequence[Integrator]) -> Choice:
    return Choice(Family("as given", tuple(settings)), {})


def _served(samples: Samples, batch_size: int | None) -> list[Inputs]:
    """The inputs in batches of the size that is served; None: of the data's."""
    if batch_size is not None:
        check_whole("batch_size", batch_size)
    return samples.inputs.split(batch_size or samples.size)


def _suitable_risk(
    risk: Risk | None, model: nn.Module, block: NeuralODE, reference: Integrator, samples: Samples
) -> Risk:
    """The risk as given, or as the outputs of a first batch and all targets suggest; see `suitable_risk`."""
    inputs, target = samples.batches(torch.arange(len(samples.inputs)), samples.size)[0]
    run = run_model(model, block, reference, inputs.to(device_of(model)))
    return suitable_risk(risk, run.output.to(inputs.device), target, is_state=is_state(run.output, run.solves[0]))


def _collect(
    model: nn.Module,
    data: Data,
    learn_from: Data | None,
    settings: Sequence[Integrator] | None,
    needed: int,
) -> tuple[list[Samples], float]:
    """The data, with the samples to learn from if they are given, and the part of the data that is for fitting."""
    if settings and learn_from is not None:
        raise ValueError("learn_from: the settings are given, there is nothing to learn")
    given = [collect_samples("data", data, model)]
    fit_part = 0.0 if settings or learn_from is not None else FIT_PART
    check_number(len(given[0].inputs), needed, fit_part)
    if learn_from is not None:
        given.append(collect_samples("learn_from", learn_from, model))
    return given, fit_part


def _suitable_reference(reference: Integrator | None, block: NeuralODE, autocast: torch.dtype | None) -> Integrator:
    """The reference as given, or the block's own integrator; exact where other solves are under autocast."""
    reference = reference or block.integrator
    if reference.chooses or not block.options.batched:
        what = f"one that chooses, {reference}" if reference.chooses else "a block with batched=False"
        raise ValueError(f"reference: expected an integrator that is the same for each sample of a batch, got {what}")
    return reference if autocast is None else Exact(reference)


@torch.no_grad()
def _find_head(
    model: nn.Module, block: NeuralODE, reference: Integrator, inputs: Inputs, notes: list[str]
) -> nn.Module | None:
    """The modules after the block, if those are all that follows; else a note says so."""
    with block.using(reference):
        head = find_head(model, block, inputs.to(device_of(model)))
    if head is None:
        notes.append(
            "The model's answer is not made of h(t1) by the modules after the block alone, so no cascade on its "
            "confidence was tried: give head=."
        )
    return head


def _one_step_first(reference: Integrator) -> tuple[Integrator, ...]:
    """The reference without its heuristic first step, which may cost more than the integration of a smooth field."""
    if isinstance(reference, Exact):
        return tuple(map(Exact, _one_step_first(reference.integrator)))
    if not isinstance(reference, Adaptive) or reference.first_step == "span":
        return ()
    return (replace(reference, first_step="span"),)
