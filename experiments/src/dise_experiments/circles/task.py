"""Density estimation on two circles as a task: data, loss, optimizer, candidates, selectors and reports."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from dise.flow import Flow, PointRegularizer, TransportCost
from dise.integrate import RK4, Bosh3, Dopri5, Euler, Integrator, Midpoint
from dise.regularize.regularizer import Reduce, SampleRegularizer
from dise.select import Dynamic, TaskErrorCost
from dise_experiments.circles.evaluate import SMALL, batches, policy_rows
from dise_experiments.circles.figure import animate, draw_flows
from dise_experiments.circles.model import DIM, hypernetwork_flow
from dise_experiments.circles.points import FreshBatches, sets
from dise_experiments.circles.presets import ALPHA, BETA, PENALTY, PRESETS, WEIGHTS, Preset
from dise_experiments.circles.report import (
    larger_test,
    other_shares,
    other_targets,
    own_row,
    policy_table,
    seed_table,
    table_8,
    table_9,
)
from dise_experiments.circles.selector import PaperNetwork, SetNetwork
from dise_experiments.common.plots import quality_against_nfe
from dise_experiments.common.table import Table
from dise_experiments.common.task import REGULARIZERS, Loss, Quality, Run, SelectorSpec, Task

CIRCLES = "circles"  # the paper's target

# Tolerance of selectors: the share of rows whose likelihood error exceeds β. Even without such rows, the test of
# `choose_penalty` needs 268 rows for 1e-2, and 2,703 rows for its default of 1e-3.
DEVIATING = 1e-2
STUDIED = 128  # test sets whose choices are drawn
POINT_PART = 8  # points are taken from an eighth of the sets: one point costs nearly as many multiply–adds as a set


def _of_points(name: str, *, reduce: Reduce = "mean") -> PointRegularizer:
    """A regularizer of the flow's points without their log-densities."""
    return PointRegularizer(cast(SampleRegularizer, REGULARIZERS[name]()), DIM, reduce=reduce)


