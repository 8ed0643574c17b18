"""Unrolling one window of an episode, and differentiating it."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from inner_tasks import UnrolledProblem
from inner_tasks.problem import bounded
from meta_train.estimators.base import State, Theta

AT_ONCE_ON_GPU = 2  # steps in an iteration of the compiled loop


class Window(NamedTuple):
    """The result of unrolling a window: the next inner state, and sums over its real steps.

    If several particles are unrolled together, every array has a leading axis.
    """

    state: State
    loss: jax.Array  # float []
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
    """Unroll K steps of one particle, or as many as are left in its episode.

    Steps past the horizon are masked: they leave the state unchanged and add no loss. If K divides T there
    are none, and no mask is compiled.

    Reverse-mode differentiation of this function keeps the K inner states and recomputes everything else,
    one step at a time (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016).

    Args:
      problem: what is unrolled.
      theta: the particle's (perturbed) theta.
      state: its inner state.
      position: int32 [], steps of the episode already taken, less than T.
      key: randomness of the window's data; particles with the same key see the same data.
      truncation: K.
    """
    masked = problem.horizon % truncation != 0

    # Inside a scan, XLA cannot merge anything with the recomputation, so no barriers are needed.
    @partial(jax.checkpoint, prevent_cse=False)
    def step(state: State, inputs: tuple[jax.Array, jax.Array]) -> tuple[State, tuple]:
        index, key = inputs
        stepped, loss = problem.step(theta, state, key)
        finite = jnp.isfinite(loss)
        clipped = jnp.zeros((), bool)
        if problem.max_loss is not None:
            clipped = finite & (loss > problem.max_loss)
            loss = bounded(loss, problem.max_loss)
        real = jnp.ones((), bool)
        if masked:
            real = position + index < problem.horizon
            stepped = optax.tree.where(real, stepped, state)
            loss = jnp.where(real, loss, 0)
        return stepped, (loss, clipped & real, ~finite & real)

    # On a GPU, the kernel of an optimizer writes its new state next to the old one. With one step an
    # iteration XLA copies it to where the next step reads; with two, steps alternate between two buffers.
    # Masked steps gain nothing, because what selects between old and new state writes a third one.
    has_mask = masked or hasattr(problem, "length")
    at_once = AT_ONCE_ON_GPU if jax.default_backend() == "gpu" and not has_mask else 1
    steps = jnp.arange(truncation), jax.random.split(key, truncation)
    state, (loss, clipped, nonfinite) = jax.lax.scan(step, state, steps, unroll=at_once)
    return Window(state, jnp.sum(loss), *(jnp.sum(x, dtype=jnp.float32) for x in (clipped, nonfinite)))


def unroll_with_gradient(
    problem: UnrolledProblem,
    theta: Theta,
    state: State,
    position: jax.Array,
    key: jax.Array,
    truncation: int,
) -> tuple[Theta, Window]:
    """Unroll a window, and differentiate the sum of its losses with its first state held constant.

    If the problem has a ``max_loss``, a non-finite loss counts as a constant, and so a non-finite gradient
    counts as zero.

    Args:
      As for ``unroll``.

    Returns:
      The gradient and the window.
    """

    def loss(theta: Theta) -> tuple[jax.Array, Window]:
        window = unroll(problem, theta, state, position, key, truncation)
        return window.loss, window

    gradient, window = jax.grad(loss, has_aux=True)(theta)
    if problem.max_loss is not None:
        gradient = finite_or_zero(gradient)
    return gradient, window


def finite_or_zero(tree: Theta) -> Theta:
    """The tree, or zeros if any of its entries is not finite."""
    return optax.tree.where(jnp.isfinite(optax.tree.norm(tree)), tree, optax.tree.zeros_like(tree))
