"""What a per-parameter network sees of a tensor: each feature is named and computed here, once.

A feature is an array whose trailing dimensions are those of the tensor, or a number that is the same
for the whole tensor (the time features).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

MOMENTUM_DECAYS = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
TIME_SCALES = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
SECOND_MOMENT_EPSILON = 1e-5


def init_momenta(param: jax.Array) -> jax.Array:
    """Zero momenta of one tensor, ``[len(MOMENTUM_DECAYS), *param.shape]``.

    The state is float32 whatever smaller dtype the parameter has (float64 for float64): a momentum
    with decay 0.9999 gains at most 1e-4 of the gradient a step, which bfloat16 would round away.
    """
    dtype = jnp.promote_types(param.dtype, jnp.float32)
    return jnp.zeros((len(MOMENTUM_DECAYS), *param.shape), dtype)


def update_momenta(momenta: jax.Array, gradient: jax.Array) -> jax.Array:
    """Exponential moving averages of the gradient, ``m <- d m + (1 - d) g`` for each decay d."""
    decays = jnp.array(MOMENTUM_DECAYS, momenta.dtype)
    decays = decays.reshape(-1, *[1] * gradient.ndim)
    return decays * momenta + (1 - decays) * gradient


def time_features(count: jax.Array) -> jax.Array:
    """Where in training the step is: ``tanh(count / tau - 1)`` for 11 time scales, ``[11]``.

    Args:
      count: steps taken before this one, an integer scalar.
    """
    return jnp.tanh(count / jnp.array(TIME_SCALES, jnp.float32) - 1)


def rms_scale(features: jax.Array) -> jax.Array:
    """Factor that brings each feature of a tensor to unit root mean square.

    ``1 / sqrt(epsilon + mean(x^2))`` over the entries of the tensor, so that the network is blind to
    the scale of the loss and of the parameters.

    Args:
      features: ``[k, n]``, k features of the n parameters of one tensor.

    Returns:
      ``[k]``, to be multiplied with the features.
    """
    return jax.lax.rsqrt(SECOND_MOMENT_EPSILON + jnp.mean(jnp.square(features), axis=1))
