"""Accuracy against evaluations of f, and against milliseconds: every policy on one trained ODE-Net.

    python benchmarks/pareto.py RUN [--data-dir DIR] [--timing] [--out FILE.json] [--plot FILE.png] [--rows FILE.json]

Policies are learnt from training images without their labels, and chosen and calibrated on the held-out images; each
then runs on the test images once. A family of policies is shown with those of its settings that need at most 8
evaluations on held-out images, and what
`make_dynamic` certifies at several ε beside them. NFE are a sample's, with what looks at it (a selector, the head of a
cascade) in multiply–adds of f. `--timing` measures the ODE part at several batch sizes, all policies in one run,
against torchdiffeq's dopri5: let nothing else run. `--rows` takes accuracies and NFE from what an earlier run wrote.
With `--best --autocast` all policies run f in bfloat16; DOPRI, which they are compared with and certified against, and
torchdiffeq do not.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from states import LEARN, Samples, Trained, load
from torch import Tensor

import dise
from dise import Exact
from dise.select import (
    ClassificationCost,
    Costs,
    Outcomes,
    RiskCost,
    find_block,
    loss_bound,
    nfe_with_overhead,
    oracle,
    random_mix,
    run_candidates,
    samples_needed,
    time_side_by_side,
)
from dise.select.deploy import strict_json
from dise.select.guarantee.calibrate import run_policy
from dise.select.make_dynamic.families import families, forecast_cascades
from dise.select.model.data import as_batches
from dise_experiments.common.statistics import mcnemar
from dise_experiments.mnist.selector import PaperNetwork
from dise_experiments.run.timing import TorchdiffeqBlock

REFERENCE = dise.Dopri5(rtol=1e-3, atol=1e-3)
FIXED = (dise.Euler(1), dise.Midpoint(1), dise.RK4(1), dise.RK4(2))
SINGLES = (*FIXED, dise.Euler(2), dise.Euler(4), dise.Heun(1))
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
EPSILONS = (0.001, 0.002, 0.004)
LABELLED = "at most 0.1 points lost"
BEST = "ε = 0.001"  # the policy that stands for all in the summary; with few --images LABELLED
# of the batch's calls of f those for the few samples that go on take more time than their NFE say; here are fewer
SHORT, SHORT_CHAIN = "ε = 0.002, Euler and RK4", (dise.Euler(1), dise.RK4(1))
BATCHES = (1, 32, 100, 1000)
REPEATS = {1: 300, 32: 60, 100: 30, 1000: 8}
PLOTTED = (100, 10)  # batch size and repetitions at which every policy is timed


def policies(trained: Trained, *, brief: bool) -> Iterator[tuple[str, str, dise.Integrator | Callable]]:
    """(group, name, policy) of everything that runs on the test images; the reference first.

    A policy that is fitted for long is a function that fits it.
    """
    yield "DOPRI, heuristic first step", "Dopri5 1e-03", Exact(REFERENCE)
    for single in SINGLES:
        yield "single candidates", str(single), single
    for epsilon in EPSILONS:
        if len(trained.held_out.label) >= samples_needed(epsilon, 0.05):  # not with few --images
            yield "make_dynamic", f"ε = {epsilon:g}", partial(certified, trained, epsilon)
    if len(trained.held_out.label) >= samples_needed(0.002, 0.05):
        yield "make_dynamic", SHORT, partial(certified, trained, 0.002, SHORT_CHAIN)
    yield "cascade, tested on labels", LABELLED, partial(not_inferior, trained)
    if brief:
        return
    outcomes = run_candidates(trained.part, trained.learn.batches(), (*FIXED, REFERENCE))
    costs, cpu = Costs.of(outcomes, RiskCost()), torch.device("cpu")
    head = trained.part[1]
    tried = families(costs, outcomes, head, classifies=True, epsilon=0.002, span=1.0, device=cpu)
    for family in tried:
        for number, setting in list(enumerate(family.settings))[::2]:  # every other one, for want of time
            last = number >= len(family.settings) - 2  # which is drawn at any price
            if family.name != "one candidate for all" and (last or _affordable(trained, setting)):
                yield family.name, f"setting {number}", setting
    yield "the paper's selector", "M = 1000", partial(_paper, trained)
    for tolerance in TOLERANCES:
        options = {"rtol": tolerance, "atol": tolerance}
        if tolerance != REFERENCE.rtol:
            yield "DOPRI, heuristic first step", f"Dopri5 {tolerance:.0e}", dise.Dopri5(**options)
        yield "DOPRI, first step the span", f"Dopri5 {tolerance:.0e}, span", dise.Dopri5(**options, first_step="span")


def not_inferior(trained: Trained, tolerance: float = 1e-3) -> dise.Integrator:
    """The cheapest cascade before the first that is not certain, at 95 %, to lose at most 0.1 points of accuracy.

    By the test that the task's own selectors are chosen by (`dise.select.loss_bound`), from the safest setting on.
    """
    some = run_candidates(trained.part, trained.learn.batches(), (*FIXED, REFERENCE))
    family = forecast_cascades(some, trained.part[1], torch.device("cpu"))
    right = execute(trained, REFERENCE, trained.held_out)["right"]
    best: dise.Integrator = REFERENCE
    for setting in family.settings:
        if loss_bound(right, execute(trained, setting, trained.held_out)["right"]) > tolerance:
            break
        best = setting
    return best


def _affordable(trained: Trained, setting: dise.Integrator) -> bool:
    """Whether it needs at most 8 evaluations, twice RK4's, on some held-out images."""
    some = as_batches("data", trained.held_out.take(slice(200)).batches(), trained.part)
    return run_policy(trained.part, setting, list(some)).nfe <= 8


