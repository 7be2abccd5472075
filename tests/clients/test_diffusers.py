"""The scheduler against diffusers' own, against `dise.solve`, and in a pipeline."""

from importlib import import_module

import pytest
import torch
from torch.testing import assert_close

import dise
from dise import Multistep, StraightPath, grids

diffusers = pytest.importorskip("diffusers")
MultistepScheduler = import_module("dise.clients.diffusers").MultistepScheduler


def velocity(x, sigma):
    """A nonlinear velocity dx/dσ."""
    return torch.sin(3 * x) + sigma * x


def run(scheduler, x, steps, **options):
    """The loop of a pipeline: the samples after each step."""
    scheduler.set_timesteps(steps, **options)
    states = []
    for t in scheduler.timesteps:
        output = velocity(x, t / 1000)
        x = scheduler.step(output, t, x, return_dict=False)[0]
        states.append(x)
    return torch.stack(states)


def noise():
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_is_diffusers_step_by_step(shift):
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    sigmas = torch.linspace(1, 1 / 12, 12).tolist()  # their own levels shift the last one twice
    expected = run(theirs, noise(), None, sigmas=sigmas)
    ours = MultistepScheduler(order=1, shift=shift)
    assert_close(run(ours, noise(), 12), expected, rtol=0, atol=1e-5)
    assert_close(ours.timesteps, theirs.timesteps)
    assert_close(ours.sigmas, theirs.sigmas)
    assert_close(
        run(MultistepScheduler.of(dise.Euler(grids.shift(12, shift))), noise(), 12), expected, rtol=0, atol=1e-5
    )


def test_dpmpp_is_diffusers_step_by_step():
    theirs = diffusers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=1.0, final_sigmas_type="zero"
    )
    theirs.set_timesteps(8)
    times = [float(1 - sigma) for sigma in theirs.sigmas]
    ours = MultistepScheduler.of(Multistep.dpmpp2m(grids.of(times), StraightPath()))
    x = theirs_x = noise()
    ours.set_timesteps(8)
    for t, mine, sigma in zip(theirs.timesteps, ours.timesteps, theirs.sigmas[:-1], strict=True):
        theirs_x = theirs.step(velocity(theirs_x, sigma), t, theirs_x).prev_sample
        x = ours.step(velocity(x, sigma), mine, x).prev_sample
        assert_close(x, theirs_x, rtol=1e-5, atol=1e-4)


TABLES = [
    Multistep.adams(grids.sway(8), 2),
    Multistep.adams(grids.shift(8, 3.0), 4),
    Multistep.of(dise.Midpoint(4)),
    Multistep.unipc(grids.of([0.01, *torch.linspace(0.1, 0.95, 7).tolist(), 1.0]), StraightPath(), 3),
]


@pytest.mark.parametrize("integrator", TABLES, ids=str)
def test_any_table_ends_where_solve_does(integrator):
    x, span = noise().double(), integrator.table.span or (0.0, 1.0)
    y = dise.solve(lambda t, x: -velocity(x, 1 - t), x, *span, integrator).y
    n = integrator.table.evaluations
    assert_close(run(MultistepScheduler.of(integrator), x, n)[-1], y, rtol=0, atol=1e-5)  # times are float32


def test_a_fitted_table():
    flow = dise.Flow(Swirl(), dise.DiagonalNormal(torch.zeros(3), torch.ones(3)), dise.Dopri5(rtol=1e-5, atol=1e-5))
    fitted = dise.fit_solver(flow, 5, draws=64, iterations=3, seed=0).solver
    with torch.no_grad():
        y = dise.solve(flow.f, noise(), 0.0, 1.0, fitted).y
    assert_close(run(MultistepScheduler.of(fitted), noise(), 5)[-1], y, rtol=0, atol=1e-5)


class Swirl(torch.nn.Module):
    def forward(self, t, x):
        return -velocity(x, 1 - t)


def unet():
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()


def test_a_pipeline_runs_saves_and_loads_it(tmp_path):
    net, integrator = unet(), Multistep.adams(grids.sway(6), 2)
    pipe = diffusers.DDPMPipeline(net, MultistepScheduler.of(integrator))
    pipe.set_progress_bar_config(disable=True)

    def sample(pipe):
        return torch.as_tensor(
            pipe(2, torch.Generator().manual_seed(0), num_inference_steps=6, output_type="np").images
        )

    images = sample(pipe)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = dise.solve(lambda t, x: -net(x, 1000 * (1 - t.flatten())).sample, x, 0.0, 1.0, integrator).y
    assert_close(images, (y / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1), rtol=0, atol=1e-5)
    assert images.std() > 0.05
    pipe.save_pretrained(tmp_path)
    again = MultistepScheduler.from_pretrained(tmp_path / "scheduler")
    assert again.table == integrator.table
    assert_close(sample(diffusers.DDPMPipeline(net, again)), images)


