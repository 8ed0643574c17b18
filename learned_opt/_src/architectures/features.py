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
import numpy as np

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


def averaged(average: jax.Array, value: jax.Array, decays: Decays) -> jax.Array:
    """Exponential moving averages, ``a <- d a + (1 - d) x`` for each decay d.

    Args:
      average: ``[k, *shape]``, the averages so far.
      value: x, of the shape of each.
      decays: k decays.
    """
    decays = jnp.asarray(decays, average.dtype).reshape(-1, *[1] * (average.ndim - 1))
    return decays * average + (1 - decays) * value[None]


class Factored(NamedTuple):
    """Second moments of a tensor as means over its rows and its columns (Adafactor).

    The columns are counted along the largest dimension of the tensor, the rows along the second largest. A
    tensor with fewer than two dimensions has full moments, as `columns`; its `rows` are of size 1, and zero.

    Shazeer and Stern, "Adafactor: adaptive learning rates with sublinear memory cost", ICML 2018.
    """

    rows: jax.Array  # [k, *shape], but 1 along the largest dimension
    columns: jax.Array  # [k, *shape], but 1 along the second largest


def factored_axes(shape: Sequence[int]) -> tuple[int, int] | None:
    """The second largest and the largest dimension of a tensor, or None if it has fewer than two."""
    if len(shape) < 2:
        return None
    order = np.argsort(shape, kind="stable")
    return int(order[-2]), int(order[-1])


def rows(param: jax.Array, count: int) -> jax.Array:
    """Zero moments of the rows of a tensor, for so many decays."""
    axes = factored_axes(param.shape)
    means = zeros(param).sum(None if axes is None else axes[1], keepdims=True)
    return jnp.broadcast_to(means[None], (count, *means.shape))


def columns(param: jax.Array, count: int) -> jax.Array:
    """Zero moments of the columns of a tensor, for so many decays."""
    axes = factored_axes(param.shape)
    means = zeros(param) if axes is None else zeros(param).sum(axes[0], keepdims=True)
    return jnp.broadcast_to(means[None], (count, *means.shape))


def update_factored(moments: Factored, gradient: jax.Array, decays: Decays) -> Factored:
    """Moving averages of the mean squared gradient of each row and each column."""
    square = jnp.square(gradient) + 1e-30
    axes = factored_axes(gradient.shape)
    if axes is None:
        return Factored(moments.rows, averaged(moments.columns, square, decays))
    second, largest = axes
    rows = averaged(moments.rows, square.mean(largest, keepdims=True), decays)
    columns = averaged(moments.columns, square.mean(second, keepdims=True), decays)
    return Factored(rows, columns)


def factored_inverse_roots(moments: Factored, shape: Sequence[int]) -> jax.Array:
    """``1 / sqrt`` of what the factored moments say the second moment of each parameter is, ``[k, *shape]``.

    ``rows * columns / mean(rows)``; the product is small where both are, hence the floors.
    """
    axes = factored_axes(shape)
    if axes is None:
        return _inverse_root(moments.columns + 1e-9)
    mean = moments.rows.mean(1 + axes[0], keepdims=True)
    return _inverse_root(moments.rows / (mean + 1e-9)) * _inverse_root(moments.columns)


def factored_features(moments: Factored, momenta: jax.Array) -> list[jax.Array]:
    """Rows, columns, both as ``1 / sqrt``, and the momenta over the root of the factored second moment.

    Args:
      moments: factored moments with k decays.
      momenta: ``[k, *shape]``.

    Returns:
      Five groups, each ``[k, *shape]``.
    """
    if factored_axes(momenta.shape[1:]) is None:
        rows = columns = moments.columns
        scaled = momenta * jax.lax.rsqrt(moments.columns + 1e-6)
    else:
        rows, columns = (jnp.broadcast_to(x, momenta.shape) for x in moments)
        scaled = momenta * factored_inverse_roots(moments, momenta.shape[1:])
    return [rows, columns, jax.lax.rsqrt(rows + 1e-8), jax.lax.rsqrt(columns + 1e-8), scaled]


class Accumulators(NamedTuple):
    """First and second moments of one tensor, full and factored, each with a few decays."""

    momenta: jax.Array  # [k_1, *shape]
    moments: jax.Array  # second moments, [k_2, *shape]
    factored: Factored  # factored second moments with k_3 decays


def starting(make: Callable[..., jax.Array], **settings: int) -> Any:
    """The function ``param -> array`` that stands in the place of an array before there are parameters."""
    return partial(make, **settings)


def initial_accumulators(momenta: int, moments: int, factored: int) -> Accumulators:
    """What ``Accumulators`` with so many decays of each start as: functions ``param -> array``."""
    return Accumulators(
        starting(accumulator, count=momenta),
        starting(accumulator, count=moments),
        Factored(starting(rows, count=factored), starting(columns, count=factored)),
    )


def accumulate(
    accumulators: Accumulators, gradient: jax.Array, momenta: Decays, moments: Decays, factored: Decays
) -> Accumulators:
    """The accumulators after one more gradient, with these decays."""
    return Accumulators(
        averaged(accumulators.momenta, gradient, momenta),
        averaged(accumulators.moments, jnp.square(gradient), moments),
        update_factored(accumulators.factored, gradient, factored),
    )


def time_features(count: jax.Array, scales: Sequence[float] = TIME_SCALES) -> jax.Array:
    """Where in training the step is: ``tanh(count / tau - 1)`` for each time scale tau.

    Args:
      count: steps taken before this one, an integer scalar.
      scales: the time scales, in steps.
    """
    return jnp.tanh(count / jnp.array(scales, jnp.float32) - 1)


def rms_scale(features: jax.Array, epsilon: float) -> jax.Array:
    """Factor that brings each feature of a tensor to unit root mean square.

    ``1 / sqrt(epsilon + mean(x^2))`` over the entries of the tensor, so that the network is blind to
    the scale of the loss and of the parameters.

    Args:
      features: ``[k, *shape]``.
      epsilon: keeps features that are all but zero from being blown up.

    Returns:
      ``[k]``, to be multiplied with the features.
    """
    return jax.lax.rsqrt(epsilon + jnp.mean(jnp.square(features), axis=tuple(range(1, features.ndim))))


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


def _inverse_root(x: jax.Array) -> jax.Array:
    return jax.lax.rsqrt(jnp.maximum(x, 1e-9))
