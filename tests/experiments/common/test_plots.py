import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

from dise_experiments.common.plots import quality_against_nfe, styled

PNG = b"\x89PNG\r\n\x1a\n"
ROWS = [
    {"policy": "Euler", "nfe": 1.0, "loss": 3.0},
    {"policy": "oracle", "nfe": 2.5, "loss": 1.0},
    {"policy": "DISE (paper)", "nfe": 4.0, "selector_macs": 2.0, "loss": 1.5},
    {"policy": "random, mix of paper", "nfe": 4.0, "loss": 2.0},
]


@pytest.fixture
def drawn(monkeypatch):
    """Figures that were saved."""
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: figures.append(self) or save(self, *a, **k))
    return figures


@pytest.fixture
def axes(drawn, tmp_path):
    quality_against_nfe(ROWS, "title", tmp_path / "plot.png", quality=lambda row: -10 * row["loss"], label="quality")
    return drawn[0].axes[0]


def test_the_file_is_a_png(axes, tmp_path):
    assert (tmp_path / "plot.png").read_bytes().startswith(PNG)


def test_quality_over_nfe_with_the_selectors_cost(axes):
    points = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines]
    assert points == [(1, -30), (2.5, -10), (6, -15), (4, -20)]
    assert [text.get_text() for text in axes.texts] == [row["policy"] for row in ROWS]
    assert (axes.get_title(), axes.get_ylabel()) == ("title", "quality")


def test_the_axis_of_nfe_says_what_gets_an_integrator(axes, drawn, tmp_path):
    quality_against_nfe(ROWS, "", tmp_path / "plot.png", quality=lambda row: row["loss"], label="loss", unit="set")
    labels = [figure.axes[0].get_xlabel() for figure in drawn]
    assert labels == ["NFE per sample, selector included", "NFE per set, selector included"]


def test_kinds_of_policies_look_different(axes):
    assert [line.get_marker() for line in axes.lines] == ["o", "*", "D", "x"]
    assert len({line.get_color() for line in axes.lines}) == 4


def test_the_style_ends_with_its_context():
    before = mpl.rcParams["axes.spines.top"]
    with styled():
        assert not mpl.rcParams["axes.spines.top"]
    assert mpl.rcParams["axes.spines.top"] == before


@pytest.mark.parametrize(("log", "scale"), [(False, "linear"), (True, "log")])
def test_the_scale_of_the_quality(drawn, tmp_path, log, scale):
    file = tmp_path / "plot.png"
    quality_against_nfe(ROWS, "title", file, quality=lambda row: row["loss"], label="loss", log=log)
    assert drawn[0].axes[0].get_yscale() == scale
    assert drawn[0].axes[0].get_xscale() == "log"
