"""Random parameters of any network, in one draw."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

Params = Any  # pytree of float arrays


def random_params(shapes: Params, key: jax.Array, gain: jax.Array | float = 1.0) -> Params:
    """Normal weights with the standard deviation ``gain / sqrt(fan-in)``, similar to Flax's layers.

    Scales of norms are 1 and biases 0; the entries of an embedding of width w have the standard deviation
    ``gain / sqrt(w)``. All normal numbers are one draw, so the compiled program does not grow with the number
    of tensors.

    Args:
      shapes: arrays, or shapes of arrays, with the names of Flax's layers.
      key: consumed.
      gain: factor of all random weights.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
    names = [path[-1].key for path, _ in leaves]
    random = [name not in ("bias", "scale") for name in names]
    sizes = [drawn * math.prod(x.shape) for drawn, (_, x) in zip(random, leaves, strict=True)]
    normal = gain * jax.random.normal(key, (sum(sizes),))
    params, first = [], 0
    for name, size, (_, x) in zip(names, sizes, leaves, strict=True):
        if size:
            fan_in = x.shape[-1] if name == "embedding" else math.prod(x.shape[:-1])
            params.append(normal[first : first + size].reshape(x.shape) / math.sqrt(fan_in))
        else:
            params.append(jnp.full(x.shape, float(name == "scale")))
        first += size
    return tree.unflatten(params)
