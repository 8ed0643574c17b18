"""The interface of an estimator of meta-gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from inner_tasks import UnrolledProblem
from learned_opt import UserError

Theta = Any  # pytree of float arrays: the weights that are learned
State = Any  # pytree of arrays that an estimator carries from update to update
Info = dict[str, jax.Array]  # the sums of an estimate by name (``meta_train.estimators.metrics``)


class Estimator(NamedTuple):
    """Two pure functions, like an optax transformation.

    Two conventions hold for every estimator of this package:

    - It estimates the gradient of ``(sum of the losses of the window's real steps) / K``, where K is the
      truncation length, a constant. So the estimates of one episode, times K, add up to the gradient of the
      episode's summed loss, even if K does not divide the horizon T.
    - An estimator is a single unit: one antithetic pair of particles, or one unperturbed particle. A
      population averages many of them and is an estimator again (``meta_train.outer.population``).

    Attributes:
      init: ``(key, theta, phase) -> state``; phase in [0, 1) is the share of an episode that counts as
        already done, so that the particles of a population do not all restart at once.
      estimate: ``(theta, state, key) -> (gradient, state, info)``; the gradient has theta's structure.
    """

    init: Callable[[jax.Array, Theta, jax.Array | float], State]
    estimate: Callable[[Theta, State, jax.Array], tuple[Theta, State, Info]]


def require_derivative(problem: UnrolledProblem, name: str) -> None:
    """Reject a problem whose losses have no useful derivative.

    Raises:
      UserError: the problem is marked as not differentiable.
    """
    if not problem.differentiable:
        raise UserError(
            f"the estimator '{name}' differentiates the losses of the task, but those of this task have no "
            "derivative (its differentiable is False, as for an accuracy); choose an estimator that needs "
            "only their values: pes, nres, gpes, full-es or truncated-es"
        )
