"""Persistent Evolution Strategies: an unbiased meta-gradient from short unrolls."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from inner_tasks import UnrolledProblem
from meta_train.estimators.antithetic import pair_info, perturbation, unroll_pair
from meta_train.estimators.base import Estimator, Info, State, Theta
from meta_train.estimators.window import real_steps, start_position


class PESState(NamedTuple):
    """One antithetic pair of particles."""

    inner: State  # inner states of both members, [2, ...]: positive, negative
    xi: Theta  # sum of the perturbations that the positive member has met in this episode
    position: jax.Array  # int32 [], steps of the episode already taken


def pes(problem: UnrolledProblem, *, sigma: float, truncation: int, chunk: int = 1) -> Estimator:
    """PES with one antithetic pair.

    The two members keep their own inner states from window to window. Each window perturbs theta anew,
    by ``+epsilon`` and ``-epsilon`` with ``epsilon ~ N(0, sigma^2 I)``, and its summed loss is weighted
    with all the perturbations that have acted on the state so far in the episode::

        xi <- xi + epsilon
        g = xi (L(+) - L(-)) / (2 sigma^2 K)

    In expectation g is the gradient of the Gaussian-smoothed window loss with respect to the theta of
    *every* step of the episode so far, so there is no truncation bias; the price is a variance that can
    grow with the number of windows in an episode. At the end of an episode both members restart, from
    the same initial state, with xi = 0. Memory is two inner states and one xi, whatever T and K.

    Args:
      problem: what is unrolled.
      sigma: standard deviation of the perturbations.
      truncation: K, steps per window; it need not divide T (the last window is then shorter).
      chunk: particles unrolled at once: 1, or 2 and more for both members together.

    Returns:
      An estimator whose state is a ``PESState``.

    Source: Vicol, Metz, Sohl-Dickstein, "Unbiased Gradient Estimation in Unrolled Computation Graphs
    with Persistent Evolution Strategies", ICML 2021, Algorithm 2.
    """

    def start(key: jax.Array, theta: Theta) -> PESState:
        """Both members at the start of an episode."""
        inner = jax.tree.map(lambda x: jnp.stack([x, x]), problem.init(key))
        return PESState(inner, jax.tree.map(jnp.zeros_like, theta), jnp.zeros((), jnp.int32))

    def init(key: jax.Array, theta: Theta, phase: jax.Array | float = 0.0) -> PESState:
        return start(key, theta)._replace(position=start_position(problem, phase, truncation))

    def estimate(theta: Theta, state: PESState, key: jax.Array) -> tuple[Theta, PESState, Info]:
        init_key, noise_key, data_key = jax.random.split(key, 3)
        # Restarting belongs to the start of a window: so the last losses of an episode are still
        # weighted with the xi of that episode, and the first of the next with its own.
        state = jax.lax.cond(state.position >= problem.horizon, lambda: start(init_key, theta), lambda: state)
        epsilon = perturbation(noise_key, theta, sigma)
        xi = optax.tree.add(state.xi, epsilon)
        window = unroll_pair(
            problem,
            (optax.tree.add(theta, epsilon), optax.tree.sub(theta, epsilon)),
            state.inner,
            state.position,
            data_key,
            truncation,
            chunk,
        )
        positive, negative = window.loss
        gradient = optax.tree.scale((positive - negative) / (2 * sigma**2 * truncation), xi)

        info = pair_info(problem, window, state.position, truncation, xi)
        position = state.position + real_steps(problem, state.position, truncation)
        return gradient, PESState(window.state, xi, position), info

    return Estimator(init, estimate)
