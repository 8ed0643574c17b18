"""Variants of three tasks of `development`, to test how robust an optimizer is.

    cd benchmarks
    learned-opt evaluate OPTIMIZER --tasks variants:variants --learning-rates 7 --seeds 2

Each task as it is, with parameters in bfloat16, with its loss times 1e-3 and 1e3, with minibatches of 8
examples, and with ten times as many steps.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import optax

from inner_tasks import Task, TaskDistribution, TaskSettings, find_task, register_task

BASE = ("text-transformer", "digits-residual", "words-bigram")  # beginnings of the names of tasks
FEW = 8  # examples


def scaled(task: Task, factor: float) -> Task:
    """The task with its training loss multiplied by a factor; its metrics stay."""
    return replace(task, loss=lambda params, batch: factor * task.loss(params, batch))


def half(task: Task) -> Task:
    """The task with parameters in bfloat16."""
    return replace(task, init=lambda key: optax.tree.cast(task.init(key), jnp.bfloat16))


def few(task: Task) -> Task:
    """The task with small minibatches."""
    return replace(task, sample=lambda data, key: jax.tree.map(lambda x: x[:FEW], task.sample(data, key)))


@register_task("variants")
def variants(settings: TaskSettings) -> TaskDistribution:
    """All variants of all tasks; there are no settings."""
    registration = find_task("development")
    development = registration.build(registration.settings)
    assert isinstance(development, TaskDistribution)
    tasks: dict[str, Task] = {}
    for name, task in development.members.items():
        if not name.startswith(BASE):
            continue
        assert isinstance(task, Task)
        tasks |= {
            name: task,
            f"{name}, bfloat16": half(task),
            f"{name}, loss times 0.001": scaled(task, 1e-3),
            f"{name}, loss times 1000": scaled(task, 1e3),
            f"{name}, {FEW} examples a step": few(task),
            f"{name}, 10 times the steps": replace(task, horizon=10 * task.horizon),
        }
    return TaskDistribution(tasks)
