"""The MLP learned optimizer: one small network, shared by all parameters."""

from __future__ import annotations

from learned_opt._src.architectures import features as ft
from learned_opt._src.architectures.momentum_network import momentum_network
from learned_opt._src.learned_optimizer import LearnedOptimizer

HIDDEN = (32, 32)
MOMENTUM_DECAYS = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)


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
    return momentum_network(
        HIDDEN, MOMENTUM_DECAYS, ft.TIME_SCALES, [("gradient", 1), ("param", 1), ("momenta", 1)]
    )
