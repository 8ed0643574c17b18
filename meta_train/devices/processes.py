"""Many processes, on many hosts, as one run: how they connect and communicate.

Every process runs the same program on its share of the population; only process 0 logs and reports.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from learned_opt import UserError

# In seconds. A process that is silent for this long is considered lost.
HEARTBEAT_TIMEOUT = 20
# How long a process waits for the others at the start and at the end, in seconds.
START_TIMEOUT = 300
SHUTDOWN_TIMEOUT = 10


@dataclass(frozen=True)
class Processes:
    """How the processes of a run connect.

    Attributes:
      coordinator: ``host:port`` of process 0, or ``auto`` to take it from the cluster's environment.
      count: number of processes; None with ``auto``.
      index: index of this process, from 0; None with ``auto``.
    """

    coordinator: str
    count: int | None
    index: int | None


def check(processes: Processes) -> None:
    """Check the flags before the processes connect.

    Raises:
      UserError: the flags contradict each other.
    """
    coordinator, count, index = processes.coordinator, processes.count, processes.index
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
        raise UserError(
            f"--process-id is {index} and --processes is {count}; process ids start at 0 and must be smaller "
            "than --processes"
        )


def join(processes: Processes) -> None:
    """Connect to the other processes; call it before JAX starts its backends.

    Raises:
      UserError: JAX does not detect a cluster, or the other processes did not connect.
    """
    coordinator, count, index = processes.coordinator, processes.count, processes.index
    given: dict[str, Any] = (
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
            f"the processes of the run could not connect ({str(error).splitlines()[0]}); with --coordinator "
            "auto, JAX must detect the cluster (Slurm, Open MPI, MPI, Kubernetes); otherwise check HOST:PORT "
            "and that all processes were started"
        ) from error


def is_primary() -> bool:
    """Whether this process is the one that logs and writes: process 0."""
    return jax.process_index() == 0


# All processes must call the following functions in the same order.


def barrier(name: str) -> None:
    """Wait until all processes have reached this point."""
    multihost_utils.sync_global_devices(name)


def global_max(value: int) -> int:
    """The maximum over all processes."""
    return int(np.max(all_gather(np.array([value], np.int32))))


def global_min(value: int) -> int:
    """The minimum over all processes."""
    return -global_max(-value)


def broadcast(text: str) -> str:
    """The text of process 0, in every process."""
    content = text.encode()
    size = global_max(len(content))
    padded = np.frombuffer(content.ljust(size, b"\0"), np.uint8)
    return bytes(all_gather(padded)[:size]).rstrip(b"\0").decode()


def by_primary(function: Callable[[], str]) -> str:
    """The text that a function returns in process 0, the only one that calls it, in every process.

    Raises:
      UserError: process 0 raised it; all others raise the same.
    """
    text, failed = "", False
    if is_primary():
        try:
            text = function()
        except UserError as error:
            text, failed = str(error), True
    text = broadcast(text)
    if global_max(failed):
        raise UserError(text)
    return text


def all_gather(tree: Any) -> Any:
    """The NumPy arrays of all processes, concatenated along the first axis."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(lambda x: np.asarray(multihost_utils.process_allgather(x, tiled=True)), tree)
