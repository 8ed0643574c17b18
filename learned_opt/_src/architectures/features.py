"""What a per-parameter network sees of a tensor: each accumulator and feature is named and computed here.

A group of k features (or accumulators, one for each of k decays) of a tensor is an array ``[k, *shape]``.
Nothing here flattens a tensor or mixes its entries except by means over its dimensions: so it works on
tensors that are spread over devices without gathering them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Decays = Sequence[float] | jax.Array  # [k]

TIME_SCALES = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)  # steps


def state_dtype(param: jax.Array) -> jnp.dtype:
    """Dtype of what is accumulated for a parameter: float32 for anything smaller, float64 for float64.

    A momentum with decay 0.9999 gains at most 1e-4 of the gradient a step, which bfloat16 would round away.
    """
    return jnp.promote_types(param.dtype, jnp.float32)


def zeros(param: jax.Array) -> jax.Array:
    """Zeros of the shape of a parameter, on the devices that it lies on."""
    zeros = jnp.zeros_like(param, state_dtype(param))
    if not isinstance(param, jax.core.Tracer):
        return zeros
    # Under ``jit`` a constant may be placed anywhere; what comes from the parameter lies where it does.
    return jnp.where(jnp.isnan(param), zeros, zeros)


def accumulator(param: jax.Array, count: int) -> jax.Array:
    """Zeros ``[count, *param.shape]``, on the devices that the parameter lies on."""
    return jnp.broadcast_to(zeros(param)[None], (count, *param.shape))


def starting(make: Callable[..., jax.Array], **settings: int) -> Any:
    """The function ``param -> array`` that stands in the place of an array before there are parameters."""
    return partial(make, **settings)


def averaged(average: jax.Array, value: jax.Array, decays: Decays) -> jax.Array:
    """Exponential moving averages, ``a <- d a + (1 - d) x`` for each decay d.

    Args:
      average: ``[k, *shape]``, the averages so far.
      value: x, of the shape of each.
      decays: k decays.
    """
    decays = jnp.asarray(decays, average.dtype).reshape(-1, *[1] * (average.ndim - 1))
    return decays * average + (1 - decays) * value[None]


class Clock(NamedTuple):
    """Where in its training run a step is."""

    step: jax.Array  # steps taken before this one, int32 []
    num_steps: jax.Array  # steps of the whole run, float32 []; infinite if that is not known


def time_features(count: jax.Array, scales: Sequence[float] = TIME_SCALES) -> jax.Array:
    """Where in training the step is: ``tanh(count / tau - 1)`` for each time scale tau, ``[scales, 1]``.

    Args:
      count: steps taken before this one, an integer scalar.
      scales: the time scales, in steps.
    """
    return jnp.tanh(count / jnp.array(scales, jnp.float32) - 1)[:, None]


def finite(x: jax.Array) -> jax.Array:
    """Zeros in the place of entries that are not finite, one of which would spoil a mean over the tensor."""
    return jnp.where(_is_finite(x), x, jnp.zeros_like(x))


def allowed(step: jax.Array, gradient: jax.Array, slowest: jax.Array) -> jax.Array:
    """The step of each entry that may take it.

    An entry without any gradient so far stays, as the row of a word does that has not been seen. One whose
    gradient is not finite gets a step that is not finite, as from other optimizers.

    Args:
      step: the steps, as of finite gradients.
      gradient: the gradients as they came.
      slowest: an average of all finite gradients so far, or of their squares.
    """
    step = jnp.where(slowest != 0, step, jnp.zeros_like(step))
    return jnp.where(_is_finite(gradient), step, jnp.full_like(step, jnp.nan))


def _is_finite(x: jax.Array) -> jax.Array:
    """``jnp.isfinite`` of what a kernel for GPUs can compute."""
    return jnp.abs(x) < jnp.inf
