"""Truncated evolution strategies: the biased method that PES corrects."""

from __future__ import annotations

import jax
import optax

from inner_tasks import UnrolledProblem
from meta_train.estimators.antithetic import pair_of, perturbation, slope, unroll_pair
from meta_train.estimators.base import Estimator, State, Theta
from meta_train.estimators.episodes import Estimate, episodic
from meta_train.estimators.window import unroll


def truncated_es(problem: UnrolledProblem, *, sigma: float, truncation: int, chunk: int = 1) -> Estimator:
    """Antithetic evolution strategies on one window at a time.

    Each window starts both particles of a pair from the same mean state, which the unperturbed theta then
    advances::

        g = epsilon (L(+) - L(-)) / (2 sigma^2 K),  epsilon ~ N(0, sigma^2 I)

    - Bias: it ignores the effect of theta on the state before the window, and so favours what pays off within
      K steps. Even the sign can be wrong.
    - Variance: less than that of PES; it does not depend on the number of windows.
    - Memory: three inner states, whatever T and K.
    - Cost per update: 3 K inner steps.

    Args:
      problem: what is unrolled.
      sigma: standard deviation of the perturbations.
      truncation: K, steps per window; it need not divide T.
      chunk: particles unrolled at once: 1, or at least 2 for both particles together.

    Returns:
      An estimator that carries one inner state.

    Source: Vicol, Metz, Sohl-Dickstein, ICML 2021, Algorithm 1.
    """

    def start(key: jax.Array, theta: Theta) -> State:
        del theta
        return problem.init(key)

    def window(
        theta: Theta, inner: State, position: jax.Array, noise_key: jax.Array, data_key: jax.Array
    ) -> Estimate:
        epsilon = perturbation(noise_key, theta, sigma)
        pair = unroll_pair(problem, theta, epsilon, pair_of(inner), position, data_key, truncation, chunk)
        mean = unroll(problem, theta, inner, position, data_key, truncation)
        gradient = optax.tree.scale(slope(pair, sigma), epsilon)
        return Estimate(gradient, mean.state, (pair, mean), epsilon)

    return episodic(problem, truncation, start, window)
