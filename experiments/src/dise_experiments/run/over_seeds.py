"""Means over seeds, the same for all tasks."""

from collections.abc import Sequence
from typing import Any

from dise_experiments.common.summary import by_seed
from dise_experiments.common.table import Table, spread
from dise_experiments.common.task import Run, Task


def over_seeds(task: Task, runs: Sequence[Run]) -> Table:
    """Quality and NFE of DOPRI, the published selectors and the task's default one, over the seeds of each model."""
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
    """Rows of a run that the table has; of several units the first."""
    rows = {row["policy"]: row for row in reversed(run.policies())}
    own = str(task.reference) if str(task.reference) in rows else run.policies()[0]["policy"]
    published = [policy for policy in rows if policy.startswith("DISE (as published")]
    shown = [own, *sorted(published), f"DISE ({task.default_selector})"]
    return {policy: rows[policy] for policy in shown if policy in rows}
