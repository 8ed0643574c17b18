"""Training a task with a learned optimizer, as an unrolled problem."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import optax

from inner_tasks.objectives import TRAINING_LOSS, Objective, TrainingStep
from inner_tasks.task import Data, Params, Task
from learned_opt import LearnedOptimizer
from learned_opt._src.learned_optimizer import State, Theta

# A task's `sample` may split the key of a step, and ``split(key)[i]`` is ``fold_in(key, i)``. The objective
# takes the last number, so that it does not draw with a key that `sample` has used.
OBJECTIVE_KEY = 2**32 - 1


class InnerState(NamedTuple):
    """Inner state: a network half-way through its training."""

    params: Params  # parameters of the task
    optimizer: State  # state of the inner optimizer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Training:
    """A task trained by an optimizer whose weights are theta.

    ``L_t`` is what the objective says of step t; unless another is given, the loss of its minibatch *before*
    the update that uses its gradient: it is what a training loop sees, and costs nothing extra.

    Attributes:
      data: the task's data, the only arrays.
      task: what is trained.
      optimizer: what trains it.
      horizon: T, steps of an episode.
      objective: the loss of a step, one of ``inner_tasks.objectives``.
    """

    data: Data
    task: Task = dataclasses.field(metadata={"static": True})
    optimizer: LearnedOptimizer = dataclasses.field(metadata={"static": True})
    horizon: int = dataclasses.field(metadata={"static": True})
    objective: Objective = dataclasses.field(default=TRAINING_LOSS, metadata={"static": True})

    @property
    def max_loss(self) -> float | None:
        """The bound of the task."""
        return self.task.max_loss

    @property
    def differentiable(self) -> bool:
        """Whether both the task and the objective are."""
        return self.task.differentiable and self.objective.differentiable

    def init_theta(self, key: jax.Array) -> Theta:
        """Weights of an optimizer for this task to start meta-training from. The key is consumed."""
        blocks = len(jax.tree.leaves(jax.eval_shape(self.task.init, key)))
        return self.optimizer.init_theta(key, blocks)

    def init(self, key: jax.Array) -> InnerState:
        """Fresh parameters and the optimizer state for them."""
        params = self.task.init(key)
        return InnerState(params, self.optimizer.init(params))

    def step(self, theta: Theta, state: InnerState, key: jax.Array) -> tuple[InnerState, jax.Array]:
        """One training step on a minibatch drawn with the key."""
        batch = self.task.sample(self.data, key)
        loss, gradients = jax.value_and_grad(self.task.loss)(state.params, batch)
        updates, optimizer = self.optimizer.update(theta, gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        step = TrainingStep(state.params, params, loss)
        measured = self.objective.measure(self.task, self.data, step, jax.random.fold_in(key, OBJECTIVE_KEY))
        return InnerState(params, optimizer), measured
