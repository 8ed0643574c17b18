"""Small unrolled problems, each as small as its purpose allows."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np


def static(default: Any) -> Any:
    """A field of a problem that is not an array."""
    return dataclasses.field(default=default, metadata={"static": True})


def problem(cls: type) -> type:
    """A class decorator that makes a frozen dataclass and a pytree, as problems are."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


@problem
class Pendulum:
    """A small nonlinear system with two parameters and random forcing; loss after the step."""

    horizon: int = static(6)
    max_loss: float | None = static(None)
    differentiable: bool = static(True)

    def init(self, key: jax.Array) -> jax.Array:
        return 0.1 * jax.random.normal(key, (2,))

    def step(
        self, theta: dict[str, jax.Array], state: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        angle, speed = state
        speed = theta["damping"] * speed - 0.3 * jnp.sin(angle) + theta["push"] + 0.1 * jax.random.normal(key)
        angle = angle + speed
        return jnp.stack([angle, speed]), jnp.sin(angle) ** 2 + 0.1 * speed**2


@problem
class Noise:
    """A loss that does not depend on theta, or optionally one that is out of bounds."""

    value: float | None = static(None)
    horizon: int = static(6)
    max_loss: float | None = static(None)
    differentiable: ClassVar[bool] = True

    def init(self, key: jax.Array) -> jax.Array:
        return jax.random.normal(key, (3,))

    def step(self, theta: Any, state: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        state = 0.5 * state + jax.random.normal(key, (3,))
        return state, jnp.sum(state) if self.value is None else jnp.float32(self.value)


@problem
class Cliff:
    """The state breaks for good if theta is above 1; otherwise the loss is theta."""

    horizon: int = static(6)
    max_loss: float | None = static(None)
    differentiable: ClassVar[bool] = True

    def init(self, key: jax.Array) -> jax.Array:
        return jnp.zeros(())

    def step(self, theta: Any, state: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        state = state + jnp.where(theta > 1, jnp.nan, 0)
        return state, state + theta


@problem
class Descent:
    """SGD with the learnable learning rate ``exp(theta)`` on a quadratic, from a random start; loss before
    the step.
    """

    horizon: int = static(5)
    max_loss: ClassVar[None] = None
    differentiable: ClassVar[bool] = True

    def init(self, key: jax.Array) -> jax.Array:
        return 1 + 0.3 * jax.random.normal(key, (2,))

    def step(self, theta: jax.Array, state: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        curvature = jnp.array([1.0, 0.2])
        return state - jnp.exp(theta) * curvature * state, jnp.sum(curvature * state**2) / 2


@problem
class TinyLearnedOptimizer:
    """A learned optimizer of three weights, a tanh unit fed by gradient and momentum, that does linear
    regression on a random example per step; loss before the step.
    """

    horizon: int = static(5)
    max_loss: ClassVar[None] = None
    differentiable: ClassVar[bool] = True

    def init(self, key: jax.Array) -> dict[str, jax.Array]:
        return {"params": 0.3 * jax.random.normal(key, (2,)), "momentum": jnp.zeros(2)}

    def step(
        self, theta: dict[str, jax.Array], state: dict[str, jax.Array], key: jax.Array
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        example = 1 + 0.3 * jax.random.normal(key, (2,))
        residual = jnp.dot(example, state["params"]) - 1.5
        gradient = residual * example
        momentum = 0.5 * state["momentum"] + gradient
        hidden = jnp.tanh(theta["feed"][0] * gradient + theta["feed"][1] * momentum)
        return {
            "params": state["params"] - 0.2 * theta["out"] * hidden,
            "momentum": momentum,
        }, residual**2 / 2


@problem
class Wave:
    """``s_t = sin(a s_{t-1}) + b``, ``L_t = s_t^2``, ``s_0 = 0.3``, with ``theta = {"a": a, "b": b}``.

    Nothing is random, and the state is a single number. ``window`` is the same in NumPy.
    """

    horizon: int = static(5)
    max_loss: ClassVar[None] = None
    differentiable: ClassVar[bool] = True
    START: ClassVar[float] = 0.3

    def init(self, key: jax.Array) -> jax.Array:
        return jnp.asarray(self.START, float)

    def step(
        self, theta: dict[str, jax.Array], state: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        state = jnp.sin(theta["a"] * state) + theta["b"]
        return state, state**2

    @staticmethod
    def window(theta: np.ndarray, state: complex, steps: int) -> tuple[complex, complex]:
        """The state after `steps` steps with ``theta = [a, b]``, and the sum of their losses.

        It accepts complex numbers, for the complex-step method.
        """
        total = 0.0
        for _ in range(steps):
            state = np.sin(theta[0] * state) + theta[1]
            total = total + state**2
        return state, total


@problem
class Fragile:
    """``x_t = 0.5 x_{t-1} + theta``, ``L_t = x_t^2``, ``x_0 = 1``; broken, the factor is 1.5e19, not 0.5.

    From a state of 1 a broken system has one loss of 2e38, which is a float32 although its derivative may not
    be, and then infinite losses. Tests break it by hand, wherever an estimator keeps the state: the flag and
    the step counter have dtypes that nothing else has.
    """

    horizon: int = static(7)
    max_loss: float | None = static(None)
    differentiable: ClassVar[bool] = True
    COUNTER: ClassVar[Any] = np.int16
    FLAG: ClassVar[Any] = np.uint16

    def init(self, key: jax.Array) -> dict[str, jax.Array]:
        return {"x": jnp.ones(()), "taken": jnp.zeros((), self.COUNTER), "broken": jnp.zeros((), self.FLAG)}

    def step(
        self, theta: jax.Array, state: dict[str, jax.Array], key: jax.Array
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        x = jnp.where(state["broken"] > 0, 1.5e19, 0.5) * state["x"] + theta
        return {**state, "x": x, "taken": state["taken"] + 1}, x**2


@problem
class Layers:
    """A wide state and four layers per step: a step computes more than has to be kept."""

    horizon: int = static(1000)
    width: int = static(4096)
    max_loss: ClassVar[None] = None
    differentiable: ClassVar[bool] = True

    def init(self, key: jax.Array) -> jax.Array:
        return jnp.ones(self.width)

    def step(
        self, theta: dict[str, jax.Array], state: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        for _ in range(4):
            state = jnp.tanh(theta["factor"] * state + theta["shift"])
        return state, jnp.sum(state)


@problem
class Multiplied:
    """``s_t = tanh(theta s_{t-1})`` with a matrix theta: one matrix times one vector a step.

    The name of their scope identifies its products in a program.
    """

    horizon: int = static(1000)
    max_loss: ClassVar[None] = None
    differentiable: ClassVar[bool] = True
    SIZE: ClassVar[int] = 3
    SCOPE: ClassVar[str] = "the product of a step"

    def init(self, key: jax.Array) -> jax.Array:
        return jnp.ones(self.SIZE)

    def step(self, theta: jax.Array, state: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        with jax.named_scope(self.SCOPE):
            product = theta @ state
        state = jnp.tanh(product)
        return state, jnp.sum(state)
