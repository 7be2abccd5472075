"""Tables of the PhysioNet runs, beside the paper's numbers."""

from collections.abc import Sequence
from typing import Any

from dise_experiments.common.summary import by_seed, shares
from dise_experiments.common.table import Table, number, spread
from dise_experiments.common.task import Run
from dise_experiments.physionet.model import TRAINING_INTEGRATOR
from dise_experiments.physionet.paper import PUBLISHED, TABLE_5, TABLE_6, Row
from dise_experiments.physionet.presets import BETA

_OWN_POLICIES = (str(TRAINING_INTEGRATOR), "no ODE")
_PARTS = ("policies", "policies_b")  # keys of the metrics on the test part of set a, and on set b


def own_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row of the integrator with which the model was trained."""
    return next(row for row in rows if row["policy"] in _OWN_POLICIES)


def table_5(runs: Sequence[Run]) -> Table:
    """Table 5: area under the ROC curve and NFE of each model, in the paper and here."""
    rows = []
    for paper in TABLE_5:
        theirs = [paper.label, f"{paper.auroc:.4f}", number(paper.nfe)]
        ours = [line for run in runs if run.model == "z_end" and run.reg == paper.reg for line in _lines(paper, run)]
        rows += [theirs + line for line in ours or [["not run", *["–"] * (len(_MEASURES) - 1)]]]
    rows += [["published Latent ODE", f"{PUBLISHED[0]:.3f}", "–", *_anchor(run)] for run in runs if run.model == "z0"]
    return Table(
        "Table 5: PhysioNet 2012 mortality, area under the ROC curve and number of function evaluations",
        ["model", "paper: AUC", "paper: NFE", *_MEASURES],
        rows,
        "NFE per record: mean over the test records, each with its own steps, without the selector. Selector: its "
        "multiply–adds as a multiple of those of one evaluation of f. NFE per batch: evaluations for a batch of 60, "
        "DOPRI with one step size for the batch, DISE in lockstep. The published Latent ODE classifies the start, "
        f"which needs no solve; its area ({PUBLISHED[0]} ± {PUBLISHED[1]}) and those beside it are of three sampled "
        "starts per record, pooled. Intervals by 2,000 bootstrap resamples of the records.",
    )


_MEASURES = (
    "run", "AUROC", "95 %", "NFE per record", "selector (in f)", "NFE per batch", "AUROC, set b", "95 %, set b",
)  # fmt: skip


def _lines(paper: Row, run: Run) -> list[list[str]]:
    parts = [run.metrics[part] for part in _PARTS]
    if not paper.dise:
        return [_line(run.name, *map(own_row, parts))]
    pairs = zip(*([row for row in part if row["policy"].startswith("DISE")] for part in parts), strict=True)
    return [_line(f"{run.name}, {test['policy'][5:]}", test, of_b) for test, of_b in pairs]


def _line(label: str, test: dict[str, Any], of_b: dict[str, Any]) -> list[str]:
    return [
        label,
        f"{test['auroc']:.4f}",
        _interval(test["interval"]),
        number(test["nfe"]),
        number(test.get("selector_macs"), 3),
        number(test.get("nfe_batch")),
        f"{of_b['auroc']:.4f}",
        _interval(of_b["interval"]),
    ]


def _anchor(run: Run) -> list[str]:
    """The row of a model that classifies the start, in the published test."""
    test, of_b = run.metrics["published"], run.metrics["published_b"]
    return _line(run.name, test | {"nfe": 0.0}, of_b)


def table_6(runs: Sequence[Run]) -> Table:
    """Table 6: share of each family of integrators under DISE."""
    families, ours = shares(runs, *TABLE_6)
    paper = ["paper: Our reg. & DISE", *(f"{TABLE_6[name]:.1%}" if name in TABLE_6 else "–" for name in families)]
    title = "Table 6: PhysioNet, share of test records for each integrator"
    return Table(title, ["run", *families], [paper, *ours])


def against_dopri(runs: Sequence[Run]) -> Table:
    """Each selector's loss and saving against its model's own integrator, selector included."""
    rows = []
    for run in runs:
        for test, of_b in zip(*(_dise(run, part) for part in _PARTS), strict=True):
            cells = [cell for row, reference in (test, of_b) for cell in _saved(row, reference)]
            rows.append([f"{run.name}, {test[0]['policy']}", *cells])
    measures = ("AUROC − DOPRI's", "95 %, paired", "NFE with selector", "of DOPRI's")
    return Table(
        "DISE against DOPRI on the same model",
        ["run", *measures, *(f"{measure}, set b" for measure in measures)],
        rows,
        "NFE per record, with the selector's multiply–adds in units of those of f. Intervals by 2,000 bootstrap "
        "resamples of the records, the same for both.",
    )


def _dise(run: Run, part: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """DISE's rows on a part, each with the row of the model's own integrator."""
    rows = run.metrics[part]
    return [(row, own_row(rows)) for row in rows if row["policy"].startswith("DISE")]


def _saved(row: dict[str, Any], reference: dict[str, Any]) -> list[str]:
    spent = row["nfe"] + row["selector_macs"]
    difference, pair = f"{row['difference']:+.4f}", _interval(row["difference_interval"], sign="+")
    return [difference, pair, number(spent), f"{spent / reference['nfe']:.1%}" if reference["nfe"] else "–"]


def seed_table(runs: Sequence[Run]) -> Table:
    """Each model and regularizer over its seeds."""
    rows = []
    for name, group in by_seed(runs).items():
        parts = [[own_row(run.metrics[part]) for run in group] for part in _PARTS]
        cells = [spread([row[key] for row in part], 4) for part in parts for key in ("auroc", "auprc", "ece")]
        rows.append([name, str(len(group)), *cells, spread([row["nfe"] for row in parts[0]], 1)])
    measures = ("AUROC", "AUPRC", "calibration error")
    header = ["runs", "seeds", *(f"{m}{part}" for part in ("", ", set b") for m in measures), "NFE per record"]
    return Table("Models with their own integrator, over seeds: mean ± standard deviation", header, rows)


def policy_tables(run: Run) -> list[Table]:
    """All policies on one run's model: on the test part of set a, and on set b."""
    counts = (f"{run.metrics['samples']:,} test records", f"{run.metrics['samples_b']:,} records of set b")
    return [
        _policy_table(f"{run.name}: all policies, {count}", run.metrics[part])
        for part, count in zip(_PARTS, counts, strict=True)
    ]


def _policy_table(title: str, policies: Sequence[dict[str, Any]]) -> Table:
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
        "gap within β", "NFE: solver", "selector (in f)", "NFE per batch",
    ]  # fmt: skip
    note = (
        "Intervals by 2,000 bootstrap resamples of the records, the same for all policies. Gap: distance of the "
        f"probability of death from that of DOPRI, the reference; β = {BETA:g}."
    )
    return Table(title, header, rows, note)


def _interval(values: Sequence[float] | None, *, sign: str = "") -> str:
    return "–" if values is None else f"{values[0]:{sign}.4f} … {values[1]:{sign}.4f}"
