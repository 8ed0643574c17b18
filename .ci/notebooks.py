"""Execute the notebooks of docs/ in an empty folder.

python .ci/notebooks.py             only check: fails if a cell fails or if a notebook has no picture
python .ci/notebooks.py --write     also write the new outputs to the files
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
SECONDS_PER_CELL = 600


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=SECONDS_PER_CELL,
            kernel_name="python3",
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        )
        client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # timestamps, which change with every execution
    return notebook


def has_picture(notebook: nbformat.NotebookNode) -> bool:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return any("image/png" in output.get("data", ()) for output in outputs)


if __name__ == "__main__":
    # So that the cells call the commands of this environment.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for path in sorted(FOLDER.glob("*.ipynb")):
        start = time.monotonic()
        notebook = execute(path)
        if not has_picture(notebook):
            sys.exit(f"{path.name} shows no picture")
        if "--write" in sys.argv[1:]:
            nbformat.write(notebook, path)
        print(f"{path.name}: {time.monotonic() - start:.0f} seconds")
