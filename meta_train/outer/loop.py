"""The outer loop: how meta-gradients move theta."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import optax

from meta_train.estimators.base import Theta
from meta_train.outer.agreement import Agreement, agreed, no_agreement, snr_across
from meta_train.outer.averaging import AveragedState
from meta_train.outer.optimizers import outer_step
from meta_train.outer.population import Metrics, Population


class RunState(NamedTuple):
    """Everything that a run carries from update to update, and that a checkpoint holds."""

    theta: Theta
    outer: Any  # state of the outer optimizer
    particles: Any  # state of the population: on devices, or gathered as [pairs, ...]
    key: jax.Array  # the run's key; the key of an update is derived from it and the update's number
    skipped: int  # consecutive updates whose meta-gradient was not finite
    agreement: Agreement  # of the meta-gradients so far


class Update(NamedTuple):
    """One outer update."""

    number: int  # from 1
    state: RunState  # after the update; its particles are donated when the next update begins
    metrics: Metrics
    seconds: float  # time of the update


def result(state: RunState) -> Theta:
    """What meta-training has found: the mean of theta if the outer optimizer keeps one, otherwise theta."""
    return state.outer.mean if isinstance(state.outer, AveragedState) else state.theta


def initial_state(
    population: Population, tx: optax.GradientTransformation, theta: Theta, key: jax.Array
) -> RunState:
    """The state before the first update, from the run's key (folding in 0 is reserved for theta)."""
    outer, agreement = jax.jit(lambda theta: (tx.init(theta), no_agreement(theta)))(theta)
    # Put them where the updates will leave them, so that the second update is not recompiled.
    theta, outer, agreement = jax.device_put((theta, outer, agreement), jax.local_devices()[0])
    particles = population.init(jax.random.fold_in(key, 1), theta)
    return RunState(theta, outer, particles, jax.random.fold_in(key, 2), 0, agreement)


def gathered(population: Population, state: RunState) -> RunState:
    """The state with its particles on the host, as a checkpoint holds it."""
    return state._replace(particles=population.gather(state.particles))


def scattered(population: Population, state: RunState) -> RunState:
    """The inverse of ``gathered``, for a restored state."""
    return state._replace(particles=population.scatter(state.particles), skipped=int(state.skipped))


def outer_loop(
    population: Population, tx: optax.GradientTransformation, state: RunState, done: int, updates: int
) -> Iterator[Update]:
    """Yield the updates of a run, one after another.

    Args:
      population: the estimator.
      tx: the outer optimizer.
      state: the state to continue from.
      done: number of updates that led to it.
      updates: number of the last update.
    """
    step = jax.jit(partial(outer_step, tx))
    agree = jax.jit(_agree)
    for number in range(done + 1, updates + 1):
        began = time.perf_counter()
        gradient, particles, metrics = population.estimate(
            state.theta, state.particles, jax.random.fold_in(state.key, number)
        )
        theta, outer, finite = step(state.theta, state.outer, gradient)
        skipped = 0 if finite else state.skipped + 1
        agreement, across = agree(state.agreement, gradient)
        metrics = metrics | {"snr_across": across}
        state = RunState(theta, outer, particles, state.key, skipped, agreement)
        yield Update(number, state, metrics, time.perf_counter() - began)


def _agree(agreement: Agreement, gradient: Theta) -> tuple[Agreement, jax.Array]:
    agreement = agreed(agreement, gradient)
    return agreement, snr_across(agreement)
