"""Outer descent on small problems: seeds side by side, many updates in one compiled program."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from checkpoints import CheckpointStore
from meta_train.devices.mapping import map_over_devices
from meta_train.estimators import Estimator
from meta_train.estimators.base import Theta
from meta_train.experiments.base import SAVE_EVERY_SECONDS, Outcome
from meta_train.outer.optimizers import outer_step
from meta_train.run.progress import ProgressLine


def descend(
    label: str,
    estimator: Estimator,
    tx: optax.GradientTransformation,
    theta: Theta,
    measure: Callable[[Theta], jax.Array],
    *,
    truncation: int,
    seeds: Sequence[int],
    updates: int,
    every: int,
    folder: Path,
    console: Console,
    devices: int = 1,
) -> Outcome:
    """Update theta with the estimates of an estimator, and measure it along the way.

    A long run is saved from time to time and at its end; if the folder holds a checkpoint of an earlier call,
    this call continues from it.

    As in the paper's code, the outer step uses the gradient of the *sum* of a window's losses, which is K
    times the estimate of this package.

    Args:
      label: label of the progress line.
      estimator: the estimator of a whole population.
      tx: the outer optimizer.
      theta: the initial theta.
      measure: the meta-loss as a function of theta.
      truncation: K.
      seeds: seeds of independent runs.
      updates: outer updates.
      every: updates between measurements; the first is before any update.
      folder: for checkpoints.
      console: for progress.
      devices: number of devices to spread the seeds over.

    Returns:
      The outcome. Its curve has ``update`` [records], ``steps`` [records] (inner steps so far, of one
      seed), ``loss`` [seeds, records], and ``theta`` [seeds, records, entries].
    """

    def start(_: Any, seed: jax.Array) -> Any:
        init_key = jax.random.split(jax.random.key(seed))[1]
        return theta, tx.init(theta), estimator.init(init_key, theta, 0.0)

    def advance(_: Any, inputs: Any) -> Any:
        carry, seed, first = inputs
        key = jax.random.split(jax.random.key(seed))[0]

        def update(carry: Any, number: jax.Array) -> tuple[Any, jax.Array]:
            theta, outer, particles = carry
            gradient, particles, info = estimator.estimate(theta, particles, jax.random.fold_in(key, number))
            theta, outer, _ = outer_step(tx, theta, outer, optax.tree.scale(truncation, gradient))
            return (theta, outer, particles), info["steps"]

        carry, steps = jax.lax.scan(update, carry, first + jnp.arange(every))
        return carry, jnp.sum(steps)

    def record(_: Any, theta: Theta) -> tuple[jax.Array, jax.Array]:
        return measure(theta), jax.flatten_util.ravel_pytree(theta)[0]

    side_by_side = partial(map_over_devices, shared=(), devices=devices, chunk=-(-len(seeds) // devices))
    numbers = np.array(seeds, np.uint32)
    block, measured = side_by_side(advance), side_by_side(record)
    with CheckpointStore(folder, keep=1) as store:
        carry, first = side_by_side(start)(numbers), 0
        if store.updates():
            restored = store.restore(carry)
            carry, first, records = restored.state, restored.update, restored.metadata
        else:
            loss, flat = measured(carry[0])
            records = {"steps": [0.0], "loss": [loss.tolist()], "theta": [flat.tolist()]}
        saved = time.monotonic()
        with ProgressLine(console, updates, first, label) as progress:
            for done in range(first + every, updates + every, every):
                began = time.perf_counter()
                carry, taken = block((carry, numbers, np.full(len(seeds), done - every)))
                loss, flat = measured(carry[0])
                records["steps"].append(records["steps"][-1] + float(taken[0]))
                records["loss"].append(loss.tolist())
                records["theta"].append(flat.tolist())
                progress.advance(done, float(loss.mean()), float(taken.sum()), time.perf_counter() - began)
                if time.monotonic() - saved > SAVE_EVERY_SECONDS or (done >= updates and store.updates()):
                    store.save(done, carry, records)
                    saved = time.monotonic()
    curves = {name: np.moveaxis(np.array(records[name], np.float32), 0, 1) for name in ("loss", "theta")}
    return Outcome(
        final_loss=curves["loss"][:, -1],
        theta=curves["theta"][:, -1],
        curve={"update": np.arange(0, updates + 1, every), "steps": np.array(records["steps"]), **curves},
    )
