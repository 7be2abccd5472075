"""Tables of the flow runs, beside the paper's numbers."""

from collections.abc import Sequence
from typing import Any

from dise_experiments.circles.evaluate import SMALL
from dise_experiments.circles.paper import TABLE_8, TABLE_9
from dise_experiments.common.summary import by_seed, shares
from dise_experiments.common.table import Table, number, spread
from dise_experiments.common.task import Run

OWN_POLICY = "Dopri5(rtol=1e-05, atol=1e-05)"


def own_row(run: Run) -> dict[str, Any]:
    """The row of the integrator with which the flow was trained, with one step size per set of 32."""
    return next(row for row in run.policies(OWN_POLICY) if row["unit"] == "set")


def table_8(runs: Sequence[Run]) -> Table:
    """Table 8: negative log-likelihood and NFE of each model, in the paper and here."""
    rows = []
    for paper in TABLE_8:
        theirs = [paper.label, f"{paper.nll:.4f}", f"{paper.nfe:.0f}"]
        ours = [line for run in runs if run.reg == paper.reg for line in (_dise(run) if paper.dise else [_own(run)])]
        rows += [theirs + line for line in ours or [["not run", *["–"] * (len(_MEASURES) - 1)]]]
    return Table(
        "Table 8: two circles, negative log-likelihood and number of function evaluations",
        ["model", "paper: NLP", "paper: NFE", *_MEASURES],
        rows,
        _MEASURED,
    )


def other_targets(runs: Sequence[Run]) -> Table:
    """As Table 8, for targets that are not in the paper."""
    rows = [[run.metrics["target"], *line] for run in runs for line in (_own(run), *_dise(run))]
    return Table("Other targets: negative log-likelihood and NFE", ["target", *_MEASURES], rows, _MEASURED)


_MEASURES = ("run", "NLL", "by reference", "NFE, 16 batches", "with selector", "NFE per row")
_MEASURED = (
    "NLL in nats, on 512 points in 16 batches of 32, as computed and by a solve at 1e-7 on the same points. NFE: sum "
    "over the 16 batches, without and with the selector's multiply–adds in units of those of f. A row is a batch of "
    "32; DISE (point) decides per point, so the hypernetwork runs per point: fewer evaluations of f per point, each "
    "with about 20 times the multiply–adds per point. * better than the reference by more than 0.001 nats, which is an "
    "error of the integrator."
)


def larger_test(runs: Sequence[Run]) -> Table:
    """The measures of Table 8 on the larger test, which is not in the paper."""
    rows = [
        [_label(run, row), *_likelihoods(row["large"]), f"{row['large']['nfe']:.1f}"]
        for run in runs
        for row in (own_row(run), *run.policies("DISE"))
    ]
    header = ["run", "NLL", "by reference", "NFE per row"]
    return Table("Larger test: negative log-likelihood and NFE, as above", header, rows)


def _own(run: Run) -> list[str]:
    return _line(run, own_row(run))


def _dise(run: Run) -> list[list[str]]:
    return [_line(run, row) for row in run.policies("DISE")]


def _label(run: Run, row: dict[str, Any]) -> str:
    """The run, and the selector in "DISE (set)"."""
    return f"{run.name}, {row['policy'][6:-1]}" if row["policy"].startswith("DISE") else run.name


def _line(run: Run, row: dict[str, Any]) -> list[str]:
    small = row["small"]
    return [_label(run, row), *_likelihoods(small), _sum(row), _sum(row, selector=True), f"{small['nfe']:.1f}"]


def _likelihoods(part: dict[str, Any]) -> list[str]:
    """As computed, and by the reference."""
    return [f"{part['nll']:.4f}" + "*" * part["flagged"], f"{part['reference']:.4f}"]


def _sum(row: dict[str, Any], *, selector: bool = False) -> str:
    """NFE summed over the 16 batches."""
    extra = SMALL * row.get("selector_macs", 0.0) if selector else 0.0
    return f"{row['small']['nfe_sum'] + extra:.0f}" if row["unit"] == "set" else "–"


def table_9(runs: Sequence[Run]) -> Table:
    """Table 9: share of each family of integrators under DISE."""
    families, ours = shares(runs, *TABLE_9)
    paper = ["paper: DISE", *(f"{TABLE_9[name]:.1%}" if name in TABLE_9 else "–" for name in families)]
    title = "Table 9: two circles, share of test cases for each integrator"
    return Table(title, ["run", *families], [paper, *ours])


def other_shares(runs: Sequence[Run]) -> Table:
    """As Table 9, for targets that are not in the paper."""
    families, ours = shares(runs)
    title = "Other targets: share of test cases for each integrator"
    return Table(title, ["run", *families], ours)


def seed_table(runs: Sequence[Run]) -> Table:
    """Each regularizer over its seeds."""
    rows = []
    for name, group in by_seed(runs).items():
        large = [own_row(run)["large"] for run in group]
        likelihoods, nfe = ([row[key] for row in large] for key in ("reference", "nfe"))
        rows.append([name, str(len(group)), spread(likelihoods, 4), spread(nfe, 1)])
    header = ["runs", "seeds", "NLL, large test, by reference", "NFE per batch of 32"]
    return Table("DOPRI at 1e-5, over seeds: mean ± standard deviation", header, rows)


def policy_table(run: Run) -> Table:
    """All policies on one run's flow."""
    rows = []
    for row in run.policies():
        small, large = row["small"], row["large"]
        flags = [part for part in ("small", "large") if row[part]["flagged"]]
        rows.append(
            [
                f"{row['policy']}, per {row['unit']}",
                f"{small['nll']:.4f}",
                f"{small['nll'] - small['reference']:+.4f}",
                _sum(row),
                f"{large['nll']:.4f}",
                f"{large['nll'] - large['reference']:+.4f}",
                f"{large['largest_gap']:.3f}",
                f"{large['nfe']:.1f}",
                number(row.get("selector_macs"), 3),
                f"better than the reference ({', '.join(flags)})" if flags else "",
            ]
        )
    header = [
        "policy", "NLL (512)", "− reference", "NFE, 16 batches", "NLL (large)", "− reference", "largest gap of a row",
        "NFE per row", "selector (in f)", "flag",
    ]  # fmt: skip
    note = (
        "A row is a set of 32 points, or one point. Flag: the reported likelihood is better than the reference's (a "
        "solve at 1e-7) by more than 0.001 nats, which is an error of the integrator."
    )
    return Table(f"{run.name}: all policies", header, rows, note)
