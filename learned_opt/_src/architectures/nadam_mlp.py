"""NAdam with a learned correction of its direction, and steps whose size and schedule are learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    MOMENT_DECAY,
    Means,
    accumulate,
    initial,
    inverse_root,
    means_of,
    relative_size,
    steadiness,
)
from learned_opt._src.architectures.tensors import Each, Entries, Tensors
from learned_opt._src.learned_optimizer import LearnedOptimizer, Theta

HIDDEN = (16,)
STEP_HIDDEN = (8,)
MOMENTUM_DECAYS = (0.5, 0.9, 0.99)
NOMINAL = MOMENTUM_DECAYS.index(0.9)
# Of a fresh network: the size of a step where a matrix counts as of rank one, and the share of the
# correction.
STEP_SCALE = 0.4
CORRECTION_SCALE = 0.3
# Share of the steps over which the size of a step rises, if their number is known; else, so many steps.
WARM_UP_SHARE = 0.02
WARM_UP_STEPS = 10
# Time scale of what the context says of the first steps, and the last step that it tells from later ones.
EARLY, LAST_STEP = 10, 20_000

NUM_FEATURES = 3 + len(MOMENTUM_DECAYS)
NUM_TIME = 6  # what the context says of time
NUM_CONTEXT = len(MOMENTUM_DECAYS) + 1 + NUM_TIME


def nadam_mlp() -> LearnedOptimizer:
    """NAdam with a cosine, corrected by two small networks: 16-16-1 per parameter, 10-8-1 per tensor.

    With g the gradient, m and v the averages of g and g^2 that NAdam has (decays 0.9 and 0.99, without
    bias), and rms the root mean square over a tensor, a tensor moves by::

        u = (0.9 m + 0.1 g) / sqrt(v)
        update = - 0.4 schedule(t) exp(step(context)) scale (u + 0.3 rms(u) correction(features, context))
        scale = sqrt(mean(param^2) + 1e-4) min(1, 1 / sqrt(rows) + 1 / sqrt(columns))

    The features of a parameter are its value, g and three averages of it (decays 0.5 to 0.99) over the root
    of v, and ``1 / sqrt(v)``; each is divided by its root mean square over the tensor. The context is the
    same for a whole tensor: how large each average is beside the gradients that made it (1 where they all
    agree, little where they cancel), whether the tensor has fewer than two dimensions, the step number t, the
    progress t / T, and T. There are 386 weights.

    If the number of steps T is known, schedule(t) is a warm-up over a fiftieth of the steps and a cosine to
    zero. If it is not, it is a warm-up over ten steps and then 1. What a run needs beyond that is for the
    networks to learn: their last layers are zero at first, so that meta-training starts from NAdam.

    `scale` makes a step change what a layer computes by a share that depends neither on its width nor on the
    units of its weights. A tensor of more dimensions counts as a matrix with the columns of the last, a
    vector as a matrix of one row.

    The scale is that of Yang, Simon, Bernstein, "A spectral condition for feature learning", 2023; NAdam is
    that of Dozat, "Incorporating Nesterov momentum into Adam", 2016; a nominal rule that a network corrects,
    that of Harrison, Metz, Sohl-Dickstein, "A closer look at learned optimization: stability, robustness,
    and inductive biases", NeurIPS 2022; the network is that of Metz et al., ICML 2019.
    """
    start, average = initial(len(MOMENTUM_DECAYS)), partial(accumulate, MOMENTUM_DECAYS)
    return per_tensor(_init_theta, Rule(start, average, _step, takes_num_steps=True))


def _init_theta(key: jax.Array) -> Theta:
    return networks(key, NUM_FEATURES, steps=1)


def networks(key: jax.Array, features: int, steps: int) -> Theta:
    """Weights of both networks, whose last layers are zero: so that meta-training starts from nominal steps.

    Args:
      key: consumed.
      features: what the first network sees of a parameter, beside the context.
      steps: sizes of steps that the second one gives.
    """
    direction, step = jax.random.split(key)
    theta = {
        "direction": init_network(direction, features + NUM_CONTEXT, HIDDEN, outputs=1),
        "step": init_network(step, NUM_CONTEXT, STEP_HIDDEN, outputs=steps),
    }
    last = f"Dense_{len(HIDDEN)}"
    return {
        name: network | {last: jax.tree.map(jnp.zeros_like, network[last])} for name, network in theta.items()
    }


def _step(theta: Theta, tensors: Tensors, clock: ft.Clock) -> jax.Array:
    means = means_of(tensors)
    context = context_of(tensors, means, clock)
    directions = corrected(theta["direction"], tensors, means, context, clock)
    (step,) = log_sizes(theta["step"], context, 1)
    size = relative_size(STEP_SCALE * schedule(clock) * jnp.exp(step), tensors, means)
    return -tensors.each(size.astype(context.dtype))[0] * directions


def context_of(tensors: Tensors, means: Means, clock: ft.Clock) -> jax.Array:
    """What both networks are told of each tensor and of time, ``[NUM_CONTEXT, T]``."""
    dtype, count = means.square.dtype, means.square.shape[1]
    time = jnp.broadcast_to(_time(clock).astype(dtype)[:, None], (NUM_TIME, count))
    steady = steadiness(means, clock.step, MOMENTUM_DECAYS)
    return jnp.concatenate([steady, tensors.is_vector.astype(dtype), time])


def corrected(
    theta: Theta,
    tensors: Tensors,
    means: Means,
    context: jax.Array,
    clock: ft.Clock,
    seen: Callable[[Entries], Sequence[jax.Array]] = lambda entries: (),
) -> jax.Array:
    """NAdam's direction with the correction of a network, ``[...]``.

    Args:
      theta: weights of the network.
      tensors: the tensors.
      means: the means over each of them.
      context: what the network is told of each.
      clock: the step.
      seen: what else the network sees of entries, arrays ``[k, ...]``.
    """
    of_momentum, of_gradient = _nesterov(clock.step)

    def features(entries: Entries, each: Each) -> list[jax.Array]:
        gradient, param, (momenta, moments), _ = entries
        root = inverse_root(moments, means, each)
        return [param, root, gradient * root, momenta * root, *seen(entries)]

    def nominal(entries: Entries, each: Each) -> jax.Array:
        _, _, gradient, momenta, *_ = features(entries, each)
        return of_momentum * momenta[NOMINAL] + of_gradient * gradient[0]

    # One pass over the entries finds the scales of the features and that of the nominal direction.
    scales = rms_scale(tensors, lambda *block: [*features(*block), nominal(*block)[None]], EPSILON)
    scale, nominal_rms = scales[:-1], 1 / scales[-1:]

    def direction(outputs: jax.Array, entries: Entries, each: Each) -> jax.Array:
        return nominal(entries, each) + CORRECTION_SCALE * each(nominal_rms)[0] * outputs[0]

    return apply_network(theta, tensors, features, scale, context, direction)


def log_sizes(theta: Theta, context: jax.Array, count: int) -> list[jax.Array]:
    """What a network adds to the logarithm of each of so many sizes of a tensor's steps, ``[1, T]`` each."""
    outputs: Any = PerParameterMLP(STEP_HIDDEN, count).apply({"params": theta}, context.T)
    return [outputs.T[i : i + 1] for i in range(count)]


