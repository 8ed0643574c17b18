"""Shared by the benchmarks: timing in turns, and populations of given sizes."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import jax
from rich.console import Console
from rich.progress import Progress

from meta_train.run.config import Config, default_config, validate
from meta_train.run.setup import Setup


def interleaved(
    turns: Mapping[str, Callable[[], object]], rounds: int, console: Console, title: str
) -> dict[str, list[float]]:
    """Seconds of each turn in each round; a varying load on the machine affects all alike.

    Args:
      turns: functions that return when their work is done. Each is called once beforehand, to compile.
      rounds: number of times that each is timed.
      console: where progress is shown, on standard error.
      title: what is being timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task(title, total=(rounds + 1) * len(turns))
        for turn in turns.values():
            turn()
            progress.advance(bar)
        for _ in range(rounds):
            for name, turn in turns.items():
                began = time.perf_counter()
                turn()
                seconds[name].append(time.perf_counter() - began)
                progress.advance(bar)
    return seconds


def spread(values: Sequence[float], digits: str = ",.0f") -> str:
    """The median, with the minimum and maximum in brackets."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:{digits}} ({low:{digits}} to {high:{digits}})"


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """The ratio of each round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def configured(task: str, **settings: object) -> Config:
    """The default settings of a task with PES, changed by these settings of task, estimator or run."""
    config = default_config(task)

    def replaced(part: object) -> object:
        own = {field.name for field in dataclasses.fields(part)}
        return dataclasses.replace(part, **{k: v for k, v in settings.items() if k in own})

    estimator = dataclasses.replace(replaced(config.estimator), name="pes")
    config = dataclasses.replace(replaced(config), task=replaced(config.task), estimator=estimator)
    validate(config)
    return config


def updating(setup: Setup) -> Callable[[], None]:
    """A function that computes one estimate with the whole population, and returns when it is done."""
    theta = setup.training.init_theta(jax.random.key(0))
    state, key = setup.population.init(jax.random.key(1), theta), jax.random.key(2)

    def turn() -> None:
        nonlocal state, key
        key, own = jax.random.split(key)
        gradient, state, _ = setup.population.estimate(theta, state, own)
        jax.block_until_ready(gradient)

    return turn
