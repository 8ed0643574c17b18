"""What meta-training asks of an inner step: the loss L_t."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax

from inner_tasks.problem import bounded
from inner_tasks.task import Data, Params, Task
from learned_opt._src.errors import UserError, choices


class TrainingStep(NamedTuple):
    """What an inner step has done."""

    before: Params  # parameters before its update
    after: Params  # and after it
    loss: jax.Array  # loss of its own minibatch before its update, []


class Objective(NamedTuple):
    """A loss for every inner step; meta-training lowers its sum over an episode.

    Attributes:
      measure: ``(task, data, step, key) -> scalar``.
      reads: optional parts of a task that it needs.
      differentiable: whether its derivative says something.
    """

    measure: Callable[[Task, Data, TrainingStep, jax.Array], jax.Array]
    reads: tuple[str, ...] = ()
    differentiable: bool = True


def training_loss(task: Task, data: Data, step: TrainingStep, key: jax.Array) -> jax.Array:
    """The loss of the step's own minibatch *before* its update: what a training loop sees. It is free."""
    return step.loss


def later_training_loss(task: Task, data: Data, step: TrainingStep, key: jax.Array) -> jax.Array:
    """The loss of a fresh minibatch *after* the update."""
    return task.loss(step.after, task.sample(data, key))


def validation_loss(task: Task, data: Data, step: TrainingStep, key: jax.Array) -> jax.Array:
    """The loss of a minibatch of validation examples after the update."""
    assert task.sample_validation is not None  # `find_objective` has seen to it
    return task.loss(step.after, task.sample_validation(data, key))


def validation_accuracy(task: Task, data: Data, step: TrainingStep, key: jax.Array) -> jax.Array:
    """*Minus* the accuracy on a minibatch of validation examples after the update."""
    assert task.sample_validation is not None and task.accuracy is not None
    return -task.accuracy(step.after, task.sample_validation(data, key))


def final_loss(task: Task, data: Data, step: TrainingStep, key: jax.Array) -> jax.Array:
    """What the update added to the loss of a fresh minibatch, each loss clipped at the task's ``max_loss``.

    In expectation the sum over an episode is the loss at its end less that at its start, which no optimizer
    can change.
    """
    batch = task.sample(data, key)
    after, before = (bounded(task.loss(params, batch), task.max_loss) for params in (step.after, step.before))
    return after - before


TRAINING_LOSS = Objective(training_loss)
OBJECTIVES = {
    "training-loss": TRAINING_LOSS,
    "later-training-loss": Objective(later_training_loss),
    "validation-loss": Objective(validation_loss, ("sample_validation",)),
    "validation-accuracy": Objective(validation_accuracy, ("sample_validation", "accuracy"), False),
    "final-loss": Objective(final_loss),
}


def find_objective(name: str, task: Task) -> Objective:
    """The objective called `name`.

    Raises:
      UserError: there is none of that name, or the task lacks what it needs.
    """
    if name not in OBJECTIVES:
        raise UserError(f"unknown objective '{name}'; {choices(name, OBJECTIVES)}")
    missing = [part for part in OBJECTIVES[name].reads if getattr(task, part) is None]
    if missing:
        raise UserError(
            f"the objective '{name}' needs a task with {' and '.join(missing)}, which this task does not "
            f"have; {', '.join(n for n in OBJECTIVES if not OBJECTIVES[n].reads)} need nothing of the kind"
        )
    return OBJECTIVES[name]