def certified(trained: Trained, epsilon: float, candidates: tuple[dise.Integrator, ...] = FIXED) -> dise.Integrator:
    """What `make_dynamic` finds on the held-out images, with families that are learnt from training images."""
    block = find_block(trained.part)
    autocast = block.autocast
    with block.using(REFERENCE), block.autocasting(autocast):
        learn, held_out = trained.learn.batches(), trained.held_out.batches()
        dise.make_dynamic(
            trained.part,
            held_out,
            learn_from=learn,
            epsilon=epsilon,
            candidates=candidates,
            autocast=autocast,
            log=print,
        )
        # where nothing is certified the block is left with the reference and without autocast
        return block.integrator if block.autocast is autocast else Exact(block.integrator)


def _paper(trained: Trained) -> dise.Dynamic:
    """Table 2's network, fitted to all held-out images with the paper's α and M."""
    candidates = (dise.Euler(1), dise.RK4(1), REFERENCE)
    costs = Costs.of(run_candidates(trained.part, trained.held_out.batches(), candidates), ClassificationCost())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return dise.Dynamic(candidates, dise.CostSelector.fit(PaperNetwork(3), costs, max_epochs=20, patience=5))


@torch.no_grad()
def execute(trained: Trained, policy: dise.Integrator, samples: Samples) -> dict[str, Tensor]:
    """Each test image's answer [N], whether it is right [N], and its NFE [N], with what looked at it."""
    block = find_block(trained.part)
    with block.using(policy), block.recording() as records:
        logits = torch.cat([trained.part(h0) for h0, _ in samples.batches()])
    nfe = nfe_with_overhead(block, policy, records)
    return {"answer": logits.argmax(1), "right": logits.argmax(1) == samples.label, "nfe": nfe}


def row(group: str, name: str, got: dict[str, Tensor], reference: dict[str, Tensor]) -> dict[str, Any]:
    """A policy's results beside the reference's."""
    return {
        "group": group,
        "policy": name,
        "accuracy": float(got["right"].double().mean()),
        "nfe": float(got["nfe"].mean()),
        "differs": float((got["answer"] != reference["answer"]).double().mean()),
        "mcnemar": mcnemar(reference["right"], got["right"]),
    }


def bounds(outcomes: Outcomes, share: Tensor) -> list[dict[str, Any]]:
    """The oracle over the candidates, and random routing at the mix of the best policy."""
    costs = Costs.of(outcomes, ClassificationCost())
    scores = {"oracle": oracle(costs), "random, mix of the best": random_mix(costs, share)}
    return [{"group": n, "policy": n, "accuracy": s.accuracy, "nfe": s.mean_nfe} for n, s in scores.items()]


@torch.no_grad()
def timing(trained: Trained, timed: dict[str, dise.Integrator], every: dict[str, dise.Integrator]) -> dict[str, Any]:
    """Milliseconds of the ODE part by batch size, all in turns; and what a policy takes beyond its evaluations of f.

    Args:
        trained: the model.
        timed: policies to time at each batch size.
        every: policies to time at one size, for the plot.
    """
    block = find_block(trained.part)
    result: dict[str, Any] = {"threads": torch.get_num_threads(), "ms": {}, "overhead": {}}
    for size in BATCHES:
        states = _states(trained, size, REPEATS[size])
        ms = result["ms"][size] = time_side_by_side(_calls(block, timed), states)
        result["overhead"][size] = {
            name: ms[name] / (ms["f"] * _mean_nfe(block, policy, states)) for name, policy in timed.items()
        }
    result["every"] = time_side_by_side(_calls(block, every), _states(trained, *PLOTTED))
    return result


