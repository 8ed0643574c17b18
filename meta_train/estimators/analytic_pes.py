"""PES with the derivative of the window as a control variate."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from inner_tasks import UnrolledProblem
from meta_train.estimators.antithetic import one_broke, pair_of, perturbation, slope, unroll_pair
from meta_train.estimators.base import Estimator, State, Theta, require_derivative
from meta_train.estimators.episodes import Estimate, episodic
from meta_train.estimators.window import unroll_with_gradient


class Trio(NamedTuple):
    """An antithetic pair, and a third, unperturbed particle."""

    inner: State  # inner states of the pair, [2, ...]: positive, negative
    xi: Theta  # sum of the positive particle's perturbations in this episode
    mean: State  # inner state of the third particle


def analytic_pes(problem: UnrolledProblem, *, sigma: float, truncation: int, chunk: int = 1) -> Estimator:
    """PES in which an exact gradient replaces the estimate from the newest perturbation.

    The third particle gives ``p``, the gradient of the window's loss with its first state held constant. The
    newest perturbation ``epsilon`` in ``xi`` gives PES a noisy estimate of the same gradient. Here p replaces
    that estimate, and only the older perturbations weight the rest of the difference of the losses::

        g = [p + xi_old (L(+) - L(-) - 2 epsilon . p) / (2 sigma^2)] / K

    - Bias: of order sigma^2 if the losses are not quadratic, since p is not smoothed.
    - Variance: less than that of PES.
    - Memory: that of PES, a third inner state, and the K inner states of the reverse pass.
    - Cost per update: about 6 K inner steps.

    Args:
      As for ``pes``; the problem must be differentiable.

    Returns:
      An estimator that carries a ``Trio``.

    Raises:
      UserError: the problem has no derivative.

    Source: Vicol, Metz, Sohl-Dickstein, ICML 2021, the variant with an analytic gradient (PES-A).
    """
    require_derivative(problem, "pes with the analytic control variate")

    def start(key: jax.Array, theta: Theta) -> Trio:
        inner = problem.init(key)
        return Trio(pair_of(inner), optax.tree.zeros_like(theta), inner)

    def window(
        theta: Theta, trio: Trio, position: jax.Array, noise_key: jax.Array, data_key: jax.Array
    ) -> Estimate:
        epsilon = perturbation(noise_key, theta, sigma)
        xi = optax.tree.add(trio.xi, epsilon)
        pair = unroll_pair(problem, theta, epsilon, trio.inner, position, data_key, truncation, chunk)
        direct, mean = unroll_with_gradient(problem, theta, trio.mean, position, data_key, truncation)
        expected = jnp.where(one_broke(pair), 0, optax.tree.vdot(epsilon, direct) / sigma**2)
        unexplained = slope(pair, sigma) - expected
        gradient = optax.tree.add(direct, optax.tree.scale(unexplained, trio.xi))
        return Estimate(gradient, Trio(pair.state, xi, mean.state), (pair, mean), xi)

    return episodic(problem, truncation, start, window)
