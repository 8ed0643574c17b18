"""The optimizer of Metz et al. 2019, as released in code."""

from __future__ import annotations

from learned_opt._src.architectures.momentum_network import momentum_network
from learned_opt._src.learned_optimizer import LearnedOptimizer

HIDDEN = (32,)
MOMENTUM_DECAYS = (0.5, 0.9, 0.99, 0.999, 0.9999)
TIME_SCALES = (3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 300_000)
# 1 / sqrt(second moment + 1e-6) for second moments that stay zero.
BLIND_INVERSE_ROOT = 1e3


def metz2019() -> LearnedOptimizer:
    """The released 31-32-2 network, reduced to the equivalent 21-32-2 network; 770 weights.

    The released network has 22 features of a parameter: the gradient, the value, five momenta m (decays 0.5
    to 0.9999), five second moments v, ``1 / sqrt(v + 1e-6)`` and ``m / sqrt(v + 1e-6)``, each divided by its
    root mean square over the tensor; and nine features of the step number. But the release leaves its second
    moments at zero. Therefore v and ``1 / sqrt(v + 1e-6)`` carry no information (ten inputs: zeros, and ones
    that the bias can replace) and are left out here. ``m / sqrt(v + 1e-6)`` is 1,000 m: divided by its root
    mean square this is m again, except where m is below 0.003, so it is kept. The update is that of ``mlp``.

    Metz et al., "Understanding and correcting pathologies in the training of learned optimizers", ICML
    2019; google-research, ``task_specific_learned_opt/fast_rolling_mlp.py``.
    """
    return momentum_network(
        HIDDEN,
        MOMENTUM_DECAYS,
        TIME_SCALES,
        [("gradient", 1), ("momenta", BLIND_INVERSE_ROOT), ("param", 1), ("momenta", 1)],
    )
