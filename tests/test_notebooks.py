"""The notebooks run from their first cell to their last, and are committed as they ran."""

import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    sys.modules.pop("notebooks", None)
    import notebooks

    cells = notebooks.run(path).cells  # a cell that fails raises; each notebook asserts what it says
    assert any("assert" in cell.source for cell in cells if cell.cell_type == "code")
    images = [output for cell in cells for output in cell.get("outputs", ()) if "image/png" in output.get("data", {})]
    assert images
    assert not any(output.get("name") == "stderr" for cell in cells for output in cell.get("outputs", ()))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_as_it_ran(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert set(notebook.metadata) == {"kernelspec"}
    assert path.stat().st_size < 200_000


def test_there_are_five():
    assert len(NOTEBOOKS) == 5
