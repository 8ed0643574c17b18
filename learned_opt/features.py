"""What a per-parameter network sees of a tensor: each accumulator and feature is named and computed here.

A group of k features (or accumulators, one for each of k decays) of a tensor is an array ``[k, *shape]``.
Nothing here flattens a tensor or mixes its entries except by means over its dimensions: so it works on
tensors that are spread over devices without gathering them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

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


def accumulator(param: jax.Array, count: int) -> jax.Array:
    """Zeros ``[count, *param.shape]`` that lie on the devices that the parameter lies on."""
    zeros = jnp.zeros_like(param, state_dtype(param))
    return jnp.broadcast_to(zeros, (count, *param.shape))


def averaged(average: jax.Array, value: jax.Array, decays: Decays) -> jax.Array:
    """Exponential moving averages, ``a <- d a + (1 - d) x`` for each decay d.

    Args:
      average: ``[k, *shape]``, the averages so far.
      value: ``shape``, or ``[k, *shape]`` with a value of its own for each.
      decays: k decays.
    """
    decays = jnp.asarray(decays, average.dtype).reshape(-1, *[1] * (average.ndim - 1))
    return decays * average + (1 - decays) * value


class RowsColumns(NamedTuple):
    """Second moments of a tensor as means over its rows and its columns (Adafactor).

    The columns are counted along the largest dimension of the tensor, the rows along the second largest.
    Shazeer and Stern, "Adafactor: adaptive learning rates with sublinear memory cost", ICML 2018.
    """

    rows: jax.Array  # [k, *shape], but 1 along the largest dimension
    columns: jax.Array  # [k, *shape], but 1 along the second largest


Factored = RowsColumns | jax.Array  # a tensor with fewer than two dimensions has full moments, [k, *shape]


def factored_axes(shape: Sequence[int]) -> tuple[int, int] | None:
    """The second largest and the largest dimension of a tensor, or None if it has fewer than two."""
    if len(shape) < 2:
        return None
    order = np.argsort(shape, kind="stable")
    return int(order[-2]), int(order[-1])


def init_factored(param: jax.Array, count: int) -> Factored:
    """Zero factored moments of one tensor."""
    zeros, axes = accumulator(param, count), factored_axes(param.shape)
    if axes is None:
        return zeros
    second, largest = axes
    return RowsColumns(zeros.sum(1 + largest, keepdims=True), zeros.sum(1 + second, keepdims=True))


def update_factored(moments: Factored, gradient: jax.Array, decays: Decays) -> Factored:
    """Moving averages of the mean squared gradient of each row and each column."""
    square = jnp.square(gradient) + 1e-30
    axes = factored_axes(gradient.shape)
    if axes is None:
        return averaged(moments, square, decays)
    second, largest = axes
    rows = averaged(moments.rows, square.mean(largest, keepdims=True), decays)
    columns = averaged(moments.columns, square.mean(second, keepdims=True), decays)
    return RowsColumns(rows, columns)


def factored_inverse_roots(moments: Factored, shape: Sequence[int]) -> jax.Array:
    """``1 / sqrt`` of what the factored moments say the second moment of each parameter is, ``[k, *shape]``.

    ``rows * columns / mean(rows)``; the product is small where both are, hence the floors.
    """
    axes = factored_axes(shape)
    if axes is None:
        return _inverse_root(moments + 1e-9)
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
    if isinstance(moments, RowsColumns):
        rows, columns = (jnp.broadcast_to(x, momenta.shape) for x in moments)
        scaled = momenta * factored_inverse_roots(moments, momenta.shape[1:])
    else:
        rows = columns = moments
        scaled = momenta * jax.lax.rsqrt(moments + 1e-6)
    return [rows, columns, jax.lax.rsqrt(rows + 1e-8), jax.lax.rsqrt(columns + 1e-8), scaled]


class Accumulators(NamedTuple):
    """First and second moments of one tensor, full and factored, each with a few decays."""

    momenta: jax.Array  # [k_1, *shape]
    moments: jax.Array  # second moments, [k_2, *shape]
    factored: Factored  # factored second moments with k_3 decays


def init_accumulators(param: jax.Array, momenta: int, moments: int, factored: int) -> Accumulators:
    """Zeros, for so many decays of each."""
    return Accumulators(
        accumulator(param, momenta), accumulator(param, moments), init_factored(param, factored)
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


def _inverse_root(x: jax.Array) -> jax.Array:
    return jax.lax.rsqrt(jnp.maximum(x, 1e-9))
