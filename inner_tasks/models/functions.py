"""Plain functions: parameters from a key, and a loss of parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from inner_tasks.models.pure import Measure, PureModel, from_key, measured, takes
from inner_tasks.task import Batch, Variables


def function_model(make: Callable[..., Any], loss: Measure) -> PureModel:
    """A function ``key -> params``, or ``key -> (params, state)`` if the loss takes `state`."""
    has_state = takes(loss, "state")

    def init(key: jax.Array) -> Variables:
        made = from_key(make, key)
        return Variables(*made) if has_state else Variables(made, None)

    def measure(
        function: Measure, variables: Variables, batch: Batch, key: jax.Array | None
    ) -> tuple[Any, Any]:
        found = measured(function, variables.params, batch, key, state=variables.state)
        return found if takes(function, "state") else (found, variables.state)

    return PureModel(init, measure)
