"""Agreement of the meta-gradients of many updates: a signal even when noise dominates each single update."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from meta_train.estimators.base import Theta

# The running mean covers about 1 / (1 - DECAY) updates.
DECAY = 0.99


class Agreement(NamedTuple):
    """Running means over the updates so far; they start from zero."""

    mean: Theta  # of the meta-gradient
    square: jax.Array  # of its squared norm, float32 []
    updates: jax.Array  # number of updates, int32 []


def no_agreement(theta: Theta) -> Agreement:
    """The running means before the first update."""
    return Agreement(optax.tree.zeros_like(theta), jnp.zeros(()), jnp.zeros((), jnp.int32))


def agreed(agreement: Agreement, gradient: Theta) -> Agreement:
    """The running means after one more meta-gradient; a non-finite one is left out."""

    def averaged(mean: jax.Array, value: jax.Array) -> jax.Array:
        return DECAY * mean + (1 - DECAY) * value

    square = optax.tree.norm(gradient, squared=True)
    after = Agreement(
        jax.tree.map(averaged, agreement.mean, gradient),
        averaged(agreement.square, square).astype(jnp.float32),
        agreement.updates + 1,
    )
    return optax.tree.where(jnp.isfinite(square), after, agreement)


def snr_across(agreement: Agreement) -> jax.Array:
    """Norm of the running mean of the meta-gradient over its standard error, float32 []; NaN before update 2.

    With weights w_i of the updates so far (they add up to 1, the newest has the most), ``s = sum w_i^2``,
    and m and q the weighted means of the meta-gradient and of its squared norm::

        snr = |m| / sqrt(s V),    V = (q - |m|^2) / (1 - s)

    V estimates the trace of the covariance of a meta-gradient, if the meta-gradients are independent. Pure
    noise gives 1, with a scatter of about 1 / sqrt(2 P) for P weights of about equal noise. A constant
    gradient mu gives ``sqrt(1 + |mu|^2 / (s V))``, and s falls to 1/199; so a gradient of a fourteenth of the
    noise of one update gives 1.4.
    """
    power = DECAY**agreement.updates
    share = 1 - power
    s = (1 - DECAY) / (1 + DECAY) * (1 + power) / share
    square_mean = optax.tree.norm(agreement.mean, squared=True) / share**2
    variance = (agreement.square / share - square_mean) / (1 - s)
    enough = (agreement.updates > 1) & (variance > 0)
    return jnp.where(enough, jnp.sqrt(square_mean / (s * jnp.where(enough, variance, 1))), jnp.nan)
