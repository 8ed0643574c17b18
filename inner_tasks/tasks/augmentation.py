"""Task augmentation: a task with other units of its parameters or its loss."""

from __future__ import annotations

import dataclasses

import jax

from inner_tasks.task import Params, Task


def reparametrised(task: Task, units: Params) -> Task:
    """The same task with parameters divided by `units`, which multiplies its gradients by `units`.

    It computes the same function of the data, but is harder for an optimizer with steps of a fixed size.
    Metz et al., "VeLO: training versatile learned optimizers by scaling up", 2022 (task augmentation).

    Args:
      task: the task in its usual units.
      units: a positive number for each parameter tensor, or one for all of them.
    """

    def original(params: Params) -> Params:
        return jax.tree.map(lambda unit, part: jax.tree.map(lambda p: unit * p, part), units, params)

    def init(key: jax.Array) -> Params:
        params = task.init(key)
        return jax.tree.map(lambda unit, part: jax.tree.map(lambda p: p / unit, part), units, params)

    accuracy = task.accuracy
    return dataclasses.replace(
        task,
        init=init,
        loss=lambda params, batch: task.loss(original(params), batch),
        metrics=lambda params, data: task.metrics(original(params), data),
        accuracy=accuracy and (lambda params, batch: accuracy(original(params), batch)),
    )


def with_scaled_loss(task: Task, scale: float) -> Task:
    """The same task with its loss and ``max_loss`` multiplied by `scale`.

    The values of ``metrics`` stay in the usual units.
    """
    return dataclasses.replace(
        task,
        loss=lambda params, batch: scale * task.loss(params, batch),
        max_loss=task.max_loss and scale * task.max_loss,
    )
