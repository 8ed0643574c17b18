"""The mean of theta over the last updates, which has less noise than the last theta."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from meta_train.estimators.base import Theta


class AveragedState(NamedTuple):
    """State of an outer optimizer with an average."""

    updates: jax.Array  # number of updates so far, int32 []
    mean: Theta  # of theta, over the updates after the first `start`
    optimizer: Any  # state of the optimizer itself


def averaged(optimizer: optax.GradientTransformation, start: int) -> optax.GradientTransformation:
    """An outer optimizer that moves theta in the same way, and keeps the mean of theta.

    With theta_i after update i, the mean after n updates is that of theta_i for start < i <= n; before, it is
    theta itself. Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992.

    Args:
      optimizer: the outer optimizer.
      start: number of updates that do not count.
    """

    def init(theta: Theta) -> AveragedState:
        return AveragedState(jnp.zeros((), jnp.int32), theta, optimizer.init(theta))

    def update(
        gradient: Theta, state: AveragedState, theta: Theta | None = None
    ) -> tuple[Theta, AveragedState]:
        updates, moved = optimizer.update(gradient, state.optimizer, theta)
        number = optax.safe_increment(state.updates)
        share = 1 / jnp.maximum(1, number - start)
        after = optax.apply_updates(theta, updates)
        mean = optax.incremental_update(after, state.mean, share)
        return updates, AveragedState(number, mean, moved)

    return optax.GradientTransformation(init, update)
