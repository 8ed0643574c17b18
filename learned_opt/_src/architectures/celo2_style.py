"""A learned direction that the user's own learning rate scales, in the way of Celo2."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from learned_opt._src.architectures import features as ft
from learned_opt._src.architectures.per_parameter import init_network
from learned_opt._src.architectures.per_tensor import per_tensor
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


def celo2_style() -> LearnedOptimizer:
    """A 30-8-8-1 per-parameter network whose output has unit root mean square, 330 weights.

    The features of a parameter: its gradient g, g clipped at 0.1, its value, three momenta m, a second
    moment v, ``m / sqrt(v)``, ``1 / sqrt(v)``, g over the root of three factored second moments, and
    ``g / sqrt(v)``; for tensors of two and more dimensions also the rows and columns of the factored
    moments, ``1 / sqrt`` of both, and m over their root. Each is divided by its root mean square over the
    tensor, and so is the output::

        update = - learning_rate * direction / rms(direction)

    Nothing depends on the step number: schedule, warm-up and weight decay are the user's. The learning
    rate of meta-training is one more learned number, and the one that is used if no other is given.

    Moudgil, Knyazev, Belilovsky, "Celo2: towards learned optimization free lunch", ICLR 2026; without its
    orthogonalised matrices (there "celo2-base"), and without two outputs that it computes and does not use.
    """
    initial = ft.initial_accumulators(len(MOMENTUM_DECAYS), len(MOMENT_DECAYS), len(FACTORED_DECAYS))
    return per_tensor(_init_theta, initial, _update_tensor)._replace(unit_rate=_unit_rate)


def _unit_rate(theta: Theta) -> Theta:
    return theta | {"log_learning_rate": jnp.zeros_like(theta["log_learning_rate"])}


def _init_theta(key: jax.Array) -> Theta:
    return {
        "network": init_network(key, NUM_FEATURES + NUM_FACTORED_FEATURES, HIDDEN, outputs=1),
        "log_learning_rate": jnp.log(jnp.float32(INITIAL_LEARNING_RATE)),
    }


def _update_tensor(
    theta: Theta,
    gradient: jax.Array,
    param: jax.Array,
    accumulators: ft.Accumulators,
    count: jax.Array,
    network: Callable[..., jax.Array],
) -> tuple[jax.Array, ft.Accumulators]:
    accumulators = ft.accumulate(accumulators, gradient, MOMENTUM_DECAYS, MOMENT_DECAYS, FACTORED_DECAYS)
    momenta, moments, factored = accumulators
    inverse_root = jax.lax.rsqrt(moments + 1e-8)
    features = [
        gradient[None],
        jnp.clip(gradient, -CLIPPED_AT, CLIPPED_AT)[None],
        param[None],
        momenta,
        moments,
        momenta * inverse_root,
        inverse_root,
        gradient[None] * ft.factored_inverse_roots(factored, param.shape),
        gradient[None] * inverse_root,
    ]
    weights = theta["network"]
    if param.ndim >= 2:
        features += ft.factored_features(factored, momenta)
    else:
        first = weights["Dense_0"] | {"kernel": weights["Dense_0"]["kernel"][:NUM_FEATURES]}
        weights = weights | {"Dense_0": first}
    direction = network(weights, features, jnp.zeros(0, param.dtype), lambda out: out[0], epsilon=EPSILON)
    scale = ft.rms_scale(direction[None], EPSILON)[0]
    return -jnp.exp(theta["log_learning_rate"]) * scale * direction, accumulators
