"""What a per-parameter network sees of a tensor: each accumulator and feature is named and computed here.

Each feature, and each accumulator, is an array of the shape of the tensor; those with k decays are k arrays.
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
Arrays = Sequence[jax.Array]  # one for each of k decays

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
    # Under ``jit`` a constant may be placed anywhere; what is computed from the parameter lies where it does.
    return jnp.where(jnp.isnan(param), zeros, zeros)


def averaged(averages: Arrays, value: jax.Array, decays: Decays) -> tuple[jax.Array, ...]:
    """Exponential moving averages, ``a <- d a + (1 - d) x`` for each decay d.

    Args:
      averages: k averages so far.
      value: x.
      decays: k decays.
    """
    # In the dtype of the averages, so that 1 - d is rounded as it was in meta-training.
    decays = decays if isinstance(decays, jax.Array) else np.asarray(decays, value.dtype)
    return tuple(d * a + (1 - d) * value for a, d in zip(averages, decays, strict=True))


class Factored(NamedTuple):
    """Second moments of a tensor as means over its rows and its columns (Adafactor), with k decays.

    The columns are counted along the largest dimension of the tensor, the rows along the second largest. A
    tensor with fewer than two dimensions has full moments, as `columns`; its `rows` are zero.

    Shazeer and Stern, "Adafactor: adaptive learning rates with sublinear memory cost", ICML 2018.
    """

    rows: Arrays  # each the shape of the tensor, but 1 along the largest dimension
    columns: Arrays  # each the shape of the tensor, but 1 along the second largest dimension


def factored_axes(shape: Sequence[int]) -> tuple[int, int] | None:
    """The second largest and the largest dimension of a tensor, or None if it has fewer than two."""
    if len(shape) < 2:
        return None
    order = np.argsort(shape, kind="stable")
    return int(order[-2]), int(order[-1])


def zero_rows(param: jax.Array) -> jax.Array:
    """Zero moments of the rows of a tensor."""
    axes = factored_axes(param.shape)
    return zeros(param).sum(None if axes is None else axes[1], keepdims=True)


def zero_columns(param: jax.Array) -> jax.Array:
    """Zero moments of the columns of a tensor."""
    axes = factored_axes(param.shape)
    return zeros(param) if axes is None else zeros(param).sum(axes[0], keepdims=True)


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


def factored_inverse_roots(moments: Factored, shape: Sequence[int]) -> list[jax.Array]:
    """``1 / sqrt`` of what the factored moments say the second moment of each parameter is, k arrays.

    ``rows * columns / mean(rows)``; the product is small where both are, hence the floors.
    """
    axes = factored_axes(shape)
    if axes is None:
        return [_inverse_root(full + 1e-9) for full in moments.columns]
    return [
        _inverse_root(rows / (rows.mean(axes[0], keepdims=True) + 1e-9)) * _inverse_root(columns)
        for rows, columns in zip(*moments, strict=True)
    ]


def factored_features(moments: Factored, momenta: Arrays) -> list[jax.Array]:
    """Rows, columns, both as ``1 / sqrt``, and the momenta over the root of the factored second moment.

    Args:
      moments: factored moments with k decays.
      momenta: k momenta.

    Returns:
      5 k features: all rows, all columns, and so on.
    """
    shape = momenta[0].shape
    if factored_axes(shape) is None:
        rows = columns = moments.columns
        scaled = [m * jax.lax.rsqrt(v + 1e-6) for m, v in zip(momenta, moments.columns, strict=True)]
    else:
        rows, columns = ([jnp.broadcast_to(x, shape) for x in each] for each in moments)
        roots = factored_inverse_roots(moments, shape)
        scaled = [m * root for m, root in zip(momenta, roots, strict=True)]
    inverse = [jax.lax.rsqrt(x + 1e-8) for x in (*rows, *columns)]
    return [*rows, *columns, *inverse, *scaled]


class Accumulators(NamedTuple):
    """First and second moments of one tensor, full and factored, each with a few decays."""

    momenta: Arrays
    moments: Arrays  # second moments
    factored: Factored  # factored second moments


def initial_accumulators(momenta: int, moments: int, factored: int) -> Accumulators:
    """What ``Accumulators`` with so many decays of each start as: for each array, ``param -> array``."""
    start = Factored((zero_rows,) * factored, (zero_columns,) * factored)
    return Accumulators((zeros,) * momenta, (zeros,) * moments, start)


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


def rms_scale(feature: jax.Array, epsilon: float) -> jax.Array:
    """Factor that brings a feature of a tensor to unit root mean square, ``[]``.

    ``1 / sqrt(epsilon + mean(x^2))`` over the entries of the tensor, so that the network is blind to
    the scale of the loss and of the parameters.

    Args:
      feature: the feature of each entry.
      epsilon: keeps features that are all but zero from being blown up.
    """
    return jax.lax.rsqrt(epsilon + jnp.mean(jnp.square(feature)))


def finite(x: jax.Array) -> jax.Array:
    """x with zeros where it is not finite: a mean over a tensor is spoilt by a single such entry."""
    return jnp.where(jnp.isfinite(x), x, 0)


def allowed(step: jax.Array, gradient: jax.Array, slowest: jax.Array) -> jax.Array:
    """The step of each entry that may take it.

    An entry without any gradient so far stays, as the row of a word does that has not been seen. One whose
    gradient is not finite gets a step that is not finite, as from other optimizers.

    Args:
      step: the steps, as of finite gradients.
      gradient: the gradients as they came.
      slowest: an average of all finite gradients so far, or of their squares.
    """
    return jnp.where(jnp.isfinite(gradient), jnp.where(slowest != 0, step, 0), jnp.nan)


def _inverse_root(x: jax.Array) -> jax.Array:
    return jax.lax.rsqrt(jnp.maximum(x, 1e-9))
