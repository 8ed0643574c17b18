"""A residual network that learns the output of a random network for random inputs."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from inner_tasks.networks import ResidualMLP, output
from inner_tasks.task import Params, TaskFamily, TaskSettings
from inner_tasks.tasks.families.family import Variation, drawn_activation, family, repeated, shapes_of
from inner_tasks.tasks.teacher import TeacherBatch

INPUTS, TEACHER_HIDDEN, CLASSES = 32, 24, 10
WIDTH, HIDDEN, BLOCKS = 16, 32, 2
MAX_LOSS = 1.5 * math.log(CLASSES)


class Own(NamedTuple):
    """The part of a variation that only this family has."""

    first: jax.Array  # float32 [INPUTS, TEACHER_HIDDEN], weights of the teacher
    second: jax.Array  # float32 [TEACHER_HIDDEN, CLASSES]
    deviations: jax.Array  # float32 [INPUTS], standard deviations of the inputs; their mean square is 1


def teacher(settings: TaskSettings) -> TaskFamily:
    """Two residual blocks of width 16 with layer norm, which imitate a random MLP; 2,938 parameters.

    There is always new data. Input number i has a standard deviation proportional to ``i^-decay``, with a
    decay between 0 and 1: like real data, it has few directions of large variance and many of small variance.
    """

    def own(key: jax.Array) -> Own:
        weights_key, decay_key = jax.random.split(key)
        weights = jax.random.normal(weights_key, ((INPUTS + CLASSES) * TEACHER_HIDDEN,))
        first, second = jnp.split(weights, [INPUTS * TEACHER_HIDDEN])
        deviations = jnp.arange(1, INPUTS + 1) ** -jax.random.uniform(decay_key)
        return Own(
            first.reshape(INPUTS, -1) / math.sqrt(INPUTS),
            second.reshape(TEACHER_HIDDEN, -1),
            deviations / jnp.sqrt(jnp.mean(deviations**2)),
        )

    def sample(data: None, key: jax.Array, variation: Variation) -> TeacherBatch:
        own = variation.own
        inputs = own.deviations * jax.random.normal(key, (settings.batch_size, INPUTS))
        inputs = inputs[repeated(jnp.arange(settings.batch_size), variation.examples)]
        return TeacherBatch(inputs, jnp.argmax(jax.nn.relu(inputs @ own.first) @ own.second, -1))

    def loss(params: Params, batch: TeacherBatch, variation: Variation) -> jax.Array:
        activation = drawn_activation(variation.activation)
        model = ResidualMLP(WIDTH, HIDDEN, BLOCKS, CLASSES, activation)
        logits = output(model, params, batch.inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()

    return family(
        shapes=shapes_of(ResidualMLP(WIDTH, HIDDEN, BLOCKS, CLASSES), jnp.zeros((1, INPUTS))),
        load=lambda data_dir: None,
        sample=sample,
        loss=loss,
        max_loss=MAX_LOSS,
        settings=settings,
        own=own,
    )
