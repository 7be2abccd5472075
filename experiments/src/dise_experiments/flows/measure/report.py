"""The report of a preset's fields: tables for the terminal, and `report.md` with figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from dise_experiments.common.table import Table, number
from dise_experiments.flows.measure.field import SOLVERS, TIMES
from dise_experiments.flows.measure.solvers import POLICY
from dise_experiments.flows.sources import NAMES
from dise_experiments.flows.stored import read_config
from dise_experiments.run.config import ExperimentError
from dise_experiments.run.rundir import read_json, write_text

REPORT = "report.md"
NO_FID = "Features are those of a small classifier of MNIST, so the Fréchet distance is no FID."
PUBLISHED = {
    "two_moons": "0.606 / 0.542",
    "slcp": "0.901 / 0.831",
    "gaussian_mixture": "0.661 / 0.555",
    "bernoulli_glm": "0.678 / 0.559",
    "gaussian_linear": "0.552 / 0.506",
    "gaussian_linear_uniform": "0.553 / 0.509",
    "sir": "0.680 / 0.585",
}
"""C2ST of neural posterior estimation with 1e4 / 1e5 simulations, mean of ten observations: the benchmark's results."""


@dataclass(frozen=True)
class Measured:
    """A case with all its measurements.

    Attributes:
        task, name: of the case.
        found: its part of `solvers.json`.
        settings: of the measurements.
        times: its part of `times.json`; None if times were not measured.
        folder: directory of the field.
    """

    task: str
    name: str
    found: Mapping[str, Any]
    settings: Mapping[str, Any]
    times: Mapping[str, Any] | None
    folder: Path

    @property
    def stem(self) -> str:
        """As in names of figures."""
        return self.name.replace(", ", "-").replace(" ", "-")


@dataclass(frozen=True)
class FlowsReport:
    """A written report: its file, the tables over all fields, and the last lines of a command."""

    file: Path
    tables: list[Table]
    conclusion: list[str]


def measured_folders(folder: Path) -> list[Path]:
    """The folders of presets with measured fields: those at or below a folder, or that of a field's directory."""
    found = {folder.parent} if (folder / SOLVERS).exists() else {file.parent.parent for file in folder.rglob(SOLVERS)}
    return sorted(found)


def write_flows_report(folder: Path) -> FlowsReport:
    """Write `report.md` of all measured fields of a preset's folder.

    Raises:
        ExperimentError: there are none.
    """
    measured = _read(folder)
    if not measured:
        raise ExperimentError(f"{folder} contains no measured field; `dise run flows` creates them")
    tables = [policies(measured), distances(measured)]
    preset = read_config(measured[0].folder).preset
    text = [f"# flows, preset {preset}\n", *(table.markdown() for table in tables)]
    for case in measured:
        parts = [solver_table(case), log_prob_table(case), time_table(case)]
        text += [table.markdown() for table in parts if table is not None]
        text += [
            f"![{kind} of {case.name}]({case.folder.name}/{kind}-{case.stem}.png)\n" for kind in ("pareto", "budgets")
        ]
    file = folder / REPORT
    write_text(file, "\n".join(text))
    return FlowsReport(file, tables, _conclusion(measured, file, preset))


def policies(measured: Sequence[Measured]) -> Table:
    """The certified samplers beside the best single candidate of the same test, and the oracle."""
    rows = []
    for case in measured:
        if (policy := case.found["policy"]) is None:
            continue
        single, share = policy.get("single_nfe"), policy.get("share")
        rows.append(
            [
                case.name,
                f"{case.settings['tolerance']:g}",
                f"{policy['epsilon']:.0%}",
                number(policy["reference_nfe"]),
                number(single),
                number(policy["nfe"]),
                number(policy.get("oracle")),
                "–" if not single else number(policy["nfe"] / single),
                "–" if share is None else f"{share:.0%}",
                f"{policy['risk']:.2%}",
            ]
        )
    header = ["field", "τ", "ε", "reference", "single", "policy", "oracle", "ratio", "share", "risk"]
    return Table(
        "Certified samplers: mean evaluations per draw",
        header,
        rows,
        "At most a part of ε of the draws is farther than τ from the reference's, with confidence 95 %. single: the "
        "cheapest candidate for all draws that the same test certifies; ratio: policy / single; share: of the oracle's "
        "gain over it; risk: on the draws of the test. Decisions count.",
    )


