"""A policy beside the best single candidate and the oracle."""

from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Comparison:
    """A certified policy beside what is possible, in mean NFE per sample.

    Attributes:
        single, single_nfe: the cheapest single candidate that is certified by the same test, and its NFE; None if none
            is.
        oracle: NFE if each sample got its cheapest candidate without a loss, or the reference where there is none; on
            the samples that were not tested. It loses none of them, while a policy may lose a part of ε.
        overhead: part of the policy's NFE that its decisions are, in evaluations of f.
        model_calls: calls of the network per sample, two per evaluation with guidance.
        draws: number of samples to learn from, to choose on, and to test on.
        fitted, fit_draws, fit_seconds: number of tables that were fitted to the model as candidates, of further samples
            for it, and the wall-clock time that it took.
    """

    single: str | None
    single_nfe: float | None
    oracle: float
    overhead: float
    model_calls: float
    draws: tuple[int, int, int]
    fitted: int = 0
    fit_draws: int = 0
    fit_seconds: float = 0.0

    def share(self, nfe: float) -> float | None:
        """The share of the oracle's gain over the best single candidate that a policy of this NFE has."""
        if self.single_nfe is None or self.single_nfe <= self.oracle:
            return None
        return (self.single_nfe - nfe) / (self.single_nfe - self.oracle)

    def text(self, nfe: float) -> str:
        """The comparison of a policy of this NFE, for its report."""
        single = "no single candidate is certified"
        if self.single_nfe is not None:
            single = f"best single candidate certified: {self.single}, {self.single_nfe:.2f} evaluations"
        share = self.share(nfe)
        gained = "" if share is None else f", of whose gain the policy has {share:.0%}"
        learn, choose, test = self.draws
        more = f"{self.fit_draws} more for {self.fitted} fitted tables ({self.fit_seconds:.0f} s)"
        return "\n".join(
            [
                single,
                f"oracle: {self.oracle:.2f} evaluations{gained}",
                f"decisions cost {self.overhead:.2f} of the evaluations; {self.model_calls:.2f} calls of the network",
                f"{learn + choose + test} draws: {learn} to learn from, {choose} to choose on, {test} to test on",
                *([more] if self.fitted else []),
            ]
        )

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> Self:
        """The comparison from the fields that JSON kept."""
        return cls(**(values | {"draws": tuple(values["draws"])}))
