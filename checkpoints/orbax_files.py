"""One folder with arrays and a JSON index, written and read by Orbax.

Imported only when a store is made: importing Orbax takes a noticeable part of a second.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

# Orbax writes a checkpoint under a name with this ending and renames it when it is complete.
UNFINISHED = ".orbax-checkpoint-tmp"


def write(folder: Path, arrays: dict[str, np.ndarray], index: dict[str, Any]) -> None:
    """Writes `folder`, which appears whole or not at all; raises whatever Orbax raises."""
    items = {"index": ocp.args.JsonSave(index)}
    stored = {path: array for path, array in arrays.items() if array.size}  # Orbax refuses empty
    if stored:
        items["arrays"] = ocp.args.StandardSave(stored)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(folder.absolute(), ocp.args.Composite(**items))


def read_index(folder: Path) -> dict[str, Any]:
    """The index that was given to `write`; raises whatever Orbax raises on a damaged folder."""
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        args = ocp.args.Composite(index=ocp.args.JsonRestore())
        return checkpointer.restore(folder.absolute(), args).index


def read_arrays(folder: Path, like: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays that were given to `write`; `like` has their paths, dtypes and shapes."""
    stored = {path: array for path, array in like.items() if array.size}
    if not stored:
        return like
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        args = ocp.args.Composite(arrays=ocp.args.StandardRestore(stored))
        return like | checkpointer.restore(folder.absolute(), args).arrays


def _keep_off_the_terminal() -> None:
    """Silences Orbax's own reports, and those of its threads, of what is raised anyway.

    When one of many concurrent writes fails (a full disk), Orbax leaves the others to report to an
    event loop that it has closed, and each prints a traceback.
    """
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    logging.getLogger("asyncio").addFilter(lambda record: "OCDBT" not in record.getMessage())
    report = sys.unraisablehook

    def report_unless_closed(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            report(unraisable)

    sys.unraisablehook = report_unless_closed


_keep_off_the_terminal()
