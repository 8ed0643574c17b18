"""What an estimator of meta-gradients is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from inner_tasks import UnrolledProblem
from learned_opt import UserError

Theta = Any  # pytree of float arrays: what is learned
State = Any  # pytree of arrays: what an estimator carries from update to update
Info = dict[str, jax.Array]  # what an estimate sums, by name (``meta_train.estimators.metrics``)


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
