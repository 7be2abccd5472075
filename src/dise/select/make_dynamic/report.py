"""The report of `make_dynamic`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

from dise.integrate import Integrator
from dise.select.guarantee.calibrate import Calibration


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

    @classmethod
    def of_calibration(
        cls,
        calibration: Calibration,
        reference: Integrator,
        *,
        family: str,
        families: dict[str, float],
        notes: Sequence[str],
    ) -> Self:
        """The report of a calibration of one family's settings."""
        tests, integrator = calibration.tests, calibration.integrator
        chosen = next((t for t in tests if t.integrator is integrator and t.certified), None)
        if chosen is None:
            safest = tests[0]
            advice = (
                f"Nothing was certified: {safest.integrator}, the safest setting, lost {safest.risk:.3%}. Take more "
                "data, a larger epsilon or other candidates."
            )
            notes = [*notes, advice]
        return cls(
            policy=integrator,
            family=family if chosen else "reference",
            nfe=chosen.nfe if chosen else calibration.reference_nfe,
            reference_nfe=calibration.reference_nfe,
            risk=chosen.risk if chosen else 0.0,
            epsilon=calibration.epsilon,
            delta=calibration.delta,
            samples=calibration.samples,
            families=families,
            notes=tuple(notes),
            reference=reference,
        )

    def __str__(self) -> str:
        bound = f"at most {self.epsilon:.2%} with confidence {1 - self.delta:g}"
        reference = "the reference" if self.reference is None else f"the reference {self.reference}"
        lines = [
            f"{self.policy}: {self.nfe:.2f} evaluations of f per sample, {self.reference_nfe:.2f} by {reference}",
            f"risk {self.risk:.3%} on {self.samples} samples; {bound}",
            "on the samples for fitting:",
            *(f"  {name}: {nfe:.2f} evaluations" for name, nfe in sorted(self.families.items(), key=lambda x: x[1])),
            *self.notes,
        ]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON, its policy by name and without the reference."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "reference"}
        finite = {name: nfe if math.isfinite(nfe) else None for name, nfe in self.families.items()}
        return values | {"policy": str(self.policy), "families": finite, "notes": list(self.notes)}

    @classmethod
    def of_json(cls, values: dict[str, Any], policy: Integrator, reference: Integrator | None = None) -> Self:
        """The report that `to_json` wrote, with its policy and reference."""
        families = {name: math.inf if nfe is None else nfe for name, nfe in values["families"].items()}
        given = {"policy": policy, "reference": reference, "families": families, "notes": tuple(values["notes"])}
        return cls(**(values | given))
