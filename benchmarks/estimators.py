"""The meta-loss that each estimator reaches with the same number of inner steps.

    python benchmarks/estimators.py
    python benchmarks/estimators.py --estimators pes tbptt --seeds 0 --steps 100000

Each estimator meta-trains the default optimizer on digits-mlp with the default settings; only the number of
updates differs, so that all take the same number of inner steps. (The steps of the mean particle of truncated
ES are counted too. A step of tbptt costs about four times as much as one of the others; see the seconds.) The
meta-loss is the mean training loss over 200 steps of fresh networks on unseen seeds, as in a run's report.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

import jax
import numpy as np
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from inner_tasks import Training
from meta_train.outer.loop import outer_loop
from meta_train.outer.optimizers import outer_optimizer
from meta_train.report.baselines import baseline
from meta_train.report.evaluation import Contestant, run
from meta_train.run.config import Config, default_config, validate
from meta_train.run.progress import ProgressLine
from meta_train.run.setup import Setup, prepare, start


@dataclass(frozen=True)
class Arguments:
    """Meta-loss of each estimator after the same number of inner steps."""

    estimators: tuple[str, ...] = ("pes", "nres", "truncated-es", "full-es", "tbptt")
    """Estimators to compare."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of meta-training."""
    learning_rates: tuple[float, ...] = (2e-2,)
    """Outer learning rates; the best one is reported for each estimator."""
    steps: int = 512_000
    """Inner steps of a run, summed over its particles."""
    evaluation_seeds: int = 8
    """Unseen seeds that each result is measured on."""


def configure(estimator: str, learning_rate: float, seed: int) -> Config:
    """The default settings with these changes."""
    config = default_config("digits-mlp")
    config = dataclasses.replace(
        config,
        estimator=dataclasses.replace(config.estimator, name=estimator),
        outer=dataclasses.replace(config.outer, learning_rate=learning_rate),
        seed=seed,
    )
    validate(config)
    return config


def measure(config: Config, arguments: Arguments, console: Console) -> tuple[float, int, float]:
    """Meta-loss, updates and seconds of one run."""
    setup = prepare(config)
    state, key = start(config, setup), jax.random.key(0)
    # The first window of every particle lies inside an episode, so it has the usual number of steps.
    _, particles, info = setup.population.estimate(state.theta, state.particles, key)
    updates = max(1, round(arguments.steps / float(info["steps"])))
    state, began = start(config, setup), time.perf_counter()
    tx = outer_optimizer(config.outer, updates)
    label = f"{config.estimator.name}, rate {config.outer.learning_rate:g}, seed {config.seed}"
    with ProgressLine(console, updates, 0, label) as progress:
        for update in outer_loop(setup.population, tx, state, 0, updates):
            progress.advance(
                update.number, float(update.metrics["loss"]), float(update.metrics["steps"]), update.seconds
            )
    seconds = time.perf_counter() - began
    learned = Contestant(setup.training.optimizer, update.state.theta)
    result = run(judged(setup), learned, arguments.evaluation_seeds, devices=setup.devices)
    loss = float(result.runs.mean_loss.mean())
    console.print(f"{label}: {loss:.4f} after {updates} updates", highlight=False)
    return loss, updates, seconds


def judged(setup: Setup) -> Training:
    """What the losses are measured on: the training loss, whatever the objective of the run."""
    own = setup.training
    return Training(own.data, own.task, own.optimizer, own.horizon)


def main() -> None:
    """Print the table."""
    arguments = tyro.cli(Arguments)
    progress = Console(stderr=True)
    title = f"meta-loss after {arguments.steps:,} inner steps, seeds {', '.join(map(str, arguments.seeds))}"
    table = Table(title=title, box=SIMPLE_HEAD)
    for column in ("estimator", "learning rate", "updates", "mean", "each seed", "seconds a run"):
        table.add_column(column)
    for estimator in arguments.estimators:
        tried = {}
        for rate in arguments.learning_rates:
            tried[rate] = [
                measure(configure(estimator, rate, seed), arguments, progress) for seed in arguments.seeds
            ]
        best = min(tried, key=lambda rate: np.mean([loss for loss, _, _ in tried[rate]]))
        losses, updates, seconds = zip(*tried[best], strict=True)
        table.add_row(
            estimator,
            f"{best:g}",
            str(updates[0]),
            f"{np.mean(losses):.4f}",
            ", ".join(f"{loss:.4f}" for loss in losses),
            f"{np.mean(seconds):.0f}",
        )
    training = judged(prepare(configure("pes", arguments.learning_rates[0], arguments.seeds[0])))
    adam = run(
        training, baseline("adam", training.horizon), arguments.evaluation_seeds, devices=jax.device_count()
    )
    table.add_row(f"(Adam, best rate {adam.learning_rate:.2g})", "", "", f"{adam.runs.mean_loss.mean():.4f}")
    Console().print(table)


if __name__ == "__main__":
    main()
