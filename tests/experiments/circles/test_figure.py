import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

from dise import Euler
from dise_experiments.circles import figure
from dise_experiments.circles.figure import EXTENT, GRID, SAMPLES, TIMES, animate, densities, draw_flows, sample_paths
from dise_experiments.circles.points import draw

A = [[0.25, 0.0], [0.0, -0.5]]
LOC = (0.5, -0.25)


@pytest.fixture(scope="module")
def flow(linear_flow):
    """From N((0.5, −0.25), 0.01·I) at t = 0, in x stretched e^(t/4)-fold, in y squeezed e^(−t/2)-fold, until 2."""
    return linear_flow(A, loc=LOC, variance=0.01)


@pytest.fixture
def coarse(monkeypatch):
    """Small grids and few points and frames."""
    for name, value in (("GRID", 20), ("SAMPLES", 100), ("TARGET_POINTS", 400), ("FRAMES", 5)):
        monkeypatch.setattr(figure, name, value)


@pytest.fixture
def drawn(monkeypatch):
    """Figures that were saved."""
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: figures.append(self) or save(self, *a, **k))
    return figures


def at(time):
    """The flow's distribution at a part of its time."""
    grown = torch.tensor([math.exp(0.25 * 2 * time), math.exp(-0.5 * 2 * time)])
    return MultivariateNormal(grown * torch.tensor(LOC), torch.diag(0.01 * grown**2))


# ---- numbers


def test_times_are_the_papers():
    assert TIMES == (0, 0.25, 0.5, 0.75, 1)


def test_densities_are_those_of_the_time(flow):
    line = torch.linspace(-EXTENT, EXTENT, GRID)
    points = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)  # rows are y, from below
    for time, density in zip(TIMES, densities(flow, TIMES), strict=True):
        expected = at(time).log_prob(points).exp()
        assert_close(density, expected, rtol=1e-3, atol=1e-4)
        assert not density.requires_grad
        # and all of it is in sight
        assert density.sum().item() * (2 * EXTENT / (GRID - 1)) ** 2 == pytest.approx(1, abs=1e-3)


def test_the_base_is_where_it_is(flow):
    (density,) = densities(flow, [0.0])
    row, column = divmod(int(density.argmax()), GRID)
    line = torch.linspace(-EXTENT, EXTENT, GRID)
    assert (line[column].item(), line[row].item()) == pytest.approx(LOC, abs=0.02)


def test_samples_go_along_the_flow(flow):
    start, *later = sample_paths(flow, TIMES)
    assert start.shape == (SAMPLES, 2)
    for time, points in zip(TIMES[1:], later, strict=True):
        assert_close(points, start * (at(time).mean / torch.tensor(LOC)), rtol=1e-4, atol=1e-4)
    assert_close(start.mean(0), torch.tensor(LOC), rtol=0, atol=4 * 0.1 / SAMPLES**0.5)
    assert_close(start.std(0), torch.full((2,), 0.1), rtol=0, atol=0.01)


def test_the_first_time_need_not_be_the_start(flow):
    (end,) = sample_paths(flow, [1.0])
    assert_close(end, sample_paths(flow, TIMES)[-1], rtol=1e-4, atol=1e-4)


def test_samples_are_the_same_for_every_flow_and_leave_torchs_generator_alone(flow, linear_flow):
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    first = sample_paths(flow, [0.0])[0]
    other = sample_paths(linear_flow(0.5, loc=LOC, variance=0.01), [0.0])[0]
    assert torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_figures_use_the_flows_integrator(flow):
    with flow.block.using(Euler(1)):
        (end,) = sample_paths(flow, [1.0])
        (start,) = sample_paths(flow, [0.0])
    assert_close(end, start * torch.tensor([1 + 0.25 * 2, 1 - 0.5 * 2]))


# ---- Figure 3


def panels(drawn):
    """[rows][columns] of the figure."""
    axes = drawn[0].axes
    return [axes[i : i + 6] for i in range(0, len(axes), 6)]


def test_figure_3_has_two_rows_a_flow(flow, linear_flow, drawn, tmp_path, coarse):
    draw_flows({"none": flow, "error": linear_flow(0.1)}, "moons", tmp_path / "figure.png")
    rows = panels(drawn)
    assert [len(row) for row in rows] == [6] * 4
    assert [row[0].get_ylabel() for row in rows] == ["none: density", "samples", "error: density", "samples"]
    titles = ["t = 0", "t = 0.25", "t = 0.5", "t = 0.75", "t = 1", "target"]
    assert [[panel.get_title() for panel in row] for row in rows] == [titles, *[[""] * 6] * 3]
    for i, row in enumerate(rows):
        kinds = [(len(panel.get_images()), len(panel.lines)) for panel in row]
        assert kinds == [(1, 0) if i % 2 == 0 else (0, 1)] * 6
    image = Image.open(tmp_path / "figure.png")
    assert image.format == "PNG"
    assert image.size == (int(6 * 1.5 * 110), int(4 * 1.5 * 110))


