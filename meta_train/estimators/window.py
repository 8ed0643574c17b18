"""What estimators share: unrolling one window of an episode, and restarting finished ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from inner_tasks import UnrolledProblem
from meta_train.estimators.base import State, Theta


class Window(NamedTuple):
    """What came of unrolling a window: the next inner state, and sums over its real steps."""

    state: State
    loss: jax.Array  # float32 []
    clipped: jax.Array  # float32 [], steps whose loss was finite and clipped
    nonfinite: jax.Array  # float32 [], steps whose loss was not finite


def unroll(
    problem: UnrolledProblem,
    theta: Theta,
    state: State,
    position: jax.Array,
    key: jax.Array,
    truncation: int,
) -> Window:
    """Unroll K steps of one particle, or as many as are left of its episode.

    Steps past the horizon are masked: they leave the state as it is and add no loss. Where K divides T
    there are none, and no mask is compiled.

    Args:
      problem: what is unrolled.
      theta: the particle's (perturbed) theta.
      state: its inner state.
      position: int32 [], steps of the episode already taken, less than T.
      key: randomness of the window's data; particles with the same key see the same data.
      truncation: K.
    """

    def step(state: State, inputs: tuple[jax.Array, jax.Array]) -> tuple[State, tuple]:
        index, key = inputs
        stepped, loss = problem.step(theta, state, key)
        finite = jnp.isfinite(loss)
        clipped = jnp.zeros((), bool)
        if problem.max_loss is not None:
            clipped = finite & (loss > problem.max_loss)
            loss = jnp.where(finite, jnp.minimum(loss, problem.max_loss), problem.max_loss)
        real = jnp.ones((), bool)
        if problem.horizon % truncation:
            real = position + index < problem.horizon
            stepped = optax.tree.where(real, stepped, state)
            loss = jnp.where(real, loss, 0)
        return stepped, (loss, clipped & real, ~finite & real)

    steps = jnp.arange(truncation), jax.random.split(key, truncation)
    state, (loss, clipped, nonfinite) = jax.lax.scan(step, state, steps)
    return Window(state, jnp.sum(loss), *(jnp.sum(x, dtype=jnp.float32) for x in (clipped, nonfinite)))


def real_steps(problem: UnrolledProblem, position: jax.Array, truncation: int) -> jax.Array:
    """Steps that a window starting at this position has inside its episode, int32 []."""
    return jnp.minimum(truncation, problem.horizon - position)


def start_position(problem: UnrolledProblem, phase: jax.Array | float, truncation: int) -> jax.Array:
    """Position at which a particle of this phase starts: a whole number of windows, int32 []."""
    windows = -(-problem.horizon // truncation)
    return jnp.floor(phase * windows).astype(jnp.int32) * truncation


def chunked_map(f: Callable[..., Any], xs: Any, chunk: int) -> Any:
    """Map f over the leading axis of xs, `chunk` elements at once.

    One at a time is a loop (``lax.map``), best on a CPU; more are vmapped, best on a GPU.
    """
    size = jax.tree.leaves(xs)[0].shape[0]
    if chunk == 1:
        return jax.lax.map(f, xs)
    if chunk >= size:
        return jax.vmap(f)(xs)
    return jax.lax.map(f, xs, batch_size=chunk)
