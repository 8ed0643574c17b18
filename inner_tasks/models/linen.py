"""Flax Linen modules."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from inner_tasks.models.pure import Measure, PureModel, measured
from inner_tasks.task import Batch, Variables


def linen_model(module: nn.Module, loss: Measure, example: Batch) -> PureModel:
    """A Linen module; its state is all collections except ``params``.

    Args:
      module: the module.
      loss: a function that calls it. With which inputs it does decides the shapes of the parameters.
      example: the shapes and dtypes of a minibatch.
    """

    def init(key: jax.Array) -> Variables:
        module_key, loss_key = jax.random.split(key)
        new = _NewModule(module, module_key)
        measured(loss, new, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), example), loss_key)
        return Variables(new.variables.pop("params", {}), new.variables or None)

    def measure(
        function: Measure, variables: Variables, batch: Batch, key: jax.Array | None
    ) -> tuple[Any, Any]:
        module_key, own_key = (None, None) if key is None else jax.random.split(key)
        bound = _BoundModule(module, variables, module_key)
        return measured(function, bound, batch, own_key), bound.state or None

    return PureModel(init, measure)


class _NewModule:
    """A module whose variables are made when it is called."""

    def __init__(self, module: nn.Module, key: jax.Array) -> None:
        self.module, self.key = module, key
        self.variables: dict[str, Any] = {}

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        outputs, made = self.module.init_with_output(self.key, *inputs, **named)
        # A second call, of another method, may make more variables.
        self.variables = unflatten_dict({**flatten_dict(made), **flatten_dict(self.variables)})
        return outputs


class _BoundModule:
    """A module with its variables. In training, that is with a key, a call updates its state."""

    def __init__(self, module: nn.Module, variables: Variables, key: jax.Array | None) -> None:
        self.module, self.params, self.key = module, variables.params, key
        self.state = dict(variables.state or {})
        self.calls = 0

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        variables = {"params": self.params, **self.state}
        if self.key is None:
            return self.module.apply(variables, *inputs, **named)
        # A module draws every kind of randomness from this one key, and each call has its own.
        key = jax.random.fold_in(self.key, self.calls)
        self.calls += 1
        outputs, changed = self.module.apply(variables, *inputs, rngs=key, mutable=list(self.state), **named)
        self.state |= changed
        return outputs
