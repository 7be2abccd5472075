"""What users of sbi, flow_matching and torchcfm wait for today, beside the same calls on dise.

    python benchmarks/clients.py --out results/clients.json
    python benchmarks/clients.py --out results/clients.json --again
    python benchmarks/clients.py --out results/clients.json --readme

Each row is one call on 10,000 points of a trained field (results/flows-cpu): theirs at its defaults, dise's fastest
integrator with no larger error for 99 % of the points, and dise's policy with a certified error of 0.01
(`make_sampler`, ε = 1 %, δ = 5 %), with the field in float32 or under autocast in bfloat16, whichever is faster; these
policies are made once, in a minute or two each, and kept in the folder of `--policies`.
Errors are distances to a tight solve in float64: root mean squares over coordinates in standard deviations, or nats.
Times are medians of alternating runs, in one process. "NFE, of" are the evaluations of the field per point, and as many
as the bar's time is evaluations of all points at once and nothing else. Rows that the file of `--out` has are kept;
`--only` measures some of them again, and `--again` only the times, in a few minutes.
Needs the extra `clients`, torchcfm and the experiments; nothing else should run.
"""

import argparse
import bisect
import copy
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from flow_bars.fields import Draws, points, rms
from readme import write
from torch import Size, Tensor, nn

import dise
from dise.select import LogProbDeviation, OutputDeviation, load_policy, save_policy
from dise.select.deploy import strict_json

NUMBER = 10_000
SHARE = 0.99
CERTIFIED = 0.01  # error of the policy, and its bar beside theirs
CERTIFIED_BAR = 1 / 8
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}  # of the certified policies
REPEATS = 5
COLUMNS = 12  # of the table
TIGHT = dise.Dopri8(rtol=1e-9, atol=1e-9)
SCAN = [10 ** (-k / 24) for k in range(12, 193)]  # dise's tolerances, from loose to tight
THEIR_SCAN = [10.0**-k for k in range(1, 6)]

FAMILIES: Mapping[str, Callable[[float], dise.Integrator]] = {
    **{
        f"Adams of order {order}": lambda tol, order=order: dise.Adams(
            rtol=tol, atol=tol, order=order, first_step="scale"
        )
        for order in (3, 4, 5, 6, 7)
    },
    "Dopri5": lambda tol: dise.Dopri5(rtol=tol, atol=tol, first_step="scale"),
    "Dopri8": lambda tol: dise.Dopri8(rtol=tol, atol=tol, first_step="scale"),
}

SWAY = 0.3  # of grids whose steps become shorter, as fields of flows bend more near the data
FIXED: Mapping[str, Callable[[float], dise.Integrator]] = {  # of 1/evaluations
    "RK4": lambda part: dise.RK4(max(1, round(1 / part / 4))),
    "AB3": lambda part: dise.Multistep.adams(round(1 / part), 3),
    "AB4": lambda part: dise.Multistep.adams(round(1 / part), 4),
    f"AB3 on sway({SWAY})": lambda part: dise.Multistep.adams(dise.grids.sway(round(1 / part), SWAY), 3),
    f"AB4 on sway({SWAY})": lambda part: dise.Multistep.adams(dise.grids.sway(round(1 / part), SWAY), 4),
}
EVALUATIONS = (*range(8, 33), 40, 48, 64, 80, 96, 128, 160, 192, 256)
FIXED_SCAN = {name: [1 / n for n in EVALUATIONS if name != "RK4" or n % 4 == 0] for name in FIXED}

Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Case:
    """One call of a library and the same one on dise.

    Args:
        bar: of the time at equal error, as a part of theirs.
        field: what all calls evaluate.
        once: an evaluation of the field on all points.
        theirs: tolerance (None: the default) → the call.
        ours: integrator and a tolerance in nats → the call.
        exact: what the call returns in a tight solve.
        error: two returned values → errors per point [N].
        certified: number of draws, the policy's folder, the dtype of autocast → the call by a certified policy.
        density: whether it returns log-densities.
    """

    bar: float
    field: nn.Module
    once: Call
    theirs: Callable[[float | None], Call]
    ours: Callable[[dise.Integrator, float | None], Call]
    exact: Tensor
    error: Callable[[Tensor, Tensor], Tensor]
    certified: Callable[[int, Path, torch.dtype | None], Call]
    density: bool = False

    def missed(self, call: Call) -> float:
        """The error of 99 % of the points."""
        return float(torch.quantile(self.error(call(), self.exact), SHARE))

    def evaluations(self, call: Call) -> float:
        """Evaluations of the field per point."""
        rows: list[int] = []
        with self.field.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[1]))):
            call()
        return sum(rows) / len(self.exact)


