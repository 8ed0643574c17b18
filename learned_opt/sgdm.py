"""SGD with momentum whose schedule and momentum are learned."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import optax

from learned_opt.base import LearnedOptimizer
from learned_opt.tunable import inverse_time_decay, tunable

INITIAL = {
    "log_learning_rate": -4.0,  # 0.018
    "log_power": -1.0,
    "momentum": 2.0,  # sigmoid: 0.88
}


def sgdm(*, per_block: bool = False) -> LearnedOptimizer:
    """SGD with heavy-ball momentum, 3 learned numbers (3 for each tensor with `per_block`).

    ``m <- beta m + g; update = - lr_t m``, with ``beta = sigmoid(momentum)`` and the schedule
    ``lr_t`` of ``inverse_time_decay``. There are no other inputs than the gradient and the step number.

    Polyak, "Some methods of speeding up the convergence of iteration methods", 1964; hyperparameters
    for each block as in Vicol et al., ICML 2021.
    """

    def make(own: Mapping[str, jax.Array], count: jax.Array) -> optax.GradientTransformation:
        rate = inverse_time_decay(own["log_learning_rate"], own["log_power"], count)
        return optax.sgd(rate, momentum=jax.nn.sigmoid(own["momentum"]))

    return tunable(make, INITIAL, per_block=per_block)