def test_figure_3_has_something_in_every_panel(flow, drawn, tmp_path, coarse):
    draw_flows({"none": flow}, "moons", tmp_path / "figure.png")
    (above, below) = panels(drawn)
    for panel, density in zip(above, densities(flow, TIMES), strict=False):
        (image,) = panel.get_images()
        assert_close(torch.tensor(image.get_array().data), density)
        assert (image.get_extent(), image.origin) == ([-EXTENT, EXTENT, -EXTENT, EXTENT], "lower")
        assert image.norm.vmin == 0
    for panel, points in zip(below, sample_paths(flow, TIMES), strict=False):
        assert_close(torch.tensor(panel.lines[0].get_xydata()).float(), points)
        assert (panel.get_xlim(), panel.get_ylim()) == ((-EXTENT, EXTENT), (-EXTENT, EXTENT))


def test_the_target_is_the_right_way_up(flow, drawn, tmp_path, coarse):
    """The upper moon is on the left."""
    draw_flows({"none": flow}, "moons", tmp_path / "figure.png")
    (above, below) = panels(drawn)
    image: AxesImage = above[-1].get_images()[0]
    points = draw("moons", figure.TARGET_POINTS, "figure").numpy()
    # all points are within the panel, as numpy's density wants it
    expected, *_ = np.histogram2d(
        points[:, 1], points[:, 0], bins=figure.GRID, range=[[-EXTENT, EXTENT]] * 2, density=True
    )
    np.testing.assert_allclose(image.get_array().data, expected, rtol=1e-5)
    x, y = below[-1].lines[0].get_xydata().T
    assert np.array_equal(np.stack([x, y], 1), points[: figure.SAMPLES])
    assert x[y > 0.3].mean() < -0.2


def test_the_histogram_is_the_density_of_all_points():
    """Of a normal distribution in the plane, a quarter of which is to the left of the panel."""
    loc, scale = torch.tensor([0.674490 * 0.2 - EXTENT, 0.3]), torch.tensor([0.2, 0.2])
    points = loc + scale * torch.randn(400_000, 2, generator=torch.Generator().manual_seed(0))
    line = (torch.arange(GRID) + 0.5) * (2 * EXTENT / GRID) - EXTENT
    y, x = torch.meshgrid(line, line, indexing="ij")
    expected = MultivariateNormal(loc, torch.diag(scale**2)).log_prob(torch.stack([x, y], -1)).exp()
    density = figure.histogram(points)
    assert density.sum().item() * (2 * EXTENT / GRID) ** 2 == pytest.approx(0.75, abs=0.01)
    # the counts' standard deviation is at most a fifteenth of 1/(2π 0.2²) = 4.0
    assert (density - expected).abs().mean() < 0.03
    assert (density - expected).abs().max() < 0.5


@pytest.mark.parametrize("name", ["error", "flow-none-epochs=1-iterations=4-batch_size=64-selection_sets=16-seed0"])
def test_names_fit_into_their_row(flow, drawn, tmp_path, coarse, name):
    draw_flows({name: flow}, "circles", tmp_path / "figure.png")
    label = panels(drawn)[0][0].yaxis.label
    assert label.get_text().replace("\n", "").replace(" ", "") == f"{name}:density"
    panel = panels(drawn)[0][0].get_window_extent()
    box = label.get_window_extent()
    assert box.height <= 1.25 * panel.height
    assert box.x0 >= 0


# ---- the animation


def test_the_animation_has_its_frames(flow, tmp_path, coarse):
    animate(flow, tmp_path / "flow.gif")
    with Image.open(tmp_path / "flow.gif") as image:
        assert image.format == "GIF"
        assert image.size == (352, 192)  # 4.4 × 2.4 inches of 80 dots
        assert image.info["loop"] == 0  # for ever
        durations, frames = [], []
        for i in range(image.n_frames):
            image.seek(i)
            durations.append(image.info["duration"])
            frames.append(np.asarray(image.convert("RGB")))
    # a tenth of a second each, and six more at rest, which are one long frame
    assert durations == [100] * 4 + [700]
    assert all((frames[i] != frames[i + 1]).any() for i in range(4))
    assert all(frame.std() > 10 for frame in frames)


def test_the_animation_goes_from_the_base_to_the_data(flow, tmp_path, coarse, monkeypatch):
    shown = []
    monkeypatch.setattr(figure, "show_density", lambda panel, density: shown.append(density))
    animate(flow, tmp_path / "flow.gif")
    expected = densities(flow, torch.linspace(0, 1, 5).tolist())
    for density, frame in zip(shown[-11:], [*expected, *[expected[-1]] * 6], strict=True):
        assert_close(density, frame)


def test_a_quarter_of_the_frames_are_the_papers_times():
    times = torch.linspace(0, 1, figure.FRAMES)
    assert all((times - time).abs().min() < 1e-6 for time in TIMES)
