"""The output of a network with given parameters."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax


def output(model: nn.Module, params: Any, inputs: jax.Array) -> jax.Array:
    """The output of a network without mutable state for its inputs."""
    found = model.apply({"params": params}, inputs)
    assert isinstance(found, jax.Array)  # Flax's type also allows for mutable state
    return found
