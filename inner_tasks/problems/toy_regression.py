"""Toy regression: two weights trained under a linear learning-rate schedule."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

WEIGHT_DECAY = 1e-10


class ToyState(NamedTuple):
    """Inner state."""

    x: jax.Array  # float [2]
    step: jax.Array  # int32 [], steps taken


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ToyRegression:
    """Gradient descent on two weights; theta are the logarithms of the first and the last learning rate.

    ``x_{t+1} = x_t - lr_t grad f(x_t)`` with ``lr_t = (1 - t/T) exp(theta_0) + (t/T) exp(theta_1)`` and

        f(x) = sqrt(x_0^2 + 5) - sqrt(5) + sin(x_1)^2 exp(-5 x_0^2) + |x_1 - 100| / 4

    from x = (1, 1). ``L_t = f(x_t)`` is taken after the step. x_1 has a long way to go, from 1 to 100, and
    the ripples along it trap steps that are too small.

    Source: Vicol, Metz, Sohl-Dickstein, ICML 2021, the toy regression of section 5; the numbers are those
    of its published code.
    """

    horizon: int = dataclasses.field(default=100, metadata={"static": True})
    max_loss: ClassVar[None] = None
    differentiable: ClassVar[bool] = True

    def init(self, key: jax.Array) -> ToyState:
        """The fixed start."""
        del key
        return ToyState(jnp.ones(2), jnp.zeros((), jnp.int32))

    def step(self, theta: jax.Array, state: ToyState, key: jax.Array) -> tuple[ToyState, jax.Array]:
        """One step of gradient descent."""
        del key
        passed = state.step / self.horizon
        rate = (1 - passed) * jnp.exp(theta[0]) + passed * jnp.exp(theta[1])
        x = state.x - rate * (jax.grad(inner_loss)(state.x) + WEIGHT_DECAY * state.x)
        return ToyState(x, state.step + 1), inner_loss(x)

    def meta_loss(self, theta: jax.Array) -> jax.Array:
        """The sum of the losses of an episode, ``[2] -> []``."""
        key = jax.random.key(0)  # nothing here is random
        return jnp.sum(
            jax.lax.scan(lambda state, _: self.step(theta, state, key), self.init(key), length=self.horizon)[
                1
            ]
        )


def inner_loss(x: jax.Array) -> jax.Array:
    """f, ``[2] -> []``."""
    valley = jnp.sqrt(x[0] ** 2 + 5) - jnp.sqrt(5.0)
    ripples = jnp.sin(x[1]) ** 2 * jnp.exp(-5 * x[0] ** 2)
    return valley + ripples + 0.25 * jnp.abs(x[1] - 100)
