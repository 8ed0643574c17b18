"""What a run will need: memory from the compiler's plan, and time from a few updates."""

from __future__ import annotations

import statistics
from typing import NamedTuple

import jax
from rich.console import Console
from rich.filesize import decimal

from meta_train.devices.choice import partial_sums
from meta_train.outer.loop import initial_state, outer_loop
from meta_train.outer.population import Memory, Population
from meta_train.run.config import Config
from meta_train.run.setup import Setup, check_device_memory

# Rounds of the two small populations that are timed; in a round, all devices work on one chunk each.
FEW, MORE = 1, 3
WARM_UP, TIMED = 2, 5


class Estimate(NamedTuple):
    """What a run will need."""

    memory: Memory  # per device
    seconds: float  # per update


def memory(setup: Setup) -> Memory:
    """The memory that each device will need during meta-training.

    Raises:
      UserError: a device does not have that much.
    """
    needed = setup.population.memory(jax.eval_shape(setup.training.init_theta, jax.random.key(0)))
    check_device_memory(sum(needed), setup.chunk)
    return needed


def estimate(config: Config, setup: Setup) -> Estimate:
    """Memory and time of a run, measured on a few updates of small populations, whose results are discarded.

    A device unrolls its particles in rounds, so the time of an update is linear in the number of rounds.

    Args:
      config: the settings.
      setup: the objects built from them.

    Raises:
      UserError: a device has too little memory.
    """
    needed = memory(setup)
    per_round = setup.devices * setup.units_at_once
    rounds = -(-config.estimator.units // per_round)
    sizes = [n * per_round for n in (FEW, MORE)]
    if rounds <= MORE or any(partial_sums(units) % setup.devices for units in sizes):
        return Estimate(needed, _seconds(config, setup, setup.population))
    few, more = (_seconds(config, setup, setup.populate(units)) for units in sizes)
    return Estimate(needed, few + (more - few) / (MORE - FEW) * (rounds - FEW))


def print_estimate(estimate: Estimate, config: Config, devices: int, console: Console) -> None:
    """Print the memory, the time of an update and the time of all updates."""
    held, working = estimate.memory
    seconds = estimate.seconds * config.updates
    hours, minutes = divmod(round(seconds / 60), 60)
    total = f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes > 1 else f"{seconds:.0f} s"
    console.print(
        f"memory: {decimal(held + working)} on each of {devices} devices ({decimal(held)} held, "
        f"{decimal(working)} during an update)\n"
        f"time: {estimate.seconds:.3g} s per update, {total} for {config.updates} updates, without "
        "compilation and the comparison at the end",
        highlight=False,
    )


def _seconds(config: Config, setup: Setup, population: Population) -> float:
    """Time of an update, the median of a few."""
    key = jax.random.key(config.seed)
    tx = setup.outer_optimizer
    state = initial_state(population, tx, setup.training.init_theta(key), key)
    taken = [update.seconds for update in outer_loop(population, tx, state, 0, WARM_UP + TIMED)]
    return statistics.median(taken[WARM_UP:])
