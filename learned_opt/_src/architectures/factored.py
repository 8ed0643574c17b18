"""Factored second moments (Adafactor) next to full ones, and the network features made from them.

Shazeer and Stern, "Adafactor: adaptive learning rates with sublinear memory cost", ICML 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from learned_opt._src.architectures import features as ft
from learned_opt._src.learned_optimizer import Theta


class Factored(NamedTuple):
    """Second moments of a tensor as means over its rows and its columns (Adafactor).

    Columns are counted along the largest dimension of the tensor, rows along the second largest. A tensor
    with fewer than two dimensions has full moments in `columns`; its `rows` have size 1 and are zero.
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
    """Zero moments of the rows of a tensor, for `count` decays."""
    axes = factored_axes(param.shape)
    means = ft.zeros(param).sum(None if axes is None else axes[1], keepdims=True)
    return jnp.broadcast_to(means[None], (count, *means.shape))


def columns(param: jax.Array, count: int) -> jax.Array:
    """Zero moments of the columns of a tensor, for `count` decays."""
    axes = factored_axes(param.shape)
    means = ft.zeros(param) if axes is None else ft.zeros(param).sum(axes[0], keepdims=True)
    return jnp.broadcast_to(means[None], (count, *means.shape))


def update_factored(moments: Factored, gradient: jax.Array, decays: ft.Decays) -> Factored:
    """Moving averages of the mean squared gradient of each row and each column."""
    square = jnp.square(gradient) + 1e-30
    axes = factored_axes(gradient.shape)
    if axes is None:
        return Factored(moments.rows, ft.averaged(moments.columns, square, decays))
    second, largest = axes
    rows = ft.averaged(moments.rows, square.mean(largest, keepdims=True), decays)
    columns = ft.averaged(moments.columns, square.mean(second, keepdims=True), decays)
    return Factored(rows, columns)


class Accumulators(NamedTuple):
    """First and second moments of one tensor, full and factored, each with a few decays."""

    momenta: jax.Array  # [k_1, *shape]
    moments: jax.Array  # second moments, [k_2, *shape]
    factored: Factored  # factored second moments with k_3 decays


def initial_accumulators(momenta: int, moments: int, factored: int) -> Accumulators:
    """Initial ``Accumulators`` as functions ``param -> array``, for the given numbers of decays."""
    return Accumulators(
        ft.starting(ft.accumulator, count=momenta),
        ft.starting(ft.accumulator, count=moments),
        Factored(ft.starting(rows, count=factored), ft.starting(columns, count=factored)),
    )


class Spread(NamedTuple):
    """Factored moments at each entry of a tensor."""

    inverse_roots: jax.Array  # 1 / sqrt of the second moment that they stand for, [k, *shape]
    of_momenta: jax.Array  # the same for momenta: the floor differs for vectors, [k, *shape]
    hidden: jax.Array  # contribution of rows and columns to the network's first layer, [hidden, *shape]


def spread(moments: Factored, shape: Sequence[int], weights: jax.Array, epsilon: float) -> Spread:
    """Factored moments at each entry of a tensor of this shape.

    The second moment of an entry is ``rows * columns / mean(rows)``; the product is tiny where both are
    small, hence the floors. The network sees rows, columns, and ``1 / sqrt`` of both, each divided by its
    root mean square over the tensor. These features are constant along rows or along columns, so their part
    of the first layer is computed once for each row and each column, and added.

    Args:
      moments: the moments, for k decays.
      shape: shape of the tensor.
      weights: first-layer weights of these features, ``[4 k, hidden]``.
      epsilon: added to the mean square of a feature.
    """
    axes = factored_axes(shape)
    if axes is None:
        rows = columns = moments.columns
        inverse_roots, of_momenta = _inverse_root(columns + 1e-9), jax.lax.rsqrt(columns + 1e-6)
    else:
        rows, columns = moments
        mean = rows.mean(1 + axes[0], keepdims=True)
        inverse_roots = of_momenta = _inverse_root(rows / (mean + 1e-9)) * _inverse_root(columns)
    of_rows, of_columns, of_inverse_rows, of_inverse_columns = jnp.split(weights, 4)

    def layer(x: jax.Array, weights: jax.Array) -> jax.Array:
        # All rows have the same number of entries, so the mean over them is the mean over the tensor.
        scale = jax.lax.rsqrt(epsilon + jnp.mean(jnp.square(x), axis=tuple(range(1, x.ndim))))
        return jnp.tensordot((weights * scale[:, None]).T, x, 1)

    hidden = layer(rows, of_rows) + layer(jax.lax.rsqrt(rows + 1e-8), of_inverse_rows)
    hidden += layer(columns, of_columns) + layer(jax.lax.rsqrt(columns + 1e-8), of_inverse_columns)
    return Spread(inverse_roots, of_momenta, hidden)


def without_rows(network: Theta, start: int, count: int) -> tuple[Theta, jax.Array]:
    """A network without some inputs, and the first-layer weights of those inputs, ``[count, hidden]``."""
    kernel = network["Dense_0"]["kernel"]
    others = jnp.concatenate([kernel[:start], kernel[start + count :]])
    rest = network | {"Dense_0": network["Dense_0"] | {"kernel": others}}
    return rest, kernel[start : start + count]


def _inverse_root(x: jax.Array) -> jax.Array:
    return jax.lax.rsqrt(jnp.maximum(x, 1e-9))
