"""A population of particles: the average of many copies of an estimator, on many devices.

Two rules make a run independent of the number of devices. First, randomness belongs to the particle: its key
is derived from the update's key and its number. Second, gradients are summed in particle order: the devices
return the terms of single pairs (in large populations, partial sums over many pairs), and one device adds
them in a fixed order. A ``pmean`` would add them in an order that depends on the devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax

from inner_tasks import UnrolledProblem
from meta_train.devices.choice import partial_sums
from meta_train.devices.mapping import AXIS, STRATEGY, Strategy, chunked_map, rows_of_process, shapes_of_rows
from meta_train.estimators.base import Estimator, Info, State, Theta
from meta_train.estimators.metrics import reduced

# Summands that are added in one operation.
ADDITIONS = 32

Metrics = dict[str, jax.Array]  # of a population's estimate, by the names in ``METRICS``


class Memory(NamedTuple):
    """The memory that each device needs, in bytes, as the compiler plans it."""

    held: int  # all the time: data, and the states of its particles
    working: int  # additionally during an update


class Population(NamedTuple):
    """An estimator (``init``, ``estimate``) made of many, with conversions of its state to host arrays.

    Attributes:
      init: ``(key, theta) -> state``.
      estimate: ``(theta, state, key) -> (gradient, state, metrics)``. The state is donated.
      gather: ``state -> pytree of NumPy arrays [units, ...]``, in particle order; with many processes, each
        has its own units.
      scatter: the inverse of gather, onto the devices of this population.
      memory: ``theta -> Memory``; nothing is run, and theta may be given as shapes. It compiles the program
        of `estimate`, which otherwise its first call does.
    """

    init: Callable[[jax.Array, Theta], State]
    estimate: Callable[[Theta, State, jax.Array], tuple[Theta, State, Metrics]]
    gather: Callable[[State], Any]
    scatter: Callable[[Any], State]
    memory: Callable[[Theta], Memory]


def population(
    make_estimator: Callable[[UnrolledProblem], Estimator],
    problem: UnrolledProblem,
    *,
    units: int,
    devices: int,
    chunk: int = 1,
    strategy: Strategy = STRATEGY,
) -> Population:
    """The mean of many copies of an estimator, each with its own state and randomness.

    Args:
      make_estimator: makes the estimator of one unit (an antithetic pair) for a problem.
      problem: what is unrolled; its arrays are put on every device once.
      units: number of copies.
      devices: number of devices, as returned by ``start_devices``: a divisor of ``partial_sums(units)``.
      chunk: units that one device works on at once.
      strategy: how the devices are used.

    Returns:
      An estimator whose estimates do not depend on `devices`; on a CPU with a chunk of 1, they are the same
      to the bit. (A larger chunk is another program if a device has fewer units than that.)
    """
    per_sum = units // partial_sums(units)
    problem = strategy.replicate(problem, devices)
    numbers = strategy.split(rows_of_process(np.arange(units)), devices)

    def init(shared: tuple[UnrolledProblem, Theta, jax.Array], numbers: jax.Array) -> tuple[Any, State]:
        problem, theta, key = shared

        def one(number: jax.Array) -> State:
            return make_estimator(problem).init(jax.random.fold_in(key, number), theta, number / units)

        return (), chunked_map(one, numbers, chunk)

    def terms(
        shared: tuple[UnrolledProblem, Theta, jax.Array], numbers: jax.Array, state: State
    ) -> tuple[Any, State]:
        """The partial sums gathered from all devices, and the next state of a device's units."""
        problem, theta, key = shared

        def one(inputs: tuple[jax.Array, State]) -> tuple[Any, State]:
            number, state = inputs
            gradient, state, info = make_estimator(problem).estimate(
                theta, state, jax.random.fold_in(key, number)
            )
            return (gradient, jnp.square(optax.tree.norm(gradient)), info), state

        each, state = chunked_map(one, (numbers, state), chunk)
        each = jax.tree.map(lambda x: x.reshape(-1, per_sum, *x.shape[1:]), each)
        return jax.lax.all_gather(jax.vmap(_ordered_sum)(each), AXIS, tiled=True), state

    init_on_devices = strategy.map(init, devices, 1)
    terms_on_devices = strategy.map(terms, devices, 2, (2,))

    def start(shared: tuple[UnrolledProblem, Theta, jax.Array]) -> State:
        return init_on_devices.call(shared, numbers)[1]

    def estimate(theta: Theta, state: State, key: jax.Array) -> tuple[Theta, State, Metrics]:
        sums, state = terms_on_devices.call((problem, theta, key), numbers, state)
        gradient, metrics = _combine(sums)
        return gradient, state, metrics

    def memory(theta: Theta) -> Memory:
        many = jax.process_count() > 1
        if many:  # pmap then needs arrays instead of shapes
            theta = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), theta)
        shared = (problem, theta, jax.random.key(0))
        state = start(shared) if many else shapes_of_rows(start, devices, shared)
        plan = terms_on_devices.plan(shared, numbers, state)
        beside = plan.temp_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
        return Memory(plan.argument_size_in_bytes, beside)

    return Population(
        init=lambda key, theta: start((problem, theta, key)),
        estimate=estimate,
        gather=strategy.join,
        scatter=lambda rows: strategy.split(rows, devices),
        memory=memory,
    )


def _ordered_sum(xs: Any) -> Any:
    """Sum over the leading axis, one after another.

    All arrays of a summand are packed into one vector, and several additions into one operation, because on a
    GPU each operation costs a launch.
    """
    flat, unflatten = jax.flatten_util.ravel_pytree(jax.tree.map(lambda x: x[0], xs))
    rows = jax.vmap(lambda x: jax.flatten_util.ravel_pytree(x)[0])(xs)
    total, _ = jax.lax.scan(lambda total, x: (total + x, None), flat, rows[1:], unroll=ADDITIONS)
    return unflatten(total)


@jax.jit
def _combine(sums: tuple[Theta, jax.Array, Info]) -> tuple[Theta, Metrics]:
    """Mean gradient and metrics, from partial sums."""
    gradient, square_norm, info = _ordered_sum(sums)
    units = info["units"]
    gradient = optax.tree.scale(1 / units, gradient)
    norm = optax.tree.norm(gradient)
    # The variance of the mean, from the scatter of the pairs around it.
    variance = jnp.maximum(square_norm / units - norm**2, 0) / (units - 1)
    return gradient, reduced(info, norm, norm / jnp.sqrt(jnp.where(units > 1, variance, jnp.nan)))
