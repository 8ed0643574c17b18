"""Training a task with a learned optimizer, as an unrolled problem."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from inner_tasks.objectives import TRAINING_LOSS, Objective, TrainingStep, find_objective
from inner_tasks.task import Batch, Data, Params, Task, TaskFamily, Variables, trained
from learned_opt import LearnedOptimizer
from learned_opt._src.learned_optimizer import State, Theta

Variation = Any  # pytree of arrays

# A task's `sample` may split the key of a step, and ``split(key)[i]`` is ``fold_in(key, i)``. The objective
# uses the last number, so that it never draws with a key that `sample` has used.
OBJECTIVE_KEY = 2**32 - 1


class InnerState(NamedTuple):
    """Inner state: a network during its training."""

    params: Params  # parameters of the task; ``Variables`` if its model has mutable state
    optimizer: State  # state of the inner optimizer
    steps: jax.Array | None = None  # int32 [], steps taken; None if nothing needs it


def gradient(task: Task, params: Params, batch: Batch) -> tuple[jax.Array, Params, Any]:
    """The loss of a training minibatch, and its gradient.

    Args:
      task: the task.
      params: as the task's ``init`` returns them.
      batch: a minibatch.

    Returns:
      The loss, its gradient with respect to the trained parameters, and the state of the model after the
      step; None if it has no state.
    """
    loss_and_state = task.loss_and_state
    if loss_and_state is None:
        return *jax.value_and_grad(task.loss)(params, batch), None

    def of_trained(own: Params) -> tuple[jax.Array, Any]:
        return loss_and_state(Variables(own, params.state), batch)

    (loss, model_state), gradients = jax.value_and_grad(of_trained, has_aux=True)(params.params)
    return loss, gradients, model_state


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Training:
    """A task trained by an optimizer whose weights are theta.

    The objective defines ``L_t``. The default is the loss of the step's minibatch *before* the update, as a
    training loop sees it; it costs nothing extra.

    Attributes:
      data: the task's data, the only arrays.
      task: the task to train.
      optimizer: the inner optimizer.
      horizon: T, steps per episode.
      objective: the loss of a step, one of ``inner_tasks.objectives``.
    """

    data: Data
    task: Task = dataclasses.field(metadata={"static": True})
    optimizer: LearnedOptimizer = dataclasses.field(metadata={"static": True})
    horizon: int = dataclasses.field(metadata={"static": True})
    objective: Objective = dataclasses.field(default=TRAINING_LOSS, metadata={"static": True})

    @property
    def max_loss(self) -> float | None:
        """The task's bound times the largest weight that the objective gives to a loss."""
        return self.task.max_loss and self.task.max_loss * self.objective.largest_weight

    @property
    def differentiable(self) -> bool:
        """Whether both the task and the objective are differentiable."""
        return self.task.differentiable and self.objective.differentiable

    def init_theta(self, key: jax.Array) -> Theta:
        """Initial weights for meta-training on this task. The key is consumed."""
        blocks = len(jax.tree.leaves(trained(jax.eval_shape(self.task.init, key))))
        return self.optimizer.init_theta(key, blocks)

    def init(self, key: jax.Array) -> InnerState:
        """Fresh parameters and the optimizer state for them."""
        return self.begin(self.task.init(key))

    def begin(self, params: Params) -> InnerState:
        """The inner state of an episode that starts from these parameters."""
        steps = jnp.zeros((), jnp.int32) if self.objective.reads_progress else None
        return InnerState(params, self.optimizer.init(trained(params)), steps)

    def step(self, theta: Theta, state: InnerState, key: jax.Array) -> tuple[InnerState, jax.Array]:
        """One training step on a minibatch drawn with the key."""
        batch = self.task.sample(self.data, key)
        loss, gradients, model_state = gradient(self.task, state.params, batch)
        num_steps = self.horizon if self.task.num_steps is None else self.task.num_steps
        told = (num_steps,) if self.optimizer.takes_num_steps else ()
        before = trained(state.params)
        updates, optimizer = self.optimizer.update(theta, gradients, state.optimizer, before, *told)
        params = optax.apply_updates(before, updates)
        if model_state is not None:
            params = Variables(params, model_state)
        steps = None if state.steps is None else state.steps + 1
        progress = None if steps is None else steps / self.horizon
        step = TrainingStep(state.params, params, loss, progress)
        measured = self.objective.measure(self.task, self.data, step, jax.random.fold_in(key, OBJECTIVE_KEY))
        return InnerState(params, optimizer, steps), measured


