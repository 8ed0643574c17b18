"""One folder with arrays and a JSON index, written and read by Orbax.

Imported only when a store is created, because importing Orbax takes a noticeable part of a second.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import multiprocessing
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp


def write(folder: Path, arrays: dict[str, np.ndarray], index: dict[str, Any]) -> None:
    """Writes `folder`; raises whatever Orbax raises.

    The folder is not on the disk yet: Orbax does not wait for that.
    """
    if jax.process_count() == 1:
        _write(folder, arrays, index)
        return
    writer = _writer()
    writer.send((folder, arrays, index))
    error = writer.recv()
    if error:
        raise error


@functools.cache
def _writer() -> Connection:
    """A separate writer process, because Orbax lets only the first process of a run write host arrays."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    spawn.Process(target=_write_for, args=(there,)).start()
    there.close()
    atexit.register(here.close)  # this ends the writer
    return here


def _write_for(parent: Connection) -> None:
    """Writes what the other end of the pipe sends, until it is closed or its process has died."""
    jax.config.update("jax_platforms", "cpu")
    # Ignore a signal to all processes of a job, so that the last checkpoint is still written.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            folder, arrays, index = parent.recv()
            try:
                _write(folder, arrays, index)
            except Exception as error:  # raised again at the other end
                parent.send(error)
            else:
                parent.send(None)


def _write(folder: Path, arrays: dict[str, np.ndarray], index: dict[str, Any]) -> None:
    items = {"index": ocp.args.JsonSave(index)}
    stored = {path: array for path, array in arrays.items() if array.size}  # Orbax rejects empty arrays
    if stored:
        items["arrays"] = ocp.args.StandardSave(stored)
    with _checkpointer() as checkpointer:
        checkpointer.save(folder.absolute(), ocp.args.Composite(**items))


def read_index(folder: Path) -> dict[str, Any]:
    """The index that was passed to `write`; raises whatever Orbax raises on a damaged folder."""
    with _checkpointer() as checkpointer:
        args = ocp.args.Composite(index=ocp.args.JsonRestore())
        return checkpointer.restore(folder.absolute(), args).index


def read_arrays(folder: Path, like: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays that were passed to `write`; `like` has their paths, dtypes and shapes."""
    stored = {path: array for path, array in like.items() if array.size}
    if not stored:
        return like
    with _checkpointer() as checkpointer:
        args = ocp.args.Composite(arrays=ocp.args.StandardRestore(stored))
        return like | checkpointer.restore(folder.absolute(), args).arrays


def _checkpointer() -> ocp.Checkpointer:
    """A checkpointer that waits for no other process, since each reads and writes its own folders."""
    index = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process-{index}"
    )
    handler = ocp.CompositeCheckpointHandler(
        index=ocp.JsonCheckpointHandler(multiprocessing_options=alone),
        arrays=ocp.StandardCheckpointHandler(multiprocessing_options=alone),
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
    )
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _keep_off_the_terminal() -> None:
    """Silences what Orbax and its threads print about errors that are raised anyway.

    When one of many concurrent writes fails (on a full disk), the others report to an event loop that
    Orbax has closed, and each prints a traceback.
    """
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    logging.getLogger("asyncio").addFilter(lambda record: "OCDBT" not in record.getMessage())
    report = sys.unraisablehook

    def report_unless_closed(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            report(unraisable)

    sys.unraisablehook = report_unless_closed


_keep_off_the_terminal()
