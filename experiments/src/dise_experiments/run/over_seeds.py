"""Means over seeds, the same for all tasks."""

from collections.abc import Sequence
from typing import Any

from dise_experiments.common.summary import by_seed
from dise_experiments.common.table import Table, spread
from dise_experiments.common.task import Run, Task


def over_seeds(task: Task, runs: Sequence[Run]) -> Table:
    """Quality and NFE of each model with its own integrator and with its selectors, over the seeds."""
    rows = []
    for name, group in by_seed(runs).items():
        found = [_policies(task, run) for run in group]
        for policy in dict.fromkeys(policy for policies in found for policy in policies):
            evaluated = [policies[policy] for policies in found if policy in policies]
            nfe = [row["nfe"] + row.get("selector_macs", 0.0) for row in evaluated if "nfe" in row]
            quality = spread([task.quality.value(row) for row in evaluated], 4)
            rows.append([name, policy, str(len(evaluated)), quality, spread(nfe, 2)])
    header = ["runs", "policy", "seeds", task.quality.name, "NFE with selector"]
    note = "NFE: mean per row of the test, with the selector's multiply–adds in units of those of f."
    return Table("Over seeds: mean ± standard deviation", header, rows, note)


def _policies(task: Task, run: Run) -> dict[str, dict[str, Any]]:
    """The rows of a run that the table has, by policy."""
    rows = [task.own_row(run), *run.policies("DISE")]
    return {row["policy"]: row for row in rows}
