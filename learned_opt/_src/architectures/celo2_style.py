"""A learned direction, scaled by the user's learning rate, in the style of Celo2."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from learned_opt._src.architectures import features as ft
from learned_opt._src.architectures.factored import (
    Accumulators,
    Factored,
    Spread,
    initial_accumulators,
    spread,
    update_factored,
    without_rows,
)
from learned_opt._src.architectures.per_parameter import apply_network, init_network, rms_scale
from learned_opt._src.architectures.per_tensor import Rule, per_tensor
from learned_opt._src.architectures.tensors import Each, Entries, Tensors
from learned_opt._src.learned_optimizer import LearnedOptimizer, Theta

HIDDEN = (8, 8)
MOMENTUM_DECAYS = (0.9, 0.99, 0.999)
MOMENT_DECAYS = (0.95,)
FACTORED_DECAYS = (0.9, 0.99, 0.999)
CLIPPED_AT = 0.1
EPSILON = 1e-9
INITIAL_LEARNING_RATE = 1e-3

NUM_FEATURES = 15
NUM_FACTORED_FEATURES = 15
NUM_FACTORED = 4 * len(FACTORED_DECAYS)  # among these: rows, columns, and ``1 / sqrt`` of both


def celo2_style() -> LearnedOptimizer:
    """A 30-8-8-1 per-parameter network whose output has unit root mean square, 330 weights.

    The features of a parameter are its gradient g, g clipped at 0.1, its value, three momenta m, a second
    moment v, ``m / sqrt(v)``, ``1 / sqrt(v)``, g over the root of three factored second moments, and
    ``g / sqrt(v)``; for tensors of two or more dimensions also the rows and columns of the factored
    moments, ``1 / sqrt`` of both, and m over their root. Each is divided by its root mean square over the
    tensor, and so is the output::

        update = - learning_rate * direction / rms(direction)

    Nothing depends on the step number: the user chooses schedule, warm-up and weight decay. Meta-training
    also learns a learning rate, which is used unless another one is given.

    Moudgil, Knyazev, Belilovsky, "Celo2: towards learned optimization free lunch", ICLR 2026; without its
    orthogonalised matrices ("celo2-base" there), and without two outputs that it computes and does not use.
    """
    initial = initial_accumulators(len(MOMENTUM_DECAYS), len(MOMENT_DECAYS), len(FACTORED_DECAYS))
    return per_tensor(_init_theta, Rule(initial, _accumulate, _step, _shaped))._replace(unit_rate=_unit_rate)


def _unit_rate(theta: Theta) -> Theta:
    return theta | {"log_learning_rate": jnp.zeros_like(theta["log_learning_rate"])}


def _init_theta(key: jax.Array) -> Theta:
    return {
        "network": init_network(key, NUM_FEATURES + NUM_FACTORED_FEATURES, HIDDEN, outputs=1),
        "log_learning_rate": jnp.log(jnp.float32(INITIAL_LEARNING_RATE)),
    }


def _accumulate(theta: Theta, gradient: jax.Array, accumulators: Accumulators) -> Accumulators:
    momenta, moments, factored = accumulators
    momenta = ft.averaged(momenta, gradient, MOMENTUM_DECAYS)
    return Accumulators(momenta, ft.averaged(moments, jnp.square(gradient), MOMENT_DECAYS), factored)


def _shaped(
    theta: Theta, gradient: jax.Array, momenta: jax.Array, factored: Factored
) -> tuple[Factored, Spread]:
    factored = update_factored(factored, gradient, FACTORED_DECAYS)
    _, weights = without_rows(theta["network"], NUM_FEATURES, NUM_FACTORED)
    # For a vector the network does not see rows and columns.
    weights = weights if gradient.ndim >= 2 else jnp.zeros_like(weights)
    return factored, spread(factored, gradient.shape, weights, EPSILON)


def _step(theta: Theta, tensors: Tensors, clock: ft.Clock) -> jax.Array:
    network, _ = without_rows(theta["network"], NUM_FEATURES, NUM_FACTORED)
    scale = rms_scale(tensors, _features, EPSILON)
    # For a vector it does not see the last features either, momenta over the root of factored moments.
    scale = jnp.where((np.arange(len(scale)) >= NUM_FEATURES)[:, None] & tensors.is_vector, 0, scale)
    nothing = jnp.zeros((0, 1), scale.dtype)
    direction = apply_network(
        network,
        tensors,
        _features,
        scale,
        nothing,
        lambda out, *_: out[0],
        hidden=lambda e: e.shaped.hidden,
    )
    size = jnp.exp(theta["log_learning_rate"]) * jax.lax.rsqrt(EPSILON + tensors.mean_square(direction))
    return -tensors.each(size)[0] * direction


def _features(entries: Entries, each: Each) -> list[jax.Array]:
    gradient, param, (momenta, moments, _), shaped = entries
    inverse_root = jax.lax.rsqrt(moments + 1e-8)
    return [
        gradient,
        jnp.clip(gradient, -CLIPPED_AT, CLIPPED_AT),
        param,
        momenta,
        moments,
        momenta * inverse_root,
        inverse_root,
        gradient * shaped.inverse_roots,
        gradient * inverse_root,
        momenta * shaped.of_momenta,
    ]
