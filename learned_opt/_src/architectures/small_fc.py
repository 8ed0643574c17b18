"""A small network with many features, from Metz et al. 2022."""

from __future__ import annotations

import jax
import jax.numpy as jnp

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
from learned_opt._src.architectures.per_parameter import apply_network, init_network, rms_scale, small_step
from learned_opt._src.architectures.per_tensor import Rule, per_tensor
from learned_opt._src.architectures.tensors import Each, Entries, Tensors
from learned_opt._src.learned_optimizer import LearnedOptimizer, Theta

HIDDEN = (4, 4)
# Initial values of the learned decays.
MOMENTUM_DECAYS = (0.9, 0.99, 0.999)
MOMENT_DECAYS = (0.999,)
FACTORED_DECAYS = (0.9, 0.99, 0.999)
EPSILON = 1e-5
# Theta is a tenth of the logarithm of the factor by which a decay's distance from 1 changes.
DECAY_SCALE = 10

NUM_FEATURES = 2 + 2 * len(MOMENTUM_DECAYS) + 2 * len(MOMENT_DECAYS) + 6 * len(FACTORED_DECAYS)
# Among these: rows, columns, and ``1 / sqrt`` of both, of the factored moments.
FIRST_FACTORED = 2 + 2 * len(MOMENTUM_DECAYS) + 2 * len(MOMENT_DECAYS) + len(FACTORED_DECAYS)
NUM_FACTORED = 4 * len(FACTORED_DECAYS)
NUM_INPUTS = NUM_FEATURES + len(ft.TIME_SCALES)


def small_fc() -> LearnedOptimizer:
    """A 39-4-4-2 per-parameter network with 190 weights, and 7 learned decays.

    The 28 features of a parameter are its gradient g, its value, three momenta m, a second moment v,
    ``m / sqrt(v)``, ``1 / sqrt(v)``, g over the root of three factored second moments, the rows and columns
    of these moments, ``1 / sqrt`` of both, and m over their root. Each is divided by its root mean square
    over the tensor. Eleven features of the step number follow. The update is that of ``mlp``.

    The decays are learned together with the weights: ``d = 1 - (1 - d_0) exp(10 theta)``, clipped to [0, 1),
    with d_0 of 0.9, 0.99 and 0.999 for momenta and factored moments and 0.999 for the second moment.

    Metz et al., "Practical tradeoffs between memory, compute, and performance in learned optimizers",
    CoLLAs 2022 (there ``small_fc_lopt``); google/learned_optimization, ``adafac_mlp_lopt.py``.
    """
    initial = initial_accumulators(len(MOMENTUM_DECAYS), len(MOMENT_DECAYS), len(FACTORED_DECAYS))
    return per_tensor(_init_theta, Rule(initial, _accumulate, _step, _shaped))


def _init_theta(key: jax.Array) -> Theta:
    return {
        "network": init_network(key, NUM_INPUTS, HIDDEN, outputs=2),
        "momentum_decays": jnp.zeros(len(MOMENTUM_DECAYS)),
        "moment_decays": jnp.zeros(len(MOMENT_DECAYS)),
        "factored_decays": jnp.zeros(len(FACTORED_DECAYS)),
    }


def _accumulate(theta: Theta, gradient: jax.Array, accumulators: Accumulators) -> Accumulators:
    momenta, moments, factored = accumulators
    return Accumulators(
        ft.averaged(momenta, gradient, _decays(MOMENTUM_DECAYS, theta["momentum_decays"])),
        ft.averaged(moments, jnp.square(gradient), _decays(MOMENT_DECAYS, theta["moment_decays"])),
        factored,
    )


def _shaped(
    theta: Theta, gradient: jax.Array, momenta: jax.Array, factored: Factored
) -> tuple[Factored, Spread]:
    decays = _decays(FACTORED_DECAYS, theta["factored_decays"])
    factored = update_factored(factored, gradient, decays)
    _, weights = without_rows(theta["network"], FIRST_FACTORED, NUM_FACTORED)
    return factored, spread(factored, gradient.shape, weights, EPSILON)


def _step(theta: Theta, tensors: Tensors, clock: ft.Clock) -> jax.Array:
    network, _ = without_rows(theta["network"], FIRST_FACTORED, NUM_FACTORED)
    scale, time = rms_scale(tensors, _features, EPSILON), ft.time_features(clock.step)
    return apply_network(
        network,
        tensors,
        _features,
        scale,
        time,
        lambda out, *_: small_step(out),
        hidden=lambda e: e.shaped.hidden,
    )


def _features(entries: Entries, each: Each) -> list[jax.Array]:
    gradient, param, (momenta, moments, _), shaped = entries
    inverse_root = jax.lax.rsqrt(moments + 1e-6)
    return [
        gradient,
        param,
        momenta,
        moments,
        momenta * inverse_root,
        inverse_root,
        gradient * shaped.inverse_roots,
        momenta * shaped.of_momenta,
    ]


def _decays(initial: tuple[float, ...], theta: jax.Array) -> jax.Array:
    """The learned decays that start at `initial`."""
    return jnp.clip(1 - (1 - jnp.array(initial, theta.dtype)) * jnp.exp(DECAY_SCALE * theta), 0, 1 - 1e-6)
