"""The output of a network for its parameters."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax


def output(model: nn.Module, params: Any, inputs: jax.Array) -> jax.Array:
    """What a network without mutable state makes of its inputs."""
    found = model.apply({"params": params}, inputs)
    assert isinstance(found, jax.Array)  # Flax's type allows for mutable state beside it
    return found
