"""The MLP learned optimizer: one small network, the same for every parameter."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from learned_opt import features as ft
from learned_opt.base import LearnedOptimizer, Params, State, Theta
from learned_opt.per_parameter import PerParameterMLP, apply_blocked

HIDDEN = (32, 32)
# A fresh network should take steps of a size that trains; so its outputs are scaled down.
STEP_SCALE = 1e-3
MAGNITUDE_SCALE = 1e-3

NUM_FEATURES = 2 + len(ft.MOMENTUM_DECAYS)
NUM_INPUTS = NUM_FEATURES + len(ft.TIME_SCALES)


class MLPState(NamedTuple):
    """State of the MLP optimizer."""

    count: jax.Array  # steps taken, int32 []
    momenta: Params  # for each tensor, [6, *shape], float32


def mlp() -> LearnedOptimizer:
    """The 19-32-32-2 per-parameter network, 1,762 weights.

    For each parameter the network sees its gradient, its value and six momenta of its gradient (decays
    0.1 to 0.9999), each divided by its root mean square over the tensor, and eleven features of the
    step number. It emits a direction d and a magnitude a, and the parameter moves by::

        -0.001 d exp(0.001 a)

    Metz et al., "Understanding and correcting pathologies in the training of learned optimizers",
    ICML 2019; the input features are those of the MLP optimizer of Metz et al., "Practical tradeoffs
    between memory, compute, and performance in learned optimizers", CoLLAs 2022.

    Example::

        optimizer = mlp()
        theta = optimizer.init_theta(jax.random.key(0))
        state = optimizer.init(params)
        updates, state = optimizer.update(theta, gradients, state, params)
        params = optax.apply_updates(params, updates)
    """
    return LearnedOptimizer(init_theta=_init_theta, init=_init, update=_update)


def _init_theta(key: jax.Array) -> Theta:
    network = PerParameterMLP(hidden=HIDDEN, outputs=2)
    return network.init(key, jnp.zeros((1, NUM_INPUTS)))["params"]


def _init(params: Params) -> State:
    return MLPState(jnp.zeros((), jnp.int32), jax.tree.map(ft.init_momenta, params))


def _update(theta: Theta, gradients: Params, state: MLPState, params: Params) -> tuple[Params, MLPState]:
    momenta = jax.tree.map(lambda g, m: ft.update_momenta(m, g.astype(m.dtype)), gradients, state.momenta)
    time = ft.time_features(state.count)
    updates = jax.tree.map(lambda g, p, m: _update_tensor(theta, g, p, m, time), gradients, params, momenta)
    return updates, MLPState(state.count + 1, momenta)


def _update_tensor(
    theta: Theta, gradient: jax.Array, param: jax.Array, momenta: jax.Array, time: jax.Array
) -> jax.Array:
    if param.size == 0:
        return jnp.zeros_like(param)
    theta = jax.tree.map(lambda w: w.astype(momenta.dtype), theta)
    rows = [x.astype(momenta.dtype).reshape(-1, param.size) for x in (gradient, param, momenta)]
    scale = jnp.concatenate([ft.rms_scale(row) for row in rows])
    step = apply_blocked(theta, rows, scale, time.astype(momenta.dtype), _step)
    return step.reshape(param.shape).astype(param.dtype)


def _step(outputs: jax.Array) -> jax.Array:
    direction, magnitude = outputs
    return -STEP_SCALE * direction * jnp.exp(MAGNITUDE_SCALE * magnitude)
