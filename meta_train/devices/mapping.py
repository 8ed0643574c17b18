"""A function on many devices, each with its share of the rows of the arguments.

A ``Strategy`` is a way to do that. There are two: ``jax.pmap``, which is in use, and ``jax.shard_map``, for
when JAX drops ``pmap``; then only ``STRATEGY`` has to change. On a CPU both give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from meta_train.devices.choice import first_devices
from meta_train.devices.processes import all_gather

AXIS = "devices"  # the axis that a mapped function may gather over


class Mapped(NamedTuple):
    """A function on many devices.

    Attributes:
      call: ``(shared, *rows) -> (agreed, rows)``.
      plan: from the same arguments or their shapes, the compiler's analysis of the memory needed. JAX keeps
        the program that it compiles for that, and `call` finds it if the shapes have the shardings of its
        arguments.
    """

    call: Callable[..., tuple[Any, Any]]
    plan: Callable[..., Any]


class Strategy(NamedTuple):
    """A way to run a function on many devices.

    Attributes:
      map: ``(f, devices, arguments, donate) -> Mapped``. ``f(shared, *rows) -> (agreed, rows)`` gets all of
        `shared` on every device, and the device's rows of each of the other arguments, whose number is
        `arguments`. It returns values that are the same on all devices, of which one copy is kept, and rows.
        `donate` lists the arguments, counted from 1, whose arrays are donated.
      replicate: ``(tree, devices) -> tree``, with a copy on each device of this process.
      split: ``(rows, devices) -> rows`` on the devices, from arrays ``[n, ...]`` of this process's rows.
      join: the inverse of split: NumPy arrays ``[n, ...]``.
    """

    map: Callable[..., Mapped]
    replicate: Callable[[Any, int], Any]
    split: Callable[[Any, int], Any]
    join: Callable[[Any], Any]


def _one_copy(tree: Any) -> Any:
    # Without device_put, the copy on a single device, and everything computed from it, would keep the mesh in
    # its type, and the second update would be recompiled.
    here = SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.device_put(x.addressable_shards[0].data, here), tree)


# --- pmap: rows are [devices of this process, rows of a device, ...] ---


def _pmap(f: Callable[..., Any], devices: int, arguments: int, donate: tuple[int, ...] = ()) -> Mapped:
    mapped = jax.pmap(
        lambda shared, *rows: f(*shared, *rows),
        axis_name=AXIS,
        # Not a plain None: if there are as many arrays as arguments, pmap (JAX 0.10) matches them one to one,
        # and a problem without arrays shifts the rest.
        in_axes=((None,), *(0 for _ in range(arguments))),
        out_axes=(None, 0),
        devices=first_devices(devices),
        donate_argnums=donate,
    )

    def call(shared: Any, *rows: Any) -> tuple[Any, Any]:
        agreed, rows = mapped((shared,), *rows)
        return _one_copy(agreed), rows

    def plan(shared: Any, *rows: Any) -> Any:
        return mapped.lower((shared,), *rows).compile().memory_analysis()

    return Mapped(call, plan)


@cache
def _lay_out(devices: int) -> Callable[[Any], Any]:
    """An identity that gives arrays the layout of pmap's outputs, so that nothing is compiled twice."""
    return jax.pmap(lambda x: x, axis_name=AXIS, devices=first_devices(devices))


def _pmap_split(rows: Any, devices: int) -> Any:
    own = devices // jax.process_count()
    return _lay_out(devices)(jax.tree.map(lambda x: np.reshape(x, (own, -1, *np.shape(x)[1:])), rows))


PMAP = Strategy(
    map=_pmap,
    replicate=lambda tree, devices: jax.device_put(
        tree, _sharding(jax.local_devices()[: devices // jax.process_count()])
    ),
    split=_pmap_split,
    join=lambda rows: jax.tree.map(lambda x: np.array(x).reshape(-1, *x.shape[2:]), rows),
)


# --- shard_map: rows are [rows of all devices, ...] ---


def _shard_map(f: Callable[..., Any], devices: int, arguments: int, donate: tuple[int, ...] = ()) -> Mapped:
    same, split = PartitionSpec(), PartitionSpec(AXIS)
    mapped = jax.jit(
        jax.shard_map(
            f,
            mesh=Mesh(first_devices(devices), AXIS),
            in_specs=(same, *(split for _ in range(arguments))),
            out_specs=(same, split),
            check_vma=False,
        ),
        donate_argnums=donate,
    )

    def call(shared: Any, *rows: Any) -> tuple[Any, Any]:
        agreed, rows = mapped(SHARD_MAP.replicate(shared, devices), *rows)
        return _one_copy(agreed), rows

    return Mapped(call, lambda *arguments: mapped.lower(*arguments).compile().memory_analysis())


SHARD_MAP = Strategy(
    map=_shard_map,
    replicate=lambda tree, devices: jax.device_put(tree, _sharding(first_devices(devices))),
    split=lambda rows, devices: jax.tree.map(
        partial(jax.make_array_from_process_local_data, _sharding(first_devices(devices), AXIS)), rows
    ),
    join=lambda rows: jax.tree.map(
        lambda x: np.concatenate([np.asarray(shard.data) for shard in x.addressable_shards]), rows
    ),
)


def _sharding(devices: list[jax.Device], *axes: str) -> NamedSharding:
    return NamedSharding(Mesh(devices, AXIS), PartitionSpec(*axes))


STRATEGY = PMAP


def shapes_of_rows(function: Callable[..., Any], devices: int, *args: Any) -> Any:
    """The shapes and shardings of the rows that a call on one process returns."""
    sharding = _sharding(first_devices(devices), AXIS)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), jax.eval_shape(function, *args)
    )


