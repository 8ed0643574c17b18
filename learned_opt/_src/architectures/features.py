"""Accumulators and features shared by the per-parameter networks.

A group of k features (or accumulators, one for each of k decays) of a tensor is an array ``[k, *shape]``.
Nothing here flattens a tensor or mixes its entries, except in means over its dimensions; tensors that are
sharded over devices are not gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Decays = Sequence[float] | jax.Array  # [k]
Feature = tuple[Literal["gradient", "param", "momenta"], float]  # source and factor

# Entries beyond this count as this large, so that means of their squares do not overflow.
LARGEST = 1e15
TIME_SCALES = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)  # steps


def state_dtype(param: jax.Array) -> jnp.dtype:
    """Dtype of a parameter's accumulators: float64 for float64, float32 for all others.

    A momentum with decay 0.9999 gains at most 1e-4 of the gradient per step, which bfloat16 would round away.
    """
    return jnp.promote_types(jax.dtypes.canonicalize_dtype(param.dtype), jnp.float32)


def zeros(param: jax.Array) -> jax.Array:
    """Zeros of the shape of a parameter, on the same devices."""
    zeros = jnp.zeros_like(param, state_dtype(param))
    if not isinstance(param, jax.core.Tracer):
        return zeros
    # Under ``jit`` a constant may be placed anywhere; a value computed from the parameter stays with it.
    return jnp.where(jnp.isnan(param), zeros, zeros)


def accumulator(param: jax.Array, count: int) -> jax.Array:
    """Zeros ``[count, *param.shape]``, on the devices of the parameter."""
    return jnp.broadcast_to(zeros(param)[None], (count, *param.shape))


def numbers(param: jax.Array, count: int) -> jax.Array:
    """Zeros ``[count]``, on the devices of the parameter."""
    return jnp.broadcast_to(zeros(param).sum(), (count,))


def starting(make: Callable[..., jax.Array], **settings: int) -> Any:
    """A function ``param -> array``: a placeholder for an array until there are parameters."""
    return partial(make, **settings)


def averaged(average: jax.Array, value: jax.Array, decays: Decays) -> jax.Array:
    """Exponential moving averages, ``a <- d a + (1 - d) x`` for each decay d.

    Args:
      average: ``[k, *shape]``, the averages so far.
      value: x, ``[*shape]``.
      decays: k decays.
    """
    decays = jnp.asarray(decays, average.dtype).reshape(-1, *[1] * (average.ndim - 1))
    return decays * average + (1 - decays) * value[None]


def rows_and_factors(features: Sequence[Feature], momenta: int) -> tuple[np.ndarray, np.ndarray]:
    """The row that each feature is a multiple of, and its factor: int32 and float32, ``[features]``.

    The rows of a tensor are its gradient, its parameter and its k new momenta.

    Args:
      features: the features of a parameter, in order; momenta count as k features.
      momenta: k.
    """
    rows = {"gradient": [0], "param": [1], "momenta": list(range(2, 2 + momenta))}
    each = [(row, factor) for source, factor in features for row in rows[source]]
    sources, factors = zip(*each, strict=True)
    return np.array(sources, np.int32), np.array(factors, np.float32)


class Clock(NamedTuple):
    """The position of a step in its training run."""

    step: jax.Array  # steps taken before this one, int32 []
    num_steps: jax.Array  # number of steps of the run, float32 []; infinite if unknown


def bias_correction(decay: jax.Array, count: jax.Array) -> jax.Array:
    """``1 / (1 - decay^(t + 1))``: averages that start from zero are too small by its inverse.

    Multiply by it. In some programs XLA makes such a product of a quotient by a number, and in others it does
    not, so with quotients a run would have other bits on one device than on two.

    Args:
      decay: of the average.
      count: t, steps taken before this one.
    """
    return 1 / (1 - decay ** (count + 1))


def time_features(count: jax.Array, scales: Sequence[float] = TIME_SCALES) -> jax.Array:
    """Features of the step number: ``tanh(count / tau - 1)`` for each time scale tau, ``[scales, 1]``.

    Args:
      count: steps taken before this one, an integer scalar.
      scales: the time scales, in steps.
    """
    return jnp.tanh(count / jnp.array(scales, jnp.float32) - 1)[:, None]


def finite(x: jax.Array) -> jax.Array:
    """Replace non-finite entries by zeros and clip others at ``LARGEST``: any could spoil a mean."""
    return jnp.where(_is_finite(x), jnp.clip(x, -LARGEST, LARGEST), jnp.zeros_like(x))


def allowed(step: jax.Array, gradient: jax.Array, slowest: jax.Array) -> jax.Array:
    """Zero the steps of entries without any gradient so far, and pass on non-finite gradients.

    An entry that has had no gradient stays, such as the embedding of a word not seen yet. An entry whose
    gradient is not finite gets a step of NaN.

    Args:
      step: the steps, computed from finite gradients.
      gradient: the unmodified gradients.
      slowest: an average of all finite gradients so far, or of their squares.
    """
    step = jnp.where(slowest != 0, step, jnp.zeros_like(step))
    return jnp.where(_is_finite(gradient), step, jnp.full_like(step, jnp.nan))


def _is_finite(x: jax.Array) -> jax.Array:
    """``jnp.isfinite``, in operations that a GPU kernel can compute."""
    return jnp.abs(x) < jnp.inf
