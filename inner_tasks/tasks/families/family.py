"""The variation that the members of every family share, and a function that makes a family."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from inner_tasks.networks import ACTIVATIONS, random_params
from inner_tasks.task import Batch, Data, Params, Task, TaskFamily, TaskSettings
from inner_tasks.tasks.augmentation import reparametrised, with_scaled_loss
from inner_tasks.tasks.metrics import minibatch_metrics

SHORTEST, LONGEST_USUAL = 100, 2_000  # range of steps of most episodes
SHARE_OF_LONG = 0.1  # share of the episodes that are longer
UNIT_DECADES = 3.0  # units of a tensor lie between 1e-3 and 1e3
LOSS_DECADES = 2.0  # the scale of the loss lies between 1e-2 and 1e2
GAIN = 2.0  # initial weights are up to this factor larger or smaller than those of Flax's layers
SMALLEST_BATCH = 16
SHARE_OF_UNITS = 0.25  # share of the members with other units than those of Flax's layers
SHARE_OF_FEW = 0.5  # share of the members with few training examples, in families that draw their number
FEWEST_EXAMPLES = 50
SHARE_UNTOLD = 0.25  # share of the members whose number of steps the optimizer does not know


class Variation(NamedTuple):
    """The numbers that define a member of a family."""

    units: Params  # factor by which the parameters of each tensor are smaller than usual, each []
    loss_scale: jax.Array  # float32 [], factor by which the loss is larger
    horizon: jax.Array  # int32 [], T
    num_steps: jax.Array  # float32 [], number of steps as the optimizer knows it: T, or infinity if unknown
    gain: jax.Array  # float32 [], factor by which the initial weights are larger
    examples: jax.Array  # int32 [], number of different examples in a minibatch
    activation: jax.Array  # int32 [], index of the nonlinearity in ``ACTIVATIONS``
    own: Any  # the part that only this family has


def family(
    *,
    shapes: Params,
    load: Callable[[Path | None], Data],
    sample: Callable[[Data, jax.Array, Variation], Batch],
    loss: Callable[[Params, Batch, Variation], jax.Array],
    max_loss: float,
    settings: TaskSettings,
    sample_validation: Callable[[Data, jax.Array, Variation], Batch] | None = None,
    own: Callable[[jax.Array], Any] = lambda key: (),
) -> TaskFamily:
    """A family whose members differ in units, scale of the loss, horizon, initialisation, batch and more.

    Drawn for each member:

    - the units of its parameters: for three quarters of the members those in which the network is
      initialised; for the others a factor for each tensor, log-uniform in 1e-3 to 1e3;
    - the scale of its loss, log-uniform in 1e-2 to 1e2;
    - its horizon: log-uniform in 100 to 2,000 steps, and for a tenth of the members in 2,000 to
      ``settings.horizon``; for three quarters of the members, optimizers that take it know the horizon;
    - the gain of its initial weights, log-uniform in 1/2 to 2;
    - the number of different examples in a minibatch, log-uniform in 16 to ``settings.batch_size``;
    - its nonlinearity, if the network does not fix it.

    The augmentations are those of Metz et al., "VeLO", 2022, and of Celo2, 2026.

    Args:
      shapes: shapes of the parameters, with the names of Flax's layers.
      load: ``data_dir -> data``.
      sample: ``(data, key, variation) -> batch``, a training minibatch of ``settings.batch_size`` examples,
        repeated with ``repeated`` so that ``variation.examples`` of them are different.
      loss: ``(params, batch, variation) -> scalar``, in the usual units.
      max_loss: the value at which the loss is clipped.
      settings: the largest batch size and the longest horizon.
      sample_validation: like `sample`, for held-out examples; None if they are the same.
      own: ``key -> pytree of arrays``, the draws that only this family has.
    """

    def draw(key: jax.Array) -> Variation:
        own_key, key = jax.random.split(key)
        leaves, tree = jax.tree.flatten(shapes)
        # Here and in the families, numbers are drawn together, because each draw adds compile time.
        uniform = jax.random.uniform(key, (8 + len(leaves),))
        exponents = UNIT_DECADES * (2 * uniform[8:] - 1)
        units = 10.0 ** jnp.where(uniform[0] < SHARE_OF_UNITS, exponents, 0.0)
        shortest, middle = (min(steps, settings.horizon) for steps in (SHORTEST, LONGEST_USUAL))
        usual = _log_uniform(uniform[2], shortest, middle)
        long = _log_uniform(uniform[2], middle, settings.horizon)
        horizon = jnp.round(jnp.where(uniform[3] < SHARE_OF_LONG, long, usual))
        return Variation(
            units=tree.unflatten(list(units)),
            loss_scale=10.0 ** (LOSS_DECADES * (2 * uniform[1] - 1)),
            horizon=horizon.astype(jnp.int32),
            num_steps=jnp.where(uniform[7] < SHARE_UNTOLD, jnp.inf, horizon),
            gain=_log_uniform(uniform[4], 1 / GAIN, GAIN),
            examples=jnp.round(
                _log_uniform(uniform[5], min(SMALLEST_BATCH, settings.batch_size), settings.batch_size)
            ).astype(jnp.int32),
            activation=jnp.int32(uniform[6] * len(ACTIVATIONS)),
            own=own(own_key),
        )

    def member(variation: Variation) -> Task:
        def bound(sample: Callable[..., Batch]) -> Callable[[Data, jax.Array], Batch]:
            return lambda data, key: sample(data, key, variation)

        def loss_of(params: Params, batch: Batch) -> jax.Array:
            return loss(params, batch, variation)

        task = Task(
            init=lambda key: random_params(shapes, key, variation.gain),
            sample=bound(sample),
            loss=loss_of,
            metrics=lambda params, data: {},
            load=load,
            horizon=cast(int, variation.horizon),  # an array, as ``TaskFamily`` allows
            max_loss=max_loss,
            sample_validation=bound(sample_validation) if sample_validation else None,
            num_steps=variation.num_steps,
        )
        task = with_scaled_loss(reparametrised(task, variation.units), cast(float, variation.loss_scale))
        return replace(task, metrics=minibatch_metrics(task.loss, task.sample_validation or task.sample))

    return TaskFamily(draw, member, load, settings.horizon, max_loss)


def shapes_of(model: Any, *inputs: Any) -> Params:
    """Shapes of the parameters of a Flax module called with these inputs, or inputs of these shapes."""
    return jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]


def drawn_count(uniform: jax.Array, count: int) -> jax.Array:
    """The number of training examples of a member, int32 []: all, or for half of the members a few.

    A small network fits a few examples entirely, and then needs ever smaller steps.

    Args:
      uniform: two numbers, uniform in [0, 1).
      count: how many there are.
    """
    few = _log_uniform(uniform[1], FEWEST_EXAMPLES, count)
    return jnp.round(jnp.where(uniform[0] < SHARE_OF_FEW, few, count)).astype(jnp.int32)


def random_indices(key: jax.Array, count: jax.Array | int, batch_size: int, examples: jax.Array) -> jax.Array:
    """Indices below `count`, int32 ``[batch_size]``: `examples` draws with replacement, repeated."""
    uniform = jax.random.uniform(key, (batch_size,))
    return repeated((uniform * count).astype(jnp.int32), examples)


def repeated(rows: jax.Array, examples: jax.Array) -> jax.Array:
    """Repeat the first `examples` rows: a small minibatch in the shape of a large one."""
    return rows[jnp.arange(rows.shape[0]) % examples]


def drawn_activation(number: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """The nonlinearity with this index, which may be traced."""
    return lambda x: jax.lax.switch(number, list(ACTIVATIONS.values()), x)


def _log_uniform(uniform: jax.Array, low: float, high: float) -> jax.Array:
    """Map a number that is uniform in [0, 1) to one that is log-uniform between `low` and `high`."""
    return jnp.exp(math.log(low) + uniform * (math.log(high) - math.log(low)))
