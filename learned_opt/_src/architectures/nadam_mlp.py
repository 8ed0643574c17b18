"""NAdam with a learned correction of its direction and with a learned step size and schedule."""

from __future__ import annotations

import jax

from learned_opt._src.architectures import features as ft
from learned_opt._src.architectures.corrected_nadam import (
    NUM_FEATURES,
    context_of,
    corrected,
    networks,
    rule_of,
    shrinkage_of,
    step_sizes,
)
from learned_opt._src.architectures.learned_schedule import constant_schedules
from learned_opt._src.architectures.per_tensor import per_tensor
from learned_opt._src.architectures.relative_step import means_of, relative_size
from learned_opt._src.architectures.tensors import Tensors
from learned_opt._src.learned_optimizer import LearnedOptimizer, Theta

# For a fresh network: the size of a step where a matrix counts as having rank one.
STEP_SCALE = 0.5


def nadam_mlp() -> LearnedOptimizer:
    """NAdam corrected by two small networks: 17-16-1 per parameter, 11-8-1 per tensor.

    With g the gradient, m and v NAdam's averages of g and g^2 (decays 0.9 and 0.99, bias-corrected), and rms
    the root mean square over a tensor, a tensor moves by::

        u = (0.9 m + 0.1 g) / sqrt(v)
        c = u + 0.3 rms(u) correction(features, context)
        update = - 0.5 size scale rms(u) c / rms(c)
        size = schedule(t) shrinkage^G exp(step(context))
        scale = sqrt(mean(param^2) + 1e-4) min(1, 1 / sqrt(rows) + 1 / sqrt(columns))

    The features of a parameter are its value, g and three averages of g (decays 0.5 to 0.99) over the root
    of v, and ``1 / sqrt(v)``; each is divided by its root mean square over the tensor. The context is the
    same for a whole tensor: how large each average is compared with the gradients that made it (1 where they
    all agree, small where they cancel), whether the tensor has fewer than two dimensions, its shrinkage, the
    step number t, the progress t / T, and T.

    The shrinkage is the root mean square of the gradients over the last hundred steps divided by that over
    the last thousand, at most 1. It tells a network that comes to fit all of its data, which needs ever
    smaller steps, from one whose gradients are noise, and it does not depend on units.

    schedule(t) is a warm-up followed by a decay, to zero at T if the number of steps T is known. Four of its
    numbers and G are learned, and the networks learn anything beyond that. There are 415 weights. The last
    layers and the schedule start with weights of zero, so that meta-training starts from NAdam.

    With `scale`, a step changes the output of a layer by a share that depends neither on its width nor on the
    units of its weights. A tensor with more dimensions counts as a matrix whose columns are its last
    dimension, a vector as a matrix of one row.

    The scale is from Yang, Simon, Bernstein, "A spectral condition for feature learning", 2023; NAdam from
    Dozat, "Incorporating Nesterov momentum into Adam", 2016; the nominal rule that a network corrects from
    Harrison, Metz, Sohl-Dickstein, "A closer look at learned optimization: stability, robustness, and
    inductive biases", NeurIPS 2022; and the network from Metz et al., ICML 2019.
    """
    return per_tensor(_init_theta, rule_of(_step))._replace(unit_rate=constant_schedules)


def _init_theta(key: jax.Array) -> Theta:
    return networks(key, NUM_FEATURES, steps=1)


def _step(theta: Theta, tensors: Tensors, clock: ft.Clock) -> tuple[jax.Array, jax.Array]:
    means = means_of(tensors)
    shrinkage, numbers = shrinkage_of(tensors, means, clock)
    context = context_of(tensors, means, shrinkage, clock)
    directions = corrected(theta["direction"], tensors, means, context, clock)
    (size,) = step_sizes(theta, context, shrinkage, clock, 1)
    size = relative_size(STEP_SCALE * size, tensors, means)
    return -tensors.each(size.astype(context.dtype))[0] * directions, numbers
