"""From a trained model to a fast one: collect, fit, calibrate."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dise.integrate import RK4, Adaptive, Dopri5, Euler, Integrator, Midpoint
from dise.nn import NeuralODE
from dise.select.guarantee.calibrate import (
    Calibration,
    calibrate,
    evaluate,
    exact_binomial,
    hoeffding_bentkus,
    samples_needed,
)
from dise.select.guarantee.risk import OutputDeviation, ProbabilityShift, Risk, RiskCost, disagreement, lost_accuracy
from dise.select.judging.costs import Costs
from dise.select.make_dynamic.families import Family, families
from dise.select.model.adapt import adapt, check_same
from dise.select.model.block import device_of, find_block, has_block
from dise.select.model.head import find_head
from dise.select.model.outcomes import Outcomes, run_candidates
from dise.select.model.states import joined

CANDIDATES = (Euler(1), Euler(2), Midpoint(1), RK4(1), RK4(2), RK4(4))
FIT_PART = 0.3  # of the samples: to fit selectors and to choose the family on
MOST_JUDGED = 2000  # samples to choose the family on
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Report:
    """What `make_dynamic` did; `str(report)` tells it.

    Attributes:
        policy: the integrator that the model has now.
        family: the kind of policy, as chosen on the samples of the fit; "reference" if nothing was certified.
        nfe, reference_nfe: mean NFE a sample on the calibration samples, of the policy, what it looks at included in
            evaluations of f (see `dise.select.spent`), and of the reference.
        risk: mean loss of the policy on them.
        epsilon, delta, samples: the guarantee: a risk of at most ε with confidence 1 − δ, from this many samples.
        families: of each family tried, the mean NFE of its cheapest setting whose mean loss on the fit's samples is at
            most ε; infinite where there is none.
        notes: what could not be done, and what to look at.
    """

    policy: Integrator
    family: str
    nfe: float
    reference_nfe: float
    risk: float
    epsilon: float
    delta: float
    samples: int
    families: dict[str, float]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        bound = f"at most {self.epsilon:.2%} with confidence {1 - self.delta:g}"
        lines = [
            f"{self.policy}: {self.nfe:.2f} evaluations of f a sample, of the reference's {self.reference_nfe:.2f}",
            f"risk {self.risk:.3%} on {self.samples} samples; {bound}",
            "on the samples of the fit:",
            *(f"  {name}: {nfe:.2f} evaluations" for name, nfe in sorted(self.families.items(), key=lambda x: x[1])),
            *self.notes,
        ]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        finite = {name: nfe if math.isfinite(nfe) else None for name, nfe in self.families.items()}
        return values | {"policy": str(self.policy), "families": finite, "notes": list(self.notes)}

    @classmethod
    def of_json(cls, values: dict[str, Any], policy: Integrator) -> "Report":
        """What `to_json` gave, for its policy."""
        families = {name: math.inf if nfe is None else nfe for name, nfe in values["families"].items()}
        return cls(**(values | {"policy": policy, "families": families, "notes": tuple(values["notes"])}))


def make_dynamic(
    model: nn.Module,
    data: Iterable[Tensor | Batch],
    *,
    epsilon: float = 0.001,
    delta: float = 0.05,
    risk: Risk = disagreement,
    block: str | None = None,
    f: str | None = None,
    span: Sequence[float] | None = None,
    reference: Integrator | None = None,
    head: nn.Module | None = None,
    candidates: Sequence[Integrator] = CANDIDATES,
    settings: Sequence[Integrator] | None = None,
    learn_from: Iterable[Tensor | Batch] | None = None,
    seed: int = 0,
    log: Callable[[str], None] = lambda line: None,
) -> nn.Module:
    """Make a trained model choose its integrator for each sample, with a guarantee on what that costs.

    The model is changed in place and returned: it is called as before, and gives the answers of its reference
    integrator but for a part of at most ε of what it will see, with confidence 1 − δ. On three tenths of the data,
    drawn at random, selectors are fitted and the kind of policy is chosen; on the others its settings are tested by
    Learn then Test (`dise.calibrate`). Give `learn_from`, and all of the data is for the test, which may allow for a
    loss more. If nothing is certified, the model keeps the reference.

    Args:
        model: trained; it is put in evaluation mode. It contains a `dise.NeuralODE` and calls it once, or a block
            written on torchdiffeq, to be named.
        data: held-out batches x or (x, target), independent draws of what the model will see, used for nothing before.
            They are kept in memory.
        epsilon, delta: ε and δ, in (0, 1).
        risk: what is lost, 0 or 1 a sample: `disagreement` (of the predicted class; needs no labels), `lost_accuracy`,
            `ProbabilityShift(τ)` (of a probability), `OutputDeviation(tolerance)` (of any output); or
            (output, reference's output, target) → [n] losses in [0, 1].
        block: name of the submodule that integrates, e.g. "feature_layers.0"; default: the model's one NeuralODE. If it
            is written on torchdiffeq, a `dise.NeuralODE` takes its place (see `dise.select.model.adapt`).
        f, span: of a block written on torchdiffeq: the name of its vector field and (t0, t1), if they are not to be
            seen.
        reference: integrator to compare with; default: the block's own, or Dopri5 at 1e-3 for one on torchdiffeq.
        head: what the model does with h(t1), for the confidence of its answers; default: the modules after the
            block, if those are all.
        candidates: integrators to choose from, beside the reference, and beside the same with its first step over the
            whole span if it is adaptive.
        settings: integrators to test instead of the built-in families, the safest first.
        learn_from: batches like the data's to fit selectors and to choose the kind of policy on. The guarantee does not
            depend on them, so they may be what the model was trained on, if labels are not what the risk asks for.
        seed: of the split and the fits. torch's global generator is left alone.
        log: gets lines on the progress.

    Returns:
        the model; `find_block(model).report` says what was done.

    Raises:
        ValueError: a model, block or data that cannot be used, and too few data (the message says how many are needed).
    """
    needed = samples_needed(epsilon, delta)
    if settings and learn_from is not None:
        raise ValueError("learn_from: the settings are given, there is nothing to learn")
    model.eval()
    held = _gathered("data", data)
    part_to_fit = 0.0 if settings or learn_from is not None else FIT_PART
    _check_number(len(held.x), needed, part_to_fit)
    own = _find(model, block, f, span, reference, held.x[: held.size])
    reference = reference or own.integrator
    if reference.chooses or not own.options.batched:
        what = f"one that chooses, {reference}" if reference.chooses else "a block with batched=False"
        raise ValueError(f"reference: expected an integrator that is the same for each sample of a batch, got {what}")
    notes: list[str] = []
    estimates: dict[str, float] = {}
    head = head or _head_of(model, own, reference, held.x[: held.size], notes)
    given = [held] if learn_from is None else [held, _gathered("learn_from", learn_from)]
    part: nn.Module = model
    if head is not None:
        part, given = _without_stem(model, own, reference, head, given)
    fit, test = _split(given, needed, seed, part=part_to_fit)
    family = Family("as given", tuple(settings or ()))
    if not settings:
        everyone = (*candidates, *_bolder(reference), reference)
        family, estimates = _choose(part, own, fit, everyone, head, risk=risk, epsilon=epsilon, seed=seed, log=log)
    binary = isinstance(risk, ProbabilityShift | OutputDeviation) or risk in (disagreement, lost_accuracy)
    p_value = exact_binomial if binary else hoeffding_bentkus
    log(f"testing {len(family.settings)} settings of: {family.name}")
    found = calibrate(
        part, family.settings, test, reference=reference, epsilon=epsilon, delta=delta, risk=risk, p_value=p_value
    )
    own.integrator, own.report = found.integrator, _report(found, family.name, estimates, notes)
    log(str(own.report))
    return model


def _bolder(reference: Integrator) -> tuple[Integrator, ...]:
    """The reference without its heuristic first step, which may cost more than the integration of a smooth field."""
    if not isinstance(reference, Adaptive) or reference.first_step == "span":
        return ()
    return (replace(reference, first_step="span"),)


class Gathered(NamedTuple):
    """Inputs [N, ...], targets [N, ...] (zeros if there are none), and the size of a batch."""

    x: Tensor
    target: Tensor
    size: int

    def batches(self, rows: Tensor, size: int) -> list[Batch]:
        """Some of the samples, `size` at a time."""
        return [(self.x[some], self.target[some]) for some in rows.split(size)]


def _gathered(name: str, data: Iterable[Tensor | Batch]) -> Gathered:
    batches = [(batch, torch.zeros(len(batch))) if isinstance(batch, Tensor) else tuple(batch) for batch in data]
    if not batches:
        raise ValueError(f"{name}: expected batches x or (x, target), got none")
    x = torch.cat([batch[0] for batch in batches])
    targets = [torch.zeros(len(b[0])) if b[1] is None else b[1] for b in batches]
    return Gathered(x, torch.cat(targets), len(batches[0][0]))


@torch.no_grad()
def _find(
    model: nn.Module,
    name: str | None,
    f: str | None,
    span: Sequence[float] | None,
    reference: Integrator | None,
    x: Tensor,
) -> NeuralODE:
    """The model's NeuralODE, put there if it is not."""
    if name is None:
        if not has_block(model):
            raise ValueError(
                "block: the model contains no dise.NeuralODE; give the name of the submodule that integrates, one of "
                f"{[name for name, _ in model.named_modules() if name]}"
            )
        return find_block(model)
    modules = dict(model.named_modules())
    if name not in modules or not name:
        raise ValueError(f"block: expected one of {[n for n in modules if n]}, got {name!r}")
    module = modules[name]
    if isinstance(module, NeuralODE):
        return module
    own = adapt(module, reference or Dopri5(rtol=1e-3, atol=1e-3), f=f, span=span).eval()
    starts: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda module, inputs: starts.append(inputs[0]))
    try:
        model(x.to(device_of(model)))
    finally:
        hook.remove()
    check_same(module, own, starts[0])
    model.set_submodule(name, own)
    return own


