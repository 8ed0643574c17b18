"""SGD with momentum, with a learned schedule and a learned decay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax

from learned_opt._src.architectures import features as ft
from learned_opt._src.architectures.tunable import inverse_time_decay, tunable
from learned_opt._src.learned_optimizer import LearnedOptimizer

INITIAL = {
    "log_learning_rate": -4.0,  # 0.018
    "log_power": -1.0,
    "momentum": 2.0,  # sigmoid: 0.88
}


class Accumulators(NamedTuple):
    """Accumulators of one tensor."""

    momenta: jax.Array


ZERO = Accumulators(ft.starting(ft.zeros))


def heavy_ball(
    gradient: jax.Array, accumulators: Accumulators, rate: jax.Array, decay: jax.Array | float
) -> tuple[jax.Array, Accumulators]:
    """The step ``- rate m`` along the momentum ``m <- decay m + g``, and the momentum."""
    momenta = decay * accumulators.momenta + gradient
    return -rate * momenta, Accumulators(momenta)


def sgdm(*, per_block: bool = False) -> LearnedOptimizer:
    """SGD with heavy-ball momentum, with 3 learned numbers (3 for each tensor with `per_block`).

    ``m <- beta m + g; update = - lr_t m``, with ``beta = sigmoid(momentum)`` and the schedule
    ``lr_t`` of ``inverse_time_decay``. The gradient and the step number are the only inputs.

    Polyak, "Some methods of speeding up the convergence of iteration methods", 1964; hyperparameters
    for each block as in Vicol et al., ICML 2021.
    """

    def rule(
        own: Mapping[str, jax.Array], gradient: jax.Array, accumulators: Accumulators, count: jax.Array
    ) -> tuple[jax.Array, Accumulators]:
        rate = inverse_time_decay(own["log_learning_rate"], own["log_power"], count)
        return heavy_ball(gradient, accumulators, rate, jax.nn.sigmoid(own["momentum"]))

    return tunable(rule, ZERO, INITIAL, per_block=per_block)
