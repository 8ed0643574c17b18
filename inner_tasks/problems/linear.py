"""A linear recurrence: the smallest unrolled problem, with a closed-form gradient."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LinearRecurrence:
    """``s_t = decay * s_{t-1} + theta``, ``L_t = s_t`` (after the step), ``s_0 = 0``.

    The gradient of ``sum_t L_t`` is ``sum_{t=1}^{T} (1 - decay^t) / (1 - decay)``, whatever theta is:
    9.049 for decay 0.9 and T = 4.

    Example::

        problem = LinearRecurrence(horizon=4)
        state, loss = problem.step(jnp.float32(1), problem.init(key), key)
    """

    horizon: int = dataclasses.field(default=4, metadata={"static": True})
    decay: float = dataclasses.field(default=0.9, metadata={"static": True})
    max_loss: ClassVar[None] = None
    differentiable: ClassVar[bool] = True

    def init(self, key: jax.Array) -> jax.Array:
        """Zero."""
        del key
        return jnp.zeros(())

    def step(self, theta: jax.Array, state: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The next state, which is also the loss."""
        del key
        state = self.decay * state + theta
        return state, state
