"""What the evolution-strategies estimators share: antithetic pairs with common random numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from inner_tasks import UnrolledProblem
from meta_train.estimators.base import Info, State, Theta
from meta_train.estimators.window import Window, chunked_map, real_steps, unroll


def perturbation(key: jax.Array, theta: Theta, sigma: float) -> Theta:
    """``epsilon ~ N(0, sigma^2 I)``, with theta's structure. The key is consumed."""
    return optax.tree.scale(sigma, optax.tree.random_like(key, theta))


def unroll_pair(
    problem: UnrolledProblem,
    thetas: tuple[Theta, Theta],
    states: State,
    position: jax.Array,
    key: jax.Array,
    truncation: int,
    chunk: int,
) -> Window:
    """Unroll a window of both members of a pair, on the same data.

    Args:
      problem: what is unrolled.
      thetas: theta of the positive and of the negative member.
      states: their inner states, ``[2, ...]``.
      position: int32 [], where both stand in the episode.
      key: randomness of the data, common to both: it drops out of the difference of their losses.
      truncation: K.
      chunk: particles unrolled at once.

    Returns:
      A window whose arrays have a leading axis of 2.
    """

    def member(inputs: tuple[Theta, State]) -> Window:
        theta, state = inputs
        return unroll(problem, theta, state, position, key, truncation)

    stacked = jax.tree.map(lambda *members: jnp.stack(members), *thetas)
    return chunked_map(member, (stacked, states), chunk)


def pair_info(
    problem: UnrolledProblem, window: Window, position: jax.Array, truncation: int, xi: Theta
) -> Info:
    """Diagnostics of a pair.

    Args:
      problem: what is unrolled.
      window: what came of unrolling both members, with a leading axis of 2.
      position: int32 [], where they stood in the episode before.
      truncation: K.
      xi: the perturbation that weights the losses of the positive member.
    """
    steps = real_steps(problem, position, truncation)
    return Info(
        loss=jnp.sum(window.loss),
        steps=2.0 * steps,
        clipped=jnp.sum(window.clipped),
        nonfinite=jnp.sum(window.nonfinite),
        episodes=2.0 * (position + steps >= problem.horizon),
        xi_norm=optax.tree.norm(xi),
        units=jnp.ones(()),
    )