def _nesterov(count: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weights of the average and of the gradient in u, which take the bias of all averages away."""
    decay = MOMENTUM_DECAYS[NOMINAL]
    root = jnp.sqrt(1 - MOMENT_DECAY ** (count + 1))
    return root * decay / (1 - decay ** (count + 2)), root * (1 - decay) / (1 - decay ** (count + 1))


def _progress(clock: ft.Clock) -> jax.Array:
    """Share of the run that is over, 0 to 1; 0 if the number of steps is not known."""
    return jnp.clip(clock.step / clock.num_steps, 0, 1)


def _time(clock: ft.Clock) -> jax.Array:
    """What the context says of time, ``[NUM_TIME]``."""
    progress = _progress(clock)
    known = jnp.isfinite(clock.num_steps).astype(jnp.float32)
    # Beyond what was learned the clock stands still.
    count = jnp.minimum(clock.step, LAST_STEP).astype(jnp.float32)
    early = jnp.tanh(count / EARLY - 1)
    decades = jnp.log10(jnp.maximum(jnp.where(known > 0, clock.num_steps, 1), 1))
    length = known * (decades / 2 - 1.25)
    return jnp.stack([progress, 2 * progress**2 - 1, known, length, jnp.log10(1 + count) / 2 - 0.5, early])


def schedule(clock: ft.Clock) -> jax.Array:
    """The nominal schedule, 0 to 1."""
    known = jnp.isfinite(clock.num_steps)
    warm_up = jnp.where(known, jnp.maximum(1, jnp.round(WARM_UP_SHARE * clock.num_steps)), WARM_UP_STEPS)
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * _progress(clock)))
    return jnp.minimum(1, (clock.step + 1) / warm_up) * cosine
