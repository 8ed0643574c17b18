"""A population of particles over many devices: the only module that knows of devices.

Two rules make a run independent of how many devices it has. Randomness belongs to the particle: its key
is made of the update's key and its number. And gradients are summed in particle order: the devices hand
over the terms of single pairs (of blocks of pairs, in large populations), which are then added on one
device in a fixed order, where a ``pmean`` would add in an order of the devices' own.

The population is sharded with ``jax.pmap``, which is in maintenance: moving to ``shard_map`` would change
this module alone.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax

from inner_tasks import UnrolledProblem
from inner_tasks.datasets.cache import cache_folder
from learned_opt import UserError
from meta_train.devices.processes import concatenated
from meta_train.estimators.base import Estimator, Info, State, Theta
from meta_train.estimators.window import chunked_map

# Up to here every pair hands over its own term; larger populations hand over this many sums at most.
MAX_BLOCKS = 256

# Summands that are added in one operation.
ADDITIONS = 32

# `in_axes` of what all devices share. It must not be a plain None: where there are as many arrays as
# arguments, pmap (JAX 0.10) pairs them off one to one, and a problem without arrays shifts the rest.
SHARED = (None, None, None)


class PopulationInfo(NamedTuple):
    """Diagnostics of an estimate by a population, float32 scalars."""

    loss: jax.Array  # mean loss per real inner step, over all particles
    gradient_norm: jax.Array  # norm of the meta-gradient
    snr: jax.Array  # norm of the meta-gradient over its standard error, across pairs; NaN for one pair
    xi_norm: jax.Array  # mean norm of the accumulated perturbations
    clipped: jax.Array  # share of real steps whose loss was finite and clipped
    nonfinite: jax.Array  # share of real steps whose loss was not finite
    dropped: jax.Array  # share of the pairs that were dropped, since one member's loss was not finite
    episodes: jax.Array  # episodes completed
    steps: jax.Array  # particle-steps: real inner steps of all particles


class Memory(NamedTuple):
    """What each device needs, in bytes, as the compiler plans it."""

    held: int  # all the time: data, and the states of its particles
    working: int  # during an update, beside that


class Population(NamedTuple):
    """An estimator (``init``, ``estimate``) made of many, and its state as plain host arrays.

    Attributes:
      init: ``(key, theta) -> state``.
      estimate: ``(theta, state, key) -> (gradient, state, info)``. The state is donated.
      gather: ``state -> pytree of NumPy arrays [units, ...]``, in particle order; of many processes, each
        has the units of its own.
      scatter: the inverse of gather, onto the devices of this population.
      memory: ``theta -> Memory``; nothing is run, and shapes suffice for theta.
    """

    init: Callable[[jax.Array, Theta], State]
    estimate: Callable[[Theta, State, jax.Array], tuple[Theta, State, PopulationInfo]]
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
) -> Population:
    """The mean of many copies of an estimator, each with a state and randomness of its own.

    Args:
      make_estimator: makes the estimator of one unit (an antithetic pair) for a problem.
      problem: what is unrolled; its arrays are put on every device once.
      units: number of copies.
      devices: number of devices to spread them over, as ``start_devices`` gives it: a divisor of
        ``blocks(units)``.
      chunk: units that one device works on at once.

    Returns:
      An estimator whose estimates do not depend on `devices`: on a CPU, with a chunk of 1, not by a
      single bit. (A larger chunk is another program when a device has fewer units than that.)
    """
    per_block = units // blocks(units)
    problem = replicate(problem, devices)
    numbers = _own_rows(np.arange(units).reshape(devices, -1))

    def init(shared: tuple[UnrolledProblem, Theta, jax.Array], numbers: jax.Array) -> State:
        problem, theta, key = shared

        def one(number: jax.Array) -> State:
            return make_estimator(problem).init(jax.random.fold_in(key, number), theta, number / units)

        return chunked_map(one, numbers, chunk)

    def terms(
        shared: tuple[UnrolledProblem, Theta, jax.Array], numbers: jax.Array, state: State
    ) -> tuple[Any, State]:
        """Of one device: the sums over each block of pairs, gathered from all, and the next state."""
        problem, theta, key = shared

        def one(inputs: tuple[jax.Array, State]) -> tuple[Any, State]:
            number, state = inputs
            gradient, state, info = make_estimator(problem).estimate(
                theta, state, jax.random.fold_in(key, number)
            )
            return (gradient, jnp.square(optax.tree.norm(gradient)), info), state

        each, state = chunked_map(one, (numbers, state), chunk)
        each = jax.tree.map(lambda x: x.reshape(-1, per_block, *x.shape[1:]), each)
        sums = jax.vmap(_ordered_sum)(each)
        return jax.lax.all_gather(sums, "devices", tiled=True), state

    pmap = partial(jax.pmap, axis_name="devices", devices=_first_devices(devices))
    init_on_devices = pmap(init, in_axes=(SHARED, 0))
    terms_on_devices = pmap(terms, in_axes=(SHARED, 0, 0), donate_argnums=2)

    def estimate(theta: Theta, state: State, key: jax.Array) -> tuple[Theta, State, PopulationInfo]:
        sums, state = terms_on_devices((problem, theta, key), numbers, state)
        # Every device holds all the terms; they are combined on the first.
        gradient, info = _combine(jax.tree.map(lambda x: x.addressable_shards[0].data, sums))
        return gradient, state, info

    def gather(state: State) -> Any:
        return jax.tree.map(lambda x: np.array(x).reshape(numbers.size, *x.shape[2:]), state)

    def scatter(state: Any) -> State:
        # An identity under pmap lays the arrays out as its outputs are: so nothing is compiled twice.
        split = jax.tree.map(lambda x: np.reshape(x, (*numbers.shape, *np.shape(x)[1:])), state)
        return pmap(lambda x: x)(split)

    def memory(theta: Theta) -> Memory:
        many = jax.process_count() > 1
        if many:  # pmap takes no shapes for arrays then
            theta = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), theta)
        shared = (problem, theta, jax.random.key(0))
        start = init_on_devices if many else partial(jax.eval_shape, init_on_devices)
        state = start(shared, numbers)
        plan = terms_on_devices.lower(shared, numbers, state).compile().memory_analysis()
        beside = plan.temp_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
        return Memory(plan.argument_size_in_bytes, beside)

    return Population(
        init=lambda key, theta: init_on_devices((problem, theta, key), numbers),
        estimate=estimate,
        gather=gather,
        scatter=scatter,
        memory=memory,
    )


def blocks(units: int) -> int:
    """Number of partial sums that a population of this many pairs is added up in."""
    return max(n for n in range(1, min(units, MAX_BLOCKS) + 1) if units % n == 0)


def spread_evenly(available: int, units: int) -> int:
    """The most devices, of those available, that a population of this many pairs can be spread over."""
    return _even_numbers(available, units)[-1]


def _even_numbers(available: int, units: int | None) -> list[int]:
    """Numbers of devices that a population can be spread over: as many of each process, ascending."""
    processes = jax.process_count()
    numbers = range(processes, available + 1, processes)
    return [n for n in numbers if units is None or blocks(units) % n == 0]


def _first_devices(count: int) -> list[jax.Device]:
    """So many devices, as many of each process, in the order of the processes."""
    processes = range(jax.process_count())
    own = count // len(processes)
    return [device for index in processes for device in jax.local_devices(process_index=index)[:own]]


def _own_rows(x: np.ndarray) -> np.ndarray:
    """Of an array with a row for each device, the rows of this process's."""
    return np.split(x, jax.process_count())[jax.process_index()]


