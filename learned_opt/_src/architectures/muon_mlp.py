"""The sum of a NAdam and a Muon step, with learned sizes and schedules and a learned correction of NAdam."""

from __future__ import annotations

from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from learned_opt._src.architectures import features as ft
from learned_opt._src.architectures.corrected_nadam import (
    MOMENTUM_DECAYS,
    NOMINAL,
    NUM_FEATURES,
    context_of,
    corrected,
    networks,
    rule_of,
    shrinkage_of,
    step_sizes,
)
from learned_opt._src.architectures.learned_schedule import constant_schedules
from learned_opt._src.architectures.per_tensor import per_tensor
from learned_opt._src.architectures.relative_step import (
    means_of,
    relative_size,
    scale_of,
)
from learned_opt._src.architectures.tensors import Entries, Tensors
from learned_opt._src.learned_optimizer import LearnedOptimizer, Theta

# For a fresh network: the size of NAdam's step where a matrix counts as having rank one, and of Muon's step.
STEP_SCALE = 0.13
ORTHOGONAL_SCALE = 0.0104
# Newton-Schulz iteration: coefficients of an odd polynomial that moves singular values in (0, 1] close to 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
# If a matrix is this many times as long as wide, iterations on X X^T take about half the time.
GRAM_RATIO = 4


def muon_mlp() -> LearnedOptimizer:
    """NAdam and Muon with a learned correction and step sizes: 18-16-1 per parameter, 11-8-2 per tensor.

    With u and c as in ``nadam_mlp``, d = ``rms(u) c / rms(c)``, and O the orthogonal matrix nearest to
    ``0.9 m + 0.1 g``, a tensor moves by::

        update = - scale (0.13 a d min(1, 1 / sqrt(rows) + 1 / sqrt(columns))
                          + 0.0104 b O (sqrt(rows) + sqrt(columns)))
        scale = sqrt(mean(param^2) + 1e-4)

    Both terms are relative to the spectral norm of a random matrix of the size of the tensor. The sizes a and
    b are computed like ``size`` in ``nadam_mlp``, by one network and two schedules. The correction has the
    inputs that it has there, and O. Vectors and matrices with a single row or column have no second term. A
    tensor with more dimensions counts as a matrix whose columns are its last dimension. It has 445 weights.

    Five Newton-Schulz iterations compute O. They take ``30 min(rows, columns)`` operations per entry of a
    square matrix, and ``4 min(rows, columns)`` of a very long one.

    Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; Moudgil, Knyazev,
    Belilovsky, "Celo2", ICLR 2026, combines orthogonal directions with a learned one.
    """
    return per_tensor(_init_theta, rule_of(_step, _shaped))._replace(unit_rate=constant_schedules)


def _init_theta(key: jax.Array) -> Theta:
    return networks(key, NUM_FEATURES + 1, steps=2)


def _shaped(theta: Theta, gradient: jax.Array, momenta: jax.Array, factored: Any) -> tuple[Any, jax.Array]:
    """O times ``sqrt(rows) + sqrt(columns)``, ``[1, *shape]``."""
    columns = gradient.shape[-1] if gradient.ndim else 1
    rows = gradient.size // columns
    if gradient.ndim < 2 or min(rows, columns) == 1:
        return factored, jnp.zeros_like(gradient)[None]
    decay = MOMENTUM_DECAYS[NOMINAL]
    average = decay * momenta[NOMINAL] + (1 - decay) * gradient
    # The products need the whole matrix. With automatic mesh axes XLA gathers it where it is sharded; with
    # explicit axes that has to be said.
    sharding = jax.typeof(average).sharding
    is_sharded = any(axis is not None for axis in sharding.spec)
    if is_sharded:
        average = jax.sharding.reshard(average, NamedSharding(sharding.mesh, PartitionSpec()))
    matrix = orthogonal(average.reshape(rows, columns)) * (rows**0.5 + columns**0.5)
    matrix = matrix.reshape(gradient.shape)
    return factored, (jax.sharding.reshard(matrix, sharding) if is_sharded else matrix)[None]


def orthogonal(matrix: jax.Array) -> jax.Array:
    """A matrix with the same singular vectors and singular values near 1; zeros for zeros."""
    # Divided by the largest entry first, because squares of very small entries would vanish. And before it
    # may be transposed, because in some programs XLA then adds the squares in another order, with other bits.
    matrix *= 1 / jnp.maximum(jnp.max(jnp.abs(matrix)), jnp.finfo(matrix.dtype).tiny)
    matrix *= 1 / jnp.maximum(jnp.linalg.norm(matrix), 1)
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = (_iterated_by_gram if x.shape[1] >= GRAM_RATIO * x.shape[0] else _iterated)(x)
    return x if wide else x.T


def _iterated(x: jax.Array) -> jax.Array:
    """Iterations ``X <- (a I + b G + c G^2) X`` with ``G = X X^T``."""
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def _iterated_by_gram(x: jax.Array) -> jax.Array:
    """The same with two products of the size of X: the polynomials ``P`` commute, and ``G <- P G P``."""
    a, b, c = COEFFICIENTS
    gram = x @ x.T
    polynomials: list[jax.Array] = []
    for _ in range(ITERATIONS):
        if polynomials:
            gram = polynomials[-1] @ gram @ polynomials[-1]
        polynomials.append(a * jnp.eye(len(gram), dtype=x.dtype) + b * gram + c * gram @ gram)
    return reduce(lambda product, polynomial: polynomial @ product, polynomials) @ x


def _step(theta: Theta, tensors: Tensors, clock: ft.Clock) -> tuple[jax.Array, jax.Array]:
    means = means_of(tensors)
    shrinkage, numbers = shrinkage_of(tensors, means, clock)
    context = context_of(tensors, means, shrinkage, clock)

    def seen(entries: Entries) -> tuple[jax.Array]:
        return (entries.shaped,)

    directions = corrected(theta["direction"], tensors, means, context, clock, seen)
    of_nadam, of_muon = step_sizes(theta, context, shrinkage, clock, 2)
    of_nadam = relative_size(STEP_SCALE * of_nadam, tensors, means)
    of_muon = ORTHOGONAL_SCALE * of_muon * scale_of(means)
    sizes = tensors.each(jnp.concatenate([of_nadam, of_muon]).astype(context.dtype))
    return -(sizes[0] * directions + sizes[1] * tensors.entries.shaped[0]), numbers
