"""Outer descent on real tasks over all devices, one seed after another, and the evaluation of its thetas."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from checkpoints import CheckpointStore
from inner_tasks import UnrolledProblem
from learned_opt._src.files import make_folder, write_whole
from meta_train.devices.choice import even_devices
from meta_train.devices.mapping import map_over_devices
from meta_train.estimators.base import Estimator, Theta
from meta_train.estimators.window import unroll
from meta_train.experiments.base import SAVE_EVERY_SECONDS, Settings
from meta_train.outer.loop import gathered, initial_state, outer_loop, scattered
from meta_train.outer.population import population
from meta_train.report.evaluation import evaluation_key
from meta_train.run.progress import ProgressLine, RunsLine


def learn(
    name: str,
    label: str,
    make: Callable[[UnrolledProblem], Estimator],
    problem: UnrolledProblem,
    tx: optax.GradientTransformation,
    initial: Callable[[jax.Array], Theta],
    *,
    pairs: int,
    updates: int,
    every: int,
    settings: Settings,
    console: Console,
) -> dict[str, np.ndarray]:
    """Update theta with the estimates of a population, and record its path.

    Each seed is saved from time to time and at its end; if the folder of the experiment holds checkpoints of
    an earlier call, this call continues from them.

    Args:
      name: name of the folder in which each seed has a folder of checkpoints.
      label: label of the progress line.
      make: makes the estimator of one antithetic pair.
      problem: what is unrolled.
      tx: the outer optimizer.
      initial: ``key -> theta``, the initial theta.
      pairs: antithetic pairs of the population.
      updates: outer updates of each seed.
      every: updates between records; the first is before any update.
      settings: the settings of the experiment, with the seeds of the independent runs.
      console: for progress.

    Returns:
      ``update`` [records], ``steps`` [records] (inner steps of all particles so far), ``loss``
      [seeds, records] (mean meta-loss of the perturbed particles since the previous record), and ``theta``
      [seeds, records, entries].
    """
    devices = even_devices(settings.devices, pairs)
    particles = population(make, problem, units=pairs, devices=devices, chunk=settings.chunk)

    def path(seed: int) -> dict[str, list[Any]]:
        key = jax.random.key(seed)
        state = initial_state(particles, tx, initial(jax.random.fold_in(key, 0)), key)
        done = 0
        records: dict[str, list[Any]] = {
            "steps": [0.0],
            "loss": [float("nan")],
            "theta": [_flat(state.theta)],
        }
        with CheckpointStore(settings.folder / "paths" / name / str(seed), keep=1) as store:
            if store.updates():
                restored = store.restore(gathered(particles, state))
                state = scattered(particles, restored.state)
                done, records = restored.update, restored.metadata
            saved = time.monotonic()
            # Sums since the last record. They need no checkpoint, because one is only saved at a record.
            total = steps = 0.0
            with ProgressLine(console, updates, done, f"{label}, seed {seed}") as progress:
                for update in outer_loop(particles, tx, state, done, updates):
                    loss, taken = float(update.metrics["loss"]), float(update.metrics["steps"])
                    progress.advance(update.number, loss, taken, update.seconds)
                    total, steps = total + loss * taken, steps + taken
                    if update.number % every:
                        continue
                    records["steps"].append(records["steps"][-1] + steps)
                    records["loss"].append(total / steps)
                    records["theta"].append(_flat(update.state.theta))
                    total = steps = 0.0
                    if time.monotonic() - saved > SAVE_EVERY_SECONDS or update.number == updates:
                        store.save(update.number, gathered(particles, update.state), records)
                        saved = time.monotonic()
        return records

    paths = [path(seed) for seed in settings.seeds]
    return {
        "update": np.arange(0, updates + 1, every),
        "steps": np.array(paths[0]["steps"]),
        "loss": np.array([each["loss"] for each in paths]),
        "theta": np.array([each["theta"] for each in paths]),
    }


def _flat(theta: Theta) -> list[float]:
    return np.asarray(jax.flatten_util.ravel_pytree(theta)[0], np.float64).tolist()


def mean_losses(
    problem: UnrolledProblem,
    thetas: np.ndarray,
    like: Theta,
    runs: int,
    *,
    label: str,
    settings: Settings,
    console: Console,
) -> np.ndarray:
    """Mean loss of whole episodes, averaged over steps and seeds, for many thetas.

    Losses are clipped as the problem specifies. All thetas use the same seeds. The losses are saved in the
    folder of the experiment, and read from there when it is resumed.

    Args:
      problem: what is unrolled.
      thetas: flat thetas, ``[..., entries]``.
      like: a theta with its structure.
      runs: episodes for each theta.
      label: label of the progress line, and name of the file.
      settings: the settings of the experiment.
      console: for progress.

    Returns:
      float64 ``[...]``.
    """
    kept = settings.folder / "losses" / f"{label}.npy"
    if kept.exists():
        return np.load(kept)
    flat = thetas.reshape(-1, thetas.shape[-1]).astype(np.float32)
    unflatten = jax.flatten_util.ravel_pytree(like)[1]

    def one(problem: UnrolledProblem, inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
        theta, number = inputs
        init_key, data_key = jax.random.split(evaluation_key(number))
        start = problem.init(init_key)
        position = jnp.zeros((), jnp.int32)
        window = unroll(problem, unflatten(theta), start, position, data_key, problem.horizon)
        return window.loss / problem.horizon

    done, total = 0, len(flat) * runs
    each, number = np.divmod(np.arange(total), runs)
    with RunsLine(console, lambda: None, label) as show:

        def advance(episodes: int) -> None:
            nonlocal done
            done += episodes
            show(done, total)

        run_all = map_over_devices(
            one, problem, devices=settings.devices, chunk=settings.chunk, advance=advance
        )
        losses = run_all((flat[each], number))
    means = losses.astype(np.float64).reshape(*thetas.shape[:-1], runs).mean(axis=-1)
    make_folder(kept.parent)
    content = io.BytesIO()
    np.save(content, means)
    write_whole(kept, content.getvalue())
    return means
