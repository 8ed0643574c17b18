"""The mean of many copies of an estimator, inside one compiled program."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from meta_train.estimators.base import Estimator, Info, State, Theta


def mean_of(estimator: Estimator, units: int) -> Estimator:
    """The average of many copies of an estimator in step with each other, as one estimator.

    It can be used inside ``scan`` and ``vmap``, which makes it fast for tiny inner steps. A meta-training run
    uses ``meta_train.outer.population`` instead, which spreads its units over devices.

    Args:
      estimator: one unit: an antithetic pair, or a particle.
      units: number of copies, each with its own state and randomness.
    """

    def init(key: jax.Array, theta: Theta, phase: jax.Array | float = 0.0) -> State:
        return jax.vmap(lambda key: estimator.init(key, theta, phase))(jax.random.split(key, units))

    def estimate(theta: Theta, state: State, key: jax.Array) -> tuple[Theta, State, Info]:
        each = jax.vmap(estimator.estimate, in_axes=(None, 0, 0))
        gradients, state, info = each(theta, state, jax.random.split(key, units))
        gradient = jax.tree.map(lambda x: jnp.mean(x, axis=0), gradients)
        return gradient, state, jax.tree.map(lambda x: jnp.sum(x, axis=0), info)

    return Estimator(init, estimate)
