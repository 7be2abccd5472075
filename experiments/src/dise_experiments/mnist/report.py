"""Tables of the MNIST runs, beside the paper's numbers."""

from collections.abc import Sequence
from typing import Any

from dise_experiments.common.statistics import mcnemar_of_errors
from dise_experiments.common.table import Table, number
from dise_experiments.common.task import Run
from dise_experiments.mnist.paper import TABLE_1, TABLE_3, Row

_OWN_POLICIES = {"rknet": "RK4", "resnet": "no ODE"}


def own_row(run: Run) -> dict[str, Any]:
    """The row of the integrator with which the model was trained."""
    name = _OWN_POLICIES.get(run.model, "Dopri5")
    return next(row for row in run.policies() if row["policy"] == name)


def table_1(runs: Sequence[Run]) -> Table:
    """Table 1: accuracy and NFE of each model, in the paper and here."""
    rows = []
    for paper in TABLE_1:
        found = [run for run in runs if (run.model, run.reg) == (paper.model, paper.reg)]
        for run in found:
            rows += [_line(paper, run, row) for row in (run.policies("DISE") if paper.dise else [own_row(run)])]
        if not found:
            rows.append([paper.label, f"{paper.accuracy:.4f}", number(paper.nfe), "not run", *["–"] * 4])
    header = [
        "model", "paper: accuracy", "paper: NFE",
        "run", "accuracy", "NFE per sample", "selector (in f)", "NFE per batch",
    ]  # fmt: skip
    return Table(
        "Table 1: MNIST, accuracy and number of function evaluations",
        header,
        rows,
        "NFE per sample: mean over the test set, each sample with its own steps, without the selector. Selector: its "
        "multiply–adds as a multiple of those of one evaluation of f. NFE per batch: evaluations for a batch of 100, "
        "counted as in the paper: DOPRI with one step size for the batch, DISE in lockstep.",
    )


def _line(paper: Row, run: Run, row: dict[str, Any]) -> list[str]:
    label = run.name + (f", {row['policy'][5:]}" if paper.dise else "")
    return [
        paper.label,
        f"{paper.accuracy:.4f}",
        number(paper.nfe),
        label,
        f"{row['accuracy']:.4f}",
        number(row.get("nfe")),
        number(row.get("selector_macs")),
        number(row.get("nfe_batch")),
    ]


def table_3(runs: Sequence[Run]) -> Table:
    """Table 3: share of each integrator, in the paper under "Our reg. & DISE" and in every run."""
    names = list(TABLE_3)
    rows = [["paper: Our reg. & DISE", *(f"{TABLE_3[name]:.0%}" for name in names)]]
    for run in runs:
        for row in run.policies("DISE"):
            shares = [row["shares"].get(name, 0.0) for name in names]
            rows.append([f"{run.name}, {row['policy']}", *(f"{share:.1%}" for share in shares)])
    return Table("Table 3: MNIST, share of test images for each integrator", ["run", *names], rows)


def model_table(runs: Sequence[Run]) -> Table:
    """Every model, with its own integrator, against the plain ODE-Net of its seed, paired by image."""
    plain = {run.seed: run for run in runs if (run.model, run.reg) == ("odenet", "none")}
    rows = []
    for run in runs:
        base = plain.get(run.seed)
        test = mcnemar_of_errors(base.metrics["wrong"], run.metrics["wrong"], run.metrics["samples"]) if base else None
        span = next((row["nfe"] for row in run.policies("Dopri5(first_step=span)")), None)
        same = base is run
        rows.append(
            [
                run.name,
                f"{own_row(run)['accuracy']:.4f}",
                number(own_row(run).get("nfe")),
                number(span),
                "–" if test is None or same else f"{100 * test['difference']:+.2f}",
                "–" if same else _paired(test),
            ]
        )
    return Table(
        "Models against the plain ODE-Net of the same seed",
        ["run", "accuracy", "NFE per sample", "NFE, first step span", "difference, points", "McNemar"],
        rows,
        "McNemar: images that only the plain ODE-Net classifies correctly / only the run, and the exact two-sided p.",
    )


def policy_table(run: Run) -> Table:
    """All policies on one run's model."""
    rows = [
        [
            row["policy"],
            f"{row['accuracy']:.4f}",
            number(row.get("nfe")),
            number(row["nfe"] + row["selector_macs"]) if "selector_macs" in row else number(row.get("nfe")),
            number(row.get("nfe_batch")),
            _paired(row.get("mcnemar")),
        ]
        for row in run.policies()
    ]
    return Table(
        f"{run.name}: all policies",
        ["policy", "accuracy", "NFE: solver", "NFE: with selector", "NFE per batch", "McNemar against DOPRI"],
        rows,
        "McNemar: images that only DOPRI classifies correctly / only the policy, and the exact two-sided p.",
    )


def _paired(test: dict[str, Any] | None) -> str:
    return "–" if test is None else f"{test['only_first']} / {test['only_second']}, p = {test['p']:.3g}"
