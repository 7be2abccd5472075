"""Run the notebooks of the documentation and write their outputs into them: python tools/notebooks.py [NAME ...]."""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
QUIET = {"PYTHONWARNINGS": "ignore:IProgress not found"}  # pooch imports tqdm, which looks for Jupyter's widgets
KERNEL = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}


def run(path: Path) -> nbformat.NotebookNode:
    """A notebook with the outputs of a run from its first cell to its last.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=120,
        resources={"metadata": {"path": FOLDER}},
        extra_arguments=["--log-level=ERROR"],  # a kernel warns that it listens on the loopback interface
    ).execute(env=os.environ | QUIET)
    notebook.metadata = nbformat.from_dict(KERNEL)  # without versions and times, which differ from run to run
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        for output in cell.get("outputs", ()):
            output.get("data", {}).pop("text/plain" if "image/png" in output.get("data", {}) else None, None)
    return notebook


if __name__ == "__main__":
    for path in sorted(FOLDER.glob("*.ipynb")):
        if len(sys.argv) == 1 or path.stem in sys.argv[1:]:
            print(path.stem)
            nbformat.write(run(path), path)