def _states(trained: Trained, size: int, number: int) -> list[Tensor]:
    """Test states, `number` batches of `size`, going round."""
    return [Samples.take(trained.test, _round(trained, turn * size, size)).h0 for turn in range(number)]


def _calls(block: dise.NeuralODE, policies: dict[str, dise.Integrator]) -> dict[str, Any]:
    """What is timed: torchdiffeq, one evaluation of f, and the policies."""
    # a block each, as exchanging an integrator costs about as much as an evaluation of f on one sample
    own = {name: dise.NeuralODE(block.f, policy).eval() for name, policy in policies.items()}
    for other in own.values():
        other.autocast = block.autocast
    return {"torchdiffeq dopri5": TorchdiffeqBlock(block, REFERENCE), "f": block.first_stage} | own


def _round(trained: Trained, start: int, size: int) -> Tensor:
    return torch.arange(start, start + size) % len(trained.test.label)


def _mean_nfe(block: dise.NeuralODE, policy: dise.Integrator, states: list[Tensor]) -> float:
    with block.using(policy), block.recording() as records:
        for h0 in states:
            block(h0)
    return float(torch.cat([record.solution.nfe for record in records]).double().mean())


def print_rows(console: Console, title: str, rows: list[dict[str, Any]]) -> None:
    reference = rows[0]["accuracy"]
    table = Table(title=title)
    for name in ("group", "policy", "accuracy, %", "against DOPRI, points", "NFE", "McNemar p"):
        table.add_column(name)
    for r in rows:
        p = f"{r['mcnemar']['p']:.3g}" if "mcnemar" in r else "–"
        difference = 100 * (r["accuracy"] - reference)
        values = (f"{100 * r['accuracy']:.2f}", f"{difference:+.2f}", f"{r['nfe']:.3f}", p)
        table.add_row(r["group"], r["policy"], *values)
    console.print(table)


def print_timing(console: Console, result: dict[str, Any]) -> None:
    names = [name for name in next(iter(result["ms"].values())) if name != "f"]
    table = Table(title=f"ODE part, {result['threads']} threads: ms per batch (times faster than torchdiffeq's dopri5)")
    for name in ("batch", *names):
        table.add_column(name)
    for size, ms in result["ms"].items():
        base = ms["torchdiffeq dopri5"]
        table.add_row(str(size), *(f"{ms[name]:.2f} ({base / ms[name]:.1f})" for name in names))
    console.print(table)
    for size, overhead in result["overhead"].items():
        console.print(
            f"batch {size}: time over Σ NFE × ms of a row of f:", {k: round(v, 2) for k, v in overhead.items()}
        )


