"""The paper's claims, one row each: paper, ours, verdict, command. Every number of ours is read from the results."""

import json
from collections.abc import Iterator
from statistics import fmean
from typing import Any, NamedTuple

from dise_experiments.circles.report import own_row as flow_row
from dise_experiments.claims.results import RESULTS, Results, of, published, row
from dise_experiments.common.summary import shares
from dise_experiments.common.task import Run
from dise_experiments.common.time_fits import time_fits
from dise_experiments.mnist.report import own_row as mnist_row
from dise_experiments.physionet.paper import TABLE_5
from dise_experiments.physionet.report import own_row as stays_row

RUN = "`dise run {} --preset cpu --reg none --reg error{}`"
PUBLISHED = " --selector published"
POLICIES = "`python benchmarks/pareto.py`, see `results/README.md`"
LINEAR = 0.95  # R²
SLACK = 0.2
NEAR = 0.05  # of a share
SIMPLE = (0.1, 0.3)  # the paper's share of inputs that need only a simple integrator
ALIKE = 0.01  # of an AUROC, whose 95 % intervals on 800 records are ± 0.04
FEWER = 0.95  # of the NFE; less is no difference, as the seeds differ by as much


class Claim(NamedTuple):
    """A row of the page."""

    claim: str
    paper: str
    ours: str
    verdict: str
    command: str


class Own(NamedTuple):
    """A model with its own integrator: its quality, where larger is better, and its NFE, means over seeds."""

    quality: float
    nfe: float
    seeds: int


def _own(task: str, runs: list[Run]) -> Own:
    if task == "circles":
        rows = [flow_row(run)["large"] for run in runs]
        return Own(-fmean(r["reference"] for r in rows), fmean(r["nfe"] for r in rows), len(rows))
    rows = [mnist_row(run) if task == "mnist" else stays_row(run.policies()) for run in runs]
    key = "accuracy" if task == "mnist" else "auroc"
    return Own(fmean(r[key] for r in rows), fmean(r["nfe"] for r in rows), len(rows))


_PAPER = {
    "mnist": ("MNIST", "26 → 14 NFE, accuracy .9960 → .9964", "accuracy"),
    "physionet": ("PhysioNet", "74 → 39.71 NFE, AUC .7190 → .7509", "AUROC"),
    "circles": ("flow", "2297 → 2166 NFE, NLP .8911 → .8841", "log-likelihood"),
}


def regularization(results: Results) -> Iterator[Claim]:
    """Error regularization lowers NFE, at the paper's λ with a mean over the batch."""
    for task, preset in (*((task, "cpu") for task in _PAPER), ("mnist", "long")):
        name, paper, quality = _PAPER[task]
        name += "" if preset == "cpu" else f", preset `{preset}`"
        runs = results.mnist_long if preset == "long" else getattr(results, task)
        none, error = (_own(task, of(runs, reg)) for reg in ("none", "error"))
        ours = (
            f"{none.nfe:.1f} → {error.nfe:.1f} NFE, {quality} {none.quality:.4f} → {error.quality:.4f} "
            f"(seeds: {none.seeds} and {error.seeds})"
        )
        fewer = error.nfe < FEWER * none.nfe
        worse = error.quality < none.quality - (0.01 if task == "circles" else 0.001)
        verdict = ("yes" if not worse else "fewer NFE, at a loss") if fewer else "no at this λ as a mean"
        command = RUN.format(task, "").replace("cpu", preset)
        yield Claim(f"error regularization lowers NFE, {name}", paper, ours, verdict, command)


def selection(results: Results) -> Iterator[Claim]:
    """DISE lowers NFE further at no loss: the selector as published, and the best policies here."""
    papers = {"mnist": "14 → 5.79 NFE, .9964 → .9963", "physionet": "39.71 → 34.1 NFE, .7509 → .7604"}
    for task, paper in papers.items():
        key = "accuracy" if task == "mnist" else "auroc"
        for run in of(getattr(results, task), "error"):
            own = mnist_row(run) if task == "mnist" else stays_row(run.policies())
            for found in published(run)[:1]:
                loss = found[key] - own[key]
                spent = f"{own['nfe']:.2f} → {found['nfe']:.2f} + {found['selector_macs']:.2f} NFE"
                ours = f"{found['policy'][6:-1]}: {spent}, {own[key]:.4f} → {found[key]:.4f}"
                verdict = "yes" if loss > -0.001 else f"fewer NFE, at a loss of {-loss:.4f}"
                command = RUN.format(task, PUBLISHED)
                yield Claim(f"DISE lowers NFE further at no loss, {_PAPER[task][0]}", paper, ours, verdict, command)
    for reg in ("none", "error"):
        best, dopri = _best(reg)
        ours = f"{dopri['nfe']:.2f} → {best['nfe']:.2f} NFE, {dopri['accuracy']:.4f} → {best['accuracy']:.4f}"
        verdict = "yes" if best["accuracy"] >= dopri["accuracy"] - 5e-4 else "no"
        yield Claim(f"the same with `make_dynamic`, ε = 0.1 %, MNIST, {reg}", "–", ours, verdict, POLICIES)


