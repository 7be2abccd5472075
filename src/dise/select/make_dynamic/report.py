"""The report of `make_dynamic`."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import torch

from dise.integrate import Integrator
from dise.integrate.exact import inner
from dise.select.guarantee.calibrate import Calibration, SettingTest
from dise.select.guarantee.risk import risk_name
from dise.select.make_dynamic.comparison import Comparison
from dise.select.make_dynamic.timing import Timing


@dataclass(frozen=True)
class Score:
    """What the targets of the data say of the policy and the reference.

    Attributes:
        name: "accuracy" or "root mean square error".
        policy, reference: its value with each of them.
    """

    name: str
    policy: float
    reference: float

    def __str__(self) -> str:
        return f"{self.name} {self.policy:.4f}, {self.reference:.4f} with the reference"


@dataclass(frozen=True)
class Report:
    """What `make_dynamic` did to a model; `str(report)` is its text.

    Attributes:
        policy: the integrator that the model has now.
        family: the kind of policy, chosen on the samples for fitting; "reference" if nothing was certified.
        nfe, reference_nfe: mean NFE per sample of the calibration data, by the policy, its own decisions included (see
            `dise.select.spent`), and by the reference.
        risk: mean loss of the policy on them.
        epsilon, delta, samples: the guarantee: a risk of at most ε with confidence 1 − δ, from this many samples.
        families: for each family tried, the mean NFE of its cheapest setting whose mean loss on the samples for fitting
            is at most ε; infinite if it has none.
        notes: what could not be done, and what to try.
        reference: the integrator that answers are compared with.
        risk_name: what the risk is called, with what it measures.
        score: accuracy, or root mean square error, by the targets of the data; None without targets.
        timing: milliseconds per batch; None if nothing was certified.
        comparison: with the best single candidate and the oracle, for samplers of flows; else None.
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
    reference: Integrator | None = None
    risk_name: str = ""
    score: Score | None = None
    timing: Timing | None = None
    comparison: Comparison | None = None

    @classmethod
    def of_calibration(
        cls,
        calibration: Calibration,
        reference: Integrator,
        *,
        family: str,
        families: dict[str, float],
        notes: Sequence[str],
        autocast: torch.dtype | None = None,
        timing: Timing | None = None,
        comparison: Comparison | None = None,
    ) -> Self:
        """The report of a calibration of one family's settings."""
        tests, integrator = calibration.tests, calibration.integrator
        chosen = next((t for t in tests if t.integrator is integrator and t.certified), None)
        if chosen is None:
            notes = [*notes, _why_the_reference(calibration)]
        notes = [*notes, *_failures(calibration, chosen), *_precision(autocast, chosen)]
        return cls(
            policy=integrator if chosen else inner(integrator),
            family=family if chosen else "reference",
            nfe=chosen.nfe if chosen else calibration.reference_nfe,
            reference_nfe=calibration.reference_nfe,
            risk=chosen.risk if chosen else 0.0,
            epsilon=calibration.epsilon,
            delta=calibration.delta,
            samples=calibration.samples,
            families=families,
            notes=tuple(notes),
            reference=inner(reference),
            risk_name=risk_name(calibration.risk),
            score=_score(calibration, chosen),
            timing=timing,
            comparison=comparison,
        )

    def __str__(self) -> str:
        bound = f"at most {self.epsilon:.2%} with confidence {1 - self.delta:g}"
        reference = "the reference" if self.reference is None else f"the reference {self.reference}"
        lines = [
            f"{self.policy}: {self.nfe:.2f} evaluations of f per sample, {self.reference_nfe:.2f} by {reference}",
            *([] if self.comparison is None else [self.comparison.text(self.nfe)]),
            *([] if self.timing is None else [str(self.timing)]),
            f"risk {self.risk:.3%} on {self.samples} samples; {bound}",
            f"the risk is {self.risk_name}, against the reference",
            *([] if self.score is None else [f"{self.score}"]),
            *(["on the samples for fitting:"] if self.families else []),
            *(f"  {name}: {nfe:.2f} evaluations" for name, nfe in sorted(self.families.items(), key=lambda x: x[1])),
            *self.notes,
        ]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON, its policy by name and without the reference."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "reference"}
        finite = {name: nfe if math.isfinite(nfe) else None for name, nfe in self.families.items()}
        parts = {name: None if part is None else asdict(part) for name, part in self._parts.items()}
        return values | parts | {"policy": str(self.policy), "families": finite, "notes": list(self.notes)}

    @property
    def _parts(self) -> dict[str, Score | Timing | Comparison | None]:
        return {"score": self.score, "timing": self.timing, "comparison": self.comparison}

    @classmethod
    def of_json(cls, values: dict[str, Any], policy: Integrator, reference: Integrator | None = None) -> Self:
        """The report that `to_json` wrote, with its policy and reference."""
        families = {name: math.inf if nfe is None else nfe for name, nfe in values["families"].items()}
        score, timing, comparison = (values.get(name) for name in ("score", "timing", "comparison"))
        given = {
            "policy": policy,
            "reference": reference,
            "families": families,
            "notes": tuple(values["notes"]),
            "score": None if score is None else Score(**score),
            "timing": None if timing is None else Timing(**timing),
            "comparison": None if comparison is None else Comparison.of_json(comparison),
        }
        return cls(**(values | given))


def _score(calibration: Calibration, chosen: SettingTest | None) -> Score | None:
    """The scores of the chosen setting, or of the reference alone, and of the reference."""
    own = calibration.reference_score
    if calibration.score_name is None or own is None:
        return None
    score = own if chosen is None or chosen.score is None else chosen.score
    return Score(calibration.score_name, score, own)


def _why_the_reference(calibration: Calibration) -> str:
    """What is said where the reference stays."""
    safest, certified = calibration.tests[0], [test for test in calibration.tests if test.certified]
    if not certified:
        return (
            f"Nothing was certified: {safest.integrator}, the safest setting, lost {safest.risk:.3%}. Take more "
            "data, a larger epsilon or other candidates."
        )
    cheapest = min(certified, key=lambda test: test.nfe)
    return (
        f"No certified setting is cheaper than the reference: {cheapest.integrator} takes {cheapest.nfe:.2f} "
        "evaluations of f per sample. Take cheaper candidates, more data or a larger epsilon."
    )


def _precision(autocast: torch.dtype | None, chosen: SettingTest | None) -> list[str]:
    """A note on the precision of f."""
    if autocast is None:
        return []
    name = str(autocast).removeprefix("torch.")
    if chosen is None:
        return [f"Under autocast in {name} rounding counts as loss, too: try autocast=None."]
    return [f"Solves are under autocast in {name}, those with the reference are not."]


def _failures(calibration: Calibration, chosen: SettingTest | None) -> list[str]:
    """Notes on samples without an answer."""
    number, notes = calibration.samples, []
    if chosen is not None and chosen.failures:
        notes.append(
            f"The policy fails on {chosen.failures} of the {number} samples, which count as lost unless the reference "
            "fails, too. On such a sample the model raises a SolveError."
        )
    if calibration.reference_failures:
        notes.append(f"The reference fails on {calibration.reference_failures} of the {number} samples.")
    if calibration.reference_nan > calibration.reference_failures:
        other = calibration.reference_nan - calibration.reference_failures
        notes.append(f"The reference's output has a NaN on {other} of the {number} samples.")
    return notes
