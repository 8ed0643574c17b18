"""Backpropagation through time, truncated or full."""

from __future__ import annotations

import jax

from inner_tasks import UnrolledProblem
from meta_train.estimators.base import Estimator, State, Theta, require_derivative
from meta_train.estimators.episodes import Estimate, episodic
from meta_train.estimators.window import unroll_with_gradient


def tbptt(problem: UnrolledProblem, *, truncation: int) -> Estimator:
    """Truncated backpropagation through time with one unperturbed particle.

    ``g = d(L_{t+1} + ... + L_{t+K}) / d theta / K``, with the state s_t held constant.

    - Bias: that of truncated ES: it ignores the effect of theta on the state before the window.
    - Variance: only that of the data. In chaotic problems the gradient itself can explode.
    - Memory: K inner states and one inner step, since the reverse pass recomputes each step.
    - Cost per update: K inner steps, their recomputation and their derivative: about 4 K inner steps.

    Args:
      problem: what is unrolled; it must be differentiable.
      truncation: K, steps per window; it need not divide T.

    Returns:
      An estimator that carries one inner state.

    Raises:
      UserError: the problem has no derivative.

    Source: Williams, Peng, "An Efficient Gradient-Based Algorithm for On-Line Training of Recurrent Network
    Trajectories", Neural Computation 1990.
    """
    require_derivative(problem, "tbptt")

    def start(key: jax.Array, theta: Theta) -> State:
        del theta
        return problem.init(key)

    def window(
        theta: Theta, inner: State, position: jax.Array, noise_key: jax.Array, data_key: jax.Array
    ) -> Estimate:
        del noise_key
        gradient, unrolled = unroll_with_gradient(problem, theta, inner, position, data_key, truncation)
        return Estimate(gradient, unrolled.state, (unrolled,))

    return episodic(problem, truncation, start, window)


def bptt(problem: UnrolledProblem) -> Estimator:
    """Full backpropagation through time: the exact gradient of an episode, K = T.

    - Bias: none. Variance: only that of the data. In chaotic problems the gradient can explode.
    - Memory: T inner states, and one inner step.
    - Cost per update: about 4 T inner steps.

    Args:
      problem: what is unrolled; it must be differentiable.

    Raises:
      UserError: the problem has no derivative.

    Source: Werbos, "Backpropagation Through Time: What It Does and How to Do It", Proc. IEEE 1990.
    """
    return tbptt(problem, truncation=problem.horizon)
