"""The unrolled problem: the interface between meta-gradient estimators and what they unroll."""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp

Theta = Any  # pytree of float arrays: the learned parameters
State = Any  # pytree of arrays: the state that is carried from step to step


def bounded(loss: jax.Array, max_loss: float | None) -> jax.Array:
    """A loss clipped at `max_loss`, where a non-finite loss counts as `max_loss`; None does not clip."""
    if max_loss is None:
        return loss
    return jnp.where(jnp.isfinite(loss), jnp.minimum(loss, max_loss), max_loss)


def episode_length(problem: UnrolledProblem, key: jax.Array) -> jax.Array | None:
    """Length of the episode that ``problem.init(key)`` starts; None if all episodes have horizon length."""
    length = getattr(problem, "length", None)
    return length(key) if length else None


class UnrolledProblem(Protocol):
    """A dynamical system with parameters that act at every step.

    ``s_t, L_t = step(theta, s_{t-1}, x_t)``; the objective of an episode is ``sum_{t=1}^{T} L_t``.
    Examples are training a network with a learned optimizer, and a linear recurrence. Each problem
    chooses whether a loss is taken before or after the step's update, and documents it.

    An implementation is a frozen dataclass registered with ``jax.tree_util.register_dataclass``: its
    arrays (a data set) are leaves, so that they are put on a device once and passed to compiled
    programs as arguments; everything else is static. Its methods are pure and can be mapped over.

    Attributes:
      horizon: T, the number of steps of an episode.
      max_loss: the loss of a step is clipped at this value, and a non-finite loss counts as this value; None
        does not clip.
      differentiable: whether the losses have a meaningful derivative with respect to theta and the state. An
        accuracy has none. Estimators that need derivatives refuse a problem without them.

    If episodes differ in length, a problem has one more method, ``length(key)``: the length of the episode
    that ``init(key)`` starts, int32 [], at most the horizon. Steps past that length must leave the state
    unchanged and have a loss of 0.
    """

    @property
    def horizon(self) -> int:
        """T, the number of steps of an episode."""
        ...

    @property
    def max_loss(self) -> float | None:
        """The value at which the loss of a step is clipped, or None."""
        ...

    @property
    def differentiable(self) -> bool:
        """Whether the losses have a meaningful derivative."""
        ...

    def init(self, key: jax.Array) -> State:
        """Inner state at the start of an episode. The key is consumed."""
        ...

    def step(self, theta: Theta, state: State, key: jax.Array) -> tuple[State, jax.Array]:
        """One inner step: the next state, and the loss of the step, a scalar. The key is consumed."""
        ...
