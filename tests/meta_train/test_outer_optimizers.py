"""Each outer optimizer against its formulas."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from learned_opt import UserError
from meta_train.commands.meta_train import parse
from meta_train.outer.optimizers import OUTER_OPTIMIZERS, OuterConfig, outer_optimizer, outer_step

UPDATES, WARM_UP, RATE, FRACTION = 40, 2, 0.1, 0.25


def by_hand(name: str, gradients: list[np.ndarray]) -> np.ndarray:
    """Theta after some updates from (1, -2), by the formulas of each optimizer."""
    theta = np.array([1.0, -2.0])
    mean, square, velocity = np.zeros(2), np.zeros(2), np.zeros(2)
    for number, gradient in enumerate(gradients):
        gradient = gradient / np.linalg.norm(gradient)
        cosine = (1 + np.cos(np.pi * number / UPDATES)) / 2
        rate = RATE * ((1 - FRACTION) * cosine + FRACTION) * min(1, (number + 1) / (WARM_UP + 1))
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        velocity = 0.9 * velocity + gradient
        unbiased = mean / (1 - 0.9 ** (number + 1)), square / (1 - 0.999 ** (number + 1))
        step = unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
        theta = theta - rate * {"adam": step, "adamw": step + 1e-4 * theta, "sgdm": velocity}[name]
    return theta


@pytest.mark.parametrize("name", OUTER_OPTIMIZERS)
def test_theta_moves_as_the_formulas_say(name: str) -> None:
    """The norm becomes 1, then the optimizer's rule with the rate of the schedule."""
    gradients = [np.array(g) for g in ([3.0, 4.0], [0.1, -0.2], [-30.0, 1.0], [1.0, 1.0])]
    tx = outer_optimizer(OuterConfig(RATE, FRACTION, name), UPDATES)
    theta = jnp.array([1.0, -2.0])
    state = tx.init(theta)
    for gradient in gradients:
        theta, state, finite = outer_step(tx, theta, state, jnp.asarray(gradient, jnp.float32))
        assert finite
    np.testing.assert_allclose(theta, by_hand(name, gradients), rtol=1e-5)


def test_an_unknown_name_is_refused() -> None:
    assert parse(["--outer.optimizer", "sgdm"]).settings.outer.optimizer == "sgdm"
    with pytest.raises(UserError, match=r"unknown outer optimizer 'adamm'.*did you mean 'adam'"):
        parse(["--outer.optimizer", "adamm"])
