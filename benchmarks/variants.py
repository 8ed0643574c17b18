"""Variants of three tasks of `development`, to test how robust an optimizer is.

    cd benchmarks
    learned-opt evaluate OPTIMIZER --tasks variants:variants --learning-rates 7 --seeds 2

Each task as it is, with parameters in bfloat16, with its loss times 1e-3 and 1e3, with minibatches of 8
examples, and with ten times as many steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import jax.numpy as jnp
import optax

from inner_tasks import Task, TaskDistribution, TaskSettings, register_task
from inner_tasks.networks import LanguageTransformer, ResidualMLP
from inner_tasks.tasks.images import image_task
from inner_tasks.tasks.text import language_task
from inner_tasks.tasks.words import words_task

ALPHABET = 64


def transformer(batch_size: int, horizon: int) -> Task:
    """The transformer on characters."""
    model = LanguageTransformer(ALPHABET, width=48, heads=4, blocks=2)
    return language_task(model, ALPHABET, 32, TaskSettings((), batch_size, horizon))


def residual(batch_size: int, horizon: int) -> Task:
    """The residual perceptron on digits."""
    model = ResidualMLP(width=64, hidden=128, blocks=3, outputs=10)
    return image_task("digits", model, TaskSettings((), batch_size, horizon))


def words(batch_size: int, horizon: int) -> Task:
    """The bigram model of words."""
    return words_task(800, 24, TaskSettings((), batch_size, horizon))


def scaled(task: Task, factor: float) -> Task:
    """The task with its training loss multiplied by a factor; its metrics stay."""
    return replace(task, loss=lambda params, batch: factor * task.loss(params, batch))


def half(task: Task) -> Task:
    """The task with parameters in bfloat16."""
    return replace(task, init=lambda key: optax.tree.cast(task.init(key), jnp.bfloat16))


BASE: dict[str, tuple[Callable[[int, int], Task], int, int]] = {
    "transformer": (transformer, 16, 1000),
    "residual": (residual, 32, 1000),
    "words": (words, 128, 1000),
}


@register_task("variants")
def variants(settings: TaskSettings) -> TaskDistribution:
    """All variants of all tasks; there are no settings."""
    tasks = {}
    for name, (make, batch_size, horizon) in BASE.items():
        task = make(batch_size, horizon)
        tasks |= {
            f"{name}": task,
            f"{name}, bfloat16": half(task),
            f"{name}, loss times 0.001": scaled(task, 1e-3),
            f"{name}, loss times 1000": scaled(task, 1e3),
            f"{name}, batch 8": make(8, horizon),
            f"{name}, 10 times the steps": make(batch_size, 10 * horizon),
        }
    return TaskDistribution(tasks)