def plot(rows: list[dict[str, Any]], times: dict[str, Any] | None, title: str, file: Path) -> None:
    """Accuracy over NFE, and over milliseconds of a batch if they were measured."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2 if times else 1, figsize=(18 if times else 11, 7), squeeze=False)
    _draw(axes[0][0], rows, [row["nfe"] for row in rows], title, "NFE per sample")
    if times:
        ms = [times["every"].get(_key(row), float("nan")) for row in rows]
        _draw(axes[0][1], rows, ms, "ODE part", f"ms, a batch of {PLOTTED[0]}, {times['threads']} threads")
        axes[0][1].axvline(times["every"]["torchdiffeq dopri5"], ls=":", color="black", label="torchdiffeq's dopri5")
    axes[0][0].legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def _key(row: dict[str, Any]) -> str:
    return f"{row['group']}, {row['policy']}"


def _draw(axis: Any, rows: list[dict[str, Any]], x: list[float], title: str, label: str) -> None:
    """A family is a line over its settings; what is one policy, or is none, is a mark."""
    import matplotlib as mpl

    groups = list(dict.fromkeys(row["group"] for row in rows))
    for index, group in enumerate(groups):
        some = sorted(
            (value, 100 * row["accuracy"]) for value, row in zip(x, rows, strict=True) if row["group"] == group
        )
        alone = len(some) < 3 or group == "single candidates"
        style = (
            {"ls": "", "marker": "*" if len(some) < 3 else "s", "ms": 9} if alone else {"marker": "o", "ms": 4, "lw": 1}
        )
        axis.plot(*zip(*some, strict=True), color=mpl.colormaps["tab20"](index % 20), label=group, **style)
    best = max(row["accuracy"] for row in rows if row["group"] != "oracle")
    axis.set(xscale="log", xlabel=label, ylabel="accuracy, %", title=title)
    axis.set_ylim(100 * best - 1.8, 100 * best + 0.4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory of an ODE-Net")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--best", action="store_true", help="only DOPRI and what is certified for ε up to 0.002")
    parser.add_argument("--images", type=int, help="take so many training, held-out and test images only")
    parser.add_argument("--learn", type=int, default=LEARN, help="training images to learn policies from")
    parser.add_argument("--brief", action="store_true", help="only single candidates and what make_dynamic certifies")
    parser.add_argument(
        "--rows", type=Path, help="JSON file of an earlier run, whose rows are taken where they are there"
    )
    parser.add_argument("--autocast", action="store_true", help="f in bfloat16, but in what policies are compared with")
    parser.add_argument("--timing", action="store_true", help="also measure wall-clock")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--plot", type=Path, help="PNG file to write")
    args = parser.parse_args()
    if args.autocast and not args.best:
        parser.error("--autocast: expected --best, too")
    console = Console(width=140)
    trained = load(args.run, args.data_dir, args.images, args.learn)
    if args.autocast:
        find_block(trained.part).autocast = torch.bfloat16
    known = {_key(row): row for row in strict_json.loads(args.rows.read_text())["rows"]} if args.rows else {}
    rows: list[dict[str, Any]] = []
    reference: dict[str, Tensor] = {}
    timed: dict[str, dise.Integrator] = {}
    every: dict[str, dise.Integrator] = {}
    wanted = {"Dopri5 1e-03", "Dopri5 1e-03, span", *map(str, FIXED), LABELLED, SHORT}
    wanted |= {f"ε = {epsilon:g}" for epsilon in EPSILONS}
    for group, name, policy in policies(trained, brief=args.brief or args.best):
        if args.best and name not in ("Dopri5 1e-03", BEST, SHORT, "ε = 0.002"):
            continue
        found = known.get(f"{group}, {name}")
        if not isinstance(policy, dise.Integrator):
            if found and not args.timing and name not in (BEST, LABELLED):
                rows.append(found)
                continue
            policy = policy()
        if found is None:
            reference = reference or execute(trained, Exact(REFERENCE), trained.test)
            found = row(group, name, execute(trained, policy, trained.test), reference)
        rows.append(found)
        every[_key(found)] = policy
        if name in wanted:
            timed[name] = policy
        console.print(f"{group}, {name}: {100 * found['accuracy']:.2f} % at {found['nfe']:.3f}")
    best = timed.get(BEST) or timed.get(LABELLED) or REFERENCE
    if not args.best:
        outcomes = run_candidates(trained.part, trained.test.batches(), (*FIXED, REFERENCE))
        rows += bounds(outcomes, _mix(trained, best))
    print_rows(console, trained.name, rows)
    times = timing(trained, timed, every) if args.timing else None
    if times:
        print_timing(console, times)
    if args.out:
        learn = len(trained.learn.label)
        report = {"run": trained.name, "learn": learn, "best": str(best), "rows": rows, "timing": times}
        report |= {"autocast": "bfloat16"} if args.autocast else {}
        args.out.write_text(strict_json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    if args.plot:
        plot(rows, times, trained.name, args.plot)


def _mix(trained: Trained, policy: dise.Integrator) -> Tensor:
    """Shares [K] of Euler, Midpoint, RK4 and DOPRI in a policy's answers."""
    block, everyone = find_block(trained.part), (*FIXED, REFERENCE)
    with torch.no_grad(), block.using(policy), block.recording() as records:
        for h0, _ in trained.test.batches():
            trained.part(h0)
    candidates = policy.candidates if isinstance(policy, dise.Cascade | dise.Dynamic) else [policy]
    choices = [record.solution.choice for record in records if record.solution.choice is not None]
    counts = torch.bincount(torch.cat(choices), minlength=len(candidates)) if choices else torch.ones(1)
    shares = torch.zeros(len(everyone))
    for candidate, count in zip(candidates, counts, strict=True):
        # a candidate that is none of them, such as a probe of the embedded error, counts as the nearest in NFE, RK4
        shares[everyone.index(candidate if candidate in everyone else dise.RK4(1))] += count
    return shares / shares.sum()


if __name__ == "__main__":
    main()
