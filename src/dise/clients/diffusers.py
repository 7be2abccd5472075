"""A diffusers scheduler with a `dise.Multistep` table behind it.

from dise.clients.diffusers import MultistepScheduler

pipe.scheduler = MultistepScheduler.of(dise.Multistep.adams(dise.grids.shift(8, 3.0), order=2))
pipe(prompt, num_inference_steps=8)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from torch import Tensor

from dise.integrate import FixedStep, Integrator, Multistep, MultistepTable, grids


@dataclass
class MultistepSchedulerOutput(BaseOutput):
    """The sample [B, ...] at the next noise level, `prev_sample` as in diffusers' schedulers."""

    prev_sample: Tensor


class MultistepScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # they declare config_name twice
    """Steps of a table for flow models, whose output is the velocity dx/dσ = noise − data of a straight path.

    In place of `FlowMatchEulerDiscreteScheduler`: noise levels σ fall from 1 to 0, timesteps are σ times
    `num_train_timesteps`, and each step needs one model output. The table is stored in the config, so it is saved and
    loaded with the pipeline. Without a table, steps are those of Adams–Bashforth on shifted noise levels, for any
    number of steps. A table says where the model is evaluated, so it comes with its own number of steps: another one,
    or other noise levels, are refused. `mu` is ignored: a resolution's shift belongs into the table.

    Args:
        times: n evaluation times of the table, fractions of the way from noise to data.
        scales: its n + 1 factors of the start.
        weights: its n + 1 rows of weights.
        span: times of noise and data that it is for; None: 0 and 1.
        order: of Adams–Bashforth, 1 (Euler's method) to 3, without a table; order 4 starts with extra evaluations.
        shift: of the noise levels, without a table.
        num_train_timesteps: timestep of σ = 1.
        use_flow_sigmas: True; tells diffusers' pipelines to leave the noise levels to the scheduler.

    Raises:
        ValueError: the table is incomplete, or evaluates at noise levels that a step does not reach.
    """

    order = 1  # model outputs per step, which pipelines ask for
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(
        self,
        times: Sequence[float] | None = None,
        scales: Sequence[float] | None = None,
        weights: Sequence[Sequence[float]] | None = None,
        span: Sequence[float] | None = None,
        order: int = 2,
        shift: float = 1.0,
        num_train_timesteps: int = 1000,
        use_flow_sigmas: bool = True,
    ) -> None:
        self.table: MultistepTable | None = None
        if times is not None:
            if scales is None or weights is None:
                raise ValueError("scales, weights: expected those of the table that times belongs to, got None")
            rows, ends = tuple(map(tuple, weights)), None if span is None else (float(span[0]), float(span[1]))
            self.table = MultistepTable(tuple(times), tuple(scales), rows, ends)
            _check(self.table)
        if order not in (1, 2, 3):
            raise ValueError(f"order: expected 1, 2 or 3, got {order!r}")
        self.solver_order, self.shift = order, shift
        self.num_inference_steps: int | None = None
        self._values: list[Tensor] = []
        self.timesteps, self.sigmas = torch.zeros(0), torch.zeros(0)
        if self.table is not None:
            self.set_timesteps(self.table.evaluations)

    @classmethod
    def of(cls, integrator: Integrator, num_train_timesteps: int = 1000) -> "MultistepScheduler":
        """The scheduler of a `Multistep` method or of a method of one stage with fixed steps.

        Raises:
            ValueError: another integrator, such as a policy that gives each sample its own steps: a pipeline's samples
                share theirs.
        """
        if isinstance(integrator, FixedStep):
            integrator = Multistep.of(integrator)
        if not isinstance(integrator, Multistep):
            raise ValueError(
                f"integrator: expected a Multistep or fixed-step method, with the same steps for all, got {integrator}"
            )
        table = integrator.table
        rows = [list(row) for row in table.weights]
        return cls(list(table.times), list(table.scales), rows, table.span, num_train_timesteps=num_train_timesteps)

    @property
    def step_index(self) -> int | None:
        """Number of steps taken; None before the first."""
        return len(self._values) or None

    @property
    def begin_index(self) -> int:
        """0: a table starts with noise."""
        return 0

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Refuse to begin anywhere but at noise."""
        if begin_index != 0:
            raise ValueError(f"begin_index: a table starts with noise, expected 0, got {begin_index}")

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Prepare for a new sample: `timesteps` [n], and `sigmas` [n + 1] with 0 at the end.

        Args:
            num_inference_steps: n; the table's own number or, without a table, any.
            device: of the two.
            sigmas, timesteps: noise levels, which must be the scheduler's own.
            mu: ignored, see the class.

        Raises:
            ValueError: an argument (named in the message) is not that of the table.
        """
        levels = sigmas if sigmas is not None else timesteps
        n = num_inference_steps if levels is None else len(levels)
        if n is None:
            raise ValueError("num_inference_steps: expected a number of steps, got None")
        table = self.table
        if table is None:
            table = Multistep.adams(grids.shift(n, self.shift), self.solver_order).table
            _check(table)
        if n != table.evaluations:
            raise ValueError(f"num_inference_steps: the table has {table.evaluations} steps, got {n}")
        start, end = table.span or (0.0, 1.0)
        falling = [1 - (start + (end - start) * t) for t in table.times]
        trained = self.config["num_train_timesteps"]
        self.sigmas = torch.tensor([*falling, 1 - end], dtype=torch.float32)  # on the CPU, as in diffusers
        self.timesteps = torch.tensor([sigma * trained for sigma in falling], dtype=torch.float32, device=device)
        for name, given, own in (("sigmas", sigmas, self.sigmas[:-1]), ("timesteps", timesteps, self.timesteps)):
            if given is not None and not torch.allclose(torch.as_tensor(given).to(own), own, rtol=1e-4):
                raise ValueError(f"{name}: the table is evaluated at {own.tolist()}, got {list(given)}")
        self.num_inference_steps = n
        self._steps, self._length = _steps(table), end - start
        self._values = []

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """The sample as it is: flow models take it so."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
        **others: Any,
    ) -> MultistepSchedulerOutput | tuple[Tensor]:
        """The sample at the next noise level; sums are made in float32 at least.

        Args:
            model_output: velocity [B, ...] at the sample.
            timestep: of `timesteps`, in their order.
            sample: [B, ...], the last step's result. A pipeline may change it in between, as for inpainting.
            generator: not used: no noise is added.
            return_dict: False returns a tuple of one.
            others: not used.

        Raises:
            ValueError: timesteps are not set, all used up, or another one is next; the velocity has another shape.
        """
        k = len(self._values)
        if self.num_inference_steps is None or k >= self.num_inference_steps:
            raise ValueError("timestep: expected a call of set_timesteps before the first step of a sample")
        expected = float(self.timesteps[k])
        if isinstance(timestep, Tensor) and timestep.numel() != 1:
            raise ValueError(f"timestep: expected one for all samples, got shape {tuple(timestep.shape)}")
        if not abs(float(timestep) - expected) <= 1e-3 * max(1.0, abs(expected)):  # NaN too
            raise ValueError(f"timestep: expected {expected}, the one of step {k}, got {float(timestep)}")
        first = self._values[0].shape if self._values else sample.shape
        if not model_output.shape == sample.shape == first:
            raise ValueError(
                f"model_output: expected the velocity in the sample's shape, in each step {tuple(first)}, got "
                f"{tuple(model_output.shape)} for a sample {tuple(sample.shape)}"
            )
        precise = torch.promote_types(sample.dtype, torch.float32)
        self._values.append(-model_output.to(precise))  # in the direction of the data
        scale, weights = self._steps[k]
        result = sample.to(precise) * scale
        for weight, value in zip(weights, self._values, strict=True):
            if weight:
                result = result + (self._length * weight) * value
        result = result.to(model_output.dtype)
        return MultistepSchedulerOutput(result) if return_dict else (result,)

    def scale_noise(self, sample: Tensor, timestep: float | Tensor, noise: Tensor) -> Tensor:
        """Points σ · noise + (1 − σ) · sample of the straight path at timesteps [] or [B]."""
        sigma = torch.as_tensor(timestep, device=sample.device) / self.config["num_train_timesteps"]
        sigma = sigma.to(sample.dtype).reshape(-1, *(1 for _ in sample.shape[1:]))
        return sigma * noise + (1 - sigma) * sample


def _steps(table: MultistepTable) -> list[tuple[float, tuple[float, ...]]]:
    """Each state from the one before: the factor of x_k and the weights of v_0 … v_k."""
    steps = []
    for k in range(table.evaluations):
        scale = table.scales[k + 1] / table.scales[k]
        before = (*table.weights[k], 0.0)
        steps.append((scale, tuple(b - scale * a for a, b in zip(before, table.weights[k + 1], strict=True))))
    return steps


def _check(table: MultistepTable) -> None:
    if any(scale == 0 for scale in table.scales):
        raise ValueError("scales: a pipeline's steps start from the last sample, which no factor of 0 allows")
