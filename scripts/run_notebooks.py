"""Runs the notebooks from the top, each in a kernel of its own, and writes their outputs anew.

    python scripts/run_notebooks.py [--check] [NOTEBOOK.ipynb ...]      all of notebooks/ by default

With `--check` nothing is written: the run has to succeed, which is what CI asks. What differs from
run to run for no reason (times, versions of the kernel, what pip prints) is not kept.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
TIMEOUT = 900  # seconds of a cell


def run(path: Path) -> Any:
    """The notebook with the outputs of a whole run.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell failed; shows it.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=TIMEOUT,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        )
        client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            installs = cell.source.startswith("%pip")
            cell.outputs = [] if installs else [o for o in map(_cleaned, cell.outputs) if o]
            cell.metadata = {}
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def _cleaned(output: Any) -> Any:
    """An output without what TensorFlow logs; None where nothing is left."""
    if output.output_type != "stream":
        return output
    lines = output.text.splitlines(keepends=True)
    output.text = "".join(line for line in lines if not line.startswith("WARNING:tensorflow:"))
    return output if output.name == "stdout" and output.text else None


def main() -> None:
    """Runs those that the command line names."""
    parser = argparse.ArgumentParser(description="Runs notebooks and writes their outputs anew.")
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("notebooks", nargs="*", type=Path, default=sorted(FOLDER.glob("*.ipynb")))
    arguments = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for path in arguments.notebooks:
        begin = time.monotonic()
        notebook = run(path)
        if not arguments.check:
            nbformat.write(notebook, path)
        print(f"{path.name}: {time.monotonic() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
