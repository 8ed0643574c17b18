"""Shared by all estimators: walking through episodes window by window, and summing the metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from inner_tasks import UnrolledProblem
from inner_tasks.problem import episode_length
from meta_train.estimators.base import Estimator, Info, State, Theta
from meta_train.estimators.metrics import Unrolled, summed
from meta_train.estimators.window import Window


class Episode(NamedTuple):
    """State of an estimator: its position in an episode, and what it carries from window to window."""

    carried: State  # the estimator's own state: inner states, perturbations
    position: jax.Array  # int32 [], steps of the episode already taken
    length: jax.Array | None = None  # int32 [], steps of the episode; None if that is always the horizon


class Estimate(NamedTuple):
    """An estimator's result for one window."""

    gradient: Theta  # of the sum of the window's losses
    carried: State  # for the next window
    windows: tuple[Window, ...]  # all windows that were unrolled
    xi: Theta | None = None  # the perturbation that weighted the losses


def episodic(
    problem: UnrolledProblem,
    truncation: int,
    start: Callable[[jax.Array, Theta], State],
    window: Callable[[Theta, State, jax.Array, jax.Array, jax.Array], Estimate],
) -> Estimator:
    """An estimator from its function for a single window.

    Each call unrolls the next window of K steps. When an episode is over, the next call starts a new one, so
    the losses of an episode always go with the state carried through that same episode.

    Args:
      problem: what is unrolled.
      truncation: K; it need not divide T: the last window of an episode is then shorter.
      start: ``(key, theta) -> carried``, at the start of an episode; the key is for ``problem.init``.
      window: ``(theta, carried, position, noise_key, data_key) -> Estimate``.
    """

    def steps_of(length: jax.Array | None) -> jax.Array | int:
        return problem.horizon if length is None else length

    def restarted(key: jax.Array, theta: Theta) -> Episode:
        return Episode(start(key, theta), jnp.zeros((), jnp.int32), episode_length(problem, key))

    def init(key: jax.Array, theta: Theta, phase: jax.Array | float = 0.0) -> Episode:
        length = episode_length(problem, key)
        windows = -(-steps_of(length) // truncation)
        position = jnp.floor(phase * windows).astype(jnp.int32) * truncation
        if length is not None:
            # The problem counts its steps from the first that it takes, so the last window will be whole.
            length = jnp.where(position > 0, windows * truncation, length)
        return Episode(start(key, theta), position, length)

    def estimate(theta: Theta, state: Episode, key: jax.Array) -> tuple[Theta, Episode, Info]:
        init_key, noise_key, data_key = jax.random.split(key, 3)
        carried, position, length = jax.lax.cond(
            state.position >= steps_of(state.length), lambda: restarted(init_key, theta), lambda: state
        )
        outcome = window(theta, carried, position, noise_key, data_key)

        left = steps_of(length) - position
        steps, ended = jnp.minimum(truncation, left), left <= truncation
        info = summed(Unrolled(outcome.windows, outcome.xi, steps, ended))
        gradient = optax.tree.scale(1 / truncation, outcome.gradient)
        return gradient, Episode(outcome.carried, position + steps, length), info

    return Estimator(init, estimate)
