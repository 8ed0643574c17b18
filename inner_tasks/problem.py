"""The unrolled problem: all that an estimator of meta-gradients knows about the world."""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp

Theta = Any  # pytree of float arrays: what is learned
State = Any  # pytree of arrays: what the system carries from step to step


def bounded(loss: jax.Array, max_loss: float | None) -> jax.Array:
    """A loss clipped at `max_loss`, which a loss that is not finite counts as; None leaves it as it is."""
    if max_loss is None:
        return loss
    return jnp.where(jnp.isfinite(loss), jnp.minimum(loss, max_loss), max_loss)


def episode_length(problem: UnrolledProblem, key: jax.Array) -> jax.Array | None:
    """Steps of the episode that ``problem.init(key)`` starts; None where all episodes have the horizon."""
    length = getattr(problem, "length", None)
    return length(key) if length else None


class UnrolledProblem(Protocol):
    """A dynamical system with parameters that act at every step.

    ``s_t, L_t = step(theta, s_{t-1}, x_t)``; the objective of an episode is ``sum_{t=1}^{T} L_t``.
    Training a network with a learned optimizer is one, and so is a linear recurrence. Whether a loss
    is taken before or after the step's update is the problem's own choice, and its docstring says so.

    An implementation is a frozen dataclass registered with ``jax.tree_util.register_dataclass``: its
    arrays (a data set) are leaves, so that they are put on a device once and handed to compiled
    programs as arguments; everything else is static. Its methods are pure and can be mapped over.

    Attributes:
      horizon: T, the number of steps of an episode.
      max_loss: the loss of a step is clipped at this value, and a loss that is not finite counts as
        this value; None leaves losses as they are.
      differentiable: whether the losses have a derivative with respect to theta and the state that says
        something. An accuracy has none. Estimators that need one refuse a problem without.

    Where episodes differ in length, a problem has one more method, ``length(key)``: the steps of the episode
    that ``init(key)`` starts, int32 [], at most the horizon. Steps past that length must leave the state as
    it is and have a loss of 0.
    """

    @property
    def horizon(self) -> int:
        """T, the number of steps of an episode."""
        ...

    @property
    def max_loss(self) -> float | None:
        """Where the loss of a step is clipped, or None."""
        ...

    @property
    def differentiable(self) -> bool:
        """Whether the losses have a derivative that says something."""
        ...

    def init(self, key: jax.Array) -> State:
        """Inner state at the start of an episode. The key is consumed."""
        ...

    def step(self, theta: Theta, state: State, key: jax.Array) -> tuple[State, jax.Array]:
        """One inner step: the next state, and the loss of the step, a scalar. The key is consumed."""
        ...
