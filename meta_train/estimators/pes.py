"""Persistent Evolution Strategies: an unbiased meta-gradient from short unrolls."""

from __future__ import annotations

from typing import NamedTuple

import jax
import optax

from inner_tasks import UnrolledProblem
from meta_train.estimators.antithetic import pair_of, perturbation, slope, unroll_pair
from meta_train.estimators.base import Estimator, State, Theta
from meta_train.estimators.episodes import Estimate, episodic


class Pair(NamedTuple):
    """One antithetic pair of particles."""

    inner: State  # inner states of both particles, [2, ...]: positive, negative
    xi: Theta  # sum of the positive particle's perturbations in this episode


def pes(problem: UnrolledProblem, *, sigma: float, truncation: int, chunk: int = 1) -> Estimator:
    """PES with one antithetic pair.

    Both particles keep their inner states from window to window. Each window draws a new perturbation
    ``epsilon ~ N(0, sigma^2 I)``, unrolls one particle with ``theta + epsilon`` and the other with
    ``theta - epsilon``, and weights the difference of their losses by the sum of all perturbations in the
    episode so far::

        xi <- xi + epsilon
        g = xi (L(+) - L(-)) / (2 sigma^2 K)

    A new episode starts both particles from the same new inner state, with xi = 0.

    - Bias: none. In expectation g is the gradient of the Gaussian-smoothed window loss with respect to
      the theta of *every* step of the episode so far.
    - Variance: between constant (if all windows have the same gradient) and linear in the number of windows
      of an episode (if they are independent).
    - Memory: two inner states and two copies of theta, whatever T and K.
    - Cost per update: 2 K inner steps.

    Args:
      problem: what is unrolled.
      sigma: standard deviation of the perturbations.
      truncation: K, steps per window; it need not divide T (the last window is then shorter).
      chunk: particles unrolled at once: 1, or at least 2 for both particles together.

    Returns:
      An estimator that carries a ``Pair``.

    Source: Vicol, Metz, Sohl-Dickstein, "Unbiased Gradient Estimation in Unrolled Computation Graphs
    with Persistent Evolution Strategies", ICML 2021, Algorithm 2.
    """

    def start(key: jax.Array, theta: Theta) -> Pair:
        return Pair(pair_of(problem.init(key)), optax.tree.zeros_like(theta))

    def window(
        theta: Theta, pair: Pair, position: jax.Array, noise_key: jax.Array, data_key: jax.Array
    ) -> Estimate:
        epsilon = perturbation(noise_key, theta, sigma)
        xi = optax.tree.add(pair.xi, epsilon)
        particles = unroll_pair(problem, theta, epsilon, pair.inner, position, data_key, truncation, chunk)
        gradient = optax.tree.scale(slope(particles, sigma), xi)
        return Estimate(gradient, Pair(particles.state, xi), (particles,), xi)

    return episodic(problem, truncation, start, window)
