"""Steps relative to the norm of a tensor: the parts that relative_mlp, nadam_mlp and muon_mlp share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from learned_opt._src.architectures import features as ft
from learned_opt._src.architectures.tensors import Each, Entries, Shape, Tensors
from learned_opt._src.learned_optimizer import Theta

MOMENT_DECAY = 0.99
# Added to mean squares; so small that it matters only for a tensor whose gradients are below 1e-8.
EPSILON = 1e-20
# Second moments count as at least this share of their mean over the tensor. Otherwise an entry with hardly
# any gradient so far would take its largest step at its first one, and its ``1 / sqrt`` would be by far the
# largest: divided by the root mean square, those of the other entries would vanish.
MOMENT_FLOOR = 1e-4
# The scale of a tensor that is zero, as biases are at the start.
LEAST_SCALE = 1e-2


class Accumulators(NamedTuple):
    """Accumulators of one tensor."""

    momenta: jax.Array  # [k, *shape]
    moments: jax.Array  # second moments, [1, *shape]


class Means(NamedTuple):
    """Means over each of T tensors."""

    moment: jax.Array  # of the second moments, [1, T]
    square: jax.Array  # of the squares of the parameters, [1, T]
    momenta: jax.Array  # of the squares of the momenta, [k, T]


def initial(momenta: int) -> Accumulators:
    """The initial accumulators as functions ``param -> array``, for the given number of momenta."""
    return Accumulators(*(ft.starting(ft.accumulator, count=k) for k in (momenta, 1)))


def accumulate(decays: Sequence[float], theta: Theta, gradient: jax.Array, accumulators: Any) -> Any:
    """The momenta and second moments of a tensor after one more gradient; other fields stay.

    `decays` are those of the momenta.
    """
    momenta = ft.averaged(accumulators.momenta, gradient, decays)
    moments = ft.averaged(accumulators.moments, jnp.square(gradient), (MOMENT_DECAY,))
    return accumulators._replace(momenta=momenta, moments=moments)


def means_of(tensors: Tensors) -> Means:
    """The means over each tensor, in one pass over the entries."""

    def each_entry(entries: Entries, each: Each) -> jax.Array:
        own = entries.accumulated
        return jnp.concatenate([own.moments, jnp.square(entries.param), jnp.square(own.momenta)])

    means = tensors.mean(each_entry)
    return Means(means[:1], means[1:2], means[2:])


def inverse_root(moments: jax.Array, means: Means, each: Each) -> jax.Array:
    """``1 / sqrt`` of the second moments of some entries, with a floor from the mean over their tensor."""
    return jax.lax.rsqrt(moments + MOMENT_FLOOR * each(means.moment) + EPSILON)


def steadiness(means: Means, step: jax.Array, decays: Sequence[float]) -> jax.Array:
    """How large the momenta are compared with the gradients that made them, ``[k, T]``.

    log10 of the ratio of the root mean squares, at least -3: 0 where all gradients agree, lower where they
    cancel.

    Args:
      means: the means over each tensor.
      step: steps taken before this one.
      decays: the k decays of the momenta.
    """
    of_momenta, of_moment = (
        ft.bias_correction(jnp.array(own, means.momenta.dtype), step) for own in (decays, MOMENT_DECAY)
    )
    squares = means.momenta * of_momenta[:, None] ** 2
    return 0.5 * jnp.log10(jnp.maximum(squares / (means.moment * of_moment + EPSILON), 1e-6))


def relative_size(factor: jax.Array, tensors: Tensors, means: Means) -> jax.Array:
    """The size of a step in units of the norm of its tensor, ``[1, T]``; 0 where all gradients were zero.

    ``factor * share * sqrt(mean(param^2) + 1e-4)``, with ``share`` from ``rank_one_share``.

    Args:
      factor: the size in these units, ``[1, T]``.
      tensors: the tensors.
      means: the means over each of them.
    """
    share = jnp.asarray(rank_one_share(tensors.shapes), means.square.dtype)
    return factor * share * scale_of(means)


def scale_of(means: Means) -> jax.Array:
    """``sqrt(mean(param^2) + 1e-4)`` of each tensor, ``[1, T]``; 0 where all gradients were zero."""
    return jnp.where(means.moment > 0, jnp.sqrt(means.square + LEAST_SCALE**2), 0)


def rank_one_share(shapes: Sequence[Shape]) -> np.ndarray:
    """``1 / sqrt(rows) + 1 / sqrt(columns)``, at most 1, of each of T tensors: ``[1, T]``.

    A matrix of rank one has the spectral norm of a random matrix if its root mean square is this share of the
    random matrix's. A tensor with more dimensions counts as a matrix whose columns are its last dimension, a
    vector as a matrix of one row.
    """
    columns = np.array([shape[-1] if shape else 1 for shape in shapes])
    rows = np.array([math.prod(shape) for shape in shapes]) // columns
    return np.minimum(1, rows**-0.5 + columns**-0.5)[None]
