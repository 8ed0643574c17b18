"""Learning the output of a random network for random inputs."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from inner_tasks.networks import MLP, Activation, output
from inner_tasks.task import Params, Task, TaskSettings, register_task

CLASSES = 10
TEACHER_HIDDEN = (32,)
MAX_LOSS = 1.5 * math.log(CLASSES)
VALIDATION_EXAMPLES = 2_000


class TeacherBatch(NamedTuple):
    """A minibatch."""

    inputs: jax.Array  # float32 [batch, inputs]
    labels: jax.Array  # int32 [batch]


def teacher_task(inputs: int, decay: float, activation: Activation, settings: TaskSettings) -> Task:
    """Learning a fixed random MLP's classes of normal random inputs, with softmax cross-entropy.

    Input number i has a standard deviation proportional to ``i^-decay``, scaled so that the mean square is 1:
    like real data, the inputs have few directions of large variance and many of small variance. There is
    always new data.

    Args:
      inputs: number of inputs.
      decay: how fast the inputs' standard deviations fall.
      activation: nonlinearity of the network that is trained.
      settings: hidden widths, batch size and horizon.
    """
    model = MLP(settings.hidden, CLASSES, activation)
    teacher = MLP(TEACHER_HIDDEN, CLASSES)
    deviations = np.arange(1, inputs + 1) ** -decay
    deviations = np.asarray(deviations / np.sqrt(np.mean(deviations**2)), np.float32)

    def draw(weights: Params, key: jax.Array, count: int) -> TeacherBatch:
        x = jax.random.normal(key, (count, inputs)) * deviations
        return TeacherBatch(x, jnp.argmax(output(teacher, weights, x), -1))

    def loss(params: Params, batch: TeacherBatch) -> jax.Array:
        logits = output(model, params, batch.inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()

    def metrics(params: Params, data: Params) -> dict[str, jax.Array]:
        return {"validation_loss": loss(params, draw(data, jax.random.key(1), VALIDATION_EXAMPLES))}

    def sample(data: Params, key: jax.Array) -> TeacherBatch:
        return draw(data, key, settings.batch_size)

    return Task(
        init=lambda key: model.init(key, jnp.zeros((1, inputs)))["params"],
        sample=sample,
        loss=loss,
        metrics=metrics,
        load=lambda data_dir: teacher.init(jax.random.key(0), jnp.zeros((1, inputs)))["params"],
        horizon=settings.horizon,
        max_loss=MAX_LOSS,
        sample_validation=sample,  # there is always new data
    )


@register_task("teacher-mlp", TaskSettings(hidden=(64,), batch_size=64, horizon=500))
def teacher_mlp(settings: TaskSettings) -> Task:
    """64 inputs; the standard deviation of input number i is proportional to ``1 / sqrt(i)``."""
    return teacher_task(64, 0.5, jax.nn.gelu, settings)
