"""Noise reuse: PES that keeps a perturbation for several windows (GPES) or a whole episode (NRES)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from inner_tasks import UnrolledProblem
from learned_opt import UserError
from meta_train.estimators.antithetic import pair_of, perturbation, slope, unroll_pair
from meta_train.estimators.base import Estimator, State, Theta
from meta_train.estimators.episodes import Estimate, episodic


class ReusingPair(NamedTuple):
    """One antithetic pair of particles, and the perturbation that it keeps."""

    inner: State  # inner states of both particles, [2, ...]: positive, negative
    xi: Theta  # sum of the perturbations drawn for the positive particle in this episode
    epsilon: Theta  # the newest of them
    reuse: jax.Array  # int32 [], further windows for which epsilon is kept


def gpes(
    problem: UnrolledProblem, *, sigma: float, truncation: int, perturbation_period: int, chunk: int = 1
) -> Estimator:
    """Generalised PES: a new perturbation every `perturbation_period` steps.

    ``g = xi (L(+) - L(-)) / (2 sigma^2 K)``, where xi is the sum of the perturbations *drawn* since the
    episode began. A period of K steps is PES, one of T steps is NRES.

    - Bias: none, as for PES: it estimates the gradient of the loss smoothed by perturbations that last a
      period.
    - Variance: decreases with the period (Li et al., Theorem 6), least for T.
    - Memory: two inner states and two copies of theta, whatever T and K.
    - Cost per update: 2 K inner steps.

    Args:
      problem: what is unrolled.
      sigma: standard deviation of the perturbations.
      truncation: K, steps per window; it need not divide T.
      perturbation_period: steps for which a perturbation is kept, a multiple of K (at least T: until the end
        of the episode), counted from where a particle starts.
      chunk: particles unrolled at once: 1, or at least 2 for both particles together.

    Returns:
      An estimator that carries a ``ReusingPair``.

    Raises:
      UserError: the period is not a multiple of K.

    Source: Li, Harrison, Sohl-Dickstein, Smith, Metz, "Variance-Reduced Gradient Estimation via
    Noise-Reuse in Online Evolution Strategies", NeurIPS 2023.
    """
    if perturbation_period < 1 or perturbation_period % truncation and perturbation_period < problem.horizon:
        raise UserError(
            f"the perturbation period is {perturbation_period} steps; it must be a multiple of the "
            f"truncation length K = {truncation}, or at least the horizon T = {problem.horizon}"
        )

    def start(key: jax.Array, theta: Theta) -> ReusingPair:
        zero = optax.tree.zeros_like(theta)
        return ReusingPair(pair_of(problem.init(key)), zero, zero, jnp.zeros((), jnp.int32))

    def window(
        theta: Theta, pair: ReusingPair, position: jax.Array, noise_key: jax.Array, data_key: jax.Array
    ) -> Estimate:
        draw = pair.reuse == 0
        epsilon = optax.tree.where(draw, perturbation(noise_key, theta, sigma), pair.epsilon)
        xi = optax.tree.where(draw, optax.tree.add(pair.xi, epsilon), pair.xi)
        reuse = jnp.where(draw, -(-perturbation_period // truncation), pair.reuse) - 1
        particles = unroll_pair(problem, theta, epsilon, pair.inner, position, data_key, truncation, chunk)
        gradient = optax.tree.scale(slope(particles, sigma), xi)
        return Estimate(gradient, ReusingPair(particles.state, xi, epsilon, reuse), (particles,), xi)

    return episodic(problem, truncation, start, window)


def nres(problem: UnrolledProblem, *, sigma: float, truncation: int, chunk: int = 1) -> Estimator:
    """Noise-reuse evolution strategies: one perturbation for a whole episode.

    ``g = epsilon (L(+) - L(-)) / (2 sigma^2 K)``, with the episode's epsilon: GPES with a period of T. With
    all particles in step it is ES-Single (Vicol, "Low-Variance Gradient Estimation in Unrolled
    Computation Graphs with ES-Single", ICML 2023).

    - Bias: none: it estimates the gradient of the loss smoothed by a perturbation that lasts the episode.
    - Variance: that of full ES, whatever the number of windows.
    - Memory: two inner states and two copies of theta, whatever T and K.
    - Cost per update: 2 K inner steps.

    Args:
      As for ``gpes``.

    Source: Li, Harrison, Sohl-Dickstein, Smith, Metz, NeurIPS 2023.
    """
    return gpes(problem, sigma=sigma, truncation=truncation, perturbation_period=problem.horizon, chunk=chunk)
