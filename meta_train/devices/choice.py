"""The number of devices that a program uses, and of units that each works on at once."""

from __future__ import annotations

import contextlib
import os
from typing import Literal

import jax

from learned_opt import UserError
from meta_train.devices.program_cache import keep_programs

# The meta-gradient of a population is the sum of at most this many partial sums, which devices share evenly.
MAX_PARTIAL_SUMS = 256


def partial_sums(units: int) -> int:
    """The number of equal partial sums that a population is divided into."""
    return max(n for n in range(1, min(units, MAX_PARTIAL_SUMS) + 1) if units % n == 0)


def even_devices(available: int, units: int) -> int:
    """The largest number of available devices that divides a population of this many units evenly."""
    return _even_numbers(available, units)[-1]


def first_devices(count: int) -> list[jax.Device]:
    """The given number of devices, equally many from each process, in the order of the processes."""
    processes = range(jax.process_count())
    each = count // len(processes)
    return [device for index in processes for device in jax.local_devices(process_index=index)[:each]]


def units_at_once(requested: Literal["auto"] | int, everything: int) -> int:
    """How many units a device works on at once.

    Args:
      requested: the number; or ``auto``, which is one on a CPU, and everything on any other device.
      everything: the most units that a device could be given.
    """
    if requested != "auto":
        return requested
    return 1 if jax.default_backend() == "cpu" else everything


def memory_of_host() -> int | None:
    """Memory of this machine in bytes, None if unknown."""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def memory_of_device() -> int | None:
    """Memory of a device in bytes, None if unknown; the devices of a CPU share its memory."""
    device = jax.local_devices()[0]
    if stats := device.memory_stats():
        return stats.get("bytes_limit")
    host = memory_of_host() if device.platform == "cpu" else None
    return host and host // jax.local_device_count()


def start_devices(requested: Literal["auto"] | int = "auto", units: int | None = None) -> int:
    """Choose the number of devices of all processes together, before JAX starts its backends.

    On a CPU this makes one XLA device per core; otherwise a run would not use every core. Compiled programs
    are kept from now on (``program_cache.py``).

    Args:
      requested: number of devices, or ``auto`` for the largest available number (on a CPU: of cores) that
        divides the population evenly.
      units: number of antithetic pairs (or single particles) of the population, if there is one.

    Returns:
      The number of devices.

    Raises:
      UserError: there are fewer devices than requested, or they do not divide the population.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Checked first: JAX makes as many CPU devices as requested, and thousands take minutes.
    if requested != "auto" and not 1 <= requested <= MAX_PARTIAL_SUMS:
        raise UserError(
            f"--devices is {requested}; it must be 'auto' or lie between 1 and {MAX_PARTIAL_SUMS}"
        )
    keep_programs()
    with contextlib.suppress(RuntimeError):  # JAX has already started; keep its devices
        jax.config.update("jax_num_cpu_devices", cores if requested == "auto" else requested)
    available = jax.device_count()
    even = _even_numbers(available, units)
    if not even:
        raise UserError(
            f"a population of {units} (antithetic pairs, or single particles) cannot be spread evenly over "
            f"{jax.process_count()} processes; start a number of processes that divides it"
        )
    if requested == "auto":
        return even[-1]
    if requested > available:
        raise UserError(
            f"--devices is {requested}, but JAX has {available} ({jax.devices()[0].platform}); "
            f"choose at most {available}, or 'auto'"
        )
    if requested not in even:
        raise UserError(
            f"a population of {units} (antithetic pairs, or single particles) cannot be spread evenly over "
            f"{requested} devices; --devices may be {', '.join(map(str, even))}"
        )
    return requested


def _even_numbers(available: int, units: int | None) -> list[int]:
    """Numbers of devices, equally many per process, that divide a population evenly, ascending."""
    processes = jax.process_count()
    numbers = range(processes, available + 1, processes)
    return [n for n in numbers if units is None or partial_sums(units) % n == 0]
