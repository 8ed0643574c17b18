"""The MLP learned optimizer: one small network, the same for every parameter."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from learned_opt import features as ft
from learned_opt.base import LearnedOptimizer, Theta
from learned_opt.per_parameter import init_network, small_step
from learned_opt.per_tensor import per_tensor

HIDDEN = (32, 32)
MOMENTUM_DECAYS = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
EPSILON = 1e-5


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
        theta = optimizer.init_theta(jax.random.key(0), 1)
        state = optimizer.init(params)
        updates, state = optimizer.update(theta, gradients, state, params)
        params = optax.apply_updates(params, updates)
    """
    return momentum_network(HIDDEN, MOMENTUM_DECAYS, ft.TIME_SCALES, _features)


def _features(gradient: jax.Array, param: jax.Array, momenta: jax.Array) -> list[jax.Array]:
    return [gradient[None], param[None], momenta]


def momentum_network(
    hidden: Sequence[int],
    momentum_decays: Sequence[float],
    time_scales: Sequence[float],
    features: Callable[[jax.Array, jax.Array, jax.Array], list[jax.Array]],
) -> LearnedOptimizer:
    """A per-parameter network that sees momenta and the step number, and moves by ``small_step``.

    Args:
      hidden: widths of its hidden layers.
      momentum_decays: decays of the momenta, k of them.
      time_scales: those of the features of the step number.
      features: ``(gradient, param, momenta [k, *shape]) -> groups of features``.
    """

    def init_theta(key: jax.Array) -> Theta:
        one = jnp.zeros(())
        groups = jax.eval_shape(features, one, one, init_tensor(one))
        inputs = sum(group.shape[0] for group in groups) + len(time_scales)
        return init_network(key, inputs, hidden, outputs=2)

    def init_tensor(param: jax.Array) -> jax.Array:
        return ft.accumulator(param, len(momentum_decays))

    def update_tensor(
        theta: Theta,
        gradient: jax.Array,
        param: jax.Array,
        momenta: jax.Array,
        count: jax.Array,
        network: Callable[..., jax.Array],
    ) -> tuple[jax.Array, jax.Array]:
        momenta = ft.averaged(momenta, gradient, momentum_decays)
        time = ft.time_features(count, time_scales)
        step = network(theta, features(gradient, param, momenta), time, small_step, epsilon=EPSILON)
        return step, momenta

    return per_tensor(init_theta, init_tensor, update_tensor)