def _best(reg: str) -> tuple[dict[str, Any], dict[str, Any]]:
    rows = json.loads((RESULTS / "policies" / f"pareto-mnist-{reg}.json").read_text())["rows"]
    keyed = {f"{r['group']}, {r['policy']}": r for r in rows}
    return keyed["make_dynamic, ε = 0.001"], keyed["DOPRI, heuristic first step, Dopri5 1e-03"]


def simple_integrators(results: Results) -> Iterator[Claim]:
    """10 to 30 % of the inputs can be solved with simple integrators; up to 78 % fewer NFE."""
    adequate = []
    for run in (*of(results.mnist, "none"), *of(results.mnist, "error")):
        euler, dopri = row(run, "Euler"), mnist_row(run)
        adequate.append((euler["accuracy"], dopri["accuracy"]))
    ours = f"Euler alone is right on {_range(a for a, _ in adequate)} of MNIST's test images, DOPRI on " + _range(
        b for _, b in adequate
    )
    least = min(euler for euler, _ in adequate)
    steps = {"far more": 2 * SIMPLE[1], "more": SIMPLE[1], "yes": SIMPLE[0], "fewer": 0.0}
    verdict = next(verdict for verdict, share in steps.items() if least >= share)
    yield Claim(
        "10 to 30 % of inputs need only a simple integrator", "10 to 30 %", ours, verdict, RUN.format("mnist", "")
    )
    for run in of(results.mnist, "error"):
        for found in published(run)[:1]:
            own = mnist_row(run)
            less = 1 - (found["nfe"] + found["selector_macs"]) / own["nfe"]
            ours = (
                f"{found['policy'][6:-1]}: {less:.1%} fewer, {100 * (found['accuracy'] - own['accuracy']):+.2f} points"
            )
            verdict = "the NFE, not the accuracy" if found["accuracy"] < own["accuracy"] - 1e-3 else "yes"
            yield Claim(
                "NFE lower by up to 78 %, better accuracy", "78 %", ours, verdict, RUN.format("mnist", PUBLISHED)
            )
    best, dopri = _best("error")
    ours = f"{1 - best['nfe'] / dopri['nfe']:.1%} fewer, {100 * (best['accuracy'] - dopri['accuracy']):+.2f} points"
    verdict = "yes" if best["accuracy"] >= dopri["accuracy"] - 5e-4 else "the NFE, not the accuracy"
    yield Claim("the same with `make_dynamic`, ε = 0.1 %", "–", ours, verdict, POLICIES)


def _range(values: Iterator[float]) -> str:
    found = list(values)
    return f"{100 * min(found):.1f} to {100 * max(found):.1f} %"


def linear_time(results: Results) -> Iterator[Claim]:
    """Time is linear in NFE."""
    for task, (name, _, _) in _PAPER.items():
        fits = time_fits(getattr(results, task))
        slopes, r2 = [fit.slope for fit in fits], [fit.r2 for fit in fits]
        routed = [fit.routed for fit in fits if fit.routed]
        low, high = min(least for least, _ in routed), max(most for _, most in routed)
        ours = (
            f"single integrators: R² {min(r2):.3f} to {max(r2):.3f}, slope {min(slopes):.2f} to {max(slopes):.2f} f "
            f"and a constant; routed batches: {low:.1f} to {high:.1f} × NFE × time of f"
        )
        single = "yes" if min(r2) > LINEAR else "roughly"
        verdict = f"{single} for one integrator" + (
            ", no for routed batches" if high > (1 + SLACK) * max(slopes) else ""
        )
        yield Claim(f"time is linear in NFE, {name}", "asserted", ours, verdict, RUN.format(task, ""))


def share_tables(results: Results) -> Iterator[Claim]:
    """Tables 3, 6 and 9."""
    tables = {
        "mnist": ("3", "37 / 34 / 29 %"),
        "physionet": ("6", "87.5 / 0 / 12.5 %"),
        "circles": ("9", "87.5 / 0 / 12.5 %"),
    }
    for task, (number, paper) in tables.items():
        for run in of(getattr(results, task), "error"):
            _, lines = shares([run], "Dopri5", "RK4", "Euler")
            for label, *cells in lines:
                if "as published" in label:
                    ours = f"{label.partition('DISE ')[2]}: " + " / ".join(cells[:3])
                    command = RUN.format(task, PUBLISHED)
                    apart = [abs(_share(a) - _share(b)) for a, b in zip(cells, paper[:-2].split(" / "), strict=False)]
                    verdict = "yes" if max(apart) < 100 * NEAR else "no"
                    yield Claim(f"Table {number}: DOPRI / RK4 / Euler", paper, ours, verdict, command)


