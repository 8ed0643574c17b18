"""What an estimator of meta-gradients is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from inner_tasks import UnrolledProblem
from learned_opt import UserError

Theta = Any  # pytree of float arrays: what is learned
State = Any  # pytree of arrays: what an estimator carries from update to update


class Info(NamedTuple):
    """Diagnostics of one estimate, all float32 scalars.

    They are sums, so that those of many particles add up.
    """

    loss: jax.Array  # sum of the losses of the real steps, clipped where the problem clips
    square_loss: jax.Array  # sum, over particles, of the square of that
    members: jax.Array  # particles that were unrolled
    steps: jax.Array  # real inner steps, of all that was unrolled: those inside an episode
    clipped: jax.Array  # steps whose loss was finite and clipped
    nonfinite: jax.Array  # steps whose loss was not finite
    dropped: jax.Array  # antithetic pairs that count for nothing: one member had a loss that was not finite
    episodes: jax.Array  # episodes completed
    xi_norm: jax.Array  # norm of the accumulated perturbation; 0 where nothing is perturbed
    units: jax.Array  # antithetic pairs (or single particles) summed over


class Estimator(NamedTuple):
    """Two pure functions, in the way of an optax transformation.

    Two conventions hold for every estimator of this package:

    - The estimate is of the gradient of ``(sum of the losses of the window's real steps) / K``, where K is
      the truncation length, a constant. So the estimates of one episode, times K, add up to the gradient
      of the episode's sum of losses, even when K does not divide the horizon T.
    - An estimator is a single unit: one antithetic pair of particles, or one particle that is not perturbed.
      A population averages many of them and is an estimator again (``meta_train.outer.population``).

    Attributes:
      init: ``(key, theta, phase) -> state``; phase in [0, 1) is the share of an episode that counts as
        passed already, so that the particles of a population do not all restart at once.
      estimate: ``(theta, state, key) -> (gradient, state, info)``; the gradient has theta's structure.
    """

    init: Callable[[jax.Array, Theta, jax.Array | float], State]
    estimate: Callable[[Theta, State, jax.Array], tuple[Theta, State, Info]]


def require_derivative(problem: UnrolledProblem, name: str) -> None:
    """Refuse a problem whose losses have no useful derivative.

    Raises:
      UserError: the problem says that it is not differentiable.
    """
    if not problem.differentiable:
        raise UserError(
            f"the estimator '{name}' differentiates the losses of the task, but this task says that they "
            "have no derivative (differentiable is False, as for an accuracy); choose an estimator that "
            "needs only their values: pes, nres, gpes, full-es or truncated-es"
        )
