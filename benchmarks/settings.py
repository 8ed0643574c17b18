"""Complete meta-training runs over a grid of settings and seeds, many at once in one compiled program.

    python benchmarks/settings.py --estimators pes nres --sigmas 0.05 0.1 0.2 --seeds 2
    python benchmarks/settings.py --updates 20 --sigmas 0.1 --learning-rates 0.02 --seeds 1

The default settings of a task are chosen with this. Meta-training uses seeds from 1,000 on, and each
optimizer is evaluated on training runs with seeds that no report uses (1,000,000 and up). The runs of a grid
differ in sigma, outer learning rate, the share of the validation loss in the objective, and seed. They
are vmapped: on a GPU hundreds of runs take minutes; on a CPU they take as long as one after another.
"""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import learned_opt
from inner_tasks import Training, find_task
from inner_tasks.objectives import Objective, TrainingStep
from inner_tasks.task import Data, Task
from meta_train.devices.choice import start_devices
from meta_train.estimators import ESTIMATORS
from meta_train.experiments.drawing import colour
from meta_train.outer.optimizers import OuterConfig, outer_optimizer, outer_step
from meta_train.report.evaluation import measure, start_of_run, train
from meta_train.report.figures import picture

FIRST_SEED, FIRST_EVALUATION_SEED = 1_000, 1_000_000
SEGMENT = 50  # updates per dispatch
MARKERS = "os^vDP*X"


@dataclass(frozen=True)
class Arguments:
    """A grid of complete meta-training runs."""

    task: str = "digits-mlp"
    """Inner task."""
    estimators: tuple[str, ...] = ("pes", "nres")
    """Estimators of the meta-gradient, one grid for each."""
    optimizers: tuple[str, ...] = ("mlp",)
    """Architectures, one grid for each."""
    particles: int = 16
    """Particles of a run."""
    truncation: int = 20
    """K."""
    updates: int = 1400
    """Outer updates of a run."""
    sigmas: tuple[float, ...] = (0.05, 0.1, 0.2)
    """Standard deviations of the perturbations."""
    learning_rates: tuple[float, ...] = (1e-2, 2e-2, 4e-2)
    """Learning rates of the outer Adam at the start."""
    validation: tuple[float, ...] = (0.0, 0.5, 1.0)
    """Shares of the validation loss in the objective; the rest is the training loss."""
    seeds: int = 4
    """Number of runs of each setting."""
    evaluation_seeds: int = 8
    """Number of training runs that an optimizer is evaluated on."""
    out: Path | None = None
    """File for JSON lines, one for each run; a picture of all of them is drawn next to it."""


class Settings(NamedTuple):
    """The settings that differ between the runs of a grid, each ``[runs]``."""

    sigma: Any
    learning_rate: Any
    validation: Any
    seed: Any


def main() -> None:
    """Run the grids, print the means over seeds, and write every run."""
    arguments = tyro.cli(Arguments)
    console, progress = Console(width=150), Console(stderr=True)
    start_devices(1)
    registered = find_task(arguments.task)
    task = registered.build(registered.settings)
    data = task.load(None)
    for optimizer, estimator in itertools.product(arguments.optimizers, arguments.estimators):
        began = time.monotonic()
        grid = _grid(arguments)
        found = learn(task, data, optimizer, estimator, grid, arguments, progress)
        title = f"{optimizer}, {estimator}: {len(grid.seed)} runs in {time.monotonic() - began:.0f} s"
        console.print(_table(title, grid, found))
        if arguments.out:
            with arguments.out.open("a") as file:
                for i in range(len(grid.seed)):
                    row = {name: float(value[i]) for name, value in (grid._asdict() | found).items()}
                    file.write(json.dumps({"optimizer": optimizer, "estimator": estimator} | row) + "\n")
            draw(arguments.out)