def _check_number(number: int, needed: int, part: float) -> None:
    least = math.ceil(needed / (1 - part))
    if number < least:
        raise ValueError(
            f"data: at least {least} samples are needed, {needed} of them to certify this epsilon with this delta even "
            f"without a single loss; got {number}"
        )


def _split(given: list[Gathered], needed: int, seed: int, *, part: float) -> tuple[list[Batch], list[Batch]]:
    """Batches to fit on and batches to test on, in random order: two sets, or two parts of one."""
    draw = torch.Generator().manual_seed(seed)
    data, to_fit = given[0], given[-1]
    order = torch.randperm(len(data.x), generator=draw)
    if len(given) > 1:
        rows = torch.randperm(len(to_fit.x), generator=draw)
    else:
        cut = len(order) - max(needed, round((1 - part) * len(order)))
        rows, order = order[:cut], order[cut:]
    size = min(to_fit.size, max(1, math.ceil(len(rows) / 4)))  # they are to be halved
    return to_fit.batches(rows, size), data.batches(order, data.size)


@torch.no_grad()
def _head_of(
    model: nn.Module, block: NeuralODE, reference: Integrator, x: Tensor, notes: list[str]
) -> nn.Module | None:
    with block.using(reference):
        head = find_head(model, block, x.to(device_of(model)))
    if head is None:
        notes.append(
            "The model's answer is not made of h(t1) by the modules after the block alone, so no cascade on its "
            "confidence was tried: give head=."
        )
    return head


