"""The optimizer of Metz et al. 2019, as its code was released."""

from __future__ import annotations

from collections.abc import Callable

import jax

from learned_opt import features as ft
from learned_opt.base import LearnedOptimizer, Theta
from learned_opt.per_parameter import init_network, small_step
from learned_opt.per_tensor import per_tensor

HIDDEN = (32,)
MOMENTUM_DECAYS = (0.5, 0.9, 0.99, 0.999, 0.9999)
TIME_SCALES = (3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 300_000)
EPSILON = 1e-5
# What 1 / sqrt(second moment + 1e-6) is with second moments that stay zero.
BLIND_INVERSE_ROOT = 1e3

NUM_INPUTS = 2 + 2 * len(MOMENTUM_DECAYS) + len(TIME_SCALES)


def metz2019() -> LearnedOptimizer:
    """The released 31-32-2 network, as the 21-32-2 network that it amounts to; 770 weights.

    Its 22 features of a parameter are the gradient, the value, five momenta m (decays 0.5 to 0.9999),
    five second moments v, ``1 / sqrt(v + 1e-6)`` and ``m / sqrt(v + 1e-6)``, each divided by its root mean
    square over the tensor; then come nine features of the step number. But the release leaves its second
    moments at zero. So v and ``1 / sqrt(v + 1e-6)`` say nothing (ten inputs: zeros, and ones that the bias
    can replace) and are left out here. ``m / sqrt(v + 1e-6)`` is 1,000 m: after the division by its root mean
    square that is m again, except where m is below 0.003, and it stays. The update is that of ``mlp``.

    Metz et al., "Understanding and correcting pathologies in the training of learned optimizers", ICML
    2019; google-research, ``task_specific_learned_opt/fast_rolling_mlp.py``.
    """
    return per_tensor(_init_theta, _init_tensor, _update_tensor)


def _init_theta(key: jax.Array) -> Theta:
    return init_network(key, NUM_INPUTS, HIDDEN, outputs=2)


def _init_tensor(param: jax.Array) -> jax.Array:
    return ft.accumulator(param, len(MOMENTUM_DECAYS))


def _update_tensor(
    theta: Theta,
    gradient: jax.Array,
    param: jax.Array,
    momenta: jax.Array,
    count: jax.Array,
    network: Callable[..., jax.Array],
) -> tuple[jax.Array, jax.Array]:
    momenta = ft.averaged(momenta, gradient, MOMENTUM_DECAYS)
    features = [gradient[None], BLIND_INVERSE_ROOT * momenta, param[None], momenta]
    time = ft.time_features(count, TIME_SCALES)
    return network(theta, features, time, small_step, epsilon=EPSILON), momenta
