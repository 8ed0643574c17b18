"""Outer descent on real tasks, over all devices: one seed after another, and what its thetas are worth."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from checkpoints import CheckpointStore
from inner_tasks import UnrolledProblem
from learned_opt.files import write_whole
from meta_train.estimators.base import Theta
from meta_train.estimators.window import unroll
from meta_train.evaluation import evaluation_key
from meta_train.outer import RunState, outer_loop
from meta_train.population import Population, over_devices
from meta_train.progress import ProgressLine, RunsLine

SAVE_EVERY_SECONDS = 30.0


def learn(
    label: str,
    population: Population,
    tx: optax.GradientTransformation,
    initial: Callable[[jax.Array], Theta],
    *,
    seeds: Sequence[int],
    updates: int,
    every: int,
    folder: Path,
    console: Console,
) -> dict[str, np.ndarray]:
    """Move theta by the estimates of a population, and keep the path that it takes.

    Each seed is saved now and then, and at its end; where a folder holds what an earlier call saved, it goes
    on from there.

    Args:
      label: what the progress line is called.
      population: the estimator.
      tx: the outer optimizer.
      initial: ``key -> theta`` to start from.
      seeds: each with all its randomness of its own.
      updates: outer updates of each.
      every: updates between records; the first is before any update.
      folder: where each seed has a folder of checkpoints.
      console: for progress.

    Returns:
      ``update`` [records], ``steps`` [records] (inner steps of all particles so far), ``loss``
      [seeds, records] (mean meta-loss of the perturbed particles since the record before), and ``theta``
      [seeds, records, entries].
    """
    paths = [
        _learn_one(
            f"{label}, seed {seed}",
            population,
            tx,
            initial,
            seed,
            updates,
            every,
            folder / str(seed),
            console,
        )
        for seed in seeds
    ]
    return {
        "update": np.arange(0, updates + 1, every),
        "steps": np.array(paths[0]["steps"]),
        "loss": np.array([path["loss"] for path in paths]),
        "theta": np.array([path["theta"] for path in paths]),
    }


def _learn_one(
    label: str,
    population: Population,
    tx: optax.GradientTransformation,
    initial: Callable[[jax.Array], Theta],
    seed: int,
    updates: int,
    every: int,
    folder: Path,
    console: Console,
) -> dict[str, list[Any]]:
    """The records of one seed."""
    key = jax.random.key(seed)
    theta = initial(jax.random.fold_in(key, 0))
    particles = population.init(jax.random.fold_in(key, 1), theta)
    state = RunState(theta, tx.init(theta), particles, jax.random.fold_in(key, 2), 0)
    done, path = 0, {"steps": [0.0], "loss": [float("nan")], "theta": [_flat(theta)]}
    with CheckpointStore(folder, keep=1) as store:

        def save(number: int, state: RunState) -> None:
            store.save(number, state._replace(particles=population.gather(state.particles)), path)

        if store.updates():
            like = state._replace(particles=population.gather(state.particles))
            restored = store.restore(like)
            state = restored.state._replace(
                particles=population.scatter(restored.state.particles), skipped=int(restored.state.skipped)
            )
            done, path = restored.update, restored.metadata
        saved = time.monotonic()
        # Sums since the last record: a checkpoint is made at a record only.
        total = steps = 0.0
        with ProgressLine(console, updates, done, label) as progress:
            for update in outer_loop(population, tx, state, done, updates):
                progress.advance(
                    update.number, float(update.info.loss), float(update.info.steps), update.seconds
                )
                total += float(update.info.loss) * float(update.info.steps)
                steps += float(update.info.steps)
                if update.number % every == 0:
                    path["steps"].append(path["steps"][-1] + steps)
                    path["loss"].append(total / steps)
                    path["theta"].append(_flat(update.state.theta))
                    total = steps = 0.0
                    now = time.monotonic()
                    if now - saved > SAVE_EVERY_SECONDS or update.number == updates:
                        save(update.number, update.state)
                        saved = now
    return path


def _flat(theta: Theta) -> list[float]:
    return np.asarray(jax.flatten_util.ravel_pytree(theta)[0], np.float64).tolist()


def mean_losses(
    problem: UnrolledProblem,
    thetas: Any,
    runs: int,
    *,
    label: str,
    kept: Path,
    devices: int,
    chunk: int,
    console: Console,
) -> np.ndarray:
    """Mean loss of whole episodes, over their steps and over seeds, for many thetas.

    Losses are clipped as the problem says. All thetas see the same seeds.

    Args:
      problem: what is unrolled.
      thetas: pytree of arrays ``[n, ...]``.
      runs: episodes for each theta.
      label: what the progress line is called.
      kept: file for the losses; where it is there, they are read from it.
      devices: devices to spread the episodes over.
      chunk: episodes that one device works on at once.
      console: for progress.

    Returns:
      float64 ``[n]``.
    """
    if kept.exists():
        return np.load(kept)
    n = jax.tree.leaves(thetas)[0].shape[0]

    def one(problem: UnrolledProblem, inputs: tuple[Any, jax.Array]) -> jax.Array:
        theta, number = inputs
        init_key, data_key = jax.random.split(evaluation_key(number))
        start = problem.init(init_key)
        window = unroll(problem, theta, start, jnp.zeros((), jnp.int32), data_key, problem.horizon)
        return window.loss / problem.horizon

    done, total = 0, n * runs
    each, number = np.divmod(np.arange(total), runs)
    with RunsLine(console, lambda: None, label) as show:

        def advance(episodes: int) -> None:
            nonlocal done
            done += episodes
            show(done, total)

        run_all = over_devices(one, problem, devices=devices, chunk=chunk, advance=advance)
        losses = run_all((jax.tree.map(lambda x: np.asarray(x)[each], thetas), number))
    means = losses.astype(np.float64).reshape(n, runs).mean(axis=1)
    kept.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    np.save(content, means)
    write_whole(kept, content.getvalue())
    return means