@torch.no_grad()
def _without_stem(
    model: nn.Module, block: NeuralODE, reference: Integrator, head: nn.Module, given: list[Gathered]
) -> tuple[nn.Module, list[Gathered]]:
    """Block and head as a model of the block's starts, since what comes before is the same for all policies.

    The model and its inputs as they are, if that is not all that it does: its spans may depend on the sample.
    """
    part, first = nn.Sequential(block, head), given[0].x[: given[0].size]
    with block.using(reference), block.recording() as records:
        expected = model(first.to(device_of(model)))
        start = records[0].y0
        if not isinstance(start, Tensor) or not _same(part(start), expected):
            return model, given
    return part, [data._replace(x=_starts(model, block, data)) for data in given]


def _starts(model: nn.Module, block: NeuralODE, data: Gathered) -> Tensor:
    """[N, ...] where the block starts from."""
    with block.using(Euler()), block.recording() as records:
        for inputs in data.x.split(data.size):
            model(inputs.to(device_of(model)))
            records[-1] = records[-1]._replace(y0=joined(records[-1].y0).to(data.x.device))
    return torch.cat([joined(record.y0) for record in records])


def _same(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def _choose(
    model: nn.Module,
    block: NeuralODE,
    batches: list[Batch],
    candidates: tuple[Integrator, ...],
    head: nn.Module | None,
    *,
    risk: Risk,
    epsilon: float,
    seed: int,
    log: Callable[[str], None],
) -> tuple[Family, dict[str, float]]:
    """The family that seems the cheapest, and what each seems to need.

    They are judged on the last MOST_JUDGED samples at most, what is fitted to samples on the last half at most, which
    it is not fitted to.
    """
    most = math.ceil(MOST_JUDGED / len(batches[0][0]))
    fresh = min(len(batches) // 2, most)
    learn, judged = batches[: len(batches) - fresh], batches[-most:]
    log(f"running {len(candidates)} candidates on {sum(len(x) for x, _ in learn)} samples")
    outcomes = _by_price(run_candidates(model, learn, candidates))
    costs = Costs.of(outcomes, RiskCost(risk=risk))
    classifies = risk in (disagreement, lost_accuracy) or isinstance(risk, ProbabilityShift)
    length = float(torch.as_tensor(block.t1).mean() - torch.as_tensor(block.t0).mean())
    tried = families(
        costs,
        outcomes,
        head,
        classifies=classifies,
        epsilon=epsilon,
        span=length,
        device=device_of(model),
        seed=seed,
    )
    expected = evaluate(model, candidates[-1], judged)[0]
    estimates = {}
    for family in tried:
        some = slice(len(judged) - fresh if family.learnt and fresh else 0, None)
        estimates[family.name] = _estimate(model, family, judged[some], expected[some], risk, epsilon)
        log(f"{family.name}: {estimates[family.name]:.2f} evaluations")
    return min(tried, key=lambda family: estimates[family.name]), estimates


def _by_price(outcomes: Outcomes) -> Outcomes:
    """The candidates in order of their mean NFE, the last one where it is; without those that need more than it."""
    price = outcomes.nfe.double().mean(0).tolist()
    last = len(price) - 1
    order = sorted((i for i in range(last) if price[i] < price[last]), key=lambda i: price[i])
    return outcomes.among([*order, last])


def _estimate(
    model: nn.Module, family: Family, batches: list[Batch], expected: list[Tensor], risk: Risk, epsilon: float
) -> float:
    """Mean NFE of the family's cheapest setting before the first whose mean loss is above ε."""
    cheapest = math.inf
    for setting in family.settings:
        outputs, nfe = evaluate(model, setting, batches)
        losses = [risk(o, e, y).double() for o, e, (_, y) in zip(outputs, expected, batches, strict=True)]
        if float(torch.cat(losses).mean()) > epsilon:
            break
        cheapest = min(cheapest, nfe)
    return cheapest


def _report(found: Calibration, family: str, estimates: dict[str, float], notes: list[str]) -> Report:
    chosen = next((t for t in found.tested if t.integrator is found.integrator and t.certified), None)
    if chosen is None:
        first = found.tested[0]
        notes = [
            *notes,
            f"Nothing was certified: {first.integrator}, the safest setting, lost {first.risk:.3%}. Take more data, a "
            "larger epsilon or other candidates.",
        ]
    return Report(
        policy=found.integrator,
        family=family if chosen else "reference",
        nfe=chosen.nfe if chosen else found.reference_nfe,
        reference_nfe=found.reference_nfe,
        risk=chosen.risk if chosen else 0.0,
        epsilon=found.epsilon,
        delta=found.delta,
        samples=found.samples,
        families=estimates,
        notes=tuple(notes),
    )
