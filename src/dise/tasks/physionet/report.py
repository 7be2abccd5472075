"""The paper's PhysioNet tables beside this project's numbers."""

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from dise.tasks.physionet.paper import PUBLISHED, TABLE_5, TABLE_6, Row
from dise.tasks.table import Table, number
from dise.tasks.task import Run

_OWN = ("Dopri5(atol=0.0001)", "no ODE")


def own(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The model's row with the integrator it was trained with."""
    return next(row for row in rows if row["policy"] in _OWN)


def table_5(runs: Sequence[Run]) -> Table:
    """Table 5: area under the ROC curve and NFE of each model, the paper's and ours."""
    rows = []
    for paper in TABLE_5:
        found = [run for run in runs if run.model == "z_end" and run.reg == paper.reg]
        for run in found:
            for part, of_b in zip(
                _shown(paper, run.metrics["policies"]), _shown(paper, run.metrics["set_b"]), strict=True
            ):
                rows.append(_line(paper, run, part, of_b))
        if not found:
            rows.append([paper.label, f"{paper.auroc:.4f}", number(paper.nfe), "not run", *["–"] * 6])
    rows += [_anchor(run) for run in runs if run.model == "z0"]
    return Table(
        "Table 5: PhysioNet 2012 mortality, area under the ROC curve and number of function evaluations",
        [
            "model",
            "paper: AUC",
            "paper: NFE",
            "run",
            "AUROC",
            "95 %",
            "NFE a record",
            "selector (in f)",
            "NFE a batch",
            "AUROC, set b",
        ],
        rows,
        "NFE a record: mean over the 800 test records, each with its own steps, selector not included. Selector: its "
        "multiply–adds as a multiple of those of one evaluation of f. NFE a batch: evaluations for a batch of 60, "
        "DOPRI with one step size for the batch; DISE in lockstep. Model z0 classifies the start, as the published "
        f"Latent ODE does ({PUBLISHED[0]} ± {PUBLISHED[1]}): its area is of three sampled starts a record, pooled, "
        "as there.",
    )


def _shown(paper: Row, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["policy"].startswith("DISE")] if paper.dise else [own(rows)]


def _line(paper: Row, run: Run, row: dict[str, Any], of_b: dict[str, Any]) -> list[str]:
    return [
        paper.label,
        f"{paper.auroc:.4f}",
        number(paper.nfe),
        run.name + (f", {row['policy'][5:]}" if paper.dise else ""),
        f"{row['auroc']:.4f}",
        _interval(row["interval"]),
        number(row["nfe"]),
        number(row.get("selector_macs"), 3),
        number(row.get("nfe_batch")),
        f"{of_b['auroc']:.4f}",
    ]


def _anchor(run: Run) -> list[str]:
    row, of_b = own(run.metrics["policies"]), own(run.metrics["set_b"])
    area = f"{run.metrics['published']['auroc']:.4f}"
    return ["z0", "–", "–", run.name, area, _interval(row["interval"]), "0", "–", "–", f"{of_b['auroc']:.4f}"]


def table_6(runs: Sequence[Run]) -> Table:
    """Table 6: share of each family of integrators under DISE."""
    found = {_family(name) for run in runs for row in run.policies("DISE") for name in row["shares"]}
    names = list(dict.fromkeys([*TABLE_6, *sorted(found)]))
    rows = [["paper: Our reg. & DISE", *(f"{TABLE_6[name]:.1%}" if name in TABLE_6 else "–" for name in names)]]
    for run in runs:
        for row in run.policies("DISE"):
            shares = dict.fromkeys(names, 0.0)
            for candidate, share in row["shares"].items():
                shares[_family(candidate)] += share
            rows.append([f"{run.name}, {row['policy']}", *(f"{share:.1%}" for share in shares.values())])
    return Table("Table 6: PhysioNet, share of test records for each integrator", ["run", *names], rows)


def _family(candidate: str) -> str:
    return candidate.partition("(")[0]


def seeds(runs: Sequence[Run]) -> Table:
    """Each model and regularizer over its seeds."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.name.rpartition("-seed")[0], []).append(run)
    rows = []
    for name, group in groups.items():
        tests, bs = ([own(run.metrics[part]) for run in group] for part in ("policies", "set_b"))
        cells = [_spread([row[key] for row in part], 4) for part in (tests, bs) for key in ("auroc", "auprc", "ece")]
        rows.append([name, str(len(group)), *cells, _spread([row["nfe"] for row in tests], 1)])
    measures = ("AUROC", "AUPRC", "calibration error")
    header = ["runs", "seeds", *(f"{m}{part}" for part in ("", ", set b") for m in measures), "NFE a record"]
    return Table("Models with their own integrator, over seeds: mean ± standard deviation", header, rows)


def _spread(values: Sequence[float], digits: int) -> str:
    text = f"{mean(values):.{digits}f}"
    return text + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def policies(run: Run) -> list[Table]:
    """Every policy on one run's model: on the test part of set a, and on set b."""
    parts = {"policies": f"{run.metrics['samples']} test records", "set_b": f"{run.metrics['samples_b']} of set b"}
    return [_policies(f"{run.name}: every policy, {text}", run.metrics[part]) for part, text in parts.items()]


def _policies(title: str, policies: Sequence[dict[str, Any]]) -> Table:
    rows = [
        [
            row["policy"],
            f"{row['auroc']:.4f}",
            _interval(row.get("interval")),
            f"{row['difference']:+.4f}" if "difference" in row else "–",
            _interval(row.get("difference_interval"), sign="+"),
            f"{row['auprc']:.4f}",
            f"{row['ece']:.4f}",
            number(row.get("gap"), 4),
            f"{row['adequate']:.1%}" if "adequate" in row else "–",
            number(row["nfe"]),
            number(row.get("selector_macs"), 3),
            number(row.get("nfe_batch")),
        ]
        for row in policies
    ]
    header = [
        "policy", "AUROC", "95 %", "− DOPRI", "95 %, paired", "AUPRC", "calibration error", "mean gap",
        "gap within β", "NFE: solver", "selector (in f)", "NFE a batch",
    ]  # fmt: skip
    note = (
        "Intervals by 2,000 bootstrap resamples of the records, the same for all policies. Gap: distance of the "
        "probability of death from DOPRI's, which is the reference; β = 0.02."
    )
    return Table(title, header, rows, note)


def _interval(values: Sequence[float] | None, *, sign: str = "") -> str:
    return "–" if values is None else f"{values[0]:{sign}.4f} … {values[1]:{sign}.4f}"
