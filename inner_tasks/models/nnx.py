"""Flax NNX modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from inner_tasks.models.pure import Measure, PureModel, measured
from inner_tasks.task import Batch, Variables


def nnx_model(make: Callable[..., nnx.Module]) -> PureModel:
    """A function of ``rngs`` that makes an NNX module.

    The parameters are its variables of the type ``nnx.Param``. Its state is all others, except for keys and
    counters of random numbers: these are set at each step.
    """
    graph, like, random, state_like = _split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))

    def init(key: jax.Array) -> Variables:
        _, params, _, state = _split(make(rngs=nnx.Rngs(key)))
        return Variables(nnx.to_pure_dict(params), nnx.to_pure_dict(state) or None)

    def measure(
        function: Measure, variables: Variables, batch: Batch, key: jax.Array | None
    ) -> tuple[Any, Any]:
        module_key, own_key = jax.random.split(jax.random.key(0) if key is None else key)
        model = nnx.merge(
            graph,
            _with_values(like, variables.params),
            _reseeded(random, module_key),
            _with_values(state_like, variables.state or {}),
        )
        if key is None:
            model.eval()
        else:
            model.train()
        value = measured(function, model, batch, None if key is None else own_key)
        return value, nnx.to_pure_dict(_split(model)[3]) or None

    return PureModel(init, measure)


def _split(model: nnx.Module) -> tuple[Any, nnx.State, nnx.State, nnx.State]:
    """The structure of a module, its parameters, its keys and counters, and its state."""
    graph, *states = nnx.split(model, nnx.Param, nnx.RngState, nnx.Intermediate, ...)
    params, random, _, state = states
    return graph, params, random, state


def _with_values(like: nnx.State, values: dict[str, Any]) -> nnx.State:
    state = jax.tree.map(lambda x: x, like)  # a copy
    nnx.replace_by_pure_dict(state, values)
    return state


def _reseeded(random: nnx.State, key: jax.Array) -> nnx.State:
    """Keys from a key, and counters that are zero."""
    leaves, structure = jax.tree.flatten(random)
    return structure.unflatten(
        [
            jax.random.split(jax.random.fold_in(key, number), leaf.shape)
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else jnp.zeros(leaf.shape, leaf.dtype)
            for number, leaf in enumerate(leaves)
        ]
    )