class CirclesTask(Task):
    """See `dise_experiments.common.task.Task`."""

    name = "circles"
    quality = Quality("NLL", "loss", lambda row: row["large"]["nll"])
    presets = PRESETS
    regularizers: ClassVar = {
        **REGULARIZERS,
        "kinetic": partial(TransportCost, DIM),
        **{name: partial(_of_points, name) for name in ("jacobian", "taylor2", "taylor3")},
    }
    weights = WEIGHTS
    models: ClassVar = {"flow": hypernetwork_flow}
    reference = Dopri5(rtol=1e-5, atol=1e-5)
    candidates: tuple[Integrator, ...] = (
        *(RK4(steps) for steps in (2, 5, 10, 16)),
        *(Euler(steps) for steps in (50, 100)),
        *(Midpoint(steps) for steps in (10, 20)),
        Bosh3(rtol=1e-3, atol=1e-3),
        *(Dopri5(rtol=tol, atol=tol) for tol in (1e-2, 1e-3, 1e-4)),
        reference,
    )
    selectors: Mapping[str, SelectorSpec] = {
        "table-7": SelectorSpec(lambda model, candidates: PaperNetwork(candidates), unit="set", equation=5),
        "set": SelectorSpec(lambda model, candidates: SetNetwork(candidates), DEVIATING, unit="set", equation=5),
        "point": SelectorSpec(lambda model, candidates: SetNetwork(candidates), DEVIATING, unit="point", equation=5),
    }
    default_selector = "set"
    splits_systems = True

    def rule(self, alpha: float | None, penalty: float | None, equation: int) -> TaskErrorCost:
        """Eq. 5 with Γ the mean distance of a row's log-likelihoods from the reference's, raised to at least β."""
        return TaskErrorCost(
            alpha=ALPHA if alpha is None else alpha,
            M=PENALTY if penalty is None else penalty,
            task_error=likelihood_gap,
            beta=BETA,
            resolution=BETA,
        )

    def load(self, preset: Preset, data_dir: Path | None) -> Preset:
        """The preset: points are drawn as it says, so there are no data to load."""
        return preset

    def training_batches(self, splits: Preset, preset: Preset, *, seed: int, epoch: int) -> FreshBatches:
        """Fresh points each iteration."""
        return FreshBatches(preset, seed, epoch)

    def monitored_batches(self, splits: Preset, preset: Preset) -> list[Tensor]:
        """512 points in sets of 32, none of them a test point."""
        return [sets(splits.target, SMALL, "monitored")]

    def rows(self, batch: Tensor) -> int:
        """Number of points."""
        return batch.shape[1]

    def take(self, batch: Tensor, rows: slice) -> Tensor:
        """Some of the points."""
        return batch[:, rows]

    def selection_batches(
        self, model: nn.Module, splits: Preset, *, on: str, unit: str
    ) -> Iterable[tuple[Tensor, Tensor]]:
        """Sets with the reference's log-likelihoods: some of the large test's, or fresh ones for every other `on`."""
        if on == "test":
            return batches(model, sets(splits.target, splits.test_sets, "large test")[:STUDIED], unit)
        number = splits.selection_sets if unit == "set" else max(splits.selection_sets // POINT_PART, 2)
        return batches(model, sets(splits.target, number, "selection"), unit)

    def draw(self, axes: Axes, x: Tensor, row: int) -> None:
        """The points."""
        abscissa, ordinate = x[row].reshape(-1, 2).T.numpy(force=True)
        axes.scatter(abscissa, ordinate, s=2, color="black")
        axes.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal")

    def timed_batches(self, splits: Preset, number: int, *, unit: str) -> Iterable[Tensor]:
        """Test sets one by one, like the paper's test batches of 32 points; or their points as rows."""
        x = sets(splits.target, SMALL, "test")[:number]
        return x.split(1) if unit == "set" else x.unbind()

    def loss(self, model: nn.Module, batch: Tensor, accumulate: Any) -> Loss:
        """Negative log-likelihood, in nats."""
        flow = _flow(model)
        log_prob, solution = flow.solve(batch, accumulate=accumulate)
        return Loss(-log_prob.mean(), solution, flow.f, {})

    def optimizer(self, model: nn.Module, preset: Preset, steps_per_epoch: int) -> dict[str, Any]:
        """Adam."""
        return {"optimizer": torch.optim.Adam(model.parameters(), lr=preset.learning_rate)}

    def metrics(
        self, model: nn.Module, dynamics: Mapping[str, Dynamic], selector_macs: Mapping[str, float], splits: Preset
    ) -> dict[str, Any]:
        """Likelihood and NFE of all policies, with one decision per set and with one per point."""
        # the small test is the same in all presets
        parts = (sets(splits.target, SMALL, "test"), sets(splits.target, splits.test_sets, "large test"))
        test, rows = torch.cat(parts), []
        for unit in ("set", "point"):
            own = {name: dynamic for name, dynamic in dynamics.items() if self.selectors[name].unit == unit}
            part = test if unit == "set" else test[: SMALL + max(splits.test_sets // POINT_PART, 1)]
            rows += policy_rows(model, self.candidates, self.rule(None, None, 5), own, selector_macs, part, unit)
        return {"target": splits.target, "samples": test.shape[0] * test.shape[1], "policies": rows}

    def own_row(self, run: Run) -> dict[str, Any]:
        """Its evaluation with the integrator that it was trained with."""
        return own_row(run)

    def tables(self, runs: Sequence[Run]) -> list[Table]:
        """Tables 8 and 9, the same for other targets, the larger test, and means over seeds."""
        circles = [run for run in runs if run.metrics["target"] == CIRCLES]
        others = [run for run in runs if run.metrics["target"] != CIRCLES]
        return [
            *((table_8(circles), table_9(circles)) if circles else ()),
            *((other_targets(others), other_shares(others)) if others else ()),
            larger_test(runs),
            seed_table(runs),
        ]

    def details(self, run: Run) -> list[Table]:
        """The table of all policies."""
        return [policy_table(run)]

    def plots(self, runs: Sequence[Run], folder: Path, load: Callable[[Run], nn.Module]) -> list[Path]:
        """For each target Figure 3 and an animation of its first flow; for each run the likelihood against NFE.

        Figure 3 shows the runs of the smallest seed, in the paper's order of regularizers.
        """
        files, order = [], list(self.weights)
        for target in dict.fromkeys(run.metrics["target"] for run in runs):
            learnt = [run for run in runs if run.metrics["target"] == target]
            first = [run for run in learnt if run.seed == min(run.seed for run in learnt)]
            first.sort(key=lambda run: order.index(run.reg))
            short = len({run.reg for run in first}) == len(first)
            flows = {run.reg if short else run.name: _flow(load(run)) for run in first}
            suffix = "" if target == CIRCLES else f"-{target}"
            files += [folder / f"figure-3{suffix}.png", folder / f"flow{suffix}.gif"]
            draw_flows(flows, target, files[-2])
            animate(next(iter(flows.values())), files[-1])
        for run in runs:
            files.append(folder / run.name / "nll-nfe.png")
            rows = [row for row in run.policies() if row["unit"] == "set"]
            label = "distance from the model's NLL, nats"
            quality_against_nfe(rows, run.name, files[-1], quality=_distance, label=label, unit="set", log=True)
        return files


def _flow(model: nn.Module) -> Flow:
    if not isinstance(model, Flow):
        raise TypeError(f"model: expected a Flow, got {type(model).__name__}")
    return model


def likelihood_gap(output: Tensor, target: Tensor) -> Tensor:
    """Γ [N, K] of log p [N, K, P] and the reference's [N, P], or of [N, K] and [N]: mean over P of |difference|.

    An overstated likelihood at one point does not compensate an understated one at another.
    """
    gap = (output - target.unsqueeze(1)).abs()
    return gap if gap.ndim == 2 else gap.mean(-1)


def _distance(row: dict[str, Any]) -> float:
    return abs(row["large"]["nll"] - row["large"]["reference"])
