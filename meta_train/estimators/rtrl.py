"""Real-time recurrent learning: the exact gradient in forward mode."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from inner_tasks import UnrolledProblem
from learned_opt import UserError
from meta_train.estimators.base import Estimator, State, Theta, require_derivative
from meta_train.estimators.episodes import Estimate, episodic
from meta_train.estimators.moving import Moving, moving_part, window_map
from meta_train.estimators.window import finite_or_zero

# The most entries of theta for which a sensitivity per entry is practical.
MAX_ENTRIES = 1024


class Sensitive(NamedTuple):
    """One particle, and the derivative of its state with respect to theta."""

    inner: State
    sensitivity: Moving  # d(state) / d(theta), each [entries of theta, ...]


def rtrl(problem: UnrolledProblem, *, truncation: int) -> Estimator:
    """Real-time recurrent learning with one unperturbed particle.

    Forward-mode differentiation carries the sensitivity ``S_t = d s_t / d theta`` along::

        S_t = (ds_t / ds_{t-1}) S_{t-1} + ds_t / d theta
        g = sum over the window of [(dL_t / ds_{t-1}) S_{t-1} + dL_t / d theta] / K

    - Bias: none. (While theta moves, S mixes the sensitivities at the thetas of the episode so far, as xi
      does in PES.)
    - Variance: only that of the data. In chaotic problems the gradient itself can explode.
    - Memory: one inner state for each of the P entries of theta, whatever T and K, so theta must be small.
    - Cost per update: about 2 P K inner steps.

    Args:
      problem: what is unrolled; it must be differentiable.
      truncation: K, steps per window; it need not divide T. Here it only sets how often theta moves.

    Returns:
      An estimator that carries a ``Sensitive``.

    Raises:
      UserError: the problem has no derivative; or, at the start, theta has more than 1,024 entries.

    Source: Williams, Zipser, "A Learning Algorithm for Continually Running Fully Recurrent Neural Networks",
    Neural Computation 1989.
    """
    require_derivative(problem, "rtrl")

    def start(key: jax.Array, theta: Theta) -> Sensitive:
        entries = sum(leaf.size for leaf in jax.tree.leaves(theta))
        if entries > MAX_ENTRIES:
            raise UserError(
                "the estimator 'rtrl' carries a derivative of the inner state for every entry of theta; this "
                f"theta has {entries:,} entries, and at most {MAX_ENTRIES:,} are allowed. Choose a smaller "
                "optimizer, or another unbiased estimator: pes, nres, full-es, bptt or uoro"
            )
        inner = problem.init(key)
        return Sensitive(inner, [jnp.zeros((entries, *x.shape), x.dtype) for x in moving_part(inner)])

    def window(
        theta: Theta, particle: Sensitive, position: jax.Array, noise_key: jax.Array, data_key: jax.Array
    ) -> Estimate:
        del noise_key
        run = window_map(problem, particle.inner, position, data_key, truncation)
        flat, unravel = ravel_pytree(theta)

        def along(direction: jax.Array, tangent: Moving) -> tuple:
            """Derivatives along one entry of theta; the window itself is the same for all."""
            tangents = (unravel(direction), tangent)
            _, (slope, moved), unrolled = jax.jvp(
                run, (theta, moving_part(particle.inner)), tangents, has_aux=True
            )
            return slope, moved, unrolled

        gradient, sensitivity, unrolled = jax.vmap(along, out_axes=(0, 0, None))(
            jnp.eye(flat.size, dtype=flat.dtype), particle.sensitivity
        )
        if problem.max_loss is not None:
            gradient = finite_or_zero(gradient)
        return Estimate(unravel(gradient), Sensitive(unrolled.state, sensitivity), (unrolled,))

    return episodic(problem, truncation, start, window)
