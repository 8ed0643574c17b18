"""Which devices a program uses, and how many units each of them works on at once."""

from __future__ import annotations

import contextlib
import os
from typing import Literal

import jax

from inner_tasks.datasets.cache import cache_folder
from learned_opt import UserError

# The meta-gradient of a population is added up from at most so many partial sums, which devices share evenly.
MAX_PARTIAL_SUMS = 256


def partial_sums(units: int) -> int:
    """The number of partial sums, of equally many units each, that a population is added up from."""
    return max(n for n in range(1, min(units, MAX_PARTIAL_SUMS) + 1) if units % n == 0)


def even_devices(available: int, units: int) -> int:
    """The most devices, of those available, that a population of so many units divides evenly over."""
    return _even_numbers(available, units)[-1]


def first_devices(count: int) -> list[jax.Device]:
    """So many devices, as many of each process, in the order of the processes."""
    processes = range(jax.process_count())
    each = count // len(processes)
    return [device for index in processes for device in jax.local_devices(process_index=index)[:each]]


def units_at_once(requested: Literal["auto"] | int, everything: int) -> int:
    """How many units a device works on at once.

    Args:
      requested: so many; or ``auto``, which is one on a CPU, and everything on any other device.
      everything: all that a device could be given.
    """
    if requested != "auto":
        return requested
    return 1 if jax.default_backend() == "cpu" else everything


def start_devices(requested: Literal["auto"] | int = "auto", units: int | None = None) -> int:
    """Choose how many devices to use, those of all processes together, before JAX starts its backends.

    On a CPU this makes one XLA device per core: only then does a run use every core. Compiled programs
    are kept in the user's cache folder, unless JAX was given another one, so that a run that is resumed, or
    another one like it, starts at once.

    Args:
      requested: number of devices, or ``auto`` for as many as there are (on a CPU: cores) and divide the
        population evenly.
      units: antithetic pairs (or single particles) of the population, if there is one.

    Returns:
      The number of devices.

    Raises:
      UserError: there are not so many devices, or they do not divide the population.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Checked first: a CPU makes as many devices as it is asked for, and thousands take minutes.
    if requested != "auto" and not 1 <= requested <= MAX_PARTIAL_SUMS:
        raise UserError(
            f"--devices is {requested}; it must be 'auto' or lie between 1 and {MAX_PARTIAL_SUMS}"
        )
    if not getattr(jax.config, "jax_compilation_cache_dir", None):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "jax"))
    with contextlib.suppress(RuntimeError):  # JAX has started already, with what it has
        jax.config.update("jax_num_cpu_devices", cores if requested == "auto" else requested)
    available = jax.device_count()
    even = _even_numbers(available, units)
    if not even:
        raise UserError(
            f"a population of {units} (antithetic pairs, or single particles) cannot be spread evenly over "
            f"{jax.process_count()} processes; start a number of them that divides it"
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
    """Numbers of devices that divide a population evenly: as many of each process, ascending."""
    processes = jax.process_count()
    numbers = range(processes, available + 1, processes)
    return [n for n in numbers if units is None or partial_sums(units) % n == 0]