class Bound(nn.Module):
    """A field under one condition."""

    def __init__(self, f: nn.Module, condition: Tensor) -> None:
        super().__init__()
        self.f, self.condition = f, condition

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.f(t, x, self.condition.expand(len(x), -1))


def as_sbi(field: nn.Module) -> Callable[..., Tensor]:
    """A field with data at t = 1 as sbi's f(input, condition, times), with data at 0."""

    def f(input: Tensor, condition: Tensor, times: Tensor) -> Tensor:
        rows, t = input.flatten(0, -2), 1 - times
        velocity = field(t.reshape(-1, 1) if t.ndim else t, rows, condition.expand(len(rows), -1))
        return -velocity.reshape(input.shape)

    return f


def sbi_case(task: str, n: int, *, density: bool) -> Case:
    """Samples or log-densities of a posterior, by sbi's backends."""
    from sbi.samplers.ode_solvers import ZukoNeuralODE

    from dise.clients.sbi import DiseNeuralODE

    draws = points(task, n)
    x_o, dim = draws.conditions[0][:1], draws.noise.shape[1]

    def backend(kind: type, field: nn.Module, **options: Any) -> Any:
        dtype = next(field.parameters()).dtype
        mean, std = torch.zeros(1, dim, dtype=dtype), torch.ones(1, dim, dtype=dtype)
        return kind(as_sbi(field), field, mean, std, Size([x_o.shape[1]]), **options)(x_o.to(dtype))

    double = copy.deepcopy(draws.f).double()
    tight = backend(DiseNeuralODE, double, integrator=TIGHT, log_prob_tolerance=1e-9)
    theta = tight.transform.inv(draws.noise.double()[:, None])
    exact = tight.log_prob(theta) if density else theta
    inputs = (theta if density else draws.noise[:, None]).to(draws.noise.dtype)

    def call(distribution: Any) -> Call:
        return lambda: distribution.log_prob(inputs) if density else distribution.transform.inv(inputs)

    def theirs(tol: float | None) -> Call:
        return call(backend(ZukoNeuralODE, draws.f, **({} if tol is None else {"atol": tol, "rtol": tol})))

    def ours(integrator: dise.Integrator, nats: float | None) -> Call:
        return call(backend(DiseNeuralODE, draws.f, integrator=integrator, log_prob_tolerance=nats))

    def certified(number: int, folder: Path, autocast: torch.dtype | None) -> Call:
        made = certify(Bound(draws.f, x_o), dim, number, folder, autocast, density=density)
        return lambda: made(inputs[:, 0])[:, None]

    def error(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().flatten() if density else rms(a[:, 0], b[:, 0])

    return Case(1 / 3, draws.f, _once(draws), theirs, ours, exact, error, certified, density)


def flow_matching_case(task: str, n: int) -> Case:
    """Samples by flow_matching's `ODESolver` with dopri5 at 1e-5."""
    from flow_matching.solver import ODESolver as Theirs

    from dise.clients.flow_matching import ODESolver

    draws = points(task, n)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return draws.f(t.reshape(-1, 1) if t.ndim else t, x)

    def theirs(tol: float | None) -> Call:
        tol = 1e-5 if tol is None else tol
        return lambda: Theirs(velocity).sample(draws.noise, step_size=None, method="dopri5", atol=tol, rtol=tol)

    def ours(integrator: dise.Integrator, nats: float | None) -> Call:
        solver = ODESolver(velocity, integrator)
        return lambda: solver.sample(draws.noise)

    return _samples(draws, theirs, ours)


def torchcfm_case(task: str, n: int) -> Case:
    """Samples by torchdyn's `NeuralODE` with dopri5 at 1e-4, as in torchcfm's examples."""
    from torchdyn.core import NeuralODE as Theirs

    from dise.clients.torchcfm import NeuralODE

    draws, span = points(task, n), torch.tensor([0.0, 1.0])

    class Model(nn.Module):
        def forward(self, t: Tensor, x: Tensor, args: Any = None) -> Tensor:
            return draws.f(t.reshape(-1, 1) if t.ndim else t, x)

    def theirs(tol: float | None) -> Call:
        tol = 1e-4 if tol is None else tol
        node = Theirs(Model(), solver="dopri5", sensitivity="adjoint", atol=tol, rtol=tol)
        return lambda: node.trajectory(draws.noise, t_span=span)[-1]

    def ours(integrator: dise.Integrator, nats: float | None) -> Call:
        node = NeuralODE(Model(), integrator=integrator)
        return lambda: node.trajectory(draws.noise, t_span=span)[-1]

    return _samples(draws, theirs, ours)


def _samples(
    draws: Draws, theirs: Callable[[float | None], Call], ours: Callable[[dise.Integrator, float | None], Call]
) -> Case:
    exact = draws.double().solve(TIGHT).y

    def certified(number: int, folder: Path, autocast: torch.dtype | None) -> Call:
        made = certify(draws.f, draws.noise.shape[1], number, folder, autocast, density=False)
        return lambda: made(draws.noise)

    return Case(1 / 2, draws.f, _once(draws), theirs, ours, exact, rms, certified)


def _once(draws: Draws) -> Call:
    t = torch.full_like(draws.noise[:, :1], 0.5)
    return lambda: draws.f(t, draws.noise, *draws.conditions)


def certify(
    field: nn.Module, dim: int, number: int, folder: Path, autocast: torch.dtype | None, *, density: bool
) -> nn.Module:
    """A sampler or density of a field with a certified error: that of the folder, or a new one, saved there."""
    base = dise.DiagonalNormal(torch.zeros(dim), torch.ones(dim))
    flow = dise.Flow(field, base, dise.Dopri5(rtol=1e-6, atol=1e-6))
    if folder.exists():
        return load_policy(dise.FlowDensity(flow) if density else dise.FlowSampler(flow), folder)
    risk = LogProbDeviation(CERTIFIED) if density else OutputDeviation(CERTIFIED)
    made = dise.make_sampler(flow, risk=risk, draws=number, autocast=autocast)
    print(made.block.report, flush=True)
    save_policy(made, folder)
    return made


CASES: Mapping[str, Callable[[int], Case]] = {
    **{
        f"sbi {task} {what}": lambda n, task=task, what=what: sbi_case(task, n, density=what == "log_prob")
        for task in ("two_moons", "slcp")
        for what in ("samples", "log_prob")
    },
    **{
        f"{library} {task}": lambda n, task=task, case=case: case(task, n)
        for library, case in (("flow_matching", flow_matching_case), ("torchcfm", torchcfm_case))
        for task in ("checkerboard", "moons")
    },
}


@torch.no_grad()
def choose(case: Case) -> dict[str, Any]:
    """Errors of their calls, and dise's fastest integrators with no larger error and with the certified one."""
    row: dict[str, Any] = {"error": case.missed(case.theirs(None)), "bar": case.bar}
    swept = {tol: case.theirs(tol) for tol in THEIR_SCAN}
    row["their tolerances"] = {
        tol: {"error": case.missed(call), "seconds": times([call], 1)[0]} for tol, call in swept.items()
    }
    scan = Scan(case)
    for key, error in (("equal", row["error"]), ("loose", CERTIFIED)):
        row[key] = scan.best(error)
    return row


@torch.no_grad()
def measure(case: Case, chosen: Mapping[str, Any], *, draws: int, repeats: int, folder: Path) -> dict[str, Any]:
    """A row of `choose` with the times of its calls, in turn."""
    row = {**chosen}
    calls = {"theirs": case.theirs(None)} | {
        key: case.ours(*integrator(*(row[key][part] for part in ("method", "tolerance", "nats"))))
        for key in ("equal", "loose")
    }
    for key, dtype in PRECISIONS.items() if draws else ():
        calls[key] = case.certified(draws, folder.with_name(folder.name + ("" if dtype is None else f"-{key}")), dtype)
        row[key] = {"error": case.missed(calls[key])}
    seconds = dict(zip([*calls, "once"], times([*calls.values(), case.once], repeats), strict=True))
    row["seconds"], row["evaluation seconds"] = seconds.pop("theirs"), seconds.pop("once")
    row["nfe"] = case.evaluations(calls["theirs"])
    for key, own in seconds.items():
        row[key] = row[key] | {"seconds": own, "ratio": own / row["seconds"], "nfe": case.evaluations(calls[key])}
    if draws:
        row["certified"] = min((row[key] | {"precision": key} for key in PRECISIONS), key=lambda own: own["seconds"])
    row["holds"] = row["equal"]["ratio"] <= case.bar
    row["certified holds"] = row["certified"]["ratio"] <= CERTIFIED_BAR if draws else None
    return row


def integrator(name: str, tol: float, nats: float) -> tuple[dise.Integrator, float | None]:
    """A family's integrator, and the tolerance of log-densities where it has tolerances."""
    return (FIXED[name](tol), None) if name in FIXED else (FAMILIES[name](tol), nats)


class Scan:
    """The loosest adequate tolerance of each family, with log-densities at that of points or at a multiple of it."""

    def __init__(self, case: Case) -> None:
        self.case, self.seen = case, dict[tuple[str, float, float], float]()

    def best(self, error: float) -> dict[str, Any]:
        """The fastest of those with an error of at most `error`."""
        rows = []
        for name, scanned in [*((name, SCAN) for name in FAMILIES), *FIXED_SCAN.items()]:
            for factor in (1.0, 2.0, 10.0) if self.case.density and name in FAMILIES else (1.0,):
                low = bisect.bisect_left(
                    scanned, 0, key=lambda tol: -1 if self.missed(name, tol, factor) > error else 0
                )
                if low < len(scanned):
                    tol = scanned[low]
                    call = self.case.ours(*integrator(name, tol, factor * tol))
                    missed, seconds = self.missed(name, tol, factor), times([call], 1)[0]
                    rows.append(
                        {"method": name, "tolerance": tol, "nats": factor * tol, "error": missed, "seconds": seconds}
                    )
        return min(rows, key=lambda row: row["seconds"])

    def missed(self, name: str, tol: float, factor: float) -> float:
        key = name, tol, factor
        if key not in self.seen:
            self.seen[key] = self.case.missed(self.case.ours(*integrator(name, tol, factor * tol)))
        return self.seen[key]


def times(calls: list[Call], repeats: int) -> list[float]:
    """Median seconds of each call, in turn."""
    seen: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, own in zip(calls, seen, strict=True):
            start = time.perf_counter()
            call()
            own.append(time.perf_counter() - start)
    return [statistics.median(own) for own in seen]


def table(found: Mapping[str, Any]) -> str:
    """The rows as a table in Markdown."""
    lines = [
        "| call | theirs, 99 % error | NFE | seconds | dise at equal error | NFE, of | part | bar "
        "| certified 0.01 | NFE, of | part | bar |",
        "| --- " * COLUMNS + "|",
    ]
    for name in CASES:
        if name not in found:
            continue
        row = found[name]
        equal, certified = row["equal"], row.get("certified", {})
        policy = f"{certified.get('precision', 'float32')}, {certified['seconds']:.3f} s" if certified else "–"
        lines.append(
            f"| {name} | {row['error']:.2g} | {_number(row.get('nfe'))} | {row['seconds']:.3f} "
            f"| {_called(equal['method'], equal['tolerance'])}, {equal['seconds']:.3f} s "
            f"| {_compared(row, equal, row['bar'])} | {policy} | {_compared(row, certified, CERTIFIED_BAR)} |"
        )
    return "\n".join(lines)


def _compared(row: Mapping[str, Any], own: Mapping[str, Any], bar: float) -> str:
    """Cells of dise's evaluations, those that the bar leaves, the part of their time, and the bar."""
    allowed = bar * row["seconds"] / row["evaluation seconds"] if "evaluation seconds" in row else None
    ratio = f"{own['ratio']:.3f}" if own else "–"
    return f"{_number(own.get('nfe'))}, {_number(allowed)} | {ratio} | {bar:.3f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _called(method: str, tolerance: float) -> str:
    """A family's integrator in a table: with its evaluations, or its tolerance."""
    return f"{method} × {round(1 / tolerance)}" if method in FIXED else f"{method} at {tolerance:.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=[], help="rows to measure, again too")
    parser.add_argument(
        "--again", action="store_true", help="measure the times of the file's rows again, on a quiet machine"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--readme", action="store_true", help="write the table of --out into benchmarks/README.md")
    parser.add_argument("--number", type=int, default=NUMBER, help="points")
    parser.add_argument("--draws", type=int, default=60_000, help="draws of the certified policies; 0: none")
    parser.add_argument(
        "--policies", type=Path, default=Path("results/policies/clients"), help="folder of the certified policies"
    )
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found: dict[str, Any] = strict_json.loads(args.out.read_text()) if args.out and args.out.exists() else {}
    if args.readme:
        write(table(found), "clients.py")
        return
    for name in args.only or [name for name in CASES if (name in found) == args.again]:
        folder = args.policies / name.replace(" ", "-")
        with torch.no_grad():
            case = CASES[name](args.number)
        chosen = found[name] if args.again and name in found else choose(case)
        found[name] = measure(case, chosen, draws=args.draws, repeats=args.repeats, folder=folder)
        found[name] |= {"number": args.number, "torch": torch.__version__, "threads": args.threads}
        print(table({name: found[name]}).splitlines()[-1], flush=True)
        if args.out:
            args.out.write_text(strict_json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