def chunked_map(f: Callable[..., Any], xs: Any, chunk: int) -> Any:
    """Map f over the leading axis of xs on one device, `chunk` elements at once.

    A chunk of 1 is a loop (``lax.map``), best on a CPU; larger ones are vmapped, best on a GPU.
    """
    size = jax.tree.leaves(xs)[0].shape[0]
    if chunk == 1:
        return jax.lax.map(f, xs)
    if chunk >= size:
        return jax.vmap(f)(xs)
    return jax.lax.map(f, xs, batch_size=chunk)


def map_rows(
    f: Callable[[Any, Any], Any], shared: Any, *, devices: int, chunk: int, strategy: Strategy = STRATEGY
) -> Callable[[Any], Any]:
    """``f(shared, x)`` for every row x on the devices.

    Args:
      f: a pure function.
      shared: pytree that is passed to every call.
      devices: number of devices.
      chunk: rows that one device works on at once.
      strategy: how the devices are used.

    Returns:
      A function from rows on the devices to rows on the devices. It compiles once, and not at all if there
      was a call with the same f before whose `shared` and rows had the same shapes and static parts.
    """
    program, shared = _program(f, devices, chunk, strategy), strategy.replicate(shared, devices)
    return lambda rows: program(shared, rows)[1]


@lru_cache(maxsize=8)
def _program(
    f: Callable[[Any, Any], Any], devices: int, chunk: int, strategy: Strategy
) -> Callable[..., tuple[Any, Any]]:
    return strategy.map(
        lambda shared, rows: ((), chunked_map(partial(f, shared), rows, chunk)), devices, 1
    ).call


def in_groups(
    f: Callable[[Any], Any],
    *,
    devices: int,
    chunk: int,
    advance: Callable[[int], object] = lambda done: None,
    strategy: Strategy = STRATEGY,
) -> Callable[[Any], Any]:
    """A function of rows on the devices, for any number of rows on the host.

    Args:
      f: from rows on the devices to rows on the devices, such as one made by ``map_rows``.
      devices: number of devices.
      chunk: rows that one device gets at once.
      advance: called whenever every device has finished a chunk, with the number of rows done.
      strategy: how the devices are used.

    Returns:
      A function of xs, a pytree of arrays ``[n, ...]`` with any n, whose results are NumPy arrays
      ``[n, ...]``.
    """

    def call(xs: Any) -> Any:
        n, group, parts = jax.tree.leaves(xs)[0].shape[0], devices * chunk, []
        for first in range(0, n, group):
            # The last group is padded with copies of the last element, so that one program serves all groups;
            # the results of the copies are dropped.
            order = rows_of_process(np.minimum(np.arange(first, first + group), n - 1))
            rows = strategy.split(jax.tree.map(partial(_take, order), xs), devices)
            parts.append(all_gather(strategy.join(f(rows))))
            advance(min(group, n - first))
        return jax.tree.map(lambda *x: np.concatenate(x)[:n], *parts)

    return call


def map_over_devices(
    f: Callable[[Any, Any], Any],
    shared: Any,
    *,
    devices: int,
    chunk: int,
    advance: Callable[[int], object] = lambda done: None,
    strategy: Strategy = STRATEGY,
) -> Callable[[Any], Any]:
    """``f(shared, x)`` for every x along the leading axis of xs: ``in_groups`` of ``map_rows``."""
    rows = map_rows(f, shared, devices=devices, chunk=chunk, strategy=strategy)
    return in_groups(rows, devices=devices, chunk=chunk, advance=advance, strategy=strategy)


def rows_of_process(rows: np.ndarray) -> np.ndarray:
    """The rows of this process's devices, from an array with equally many rows for each device."""
    return np.split(rows, jax.process_count())[jax.process_index()]


def _take(order: np.ndarray, x: Any) -> np.ndarray:
    return np.asarray(x)[order]