def _ordered_sum(xs: Any) -> Any:
    """Sum over the leading axis, one after another.

    All arrays of a summand are one vector meanwhile, and a few additions are one operation: on a GPU each
    operation costs a launch.
    """
    flat, unflatten = jax.flatten_util.ravel_pytree(jax.tree.map(lambda x: x[0], xs))
    rows = jax.vmap(lambda x: jax.flatten_util.ravel_pytree(x)[0])(xs)
    total, _ = jax.lax.scan(lambda total, x: (total + x, None), flat, rows[1:], unroll=ADDITIONS)
    return unflatten(total)


@jax.jit
def _combine(terms: tuple[Theta, jax.Array, Info]) -> tuple[Theta, PopulationInfo]:
    """Mean gradient and diagnostics from the sums over each block, ``[1, blocks, ...]``."""
    gradient, square_norm, info = _ordered_sum(jax.tree.map(lambda x: x[0], terms))
    gradient = optax.tree.scale(1 / info.units, gradient)
    norm = optax.tree.norm(gradient)
    # The pairs' scatter around their mean, as the variance of that mean.
    variance = jnp.maximum(square_norm / info.units - norm**2, 0) / (info.units - 1)
    return gradient, PopulationInfo(
        loss=info.loss / info.steps,
        gradient_norm=norm,
        snr=norm / jnp.sqrt(jnp.where(info.units > 1, variance, jnp.nan)),
        xi_norm=info.xi_norm / info.units,
        clipped=info.clipped / info.steps,
        nonfinite=info.nonfinite / info.steps,
        dropped=info.dropped / info.units,
        episodes=info.episodes,
        steps=info.steps,
    )


