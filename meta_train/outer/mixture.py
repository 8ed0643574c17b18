"""Several populations as one: a meta-gradient over tasks of different shapes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from meta_train.estimators.base import State, Theta
from meta_train.estimators.metrics import over_tasks
from meta_train.outer.population import Memory, Metrics, Population


def mixture(populations: Mapping[str, Population]) -> Population:
    """The mean of the meta-gradients of several populations, each divided by its norm.

    So no task dominates because its losses react more strongly to theta. A meta-gradient of zero counts as
    zero, and a non-finite one makes the mean non-finite.

    Args:
      populations: one per task, by its name; all learn the same theta.
    """
    each = tuple(populations.values())

    def init(key: jax.Array, theta: Theta) -> State:
        keys = [jax.random.fold_in(key, i) for i in range(len(each))]
        return tuple(_beside_each_other(lambda p, own: p.init(own, theta), each, keys))

    def estimate(theta: Theta, state: State, key: jax.Array) -> tuple[Theta, State, Metrics]:
        gradients, states, metrics = zip(
            *(
                population.estimate(theta, own, jax.random.fold_in(key, i))
                for i, (population, own) in enumerate(zip(each, state, strict=True))
            ),
            strict=True,
        )
        gradient, combined = _combine(tuple(populations), gradients, metrics)
        return gradient, states, combined

    def memory(theta: Theta) -> Memory:
        needed = _beside_each_other(lambda population: population.memory(theta), each)
        return Memory(sum(own.held for own in needed), max(own.working for own in needed))

    return Population(
        init=init,
        estimate=estimate,
        gather=lambda state: tuple(p.gather(own) for p, own in zip(each, state, strict=True)),
        scatter=lambda state: tuple(p.scatter(own) for p, own in zip(each, state, strict=True)),
        memory=memory,
    )


def _beside_each_other(function: Callable[..., Any], *arguments: Iterable[Any]) -> list[Any]:
    """``map`` in threads, for functions that compile: the compiler releases Python's lock.

    Programs that gather over devices must not run in threads: the devices could start them in different
    orders, and wait for each other.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, *arguments))


# The names are apart from the metrics, because JAX sorts the keys of a dict.
@partial(jax.jit, static_argnames="names")
def _combine(
    names: Sequence[str], gradients: Sequence[Theta], metrics: Sequence[Metrics]
) -> tuple[Theta, Metrics]:
    """Mean of the normalised gradients, and the metrics of all tasks together."""
    norms, snrs = (jnp.stack([own[name] for own in metrics]) for name in ("gradient_norm", "snr"))
    shares = jnp.where(norms == 0, 0, 1 / norms)
    gradient = jax.tree.map(
        lambda *g: sum(share * x for share, x in zip(shares, g, strict=True)) / len(metrics), *gradients
    )
    norm = optax.tree.norm(gradient)
    error = jnp.sqrt(jnp.sum(jnp.where(norms == 0, 0, 1 / jnp.square(snrs)))) / len(metrics)
    return gradient, over_tasks(dict(zip(names, metrics, strict=True)), norm, norm / error)