def distances(measured: Sequence[Measured]) -> Table:
    """Distances between distributions: the floor, the policy, and the field's own error."""
    rows = []
    for case in measured:
        found = case.found["distances"]
        data, by_name = found["data"], found["solvers"]
        worst = max((d["tight"] for d in by_name.values() if d["tight"] is not None), default=None)
        policy = by_name.get(POLICY, {}).get("tight")
        rows.append(
            [
                case.name,
                found["name"],
                number(found["floor"], 3),
                number(policy, 3),
                number(worst, 3),
                number(None if data is None else mean(data), 3),
                PUBLISHED.get(case.task, "–"),
            ]
        )
    header = ["field", "distance", "floor", "policy", "worst solver", "tight solve from the data", "NPE 1e4 / 1e5"]
    return Table(
        "Distances between distributions",
        header,
        rows,
        "floor: two seeds of the tight solve; policy, worst solver: from the tight solve of another seed. The tight "
        "solve from the data is the field's own error; for posteriors it is the mean over the benchmark's observations "
        "(a dash without its data), beside the benchmark's neural posterior estimation with 1e4 and 1e5 simulations; "
        f"fields of the preset cpu saw 1e5, of sample 1e4. {NO_FID}",
    )


def solver_table(case: Measured) -> Table:
    """Every solver: errors, evaluations, distances."""
    guided = any(row["model_calls"] != row["nfe"] for row in case.found["rows"])
    compared = case.found["distances"]
    rows = []
    for row in case.found["rows"]:
        error, distance = row["error"], compared["solvers"][row["solver"]]
        calls = [number(row["model_calls"]["mean"]), str(row["model_calls"]["max"])] if guided else []
        rows.append(
            [
                row["solver"],
                number(row["nfe"]["mean"]),
                str(row["nfe"]["max"]),
                *calls,
                *(f"{error[quantile]:.2g}" for quantile in ("median", "q90", "q99")),
                f"{row['within']:.2%}",
                number(distance["tight"], 3),
                number(distance["data"], 3),
            ]
        )
    name = compared["name"]
    header = [
        "solver",
        "NFE",
        "most",
        *(["model calls", "most calls"] if guided else []),
        *("error, 50 %", "90 %", "99 %"),
        f"within {case.settings['tolerance']:g}",
        f"{name}, tight solve",
        f"{name}, data",
    ]
    number_of_draws = f"{case.settings['draws']:,} draws"
    note = (
        f"Error: root mean square distance of a draw from a tight solve, on {number_of_draws}. {name} of the tight "
        f"solve's two seeds: {compared['floor']:.3f}."
    )
    return Table(f"{case.name}: solvers", header, rows, note)


def log_prob_table(case: Measured) -> Table | None:
    """|Δ log p| of every solver that solves from data to noise."""
    if not case.found["log_prob"]:
        return None
    rows = [
        [
            name,
            number(row["nfe"]["mean"]),
            str(row["nfe"]["max"]),
            *(f"{row['error'][quantile]:.2g}" for quantile in ("median", "q90", "q99")),
        ]
        for name, row in case.found["log_prob"].items()
    ]
    header = ["solver", "NFE", "most", "error of log p, 50 %", "90 %", "99 %"]
    note = f"In nats, on {case.settings['density_draws']} draws of the field; divergences are exact."
    return Table(f"{case.name}: log-densities", header, rows, note)


def time_table(case: Measured) -> Table | None:
    """Milliseconds per batch."""
    if case.times is None:
        return None
    sizes = [str(size) for size in case.settings["timed"]]
    rows = [[name, *(f"{times[size]:.2f}" for size in sizes)] for name, times in case.times["milliseconds"].items()]
    note = f"Medians, in turns, {case.times['threads']} threads."
    return Table(f"{case.name}: milliseconds per batch", ["solver", *(f"{int(s):,}" for s in sizes)], rows, note)


def _read(folder: Path) -> list[Measured]:
    """The cases of all measured fields, in the order of `NAMES`."""
    found = []
    for file in folder.glob(f"*/{SOLVERS}"):
        content, path = read_json(file), file.parent
        times = read_json(path / TIMES) if (path / TIMES).exists() else {}
        config = read_config(path)
        for name, case in content["cases"].items():
            measured = Measured(config.task, name, case, content["settings"], times.get(name), path)
            found.append((NAMES.index(config.task), config.seed, measured))
    return [measured for *_, measured in sorted(found, key=lambda item: item[:2])]


def _conclusion(measured: Sequence[Measured], file: Path, preset: str) -> list[str]:
    """The policies' gain, the report and a figure, the next command."""
    ratios = [
        policy["nfe"] / policy["single_nfe"]
        for case in measured
        if (policy := case.found["policy"]) is not None and policy.get("single_nfe")
    ]
    gain = "DISE: no policy was certified"
    if ratios:
        gain = f"DISE: {mean(ratios):.2f} of the best single candidate's evaluations, mean of {len(ratios)} fields"
    first = measured[0]
    figure = f"{first.folder.name}/pareto-{first.stem}.png"
    following = "dise run flows --preset cpu" + (" --seed 1" if preset == "cpu" else "")
    return [gain, f"See {file} and {figure} there", f"Next: {following}"]