def over_devices(
    f: Callable[[Any, Any], Any],
    shared: Any,
    *,
    devices: int,
    chunk: int,
    advance: Callable[[int], object] = lambda done: None,
) -> Callable[[Any], Any]:
    """``f(shared, x)`` for every x along the leading axis of xs, spread over devices.

    Args:
      f: a pure function.
      shared: pytree that every call gets whole.
      devices: number of devices.
      chunk: elements that one device works on at once.
      advance: called whenever each device is through with a chunk, with the number of elements in them.

    Returns:
      A function of xs, a pytree of arrays ``[n, ...]`` with any n, whose results are NumPy arrays
      ``[n, ...]``. It compiles once.
    """
    shared = (replicate(shared, devices),)
    mapped = jax.pmap(
        lambda shared, xs: chunked_map(partial(f, *shared), xs, chunk),
        in_axes=((None,), 0),
        devices=_first_devices(devices),
    )

    def call(xs: Any) -> Any:
        n, group, parts = jax.tree.leaves(xs)[0].shape[0], devices * chunk, []
        for first in range(0, n, group):
            # The last element fills up the last group, so that all groups are one program; what it gives
            # again is cut off.
            order = np.minimum(np.arange(first, first + group), n - 1).reshape(devices, chunk)
            out = mapped(shared, jax.tree.map(partial(_take, _own_rows(order)), xs))
            own = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), out)
            parts.append(concatenated(own))
            advance(min(group, n - first))
        return jax.tree.map(lambda *x: np.concatenate(x)[:n], *parts)

    return call


def _take(order: np.ndarray, x: Any) -> np.ndarray:
    return np.asarray(x)[order]


def replicate(tree: Any, devices: int) -> Any:
    """A pytree whose arrays lie on each of those of the first `devices` devices that are this process's."""
    own = jax.local_devices()[: devices // jax.process_count()]
    mesh = jax.sharding.Mesh(own, "devices")
    return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def start_devices(requested: int | None, units: int | None = None) -> int:
    """Choose how many devices to use, those of all processes together, before JAX starts its backends.

    On a CPU this makes one XLA device per core: only then does a run use every core. Compiled programs
    are kept in the user's cache folder, unless JAX was told of another: a run that is resumed, or another
    one like it, starts at once.

    Args:
      requested: number of devices, or None for as many as there are (on a CPU: cores) and divide the
        population evenly.
      units: antithetic pairs (or single particles) of the population, if there is one.

    Returns:
      The number of devices.

    Raises:
      UserError: so many devices cannot be had, or do not divide the population.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Looked at first: a CPU makes as many devices as it is asked for, and thousands take minutes.
    if requested is not None and not 1 <= requested <= MAX_BLOCKS:
        raise UserError(f"--devices is {requested}; it must be 'auto' or lie between 1 and {MAX_BLOCKS}")
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "jax"))
    with contextlib.suppress(RuntimeError):  # JAX has started already, with what it has
        jax.config.update("jax_num_cpu_devices", requested or cores)
    available = jax.device_count()
    evenly = _even_numbers(available, units)
    if not evenly:
        raise UserError(
            f"a population of {units} (antithetic pairs, or single particles) cannot be spread evenly over "
            f"{jax.process_count()} processes; start a number of them that divides it"
        )
    if requested is None:
        return evenly[-1]
    if requested > available:
        raise UserError(
            f"--devices is {requested}, but JAX has {available} ({jax.devices()[0].platform}); "
            f"choose at most {available}, or 'auto'"
        )
    if requested not in evenly:
        raise UserError(
            f"a population of {units} (antithetic pairs, or single particles) cannot be spread evenly over "
            f"{requested} devices; --devices may be {', '.join(map(str, evenly))}"
        )
    return requested
