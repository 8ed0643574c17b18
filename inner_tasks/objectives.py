"""Objectives: the loss L_t that meta-training assigns to an inner step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from inner_tasks.problem import bounded
from inner_tasks.task import Data, Params, Task
from learned_opt._src.errors import UserError, choices


class TrainingStep(NamedTuple):
    """The result of an inner step."""

    before: Params  # parameters before the update
    after: Params  # parameters after the update
    loss: jax.Array  # loss of the step's minibatch before the update, []
    progress: jax.Array | None = None  # share of the episode completed with this step, in (0, 1]


class Objective(NamedTuple):
    """A loss for every inner step; meta-training lowers its sum over an episode.

    Attributes:
      measure: ``(task, data, step, key) -> scalar``.
      reads: optional parts of a task that the objective needs.
      differentiable: whether its derivative is meaningful.
      reads_progress: whether it needs the progress of the episode.
      largest_weight: the largest factor by which it multiplies a loss of the task.
    """

    measure: Callable[[Task, Data, TrainingStep, jax.Array], jax.Array]
    reads: tuple[str, ...] = ()
    differentiable: bool = True
    reads_progress: bool = False
    largest_weight: float = 1.0


def training_loss(task: Task, data: Data, step: TrainingStep, key: jax.Array) -> jax.Array:
    """The loss of the step's minibatch *before* the update, as a training loop sees it; no extra cost."""
    return step.loss


def later_training_loss(task: Task, data: Data, step: TrainingStep, key: jax.Array) -> jax.Array:
    """The loss of a fresh minibatch *after* the update."""
    return task.loss(step.after, task.sample(data, key))


def validation_loss(task: Task, data: Data, step: TrainingStep, key: jax.Array) -> jax.Array:
    """The loss of a minibatch of validation examples after the update."""
    assert task.sample_validation is not None  # `find_objective` has checked it
    return task.loss(step.after, task.sample_validation(data, key))


def validation_accuracy(task: Task, data: Data, step: TrainingStep, key: jax.Array) -> jax.Array:
    """*Minus* the accuracy on a minibatch of validation examples after the update."""
    assert task.sample_validation is not None and task.accuracy is not None
    return -task.accuracy(step.after, task.sample_validation(data, key))


def final_loss(task: Task, data: Data, step: TrainingStep, key: jax.Array) -> jax.Array:
    """By how much the update raised the loss of a fresh minibatch, with losses clipped at ``max_loss``.

    In expectation the sum over an episode is the loss at its end minus the loss at its start, which no
    optimizer can change.
    """
    batch = task.sample(data, key)
    after, before = (bounded(task.loss(params, batch), task.max_loss) for params in (step.after, step.before))
    return after - before


def mean_and_end(task: Task, data: Data, step: TrainingStep, key: jax.Array) -> jax.Array:
    """The loss of the step's minibatch, with more weight in the last tenth of the episode.

    With ``w = END_WEIGHT`` the sum over an episode is T times ``(1 - w)`` of the mean loss plus ``w`` of the
    mean loss over the last tenth, if T is a multiple of 10. Each loss is clipped at the task's ``max_loss``
    first.
    """
    loss = _clipped(step.loss, task.max_loss)
    return (1 - END_WEIGHT) * loss + jnp.where(_ends(step), END_WEIGHT / END_SHARE * loss, 0)


def mean_and_validation_end(task: Task, data: Data, step: TrainingStep, key: jax.Array) -> jax.Array:
    """Like ``mean_and_end``, but with a validation loss in the last tenth, if the task has one.

    The validation loss is that of a minibatch after the update. It takes time in the last tenth only, unless
    particles are unrolled in parallel.
    """
    if task.sample_validation is None:
        return mean_and_end(task, data, step, key)
    end = jax.lax.cond(
        _ends(step),
        lambda: _clipped(validation_loss(task, data, step, key), task.max_loss),
        lambda: jnp.zeros_like(step.loss),
    )
    return (1 - END_WEIGHT) * _clipped(step.loss, task.max_loss) + END_WEIGHT / END_SHARE * end


def log_mean_and_validation_end(task: Task, data: Data, step: TrainingStep, key: jax.Array) -> jax.Array:
    """Like ``mean_and_validation_end`` for the logarithm of each loss, so that relative decreases count.

    A loss L clipped at the task's ``max_loss`` M counts as ``M log(1 + L / d M) / log(1 + 1 / d)`` with
    ``d = LOG_FLOOR``: 0 for L = 0, M for L = M, and proportional to L far below d M. The few inner trainings
    that go badly do not outweigh all others, and a loss that is small already is still worth lowering.
    """
    assert task.max_loss is not None  # `find_objective` has checked it
    bound = task.max_loss

    def logarithmic(loss: jax.Array) -> jax.Array:
        return bound * jnp.log1p(jnp.maximum(loss, 0) / (LOG_FLOOR * bound)) / math.log1p(1 / LOG_FLOOR)

    of_logarithm = replace(task, loss=lambda params, batch: logarithmic(task.loss(params, batch)))
    return mean_and_validation_end(of_logarithm, data, step._replace(loss=logarithmic(step.loss)), key)


def _ends(step: TrainingStep) -> jax.Array:
    assert step.progress is not None  # the objective has ``reads_progress``
    # Rounded, 0.9 may be above 0.9; the margin is smaller than a step.
    return step.progress > 1 - END_SHARE + 1e-6


def _clipped(loss: jax.Array, max_loss: float | None) -> jax.Array:
    """A loss clipped at `max_loss`; a non-finite loss is returned as it is, for the estimator to count."""
    return jnp.where(jnp.isfinite(loss), bounded(loss, max_loss), loss)


END_SHARE = 0.1  # of the steps of an episode
END_WEIGHT = 0.5  # of the end; the rest is that of the mean
LOG_FLOOR = 3e-3  # share of ``max_loss`` below which the logarithm becomes linear
_LARGEST_WEIGHT = 1 - END_WEIGHT + END_WEIGHT / END_SHARE

TRAINING_LOSS = Objective(training_loss)
OBJECTIVES = {
    "training-loss": TRAINING_LOSS,
    "later-training-loss": Objective(later_training_loss),
    "validation-loss": Objective(validation_loss, ("sample_validation",)),
    "validation-accuracy": Objective(validation_accuracy, ("sample_validation", "accuracy"), False),
    "final-loss": Objective(final_loss),
    "mean-and-end": Objective(mean_and_end, reads_progress=True, largest_weight=_LARGEST_WEIGHT),
    "mean-and-validation-end": Objective(
        mean_and_validation_end, reads_progress=True, largest_weight=_LARGEST_WEIGHT
    ),
    "log-mean-and-validation-end": Objective(
        log_mean_and_validation_end, ("max_loss",), reads_progress=True, largest_weight=_LARGEST_WEIGHT
    ),
}


def find_objective(name: str, task: Task) -> Objective:
    """Return the objective called `name`.

    Raises:
      UserError: no objective has that name, or the task lacks a part that it needs.
    """
    if name not in OBJECTIVES:
        raise UserError(f"unknown objective '{name}'; {choices(name, OBJECTIVES)}")
    missing = [part for part in OBJECTIVES[name].reads if getattr(task, part) is None]
    if missing:
        raise UserError(
            f"the objective '{name}' needs a task with {' and '.join(missing)}, which this task does not "
            f"have; {', '.join(n for n in OBJECTIVES if not OBJECTIVES[n].reads)} work with every task"
        )
    return OBJECTIVES[name]
