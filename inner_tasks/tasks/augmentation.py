"""The same task in other units: of its parameters, and of its loss."""

from __future__ import annotations

import dataclasses

import jax

from inner_tasks.task import Params, Task


def reparametrised(task: Task, units: Params) -> Task:
    """The same task in other units: its parameters are so many times smaller, and its gradients larger.

    It computes the same function of the data; but an optimizer that takes steps of a fixed size has to cope.
    Metz et al., "VeLO: training versatile learned optimizers by scaling up", 2022 (task augmentation).

    Args:
      task: the task in its usual units.
      units: a positive number for each tensor of the parameters, or one for all of them.
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
    """The same task with a loss, and a loss that it is clipped at, so many times as large.

    What ``metrics`` measures stays in the usual units.
    """
    return dataclasses.replace(
        task,
        loss=lambda params, batch: scale * task.loss(params, batch),
        max_loss=task.max_loss and scale * task.max_loss,
    )