def _share(text: str) -> float:
    return float(text.rstrip("%"))


def others(results: Results) -> Iterator[Claim]:
    """Figure 3, overheads, the other regularizers."""
    nll = {
        reg: flow_row(of(results.circles, reg)[0])["large"]["reference"]
        for reg in ("none", "kinetic", "l1", "l2", "error")
    }
    apart = nll["error"] - min(nll.values())
    ours = ", ".join(f"{reg} {value:.3f}" for reg, value in nll.items()) + " nats (seed 0)"
    verdict = f"true of four; error differs by {apart:.3f} nats, and its figure shows it" if apart > 0.03 else "yes"
    yield Claim(
        "Figure 3: reasonable transformations, little differences",
        "five flows",
        ours,
        verdict,
        "`dise report results/circles-cpu`",
    )
    for task, (key, paper) in {
        "mnist": ("paper", 0.8),
        "physionet": ("paper", 0.023),
        "circles": ("table-7", 0.018),
    }.items():
        run = next(run for run in of(getattr(results, task), "error") if run.timing)
        macs, parts = row(run, f"DISE ({key})")["selector_macs"], (run.timing or {})["parts_ms"]
        ours = f"{macs:.3f} f in multiply–adds, {parts[key] / parts['f']:.2f} f in time"
        verdict = "no" if macs > 1.5 * paper else "yes"
        yield Claim(
            f"the selector costs little, {_PAPER[task][0]}", f"{paper:g} NFE", ours, verdict, RUN.format(task, "")
        )
    none, kinetic = (_own("mnist", of(results.mnist, reg)[:1]) for reg in ("none", "kinetic"))
    ours = f"{none.nfe:.1f} → {kinetic.nfe:.1f} NFE, {none.quality:.4f} → {kinetic.quality:.4f} (seed 0)"
    verdict = "fewer NFE, at a loss" if kinetic.quality < none.quality - 1e-3 else "yes"
    yield Claim(
        "kinetic energy: best accuracy, MNIST",
        "26 → 20 NFE, .9960 → .9965",
        ours,
        verdict,
        "`dise run mnist --preset cpu --reg none --reg kinetic`",
    )
    stays = {reg: _own("physionet", of(results.physionet, reg)[:1]) for reg in ("none", "kinetic", "l1", "l2", "error")}
    ours = ", ".join(f"{reg} {own.quality:.4f} at {own.nfe:.1f}" for reg, own in stays.items()) + " (seed 0)"
    yield Claim(
        "every regularizer improves AUC and NFE, L1 best, PhysioNet", "none .7190 at 74, L1 .7630 at 68", ours,
        _improved(stays.pop("none"), stays),
        "`dise run physionet --preset cpu --reg none --reg kinetic --reg l1 --reg l2 --reg error`",
    )  # fmt: skip


def cross_entropy(results: Results) -> Iterator[Claim]:
    """Table 5's level: is it that of a Latent ODE trained by its cross-entropy alone, as the paper's L_task is?"""
    runs = of(results.cross_entropy, "none", changes="-loss=cross-entropy")
    none, published = _own("physionet", runs), _own("physionet", of(results.physionet, "none"))
    euler = fmean(row(run, "Euler")["auroc"] for run in runs)
    paper = next(line for line in TABLE_5 if line.reg == "none" and not line.dise)
    ours = (
        f"AUROC {none.quality:.4f} at {none.nfe:.1f} NFE, {euler:.4f} by Euler's single step (seeds: {none.seeds}); "
        f"by the loss of the published Latent ODE {published.quality:.4f} at {published.nfe:.1f}"
    )
    nearer = abs(none.quality - paper.auroc) < abs(published.quality - paper.auroc)
    alike = abs(none.nfe / paper.nfe - 1) < SLACK
    yield Claim(
        "L_task is a cross-entropy: does it explain Table 5, no reg.?", f"{paper.auroc:.4f} at {paper.nfe:g} NFE", ours,
        f"{'nearer' if nearer else 'no nearer'} in AUC, {'alike' if alike else 'not'} in NFE",
        "`dise run physionet --preset cpu --reg none --set loss=cross-entropy`",
    )  # fmt: skip


def _improved(none: Own, others: dict[str, Own]) -> str:
    """Whether all others are better than the model without a regularizer."""
    fewer = all(own.nfe < none.nfe for own in others.values())
    gains = [own.quality - none.quality for own in others.values()]
    alike = all(abs(gain) < ALIKE for gain in gains)
    auroc = "no difference" if alike else "yes" if min(gains) > 0 else "no"
    return f"NFE {'yes' if fewer else 'no'}, AUROC {auroc}"


def claims(results: Results) -> list[Claim]:
    """All rows."""
    parts = (regularization, selection, simple_integrators, linear_time, share_tables, others, cross_entropy)
    return [claim for part in parts for claim in part(results)]
