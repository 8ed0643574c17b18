"""NAdam with a learned correction and step size: the parts that nadam_mlp and muon_mlp share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from learned_opt._src.architectures import features as ft
from learned_opt._src.architectures.learned_schedule import (
    LONGEST,
    RATE,
    init_schedules,
    pace_of,
    progress_of,
    schedules,
)
from learned_opt._src.architectures.per_parameter import (
    PerParameterMLP,
    apply_network,
    init_network,
    rms_scale,
)
from learned_opt._src.architectures.per_tensor import Rule
from learned_opt._src.architectures.relative_step import (
    EPSILON,
    MOMENT_DECAY,
    Means,
    accumulate,
    initial,
    inverse_root,
    steadiness,
)
from learned_opt._src.architectures.tensors import Each, Entries, Tensors
from learned_opt._src.learned_optimizer import Theta

HIDDEN = (16,)
STEP_HIDDEN = (8,)
MOMENTUM_DECAYS = (0.5, 0.9, 0.99)
NOMINAL = MOMENTUM_DECAYS.index(0.9)
CORRECTION_SCALE = 0.3  # share of the correction for a fresh network
# Decay of the average of squared gradients that the present one is compared with.
LEVEL_DECAY = 0.999
LEAST_SHRINKAGE = 0.03  # a few huge gradients at first do not stop the steps for long
EARLY = 10  # time scale of the context's feature of the first steps

NUM_FEATURES = 3 + len(MOMENTUM_DECAYS)
NUM_TIME = 6  # time features in the context
NUM_CONTEXT = len(MOMENTUM_DECAYS) + 2 + NUM_TIME


class Accumulators(NamedTuple):
    """Accumulators of one tensor."""

    momenta: jax.Array  # [k, *shape]
    moments: jax.Array  # second moments, [1, *shape]
    numbers: jax.Array  # a slow average of the mean of the second moments, [1]


def rule_of(step: Callable[..., Any], shaped: Any = None) -> Rule:
    """A rule with the accumulators of this module."""
    start = Accumulators(*initial(len(MOMENTUM_DECAYS)), ft.starting(ft.numbers, count=1))
    return Rule(start, partial(accumulate, MOMENTUM_DECAYS), step, shaped, takes_num_steps=True)


def networks(key: jax.Array, features: int, steps: int) -> Theta:
    """Weights of both networks and of the schedules, such that meta-training starts from nominal steps.

    The last layers of the networks are zero.

    Args:
      key: consumed.
      features: number of features of a parameter that the first network sees in addition to the context.
      steps: number of step sizes; the second network computes them, and each has a schedule.
    """
    direction, step = jax.random.split(key)
    theta = {
        "direction": init_network(direction, features + NUM_CONTEXT, HIDDEN, outputs=1),
        "step": init_network(step, NUM_CONTEXT, STEP_HIDDEN, outputs=steps),
    }
    last = f"Dense_{len(HIDDEN)}"
    nominal = {
        name: network | {last: jax.tree.map(jnp.zeros_like, network[last])} for name, network in theta.items()
    }
    return nominal | {"schedule": init_schedules(steps), "shrinkage": jnp.zeros(steps)}


def context_of(tensors: Tensors, means: Means, shrinkage: jax.Array, clock: ft.Clock) -> jax.Array:
    """The inputs of both networks that describe each tensor and the time, ``[NUM_CONTEXT, T]``."""
    dtype, count = means.square.dtype, means.square.shape[1]
    time = jnp.broadcast_to(_time(clock).astype(dtype)[:, None], (NUM_TIME, count))
    steady = steadiness(means, clock.step, MOMENTUM_DECAYS)
    return jnp.concatenate([steady, tensors.is_vector.astype(dtype), jnp.log10(shrinkage), time])


def shrinkage_of(tensors: Tensors, means: Means, clock: ft.Clock) -> tuple[jax.Array, jax.Array]:
    """How much smaller the gradients of each tensor have become, 0.03 to 1; and the next numbers. ``[1, T]``.

    Their root mean square over the last hundred steps, divided by that over the last thousand.
    """
    correction, slow_correction = (
        ft.bias_correction(jnp.array(decay, means.moment.dtype), clock.step)
        for decay in (MOMENT_DECAY, LEVEL_DECAY)
    )
    square = means.moment * correction
    assert tensors.numbers is not None  # the accumulators have them
    level = ft.averaged(tensors.numbers, square[0], (LEVEL_DECAY,))
    ratio = (square + EPSILON) / (level * slow_correction + EPSILON)
    return jnp.sqrt(jnp.clip(ratio, LEAST_SHRINKAGE**2, 1)), level


def corrected(
    theta: Theta,
    tensors: Tensors,
    means: Means,
    context: jax.Array,
    clock: ft.Clock,
    seen: Callable[[Entries], Sequence[jax.Array]] = lambda entries: (),
) -> jax.Array:
    """NAdam's direction with the correction of a network, ``[...]``.

    It has the root mean square over each tensor that NAdam's has, so a correction does not change the size of
    steps, and truncated backpropagation can learn it without making them too small.

    Args:
      theta: weights of the network.
      tensors: the tensors.
      means: the means over each of them.
      context: the context of each of them.
      clock: the position of the step in the run.
      seen: further features of the entries, arrays ``[k, ...]``.
    """
    of_momentum, of_gradient = _nesterov(clock.step)

    def features(entries: Entries, each: Each) -> list[jax.Array]:
        gradient, param, own, _ = entries
        root = inverse_root(own.moments, means, each)
        return [param, root, gradient * root, own.momenta * root, *seen(entries)]

    def nominal(entries: Entries, each: Each) -> jax.Array:
        _, _, gradient, momenta, *_ = features(entries, each)
        return of_momentum * momenta[NOMINAL] + of_gradient * gradient[0]

    # One pass over the entries computes the scales of the features and of the nominal direction.
    scales = rms_scale(tensors, lambda *block: [*features(*block), nominal(*block)[None]], EPSILON)
    scale, nominal_rms = scales[:-1], 1 / scales[-1:]

    def direction(outputs: jax.Array, entries: Entries, each: Each) -> jax.Array:
        return nominal(entries, each) + CORRECTION_SCALE * each(nominal_rms)[0] * outputs[0]

    directions = apply_network(theta, tensors, features, scale, context, direction)
    own_rms = jnp.sqrt(EPSILON + tensors.mean_square(directions))
    return directions * tensors.each(nominal_rms / own_rms)[0]


def step_sizes(
    theta: Theta, context: jax.Array, shrinkage: jax.Array, clock: ft.Clock, count: int
) -> list[jax.Array]:
    """`count` step sizes of each tensor, relative to a nominal size, ``[1, T]`` each.

    ``schedule(t) shrinkage^G exp(network(context))``, with ``G = exp(3 w)`` for a weight w.

    Args:
      theta: the weights.
      context: the context of each tensor.
      shrinkage: of each tensor, ``[1, T]``.
      clock: the position of the step in the run.
      count: number of step sizes.
    """
    outputs: Any = PerParameterMLP(STEP_HIDDEN, count).apply({"params": theta["step"]}, context.T)
    powers = jnp.exp(RATE * theta["shrinkage"])[:, None]
    sizes = schedules(theta["schedule"], clock)[:, None] * jnp.exp(powers * jnp.log(shrinkage) + outputs.T)
    return [sizes[i : i + 1] for i in range(count)]


def _nesterov(count: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weights of the average and of the gradient in u, including the bias correction of all averages."""
    decay = MOMENTUM_DECAYS[NOMINAL]
    root = jnp.sqrt(1 - MOMENT_DECAY ** (count + 1))
    return root * decay / (1 - decay ** (count + 2)), root * (1 - decay) / (1 - decay ** (count + 1))


def _time(clock: ft.Clock) -> jax.Array:
    """The time features of the context, ``[NUM_TIME]``.

    A network may say anything about times that it has not seen in meta-training. So to the networks a longer
    run looks like the longest one, in slow motion. If the number of steps is not known, the clock stops after
    ``LONGEST`` steps.
    """
    progress = progress_of(clock)
    known = jnp.isfinite(clock.num_steps).astype(jnp.float32)
    count = jnp.minimum(pace_of(clock) * clock.step, LONGEST)
    early = jnp.tanh(count / EARLY - 1)
    decades = jnp.log10(jnp.clip(clock.num_steps, 1, LONGEST))
    length = known * (decades / 2 - 1.25)
    return jnp.stack([progress, 2 * progress**2 - 1, known, length, jnp.log10(1 + count) / 2 - 0.5, early])
