"""The form that models of every library are brought into."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from inner_tasks.task import Batch, Variables

# ``(model, batch) -> value``, such as a loss. It may also take `train`, `key` and `state` by name.
Measure = Callable[..., Any]


class PureModel(NamedTuple):
    """A model as pure functions.

    Attributes:
      init: ``key -> Variables``; the state is None if the model has none.
      measure: ``(function, variables, batch, key) -> (value, state)``: the value that a ``Measure`` gives for
        the model with these variables, and the model's state afterwards. A key is given in training only.
    """

    init: Callable[[jax.Array], Variables]
    measure: Callable[[Measure, Variables, Batch, jax.Array | None], tuple[Any, Any]]


def measured(function: Measure, model: Any, batch: Batch, key: jax.Array | None, **more: Any) -> Any:
    """Call a ``Measure``.

    Args:
      function: the function to call.
      model: what it takes as the model.
      batch: a minibatch.
      key: its randomness, which is passed if the function has an argument `key`; None in evaluation. Whether
        there is a key is passed as `train`.
      more: other values, each of which is passed if the function has an argument of this name.
    """
    named = {"train": key is not None, "key": key, **more}
    return function(model, batch, **{name: named[name] for name in named if takes(function, name)})


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a function has an argument of this name."""
    try:
        return name in inspect.signature(function).parameters
    except ValueError:  # functions without a signature, such as some of C extensions
        return False


def from_key(make: Callable[..., Any], key: jax.Array) -> Any:
    """Call a function of a key, by name if its argument is called `key`."""
    return make(key=key) if takes(make, "key") else make(key)
