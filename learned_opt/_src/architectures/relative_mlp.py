"""Adam's direction with a learned correction, in steps relative to the norm of the tensor."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from learned_opt._src.architectures import features as ft
from learned_opt._src.architectures.per_parameter import (
    PerParameterMLP,
    apply_network,
    init_network,
    rms_scale,
)
from learned_opt._src.architectures.per_tensor import Rule, per_tensor
from learned_opt._src.architectures.relative_step import (
    EPSILON,
    accumulate,
    initial,
    inverse_root,
    means_of,
    relative_size,
    steadiness,
)
from learned_opt._src.architectures.tensors import Each, Entries, Tensors
from learned_opt._src.learned_optimizer import LearnedOptimizer, Theta

HIDDEN = (16, 16)
STEP_HIDDEN = (16,)
MOMENTUM_DECAYS = (0.5, 0.9, 0.99, 0.999)
NOMINAL = MOMENTUM_DECAYS.index(0.9)
# For a fresh network: how far a tensor moves in a step, in units of its norm; and the share of the network.
STEP_SCALE = 0.03
CORRECTION_SCALE = 0.3

# Position of the momenta over the root of the second moments, among feature groups and among features.
SCALED = 4
NOMINAL_FEATURE = 2 + len(MOMENTUM_DECAYS) + 1 + NOMINAL
NUM_FEATURES = 4 + 2 * len(MOMENTUM_DECAYS)
NUM_CONTEXT = len(MOMENTUM_DECAYS) + 1 + len(ft.TIME_SCALES)


def relative_mlp() -> LearnedOptimizer:
    """A 28-16-16-1 network per parameter for the direction, and a 16-16-1 network per tensor for the step.

    The twelve features of a parameter are its gradient g, its value, four momenta m (decays 0.5 to 0.999), g
    and m over the root of a second moment v (decay 0.99), and ``1 / sqrt(v)``; each is divided by its root
    mean square over the tensor. The context, the same for the whole tensor, consists of eleven features of
    the step number, whether the tensor has fewer than two dimensions, and how large each momentum is compared
    with the gradients that made it (1 where they all agree, small where they cancel, as around a minimum or
    in noise). With m the momentum of decay 0.9, and rms the root mean square over the tensor::

        direction = (m / sqrt(v)) / rms(m / sqrt(v)) + 0.3 network(features, context)
        update = - 0.03 exp(step(context)) s direction / rms(direction)
        s = sqrt(mean(param^2) + 1e-4) (1 / sqrt(rows) + 1 / sqrt(columns))

    The factor of rows and columns is at most 1. s is the root mean square of a matrix of rank one with the
    spectral norm of a random matrix whose entries are as large as those of param. A step therefore changes
    the output of a layer by a share that depends neither on its width nor on the units of its weights, and
    what is learned on narrow networks carries over to wide ones. (A tensor with more dimensions counts as a
    matrix whose columns are its last dimension, a vector as a matrix of one row.) Nothing else tells the
    networks how large a tensor is. A tensor whose gradients were all zero stays. There are 1,042 weights.

    The scale follows Yang, Simon, Bernstein, "A spectral condition for feature learning", 2023; the nominal
    direction that the network corrects follows Harrison, Metz, Sohl-Dickstein, "A closer look at learned
    optimization: stability, robustness, and inductive biases", NeurIPS 2022; the network is that of Metz et
    al., ICML 2019. The combination and the context are new in this package.
    """
    rule = Rule(initial(len(MOMENTUM_DECAYS)), partial(accumulate, MOMENTUM_DECAYS), _step)
    return per_tensor(_init_theta, rule)


def _init_theta(key: jax.Array) -> Theta:
    direction, step = jax.random.split(key)
    return {
        "direction": init_network(direction, NUM_FEATURES + NUM_CONTEXT, HIDDEN, outputs=1),
        "step": init_network(step, NUM_CONTEXT, STEP_HIDDEN, outputs=1),
    }


def _step(theta: Theta, tensors: Tensors, clock: ft.Clock) -> jax.Array:
    means = means_of(tensors)

    def features(entries: Entries, each: Each) -> list[jax.Array]:
        gradient, param, (momenta, moments), _ = entries
        root = inverse_root(moments, means, each)
        return [gradient, param, momenta, gradient * root, momenta * root, root]

    time = ft.time_features(clock.step)
    context = jnp.concatenate(
        [
            steadiness(means, clock.step, MOMENTUM_DECAYS),
            tensors.is_vector.astype(means.square.dtype),
            jnp.broadcast_to(time, (len(time), means.square.shape[1])),
        ]
    )
    scale = rms_scale(tensors, features, EPSILON)

    def direction(outputs: jax.Array, entries: Entries, each: Each) -> jax.Array:
        nominal = features(entries, each)[SCALED][NOMINAL] * each(scale[NOMINAL_FEATURE][None])[0]
        return nominal + CORRECTION_SCALE * outputs[0]

    directions = apply_network(theta["direction"], tensors, features, scale, context, direction)
    squares = tensors.mean_square(directions)
    output: Any = PerParameterMLP(STEP_HIDDEN, 1).apply({"params": theta["step"]}, context.T)
    size = relative_size(STEP_SCALE * jnp.exp(output.T), tensors, means)
    return -tensors.each(size * jax.lax.rsqrt(EPSILON + squares))[0] * directions