def _grid(arguments: Arguments) -> Settings:
    """All combinations, with the seeds of each next to each other."""
    rows = itertools.product(
        arguments.sigmas,
        arguments.learning_rates,
        arguments.validation,
        range(FIRST_SEED, FIRST_SEED + arguments.seeds),
    )
    *values, seeds = zip(*rows, strict=True)
    return Settings(*(np.array(x, np.float32) for x in values), np.array(seeds, np.int32))


def learn(
    task: Task,
    data: Data,
    optimizer: str,
    estimator: str,
    grid: Settings,
    arguments: Arguments,
    console: Console,
) -> dict[str, np.ndarray]:
    """Meta-train with all settings at once, and evaluate the learned optimizers.

    Returns:
      Training loss (mean over the steps, and over the last tenth of them) and validation loss at the end,
      means over the evaluation seeds, each ``[runs]``.
    """
    method, rule = ESTIMATORS[estimator], learned_opt.get_architecture(optimizer)
    units = arguments.particles // method.particles
    on_cpu = jax.default_backend() == "cpu"
    many = (lambda f: partial(jax.lax.map, f)) if on_cpu else jax.vmap

    def problem(data: Data, settings: Settings) -> Training:
        def measure(task: Task, data: Data, step: TrainingStep, key: jax.Array) -> jax.Array:
            validation = task.loss(step.after, task.sample_validation(data, key))  # type: ignore[misc]
            return (1 - settings.validation) * step.loss + settings.validation * validation

        return Training(data, task, rule, task.horizon, Objective(measure, ("sample_validation",)))

    def of(data: Data, settings: Settings) -> Any:
        options = {"sigma": settings.sigma, "truncation": arguments.truncation, "chunk": 1 if on_cpu else 2}
        return method.make(problem(data, settings), **options)

    def outer(settings: Settings) -> Any:
        config = OuterConfig(learning_rate=settings.learning_rate)
        return outer_optimizer(config, arguments.updates)

    def init(data: Data, settings: Settings) -> Any:
        key = jax.random.key(settings.seed)
        theta = problem(data, settings).init_theta(jax.random.fold_in(key, 0))
        keys = jax.random.split(jax.random.fold_in(key, 1), units)
        phases = jnp.arange(units) / units
        particles = jax.vmap(of(data, settings).init, (0, None, 0))(keys, theta, phases)
        return theta, outer(settings).init(theta), particles

    def update(data: Data, settings: Settings, state: Any, number: jax.Array) -> Any:
        theta, moments, particles = state
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(settings.seed), 2), number)
        estimate = jax.vmap(of(data, settings).estimate, (None, 0, 0))
        gradients, particles, _ = estimate(theta, particles, jax.random.split(key, units))
        gradient = jax.tree.map(lambda x: x.mean(0), gradients)
        theta, moments, _ = outer_step(outer(settings), theta, moments, gradient)
        return theta, moments, particles

    @jax.jit
    def start(data: Data, grid: Settings) -> Any:
        return jax.vmap(partial(init, data))(grid)

    @partial(jax.jit, donate_argnums=2)
    def segment(data: Data, grid: Settings, state: Any, numbers: jax.Array) -> Any:
        def step(state: Any, number: jax.Array) -> tuple[Any, None]:
            return many(lambda each: update(data, *each, number))((grid, state)), None

        return jax.lax.scan(step, state, numbers)[0]

    def judge(data: Data, theta: Any) -> dict[str, jax.Array]:
        training = Training(data, task, rule, task.horizon)

        def one(seed: jax.Array) -> dict[str, jax.Array]:
            losses, params = train(training, (theta, start_of_run(training, seed)))
            tail = losses[-max(1, task.horizon // 10) :]
            return {"mean_loss": losses.mean(), "final_loss": tail.mean()} | measure(training, params)

        seeds = FIRST_EVALUATION_SEED + jnp.arange(arguments.evaluation_seeds)
        return jax.tree.map(jnp.mean, many(one)(seeds))

    state, began = start(data, grid), time.monotonic()
    for first in range(0, arguments.updates, SEGMENT):
        numbers = jnp.arange(first, min(first + SEGMENT, arguments.updates))
        state = jax.block_until_ready(segment(data, grid, state, numbers))
        done, elapsed = int(numbers[-1]) + 1, time.monotonic() - began
        rate = done * arguments.particles * arguments.truncation * len(grid.seed) / elapsed
        left = elapsed / done * (arguments.updates - done)
        console.print(
            f"update {done}/{arguments.updates}, {rate:,.0f} particle-steps/s, {left:.0f} s left",
            highlight=False,
        )
    found = jax.jit(lambda data, thetas: many(partial(judge, data))(thetas))(data, state[0])
    return {name: np.asarray(value) for name, value in found.items()}


def _table(title: str, grid: Settings, found: dict[str, np.ndarray]) -> Table:
    """Means over the seeds of each setting, and their standard errors."""
    table = Table(title=title, box=SIMPLE_HEAD)
    names = [*(f.replace("_", " ") for f in Settings._fields[:-1]), *(n.replace("_", " ") for n in found)]
    for name in names:
        table.add_column(name, justify="right")
    keys = np.stack(grid[:-1], axis=1)
    rows = []
    for key in np.unique(keys, axis=0):
        chosen = {name: value[(keys == key).all(axis=1)] for name, value in found.items()}
        rows.append((chosen["mean_loss"].mean(), key, chosen))
    for _, key, chosen in sorted(rows, key=lambda row: row[0]):
        table.add_row(*(f"{x:.3g}" for x in key), *map(_mean, chosen.values()))
    return table


def _mean(values: np.ndarray) -> str:
    """Mean and standard error."""
    return f"{values.mean():.4f} ± {standard_error(values):.4f}"


def standard_error(values: np.ndarray) -> Any:
    """Standard error of the mean over the first axis; NaN for a single value."""
    return values.std(axis=0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan * values[0]


def draw(path: Path) -> None:
    """Draw validation loss over training loss: a point for each setting, with standard errors over seeds."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    settings: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("optimizer", "estimator", *Settings._fields[:-1]))
        settings.setdefault(key, []).append((row["mean_loss"], row["validation_loss"]))
    rates, shares = (sorted({key[i] for key in settings}) for i in (3, 4))
    with picture(path.with_suffix(".png"), figsize=(7.5, 5)) as (_, axes):
        for (_, estimator, _, rate, share), losses in settings.items():
            (x, y), errors = np.mean(losses, axis=0), standard_error(np.array(losses))
            style = {"color": colour(estimator), "marker": MARKERS[shares.index(share)]}
            axes.errorbar(x, y, errors[1], errors[0], **style, ms=_size(rates, rate), lw=0.6, alpha=0.7)
        for estimator in sorted({key[1] for key in settings}):
            axes.plot([], [], "o", color=colour(estimator), label=estimator)
        for share in shares:
            marker = MARKERS[shares.index(share)]
            axes.plot([], [], marker, color="0.5", label=f"objective: {share:.0%} validation loss")
        for rate in rates:
            axes.plot([], [], "o", color="0.5", ms=_size(rates, rate), label=f"learning rate {rate:.2g}")
        # Failed runs would otherwise dominate the axes.
        middles = np.array([np.mean(losses, axis=0) for losses in settings.values()])
        least, most = middles.min(axis=0) * 0.9, np.quantile(middles, 0.95, axis=0) * 1.1
        axes.set(xlim=(least[0], most[0]), ylim=(least[1], most[1]))
        axes.set(xlabel="mean training loss", ylabel="validation loss at the end")
        axes.set_title("settings of meta-training")
        axes.legend(fontsize=8)


def _size(rates: list[float], rate: float) -> float:
    """Size of a marker, depending on the learning rate."""
    return 4 + 2.5 * rates.index(rate)


if __name__ == "__main__":
    main()
