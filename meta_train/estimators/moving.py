"""A window as a differentiable map of theta and the differentiable part of the state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from inner_tasks import UnrolledProblem
from meta_train.estimators.base import State, Theta
from meta_train.estimators.window import Window, unroll

Moving = list[jax.Array]  # the float arrays of an inner state; counters and keys have no derivative


def moving_part(state: State) -> Moving:
    """The float arrays of an inner state, in the order of its leaves."""
    return [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]


def window_map(
    problem: UnrolledProblem, state: State, position: jax.Array, key: jax.Array, truncation: int
) -> Callable[[Theta, Moving], tuple[tuple[jax.Array, Moving], Window]]:
    """The window as a function ``(theta, moving) -> ((loss, moving after the window), window)``.

    The window in the result is auxiliary output and is not differentiated.
    """

    def run(theta: Theta, moving: Moving) -> Any:
        replaced = iter(moving)
        inner = jax.tree.map(
            lambda leaf: next(replaced) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, state
        )
        window = unroll(problem, theta, inner, position, key, truncation)
        return (window.loss, moving_part(window.state)), window

    return run
