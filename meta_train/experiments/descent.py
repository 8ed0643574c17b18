"""Outer descent on small problems: all seeds at once, many updates in one compiled program."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from meta_train.estimators import Estimator
from meta_train.estimators.base import Theta
from meta_train.experiments.base import Outcome
from meta_train.outer import outer_step
from meta_train.progress import ProgressLine


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
    console: Console,
) -> Outcome:
    """Move theta by the estimates of an estimator, and measure it on the way.

    The outer step is on the gradient of the *sum* of a window's losses, as in the paper's code: K times
    what estimators of this package give.

    Args:
      label: what the progress line is called.
      estimator: of a whole population.
      tx: the outer optimizer.
      theta: where to start.
      measure: the meta-loss of a theta.
      truncation: K.
      seeds: each with all its randomness of its own.
      updates: outer updates.
      every: updates between measurements; the first is before any update.
      console: for progress.

    Returns:
      What came of it. The curve has ``update`` [records], ``loss`` [seeds, records], and ``theta``
      [seeds, records, entries].
    """

    def start(seed: jax.Array) -> Any:
        key, init_key = jax.random.split(jax.random.key(seed))
        return theta, tx.init(theta), estimator.init(init_key, theta, 0.0), key

    def update(carry: Any, number: jax.Array) -> tuple[Any, jax.Array]:
        theta, outer, particles, key = carry
        gradient, particles, info = estimator.estimate(theta, particles, jax.random.fold_in(key, number))
        theta, outer, _ = outer_step(tx, theta, outer, optax.tree.scale(truncation, gradient))
        return (theta, outer, particles, key), info.steps

    def block(carry: Any, first: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
        carry, steps = jax.lax.scan(update, carry, first + jnp.arange(every))
        return carry, measure(carry[0]), jnp.sum(steps)

    carry = jax.jit(jax.vmap(start))(np.array(seeds, np.uint32))
    advance = jax.jit(jax.vmap(block, in_axes=(0, None)), donate_argnums=0)
    flat = jax.jit(jax.vmap(lambda theta: jax.flatten_util.ravel_pytree(theta)[0]))

    losses, thetas = [jax.jit(jax.vmap(measure))(carry[0])], [flat(carry[0])]
    with ProgressLine(console, updates, 0, label) as progress:
        for done in range(0, updates, every):
            began = time.perf_counter()
            carry, loss, steps = advance(carry, done)
            losses.append(loss)
            thetas.append(flat(carry[0]))
            mean, total = float(loss.mean()), float(steps.sum())
            progress.advance(done + every, mean, total, time.perf_counter() - began)
    loss, path = np.stack(losses, axis=1), np.stack(thetas, axis=1)
    return Outcome(
        final_loss=loss[:, -1],
        theta=path[:, -1],
        curve={"update": np.arange(0, updates + 1, every), "loss": loss, "theta": path},
    )
