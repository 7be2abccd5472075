import pytest
from matplotlib.figure import Figure

from dise_experiments.run.plots import training_curves

PNG = b"\x89PNG\r\n\x1a\n"


def log(count, penalty=0.0):
    rows = range(count)
    return [
        {"step": 10.0 * i + 9, "train/loss": 2.0 / (i + 1), "train/penalty": penalty, "train/nfe": 20.0} for i in rows
    ]


@pytest.mark.parametrize("count", [0, 1, 50])
def test_plot_of_a_training_log(tmp_path, count):
    # Lightning logs every tenth step: a run of fewer has no rows
    training_curves(log(count), "title", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    ("penalty", "labels"), [(0.0, ["task loss", "NFE per sample"]), (0.1, ["task loss", "λ·R", "NFE per sample"])]
)
def test_what_is_there_is_drawn(tmp_path, monkeypatch, penalty, labels):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *arguments, **options: figures.append(self))
    training_curves(log(3, penalty), "title", tmp_path / "plot.png")
    axes = figures[0].axes
    assert [one.get_ylabel() for one in axes] == labels
    assert list(axes[0].lines[0].get_xdata()) == [9, 19, 29]
    assert list(axes[0].lines[0].get_ydata()) == [2, 1, 2 / 3]
