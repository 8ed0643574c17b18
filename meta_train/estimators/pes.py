"""Persistent Evolution Strategies: an unbiased meta-gradient from short unrolls."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from inner_tasks import UnrolledProblem
from learned_opt import UserError
from meta_train.estimators.antithetic import pair_of, perturbation, slope, unroll_pair
from meta_train.estimators.base import Estimator, State, Theta, require_derivative
from meta_train.estimators.episodes import Estimate, episodic
from meta_train.estimators.window import unroll_with_gradient


class Pair(NamedTuple):
    """One antithetic pair of particles."""

    inner: State  # inner states of both members, [2, ...]: positive, negative
    xi: Theta  # sum of the perturbations that the positive member has met in this episode
    epsilon: Theta  # the newest of them
    reuse: jax.Array  # int32 [], windows that epsilon has still to serve
    mean: State | None  # inner state that no perturbation touches; None unless `analytic`


def pes(
    problem: UnrolledProblem,
    *,
    sigma: float,
    truncation: int,
    chunk: int = 1,
    perturbation_period: int | None = None,
    analytic: bool = False,
) -> Estimator:
    """PES with one antithetic pair.

    The two members keep their own inner states from window to window. Each window perturbs theta anew,
    by ``+epsilon`` and ``-epsilon`` with ``epsilon ~ N(0, sigma^2 I)``, and its summed loss is weighted
    with all the perturbations that have acted on the state so far in the episode::

        xi <- xi + epsilon
        g = xi (L(+) - L(-)) / (2 sigma^2 K)

    At the end of an episode both members restart, from the same initial state, with xi = 0.

    - Bias: none. In expectation g is the gradient of the Gaussian-smoothed window loss with respect to
      the theta of *every* step of the episode so far.
    - Variance: between a constant (all windows have the same gradient) and linear growth in the number of
      windows of an episode (they are independent).
    - Memory: two inner states and two copies of theta, whatever T and K.
    - Cost per update: 2 K inner steps. With `analytic` a third particle and its reverse-mode gradient,
      about 6 K, and the memory of K inner states.

    Args:
      problem: what is unrolled.
      sigma: standard deviation of the perturbations.
      truncation: K, steps per window; it need not divide T (the last window is then shorter).
      chunk: particles unrolled at once: 1, or 2 and more for both members together.
      perturbation_period: steps after which a new perturbation is drawn, a multiple of K; None is K.
        Longer periods are noise reuse, see ``noise_reuse.py``.
      analytic: use the derivative of the window as a control variate. A third, unperturbed particle gives
        ``p``, the gradient of the window's loss with its first state held constant. It takes the place of
        what the newest perturbation would estimate of it, with noise::

            g = [p + xi_old (L(+) - L(-) - 2 epsilon . p) / (2 sigma^2)] / K

        p is not smoothed: so the estimate has a bias of order sigma^2, where the losses are not quadratic.

    Returns:
      An estimator that carries a ``Pair``.

    Raises:
      UserError: the period is no multiple of K; or `analytic` with a problem that has no derivative, or
        with a longer period.

    Source: Vicol, Metz, Sohl-Dickstein, "Unbiased Gradient Estimation in Unrolled Computation Graphs
    with Persistent Evolution Strategies", ICML 2021, Algorithm 2.
    """
    period = truncation if perturbation_period is None else perturbation_period
    if period < 1 or period % truncation and period < problem.horizon:
        raise UserError(
            f"the perturbation period is {period} steps; it must be a multiple of the truncation length "
            f"K = {truncation}, or at least the horizon T = {problem.horizon}"
        )
    if analytic:
        require_derivative(problem, "pes with the analytic control variate")
        if period != truncation:
            raise UserError(
                f"the analytic control variate is for a new perturbation in every window of K = {truncation} "
                f"steps, but the perturbation period is {period}; leave one of the two out"
            )

    def start(key: jax.Array, theta: Theta) -> Pair:
        inner, zero = problem.init(key), optax.tree.zeros_like(theta)
        return Pair(pair_of(inner), zero, zero, jnp.zeros((), jnp.int32), inner if analytic else None)

    def window(
        theta: Theta, pair: Pair, position: jax.Array, noise_key: jax.Array, data_key: jax.Array
    ) -> Estimate:
        redraw = pair.reuse == 0
        epsilon = optax.tree.where(redraw, perturbation(noise_key, theta, sigma), pair.epsilon)
        xi = optax.tree.where(redraw, optax.tree.add(pair.xi, epsilon), pair.xi)
        members = unroll_pair(problem, theta, epsilon, pair.inner, position, data_key, truncation, chunk)
        weight, windows, mean = slope(members, sigma), (members,), None
        gradient = optax.tree.scale(weight, xi)
        if analytic:
            direct, centre = unroll_with_gradient(problem, theta, pair.mean, position, data_key, truncation)
            unforeseen = weight - optax.tree.vdot(epsilon, direct) / sigma**2
            gradient = optax.tree.add(direct, optax.tree.scale(unforeseen, pair.xi))
            windows, mean = (members, centre), centre.state

        reuse = jnp.where(redraw, -(-period // truncation), pair.reuse) - 1
        return Estimate(gradient, Pair(members.state, xi, epsilon, reuse, mean), windows, xi)

    return episodic(problem, truncation, start, window)
