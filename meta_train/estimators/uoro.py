"""Unbiased online recurrent optimization: the sensitivity of RTRL as a random product of two vectors."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from inner_tasks import UnrolledProblem
from meta_train.estimators.base import Estimator, State, Theta, require_derivative
from meta_train.estimators.episodes import Estimate, episodic
from meta_train.estimators.moving import Moving, moving_part, window_map
from meta_train.estimators.window import finite_or_zero

# Keeps the balancing factors finite when a vector is zero, as at the start of an episode.
TINY = 1e-7


class RankOne(NamedTuple):
    """One particle, and a random rank-one estimate of the derivative of its state with respect to theta."""

    inner: State
    state_vector: Moving  # shaped like the state: E[state_vector theta_vector^T] = d(state) / d(theta)
    theta_vector: Theta


def uoro(problem: UnrolledProblem, *, truncation: int) -> Estimator:
    """UORO with one particle, and one rank-one step per window of K inner steps.

    With F the map of a window (``s -> s'``), L its summed loss, and random signs nu::

        g = [(dL / ds) u v + dL / d theta] / K
        u' = rho_0 (dF / ds) u + rho_1 nu,    v' = v / rho_0 + nu^T (dF / d theta) / rho_1

    where u has the shape of the state, v that of theta, and rho_0 and rho_1 balance the norms of the terms.
    Within a window derivatives are exact; K = 1 is the algorithm of the paper.

    - Bias: none, since E[nu nu^T] = 1.
    - Variance: high: each window adds noise of the size of the state.
    - Memory: two inner states and one theta, and the K inner states of the reverse pass.
    - Cost per update: about 9 K inner steps (one forward pass, two reverse passes).

    Args:
      problem: what is unrolled; it must be differentiable.
      truncation: K, steps per window; it need not divide T.

    Returns:
      An estimator that carries a ``RankOne``.

    Raises:
      UserError: the problem has no derivative.

    Source: Tallec, Ollivier, "Unbiased Online Recurrent Optimization", ICLR 2018.
    """
    require_derivative(problem, "uoro")

    def start(key: jax.Array, theta: Theta) -> RankOne:
        inner = problem.init(key)
        return RankOne(inner, optax.tree.zeros_like(moving_part(inner)), optax.tree.zeros_like(theta))

    def window(
        theta: Theta, particle: RankOne, position: jax.Array, noise_key: jax.Array, data_key: jax.Array
    ) -> Estimate:
        run = window_map(problem, particle.inner, position, data_key, truncation)
        at = theta, moving_part(particle.inner)
        (loss, after), pull_back, unrolled = jax.vjp(run, *at, has_aux=True)
        _, (slope, pushed), _ = jax.jvp(
            run, at, (optax.tree.zeros_like(theta), particle.state_vector), has_aux=True
        )
        direct, _ = pull_back((jnp.ones_like(loss), optax.tree.zeros_like(after)))
        gradient = optax.tree.add(direct, optax.tree.scale(slope, particle.theta_vector))

        signs = optax.tree.random_like(noise_key, after, _signs)
        pulled, _ = pull_back((jnp.zeros_like(loss), signs))
        old, new = _balance(particle.theta_vector, pushed), _balance(pulled, signs)
        state_vector = optax.tree.add(optax.tree.scale(old, pushed), optax.tree.scale(new, signs))
        theta_vector = optax.tree.add(
            optax.tree.scale(1 / old, particle.theta_vector), optax.tree.scale(1 / new, pulled)
        )
        if problem.max_loss is not None:
            gradient = finite_or_zero(gradient)
        return Estimate(gradient, RankOne(unrolled.state, state_vector, theta_vector), (unrolled,))

    return episodic(problem, truncation, start, window)


def _signs(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    return jax.random.rademacher(key, shape).astype(dtype)


def _balance(theta_like: Theta, state_like: Moving) -> jax.Array:
    """Factor by which to multiply the state's vector, and divide theta's, to give both the same norm."""
    return jnp.sqrt((optax.tree.norm(theta_like) + TINY) / (optax.tree.norm(state_like) + TINY))
