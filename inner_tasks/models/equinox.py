"""Equinox modules. Imported only if the user's model is one, because Equinox is not a dependency."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

from inner_tasks.models.pure import Measure, PureModel, from_key, measured, takes
from inner_tasks.task import Batch, Variables


def equinox_model(make: Callable[..., Any], loss: Measure) -> PureModel:
    """A function ``key -> module``, or ``key -> (module, state)`` if the loss takes `state`.

    The parameters are its arrays of floats. Everything else, and the structure, is the same for all keys.
    """
    has_state = takes(loss, "state")

    def made(key: jax.Array) -> tuple[Any, Any]:
        found = from_key(make, key)
        return found if has_state else (found, None)

    # Two modules that are made by the same code need not have equal structures: they contain functions.
    module, state = made(jax.random.key(0))
    params, fixed = eqx.partition(module, eqx.is_inexact_array)
    structure, state_structure = jax.tree.structure(params), jax.tree.structure(state)

    def init(key: jax.Array) -> Variables:
        module, state = made(key)
        leaves = jax.tree.leaves(eqx.filter(module, eqx.is_inexact_array))
        return Variables(structure.unflatten(leaves), tuple(jax.tree.leaves(state)) or None)

    def measure(
        function: Measure, variables: Variables, batch: Batch, key: jax.Array | None
    ) -> tuple[Any, Any]:
        model = eqx.nn.inference_mode(eqx.combine(variables.params, fixed), value=key is None)
        state = state_structure.unflatten(variables.state or ())
        found = measured(function, model, batch, key, state=state)
        value, state = found if takes(function, "state") else (found, state)
        return value, tuple(jax.tree.leaves(state)) or None

    return PureModel(init, measure)
