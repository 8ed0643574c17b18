"""Many processes, on many hosts, as one run: how they meet, agree, and end together.

Every process runs the same program on its share of the population; process 0 alone logs and reports.
When one is gone, JAX aborts the others without a word from Python. So each process is the child of one that
does nothing but watch it, and can say what happened.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from learned_opt import LearnedOptError, UserError

# Seconds. A process that says nothing for so long is taken for dead.
HEARTBEAT_TIMEOUT = 20
# How long a process waits for the others at the start, and at the end.
START_TIMEOUT = 300
SHUTDOWN_TIMEOUT = 10
# Set for the process that is watched.
WATCHED = "LEARNED_OPT_WATCHED"
# Exit code of a watched process that lost another.
LOST = 75
LOST_MESSAGE = (
    "another process of this run has ended or cannot be reached any more, and this one cannot go on without "
    "it. What was saved last is whole: start all processes again, as many as you like, with --resume and the "
    "folder of the run"
)


class Processes(NamedTuple):
    """Where the processes of a run meet.

    Attributes:
      coordinator: ``host:port`` of process 0, or ``auto``: where the cluster's environment says.
      count: number of processes; None with ``auto``.
      index: number of this process, from 0; None with ``auto``.
    """

    coordinator: str
    count: int | None
    index: int | None


def check(processes: Processes) -> None:
    """Check what can be known before the processes meet.

    Raises:
      UserError: the flags do not belong together.
    """
    coordinator, count, index = processes
    if coordinator == "auto":
        if (count, index) != (None, None):
            raise UserError(
                "--coordinator auto takes --processes and --process-id from the cluster; leave them out"
            )
        return
    host, colon, port = coordinator.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 2**16):
        raise UserError(
            f"--coordinator is {coordinator}; give HOST:PORT of process 0, such as 10.0.0.1:1234, or auto"
        )
    if count is None or index is None:
        raise UserError("--coordinator needs --processes and --process-id, or auto in place of HOST:PORT")
    if count < 1 or not 0 <= index < count:
        raise UserError(f"--process-id is {index} of --processes {count}; it counts from 0")


def join(processes: Processes) -> None:
    """Meet the other processes; before JAX starts its backends.

    Raises:
      UserError: the cluster's environment says nothing, or the others did not come.
    """
    coordinator, count, index = processes
    given = (
        {}
        if coordinator == "auto"
        else {
            "coordinator_address": coordinator,
            "num_processes": count,
            "process_id": index,
        }
    )
    try:
        jax.distributed.initialize(
            **given,
            initialization_timeout=START_TIMEOUT,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
            shutdown_timeout_seconds=SHUTDOWN_TIMEOUT,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the processes of the run could not meet ({str(error).splitlines()[0]}); with --coordinator "
            "auto JAX has to know the cluster (Slurm, Open MPI, MPI, Kubernetes); else check HOST:PORT, and "
            "that all processes were started"
        ) from error


def leads() -> bool:
    """Whether this process is the one that logs and writes: process 0."""
    return jax.process_index() == 0


def greatest(value: int) -> int:
    """The greatest value that any process has; all processes have to ask."""
    if jax.process_count() == 1:
        return value
    return int(_gathered(np.array([value], np.int32)).max())


def least(value: int) -> int:
    """The least value that any process has; all processes have to ask."""
    return -greatest(-value)


def told(text: str) -> str:
    """The text that process 0 has; all processes have to ask."""
    if jax.process_count() == 1:
        return text
    content = text.encode()
    size = greatest(len(content))
    padded = np.frombuffer(content.ljust(size, b"\0")[:size], np.uint8)
    return bytes(_gathered(padded)[:size]).rstrip(b"\0").decode()


def concatenated(tree: Any) -> Any:
    """NumPy arrays of all processes, one after another along the first axis; all processes have to ask."""
    return tree if jax.process_count() == 1 else jax.tree.map(_gathered, tree)


def _gathered(x: np.ndarray) -> np.ndarray:
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(x, tiled=True))


class LostError(LearnedOptError):
    """Another process of the run is gone."""

    exit_code = LOST


@contextlib.contextmanager
def losses_said() -> Iterator[None]:
    """Tell a failure of what the processes do together from others.

    Raises:
      LostError: JAX failed, and there are many processes.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):
            raise
        raise LostError(str(error).splitlines()[0]) from error


def watched(command: Callable[[], int]) -> int:
    """Run the command of a watched process: it ends when its watcher does, and says when it lost another.

    Returns:
      The exit code.
    """
    del os.environ[WATCHED]
    threading.Thread(target=_end_with_watcher, daemon=True).start()
    code = command()
    if code == LOST:
        # An orderly end would wait for the process that is gone.
        sys.stderr.flush()
        os._exit(code)
    return code


def _end_with_watcher() -> None:
    os.read(sys.stdin.fileno(), 1)  # nothing is ever written to it
    os._exit(1)


def watch(program: str, argv: Sequence[str]) -> int:
    """Run the command again as a process that is watched, and say so if another of the run was lost.

    Args:
      program: name of the command, for the message.
      argv: its arguments.

    Returns:
      The exit code.
    """
    child = subprocess.Popen(
        # -P: what lies in the current folder is not to be taken for a package.
        [sys.executable, "-P", "-m", "meta_train", *argv],
        env=os.environ | {WATCHED: "1"},
        stdin=subprocess.PIPE,
        start_new_session=True,  # a terminal's Ctrl-C comes once, from here
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: child.send_signal(number))
    code = child.wait()
    # Aborted by JAX, or by itself: what is killed on purpose gets no message of its own.
    if code in (LOST, -signal.SIGABRT):
        print(f"{program}: {LOST_MESSAGE}", file=sys.stderr)
        return 1
    return code if code >= 0 else 128 - code
