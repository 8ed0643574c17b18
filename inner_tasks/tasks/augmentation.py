"""The same task seen through other units."""

from __future__ import annotations

import dataclasses

import jax

from inner_tasks.task import Task


def reparametrised(task: Task, scale: float) -> Task:
    """The same task in other units: its parameters are `scale` times smaller, and its gradients larger.

    It computes the same function of the data; but an optimizer that takes steps of a fixed size has to cope.
    Metz et al., "VeLO: training versatile learned optimizers by scaling up", 2022 (task augmentation).
    """

    def original(params: jax.Array) -> jax.Array:
        return jax.tree.map(lambda p: scale * p, params)

    accuracy = task.accuracy
    return dataclasses.replace(
        task,
        init=lambda key: jax.tree.map(lambda p: p / scale, task.init(key)),
        loss=lambda params, batch: task.loss(original(params), batch),
        metrics=lambda params, data: task.metrics(original(params), data),
        accuracy=accuracy and (lambda params, batch: accuracy(original(params), batch)),
    )
