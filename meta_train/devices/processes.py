"""Many processes, on many hosts, as one run: how they connect and communicate.

Every process runs the same program on its share of the population; only process 0 logs and reports.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax._src import clusters, distributed  # have no public form; Orbax uses the second, too
from jax.experimental import multihost_utils

from learned_opt import LearnedOptError, UserError
from meta_train.devices.choice import first_devices

# In seconds. A process that is silent for this long is considered lost.
HEARTBEAT_TIMEOUT = 20
# How long a process waits for the others at the start and at the end, in seconds.
START_TIMEOUT = 300
SHUTDOWN_TIMEOUT = 10
# The name of the thread in which JAX connects to the other processes.
_CONNECTING = "connecting"


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


def join(processes: Processes, settings: Mapping[str, Any]) -> None:
    """Connect to the other processes; call it before JAX starts its backends.

    Args:
      processes: how to connect.
      settings: by flag, what must be the same in every process, as JSON values.

    Raises:
      UserError: the port is in use, JAX does not detect a cluster, or a process has other settings.
      LearnedOptError: a process was not started in time, or cannot be reached.
    """
    if processes.coordinator == "auto":
        address, count, index = _detected()
    else:
        address, count, index = processes.coordinator, processes.count, processes.index
    if index == 0:
        _check_port(int(address.rpartition(":")[2]))
    outcome: list[Exception | None] = []

    def initialize() -> None:
        try:
            jax.distributed.initialize(
                address,
                count,
                index,
                initialization_timeout=2 * START_TIMEOUT,  # JAX would abort this process
                heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
                shutdown_timeout_seconds=SHUTDOWN_TIMEOUT,
            )
        except (ValueError, RuntimeError) as error:
            outcome.append(error)
        else:
            outcome.append(None)

    # In a thread, because nothing interrupts it: neither a signal nor a limit of our own on its time.
    connecting = threading.Thread(target=initialize, name=_CONNECTING, daemon=True)
    connecting.start()
    for _ in range(START_TIMEOUT):
        connecting.join(1)  # not longer: Python acts on a signal that comes just before a wait after it
    if not outcome:
        raise LearnedOptError(
            f"not all {count} processes of the run were started within {START_TIMEOUT} s, or process 0 "
            f"cannot be reached at {address}; start them at about the same time, and look at the output of "
            "each"
        )
    if error := outcome[0]:
        raise UserError(
            f"the processes of the run could not connect ({str(error).splitlines()[0]}); check HOST:PORT, "
            "which is the address of process 0, and that each process has its own --process-id"
        ) from error
    # Before JAX starts its backends, this is the only way to communicate.
    state: Any = distributed.global_state
    state.client.key_value_set(f"settings/{state.process_id}", json.dumps(settings))
    _wait("settings")
    entries = state.client.key_value_dir_get("settings/")
    texts = {int(key.rpartition("/")[2]): text for key, text in entries}
    check_same([json.loads(texts[index]) for index in sorted(texts)])


def is_connecting() -> bool:
    """Whether JAX still waits for other processes in a thread, which would delay the end of this one."""
    return any(thread.name == _CONNECTING for thread in threading.enumerate())


def _detected() -> tuple[str, int | None, int | None]:
    """The address of process 0, the number of processes, and the index of this one.

    As `jax.distributed.initialize` detects them, so that the port can be checked before JAX uses it.

    Raises:
      UserError: JAX detects no cluster.
    """
    try:
        address, count, index, _ = clusters.ClusterEnv.auto_detect_unset_distributed_params(
            os.environ.get("JAX_COORDINATOR_ADDRESS"), None, None, None, None, START_TIMEOUT
        )
        reason = ""
    except (ValueError, RuntimeError, LookupError) as error:
        address, reason = None, f" ({str(error).splitlines()[0]})"
    if address is None:
        raise UserError(
            f"JAX does not detect a cluster (Slurm, Open MPI, MPI, Kubernetes){reason}; give HOST:PORT of "
            "process 0 as --coordinator, with --processes and --process-id"
        )
    return address, count, index


def _check_port(port: int) -> None:
    """Check that process 0 can listen on a port; JAX would crash.

    Raises:
      UserError: it cannot.
    """
    dual = socket.has_dualstack_ipv6()
    try:
        family = socket.AF_INET6 if dual else socket.AF_INET
        socket.create_server(("", port), family=family, dualstack_ipv6=dual).close()
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise UserError(
            f"process 0 cannot listen on the port of --coordinator, {port} ({reason}); give all processes "
            "another HOST:PORT"
        ) from None


def check_same(settings: Sequence[Mapping[str, Any]]) -> None:
    """Check that all processes have the same settings.

    Args:
      settings: by flag, for each process.

    Raises:
      UserError: names the first process and setting that differ from those of process 0.
    """
    first = settings[0]
    for index, each in enumerate(settings):
        for flag in first:
            if each.get(flag) != first[flag]:
                raise UserError(
                    f"process {index} was started with --{flag} {each.get(flag)}, but process 0 with "
                    f"{first[flag]}; start all processes with the same settings"
                )


def _wait(name: str) -> None:
    """Wait until all processes have reached this point, before they communicate through their devices.

    Raises:
      LearnedOptError: a process did not reach it in time.
    """
    state: Any = distributed.global_state
    try:
        state.client.wait_at_barrier(name, timeout_in_ms=START_TIMEOUT * 1000)
    except jax.errors.JaxRuntimeError as error:
        raise LearnedOptError(
            f"not all processes of the run were ready within {START_TIMEOUT} s; start them at about the same "
            f"time, and look at the output of each ({str(error).splitlines()[0]})"
        ) from error


def connect(devices: int) -> None:
    """Wait for all processes, and connect their devices.

    On a CPU, devices connect when they first communicate, and fail if that takes longer than 30 s: too short
    for the differences between processes in loading and compiling. Once connected, they wait for each other.

    Args:
      devices: number of devices that the run uses.

    Raises:
      LearnedOptError: a process was not ready in time.
    """
    if jax.process_count() == 1:
        return
    _wait("connect")
    used = first_devices(devices)
    own = np.zeros(sum(device.process_index == jax.process_index() for device in used))
    total = jax.pmap(lambda x: jax.lax.psum(x, "devices"), "devices", devices=used)
    jax.block_until_ready(total(own))
    barrier("connected")
    global_max(0)


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
