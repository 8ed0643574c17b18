"""The cost of training with an optimizer: the time of a gradient, the time and memory of an update."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from inner_tasks import Training, Variables
from inner_tasks.task import trained
from inner_tasks.training import gradient
from learned_opt._src.learned_optimizer import LearnedOptimizer, Params
from meta_train.report.evaluation import Contestant

# There are many short turns, so that on a busy machine some of them run undisturbed.
ROUNDS = 15
ROUND_SECONDS = 0.004
MAX_STEPS = 1000


class Cost(NamedTuple):
    """The cost of one step of an optimizer."""

    seconds: float  # of computing an update and adding it to the parameters
    state_bytes: int


# Runs the given number of steps, and returns the seconds that they took.
Turn = Callable[[int], float]


def update_costs(params: Params, contestants: Mapping[str, Contestant]) -> dict[str, Cost]:
    """Time and memory of each optimizer, on one device.

    A turn is a compiled loop of updates with the parameters themselves as gradients.

    Args:
      params: parameters of the network to train.
      contestants: the optimizers.
    """
    seconds = _fastest({name: _updates(params, contestant) for name, contestant in contestants.items()})
    return {name: Cost(seconds[name], state_bytes(params, each)) for name, each in contestants.items()}


def gradient_seconds(training: Training, params: Params | Variables) -> float:
    """Time of a minibatch and its gradient, which every optimizer needs at each step, on one device.

    Args:
      training: the task.
      params: parameters of the network to train, as the task's ``init`` returns them.
    """
    task = training.task

    @jax.jit
    def run(data: Any, params: Params, steps: int) -> Params:
        def step(number: jax.Array, params: Params) -> Params:
            batch = task.sample(data, jax.random.fold_in(jax.random.key(0), number))
            _, gradients, model_state = gradient(task, params, batch)
            updated = optax.apply_updates(trained(params), optax.tree.scale(-1e-6, gradients))
            return updated if model_state is None else Variables(updated, model_state)

        return jax.lax.fori_loop(0, steps, step, params)

    return _fastest({"gradient": _timed(run, training.data, params)})["gradient"]


def state_bytes(params: Params, contestant: Contestant) -> int:
    """Bytes of the optimizer state for these parameters."""
    state = jax.eval_shape(contestant.optimizer.init, params)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))


def repeated_updates(
    optimizer: LearnedOptimizer,
    theta: Any,
    params: Params,
    state: Any,
    steps: jax.Array | int,
    unroll: int | None = None,
) -> Params:
    """The parameters after the given number of updates, with the parameters themselves as gradients.

    If the number is fixed, an iteration of the compiled loop may be several updates, `unroll`.
    """

    def step(_: jax.Array, carry: tuple[Params, Any]) -> tuple[Params, Any]:
        params, state = carry
        updates, state = optimizer.update(theta, params, state, params)
        return optax.apply_updates(params, updates), state

    return jax.lax.fori_loop(0, steps, step, (params, state), unroll=unroll)[0]


def _updates(params: Params, contestant: Contestant) -> Turn:
    optimizer = contestant.optimizer
    theta = jnp.float32(1e-3) if contestant.theta is None else contestant.theta
    return _timed(jax.jit(partial(repeated_updates, optimizer)), theta, params, optimizer.init(params))


def _timed(run: Callable[..., Any], *arguments: Any) -> Turn:
    """A turn that calls a compiled function with these arguments and a number of steps."""

    def turn(steps: int) -> float:
        began = time.perf_counter()
        jax.block_until_ready(run(*arguments, steps))
        return time.perf_counter() - began

    return turn


def _fastest(turns: Mapping[str, Turn]) -> dict[str, float]:
    """Seconds per step.

    The optimizers take turns many times over, and the fastest turn of each counts, so a varying load on the
    machine affects their ratio little.
    """
    steps, seconds = dict.fromkeys(turns, 1), dict.fromkeys(turns, np.inf)
    for name, turn in turns.items():
        turn(1)  # compiles
        for _ in range(2):  # a single step is too short to show how many fill a turn
            rate = steps[name] / turn(steps[name])
            steps[name] = int(np.clip(ROUND_SECONDS * rate, 1, MAX_STEPS))
    for _ in range(ROUNDS):
        for name, turn in turns.items():
            seconds[name] = min(seconds[name], turn(steps[name]) / steps[name])
    return seconds
