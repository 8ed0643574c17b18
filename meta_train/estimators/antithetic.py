"""Shared by the evolution-strategies estimators: antithetic pairs with common random numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from inner_tasks import UnrolledProblem
from learned_opt import UserError
from meta_train.devices.mapping import chunked_map
from meta_train.estimators.base import State, Theta
from meta_train.estimators.window import Window, unroll


def perturbation(key: jax.Array, theta: Theta, sigma: float) -> Theta:
    """``epsilon ~ N(0, sigma^2 I)``, with theta's structure. The key is consumed.

    Raises:
      UserError: theta has 16-bit numbers, in which small perturbations of it are lost by rounding.
    """
    dtypes = [jnp.result_type(leaf) for leaf in jax.tree.leaves(theta)]
    if short := {dtype.name for dtype in dtypes if dtype.itemsize < 4}:
        raise UserError(
            f"theta is {', '.join(sorted(short))}, but 16 bits are too few for small perturbations; convert "
            "it to float32"
        )
    # The barrier makes epsilon round once for all of its uses. Without it, XLA fuses the product into the sum
    # theta + epsilon in some programs and not in others, depending on the number of units on a device.
    return jax.lax.optimization_barrier(optax.tree.scale(sigma, optax.tree.random_like(key, theta)))


def pair_of(state: State) -> State:
    """The inner states of a pair that starts from one state, ``[2, ...]``: both the same."""
    return jax.tree.map(lambda x: jnp.stack([x, x]), state)


def unroll_pair(
    problem: UnrolledProblem,
    theta: Theta,
    epsilon: Theta,
    states: State,
    position: jax.Array,
    key: jax.Array,
    truncation: int,
    chunk: int,
) -> Window:
    """Unroll a window of both particles of a pair, with ``theta + epsilon`` and ``theta - epsilon``.

    Args:
      problem: what is unrolled.
      theta: the centre of the pair.
      epsilon: the perturbation of the positive particle.
      states: inner states of the particles, ``[2, ...]``: positive, negative.
      position: int32 [], the position of both in the episode.
      key: randomness of the data, common to both, so that it cancels in the difference of their losses.
      truncation: K.
      chunk: particles unrolled at once.

    Returns:
      A window whose arrays have a leading axis of 2.
    """

    def particle(inputs: tuple[Theta, State]) -> Window:
        theta, state = inputs
        return unroll(problem, theta, state, position, key, truncation)

    thetas = jax.tree.map(lambda t, e: jnp.stack([t + e, t - e]), theta, epsilon)
    return chunked_map(particle, (thetas, states), chunk)


def slope(pair: Window, sigma: float) -> jax.Array:
    """``(L(+) - L(-)) / (2 sigma^2)``, the factor that turns a perturbation into a gradient.

    It is 0 if exactly one of the particles had a non-finite loss. Otherwise a single such pair would outweigh
    all others: its difference would be as large as ``max_loss`` allows, in every window until the episode
    ends, although the true size of a non-finite loss is unknown.
    """
    positive, negative = pair.loss
    return jnp.where(one_broke(pair), 0, (positive - negative) / (2 * sigma**2))


def one_broke(pair: Window) -> jax.Array:
    """Whether exactly one of the particles of a pair had a non-finite loss, bool []."""
    positive, negative = pair.nonfinite > 0
    return positive != negative
