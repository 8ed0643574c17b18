"""A per-parameter network whose steps are relative to the scale of the tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from learned_opt import features as ft
from learned_opt.base import LearnedOptimizer, Theta
from learned_opt.per_parameter import init_network
from learned_opt.per_tensor import per_tensor

HIDDEN = (16, 16)
MOMENTUM_DECAYS = (0.5, 0.9, 0.99, 0.999)
MOMENT_DECAY = 0.99
# Added to mean squares: so small that only a tensor whose gradient is zero notices.
EPSILON = 1e-20
# Second moments count as at least this share of their mean: else a parameter without any gradient would have
# the largest ``1 / sqrt`` by far, and after the division by the root mean square the others would have none.
MOMENT_FLOOR = 1e-4
# Scale of a tensor that is zero, as biases are at the start.
LEAST_SCALE = 1e-2
# A fresh network moves a tensor by about a hundredth of its scale.
STEP_SCALE = 1e-2
MAGNITUDE_SCALE = 1e-1

NUM_FEATURES = 4 + 2 * len(MOMENTUM_DECAYS)
NUM_CONTEXT = len(MOMENTUM_DECAYS) + 3


class Accumulators(NamedTuple):
    """What is accumulated for one tensor."""

    momenta: jax.Array  # [4, *shape]
    moments: jax.Array  # second moments, [1, *shape]


def relative_mlp() -> LearnedOptimizer:
    """A 30-16-16-2 per-parameter network, 802 weights.

    The twelve features of a parameter: its gradient g, its value, four momenta m (decays 0.5 to 0.999), g
    and m over the root of a second moment v (decay 0.99), and ``1 / sqrt(v)``; each divided by its root mean
    square over the tensor. What is the same for the whole tensor are eleven features of the step number and
    seven of the tensor: how large each momentum is beside the gradients that made it (1 where they all agree,
    little where they cancel, as they do around a minimum or in noise), the scale of the tensor, the number of
    its entries, and whether it has fewer than two dimensions. From a direction d and a magnitude a::

        update = - 0.01 s d exp(0.1 a),  s^2 = mean(param^2) + 1e-4

    So a network whose weights are twice as large, and that computes the same, is trained in the same way but
    for the biases. The features of the tensor cost next to nothing: they meet the network once per tensor,
    not once per parameter.

    Steps relative to the scale of the parameters are those of Shazeer and Stern, "Adafactor", ICML 2018; the
    network is that of Metz et al., ICML 2019, and the features of the tensor are this package's own.
    """
    return per_tensor(_init_theta, _init_tensor, _update_tensor)


def _init_theta(key: jax.Array) -> Theta:
    return init_network(key, NUM_FEATURES + NUM_CONTEXT + len(ft.TIME_SCALES), HIDDEN, outputs=2)


def _init_tensor(param: jax.Array) -> Accumulators:
    return Accumulators(ft.accumulator(param, len(MOMENTUM_DECAYS)), ft.accumulator(param, 1))


def _update_tensor(
    theta: Theta,
    gradient: jax.Array,
    param: jax.Array,
    accumulators: Accumulators,
    count: jax.Array,
    network: Callable[..., jax.Array],
) -> tuple[jax.Array, Accumulators]:
    momenta = ft.averaged(accumulators.momenta, gradient, MOMENTUM_DECAYS)
    moments = ft.averaged(accumulators.moments, jnp.square(gradient), (MOMENT_DECAY,))
    inverse_root = jax.lax.rsqrt(moments + MOMENT_FLOOR * jnp.mean(moments) + EPSILON)
    features = [
        gradient[None],
        param[None],
        momenta,
        gradient * inverse_root,
        momenta * inverse_root,
        inverse_root,
    ]
    scale = jnp.sqrt(jnp.mean(jnp.square(param)) + LEAST_SCALE**2)
    context = jnp.concatenate(
        [
            _steadiness(momenta, moments, count),
            jnp.stack([jnp.log10(scale) / 3, jnp.log10(float(param.size)) / 3, float(param.ndim < 2)]),
            ft.time_features(count),
        ]
    )

    def step(outputs: jax.Array) -> jax.Array:
        direction, magnitude = outputs
        return -STEP_SCALE * scale * direction * jnp.exp(MAGNITUDE_SCALE * magnitude)

    return network(theta, features, context, step, epsilon=EPSILON), Accumulators(momenta, moments)


def _steadiness(momenta: jax.Array, moments: jax.Array, count: jax.Array) -> jax.Array:
    """log10 of the root mean square of each momentum over that of the gradient, ``[4]``; at least -3."""

    def square(averages: jax.Array, decays: tuple[float, ...], power: int) -> jax.Array:
        # Averages that started from zero are too small by this factor.
        share = 1 - jnp.array(decays, averages.dtype) ** (count + 1)
        mean = jnp.mean(averages**power, axis=tuple(range(1, averages.ndim)))
        return mean / share**power

    ratio = square(momenta, MOMENTUM_DECAYS, 2) / (square(moments, (MOMENT_DECAY,), 1) + EPSILON)
    return 0.5 * jnp.log10(jnp.maximum(ratio, 1e-6))