def test_a_pipeline_of_its_own_kind_accepts_it():
    """`SchedulerMixin`s are exchanged by `from_config`; without a table any number of steps runs."""
    ours = MultistepScheduler.from_config(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config)
    assert ours.config["shift"] == 3.0
    euler = run(MultistepScheduler(order=1, shift=3.0), noise(), 200)[-1]
    assert_close(run(ours, noise(), 20)[-1], euler, rtol=0, atol=0.02)
    assert len(run(ours, noise(), 5)) == 5


def test_half_precision_sums_in_single():
    x = noise().half()
    scheduler = MultistepScheduler.of(TABLES[0])
    y = run(scheduler, x, 8)[-1]
    assert y.dtype == torch.float16
    assert_close(y.float(), run(scheduler, x.float(), 8)[-1], rtol=0, atol=1e-2)


def test_a_sample_changed_between_steps_counts():
    """With a constant velocity, a shift of the sample stays."""
    scheduler, x = MultistepScheduler.of(TABLES[0]), torch.zeros(1, 2)
    scheduler.set_timesteps(8)
    for k, t in enumerate(scheduler.timesteps):
        x = scheduler.step(torch.ones(1, 2), t, x + (1.0 if k == 4 else 0.0)).prev_sample
    assert_close(x, torch.zeros(1, 2))


def test_velocities_that_would_broadcast_are_refused():
    """Also those of another batch than the steps before."""
    scheduler, x = MultistepScheduler.of(TABLES[0]), torch.zeros(2, 3)
    for shape in ((1, 3), (2, 1), (3,), (4, 2, 3)):
        scheduler.set_timesteps(8)
        with pytest.raises(
            ValueError, match=r"model_output: expected the velocity in the sample's shape.*\(2, 3\), got"
        ):
            scheduler.step(torch.ones(shape), 1000.0, x)
    scheduler.step(x, scheduler.timesteps[0], x)
    with pytest.raises(ValueError, match=r"in each step \(2, 3\), got \(1, 3\) for a sample \(1, 3\)"):
        scheduler.step(x[:1], scheduler.timesteps[1], x[:1])
    with pytest.raises(ValueError, match=r"timestep: expected one for all samples, got shape \(2,\)"):
        scheduler.step(x, scheduler.timesteps[1].expand(2), x)


def test_what_does_not_fit_the_table_is_refused():
    scheduler = MultistepScheduler.of(TABLES[0])
    with pytest.raises(ValueError, match="num_inference_steps: the table has 8 steps, got 9"):
        scheduler.set_timesteps(9)
    with pytest.raises(ValueError, match="sigmas: the table is evaluated at"):
        scheduler.set_timesteps(sigmas=[1.0, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2])
    scheduler.set_timesteps(sigmas=scheduler.sigmas[:-1].tolist(), mu=0.7)
    with pytest.raises(ValueError, match=r"timestep: expected 1000.0, the one of step 0, got 500.0"):
        scheduler.step(noise(), 500.0, noise())
    run(scheduler, noise(), 8)
    with pytest.raises(ValueError, match="timestep: expected a call of set_timesteps"):
        scheduler.step(noise(), 0.0, noise())
    with pytest.raises(ValueError, match="timestep: expected a call of set_timesteps"):
        MultistepScheduler().step(noise(), 0.0, noise())
    with pytest.raises(ValueError, match="begin_index"):
        scheduler.set_begin_index(2)
    with pytest.raises(ValueError, match="integrator: expected a Multistep"):
        MultistepScheduler.of(dise.Dopri5())
    with pytest.raises(ValueError, match="order: expected 1, 2 or 3, got 4"):
        MultistepScheduler(order=4)
    scheduler.set_timesteps(8)
    with pytest.raises(ValueError, match="timestep: expected 1000"):
        scheduler.step(noise(), float("nan"), noise())
    with pytest.raises(ValueError, match="scales, weights"):
        MultistepScheduler(times=[0.0])