class FamilyState(NamedTuple):
    """Inner state: a member of a family during its training."""

    variation: Variation  # defines the member
    training: InnerState


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FamilyTraining:
    """A task that is drawn from a family at the start of each episode, trained by an optimizer.

    Episodes differ in length: steps past the horizon of a member leave the state unchanged and add no loss.

    Attributes:
      data: the data of all members, the only arrays.
      family: the family.
      optimizer: the inner optimizer.
      objective: the loss of a step.
    """

    data: Data
    family: TaskFamily = dataclasses.field(metadata={"static": True})
    optimizer: LearnedOptimizer = dataclasses.field(metadata={"static": True})
    objective: Objective = dataclasses.field(default=TRAINING_LOSS, metadata={"static": True})

    @property
    def horizon(self) -> int:
        """The longest T of a member."""
        return self.family.horizon

    @property
    def task(self) -> Task:
        """A fixed member, which a report shows."""
        return self.family.example()

    @property
    def max_loss(self) -> float:
        """The family's bound times the largest weight that the objective gives to a loss."""
        return self.family.max_loss * self.objective.largest_weight

    @property
    def differentiable(self) -> bool:
        """Whether the objective can be differentiated."""
        return self.objective.differentiable

    def init_theta(self, key: jax.Array) -> Theta:
        """Initial weights for meta-training on these tasks. The key is consumed."""
        params = jax.eval_shape(self.init, key).training.params
        return self.optimizer.init_theta(key, len(jax.tree.leaves(trained(params))))

    def init(self, key: jax.Array) -> FamilyState:
        """A random member, with fresh parameters and the optimizer state for them."""
        variation_key, training_key = jax.random.split(key)
        variation = self.family.draw(variation_key)
        training = self._training(variation).init(training_key)
        return FamilyState(variation, training._replace(steps=jnp.zeros((), jnp.int32)))

    def length(self, key: jax.Array) -> jax.Array:
        """Length of the episode that ``init(key)`` starts, int32 []."""
        variation_key, _ = jax.random.split(key)
        return jnp.asarray(self.family.member(self.family.draw(variation_key)).horizon)

    def step(self, theta: Theta, state: FamilyState, key: jax.Array) -> tuple[FamilyState, jax.Array]:
        """One training step on a minibatch drawn with the key."""
        training = self._training(state.variation)
        after, loss = training.step(theta, state.training, key)
        assert state.training.steps is not None and training.task.max_loss is not None
        real = state.training.steps < training.horizon
        loss = jnp.where(real, loss * (self.family.max_loss / training.task.max_loss), 0)
        return FamilyState(state.variation, optax.tree.where(real, after, state.training)), loss

    def _training(self, variation: Variation) -> Training:
        member = self.family.member(variation)
        return Training(self.data, member, self.optimizer, member.horizon, self.objective)


def training_of(
    task: Task | TaskFamily, optimizer: LearnedOptimizer, objective: str, data: Data = None
) -> Training | FamilyTraining:
    """The unrolled problem of training a task, or the tasks of a family, with an optimizer.

    Raises:
      UserError: there is no such objective, or the task lacks a part that it needs.
    """
    if isinstance(task, TaskFamily):
        return FamilyTraining(data, task, optimizer, find_objective(objective, task.example()))
    return Training(data, task, optimizer, task.horizon, find_objective(objective, task))
