"""Adam with a learned schedule and learned decays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from learned_opt._src.architectures import features as ft
from learned_opt._src.architectures.tunable import inverse_time_decay, tunable
from learned_opt._src.learned_optimizer import LearnedOptimizer

INITIAL = {
    "log_learning_rate": -4.0,  # 0.018
    "log_power": -1.0,
    "first_decay": 2.0,  # sigmoid: 0.88
    "second_decay": 5.0,  # sigmoid: 0.993
    "log_epsilon": -18.0,  # 1.5e-8
}


class Accumulators(NamedTuple):
    """Accumulators of one tensor."""

    momenta: jax.Array
    moments: jax.Array  # second moments


def adam(*, per_block: bool = False) -> LearnedOptimizer:
    """Adam with 5 learned numbers (5 for each tensor with `per_block`).

    ``update = - lr_t m / (sqrt(v) + epsilon)`` with bias-corrected averages m and v of the gradient and its
    square, decays ``sigmoid(first_decay)`` and ``sigmoid(second_decay)``, and the schedule ``lr_t`` of
    ``inverse_time_decay``. The gradient and the step number are the only inputs.

    Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015.
    """

    def rule(
        own: Mapping[str, jax.Array], gradient: jax.Array, accumulators: Accumulators, count: jax.Array
    ) -> tuple[jax.Array, Accumulators]:
        rate = inverse_time_decay(own["log_learning_rate"], own["log_power"], count)
        first, second = jax.nn.sigmoid(own["first_decay"]), jax.nn.sigmoid(own["second_decay"])
        momenta = first * accumulators.momenta + (1 - first) * gradient
        moments = second * accumulators.moments + (1 - second) * jnp.square(gradient)
        mean = ft.bias_correction(first, count) * momenta
        square = ft.bias_correction(second, count) * moments
        # The derivative of a root is infinite at 0.
        root = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
        update = -rate * mean / (root + jnp.exp(own["log_epsilon"]))
        return update, Accumulators(momenta, moments)

    return tunable(
        rule, Accumulators(ft.starting(ft.zeros), ft.starting(ft.zeros)), INITIAL, per_block=per_block
    )
