"""Parts of the reports of several tasks."""

from collections.abc import Sequence

from dise_experiments.common.task import Run


def by_seed(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Groups of runs that differ in the seed alone, by their common name."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.name.rpartition("-seed")[0], []).append(run)
    return groups


def shares(runs: Sequence[Run], *first: str) -> tuple[list[str], list[list[str]]]:
    """The share of each family of integrators under every DISE policy of the runs.

    Args:
        runs: runs whose DISE policies have "shares" by candidate.
        first: families that come first, even if they do not occur.

    Returns:
        the families, and a row of text for each policy: its name, and the share of each family.
    """
    rows = [(f"{run.name}, {row['policy']}", row["shares"]) for run in runs for row in run.policies("DISE")]
    families = list(dict.fromkeys([*first, *sorted({_family(name) for _, found in rows for name in found})]))
    lines = []
    for label, found in rows:
        totals = dict.fromkeys(families, 0.0)
        for name, share in found.items():
            totals[_family(name)] += share
        lines.append([label, *(f"{total:.1%}" for total in totals.values())])
    return families, lines


def _family(candidate: str) -> str:
    return candidate.partition("(")[0]
