"""What the members of every family differ in, and a family from what is its own."""

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

SHORTEST, LONGEST_USUAL = 100, 2_000  # steps of most episodes
SHARE_OF_LONG = 0.1  # of the episodes: those are longer than the usual ones
UNIT_DECADES = 3.0  # units of a tensor lie between 1e-3 and 1e3
LOSS_DECADES = 2.0  # the scale of the loss, between 1e-2 and 1e2
GAIN = 2.0  # initial weights are up to this factor larger or smaller than those of Flax's layers
SMALLEST_BATCH = 16
SHARE_OF_UNITS = 0.25  # of the members: they are in other units than those of Flax's layers
SHARE_UNTOLD = 0.25  # of the members: an optimizer is not told how many steps they are trained for


class Variation(NamedTuple):
    """What a member of a family has of its own."""

    units: Params  # by how much the parameters of each tensor are smaller than usual, each []
    loss_scale: jax.Array  # float32 [], by how much the loss is larger
    horizon: jax.Array  # int32 [], T
    num_steps: jax.Array  # float32 [], what an optimizer is told of it: T, or infinity for nothing
    gain: jax.Array  # float32 [], by how much the initial weights are larger
    examples: jax.Array  # int32 [], different examples in a minibatch
    activation: jax.Array  # int32 [], number of the nonlinearity in ``ACTIVATIONS``
    own: Any  # what only this family has


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

    - the units of its parameters: for three of four members those in which the network is initialised; for
      the others a factor of each tensor, log-uniform in 1e-3 to 1e3;
    - the scale of its loss, log-uniform in 1e-2 to 1e2;
    - its horizon: log-uniform in 100 to 2,000 steps, and for a tenth of the members in 2,000 to
      ``settings.horizon``; an optimizer that asks for it is told for three of four members;
    - the gain of its initial weights, log-uniform in 1/2 to 2;
    - the number of different examples in a minibatch, log-uniform in 16 to ``settings.batch_size``;
    - its nonlinearity, where the network leaves it open.

    The augmentations are those of Metz et al., "VeLO", 2022, and of Celo2, 2026.

    Args:
      shapes: shapes of the parameters, by the names of Flax's layers.
      load: ``data_dir -> data``.
      sample: ``(data, key, variation) -> batch``, a training minibatch of ``settings.batch_size`` examples,
        of which ``repeated`` makes as many different ones as the variation says.
      loss: ``(params, batch, variation) -> scalar``, in the usual units.
      max_loss: the loss that it is clipped at.
      settings: the largest batch size and the longest horizon.
      sample_validation: as `sample`, of held-out examples; None where there is no difference.
      own: ``key -> pytree of arrays``, what only this family draws.
    """

    def draw(key: jax.Array) -> Variation:
        own_key, key = jax.random.split(key)
        leaves, tree = jax.tree.flatten(shapes)
        # Numbers are drawn together, here and in the families: each draw takes its time to compile.
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
    """Shapes of the parameters of a Flax module that is called with these inputs, or shapes of inputs."""
    return jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]


def random_indices(key: jax.Array, count: int, batch_size: int, examples: jax.Array) -> jax.Array:
    """Indices below `count`, int32 ``[batch_size]``: so many different ones, drawn with replacement."""
    uniform = jax.random.uniform(key, (batch_size,))
    return repeated((uniform * count).astype(jnp.int32), examples)


def repeated(rows: jax.Array, examples: jax.Array) -> jax.Array:
    """The first so many rows, again and again: a small minibatch in the shape of a large one."""
    return rows[jnp.arange(rows.shape[0]) % examples]


def drawn_activation(number: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """The nonlinearity of a number, which may be a traced one."""
    return lambda x: jax.lax.switch(number, list(ACTIVATIONS.values()), x)


def _log_uniform(uniform: jax.Array, low: float, high: float) -> jax.Array:
    """A number between, uniform in the logarithm, from one that is uniform in [0, 1)."""
    return jnp.exp(math.log(low) + uniform * (math.log(high) - math.log(low)))
