"""A small network applied to every parameter of a tensor: the Flax module, and the fast way to run it.

The plain formula builds one row of inputs per parameter and multiplies ``[n, inputs]`` matrices.
``apply_network`` computes the same thing, several times faster on a CPU:

* features that are constant over the tensor never meet the per-parameter product: their part of the
  first layer is computed once and added to its bias;
* the normalisation of the other features is folded into the first layer's weights, so no normalised
  copy of them is written;
* features come first, ``[inputs, n]``, and n is cut into blocks, so that the hidden layers of a block
  stay in cache.

A tensor that may be spread over devices keeps its shape instead: to flatten it would gather it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from learned_opt._src.architectures import features as ft
from learned_opt._src.learned_optimizer import Theta

# Both hidden layers of a block (2 x 32 x 1024 floats) fit the L2 cache of one core.
BLOCK_SIZE = 1024
# A GPU wants all of a tensor at once; only its memory sets a limit.
GPU_BLOCK_SIZE = 2**22
# A fresh network should take steps of a size that trains; so its outputs are scaled down.
STEP_SCALE = 1e-3
MAGNITUDE_SCALE = 1e-3


class PerParameterMLP(nn.Module):
    """Multilayer perceptron with ReLU that maps the features of one parameter to a few outputs.

    Attributes:
      hidden: widths of the hidden layers.
      outputs: number of outputs per parameter.
    """

    hidden: Sequence[int]
    outputs: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """The plain formula: ``[..., inputs] -> [..., outputs]``."""
        for width in self.hidden:
            features = nn.relu(nn.Dense(width)(features))
        return nn.Dense(self.outputs)(features)


def init_network(key: jax.Array, inputs: int, hidden: Sequence[int], outputs: int) -> Theta:
    """Weights of a fresh ``PerParameterMLP``. The key is consumed."""
    return PerParameterMLP(hidden, outputs).init(key, jnp.zeros((1, inputs)))["params"]


def apply_network(
    theta: Theta,
    features: Sequence[jax.Array],
    constants: jax.Array,
    finish: Callable[[jax.Array], jax.Array],
    *,
    epsilon: float,
    spread: bool,
) -> jax.Array:
    """Run a ``PerParameterMLP`` over the parameters of one tensor.

    Equal to ``finish(PerParameterMLP(...)(inputs))``, up to rounding, where the inputs of a parameter are
    its features, each divided by its root mean square over the tensor, and then the constants.

    Args:
      theta: weights of the module, as ``init_network`` made them.
      features: groups of features, ``[k_1, *shape], [k_2, *shape], ...``.
      constants: ``[c]``, inputs that are the same for all parameters, and are taken as they are.
      finish: ``[outputs, ...] -> [...]``, turns the network's outputs into the step of each parameter.
      epsilon: added to the mean square of a feature.
      spread: the tensor lies on several devices, and must not be flattened.

    Returns:
      ``shape``, what ``finish`` made of each parameter.
    """
    shape = features[0].shape[1:]
    if not spread:
        features = [x.reshape(x.shape[0], -1) for x in features]
    scale = jnp.concatenate([ft.rms_scale(x, epsilon) for x in features])
    (kernel, bias), *deeper = layers(theta, constants)
    run = _unflattened if spread else _blocked
    return run([(kernel * scale[None], bias), *deeper], features, finish).reshape(shape)


def layers(theta: Theta, constants: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
    """Weights ``[outputs, inputs]`` and bias of each layer, for parameters that share their last inputs.

    What the shared `constants` ``[c]`` contribute is in the first layer's bias; its weights are for the rest.
    """
    each = [(theta[f"Dense_{i}"]["kernel"].T, theta[f"Dense_{i}"]["bias"]) for i in range(len(theta))]
    (kernel, bias), *deeper = each
    k = kernel.shape[1] - constants.shape[0]
    return [(kernel[:, :k], bias + kernel[:, k:] @ constants), *deeper]


def small_step(outputs: jax.Array | Sequence[jax.Array]) -> jax.Array:
    """``-0.001 d exp(0.001 a)``, the update of direction d and magnitude a: ``[2, ...] -> [...]``."""
    direction, magnitude = outputs
    return -STEP_SCALE * direction * jnp.exp(MAGNITUDE_SCALE * magnitude)


def _unflattened(
    layers: Sequence[tuple[jax.Array, jax.Array]],
    features: Sequence[jax.Array],
    finish: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """The network over the leading axis alone: nothing that moves an entry to another device."""

    def dense(weights: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.einsum("hk,k...->h...", weights, x)

    def plus(x: jax.Array, bias: jax.Array) -> jax.Array:
        return x + bias.reshape(-1, *[1] * (x.ndim - 1))

    (weights, bias), *deeper = layers
    edges = [sum(f.shape[0] for f in features[:i]) for i in range(1, len(features))]
    parts = jnp.split(weights, edges, axis=1)
    total: Any = sum(dense(w, f) for w, f in zip(parts, features, strict=True))
    x = plus(total, bias)
    for weights, bias in deeper:
        x = plus(dense(weights, jax.nn.relu(x)), bias)
    return finish(x)


def _blocked(
    layers: Sequence[tuple[jax.Array, jax.Array]],
    features: Sequence[jax.Array],
    finish: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """The network over flat features ``[k, n]``, block by block."""

    def block(start: jax.Array | int, size: int) -> jax.Array:
        x = jnp.concatenate([jax.lax.dynamic_slice_in_dim(f, start, size, axis=1) for f in features])
        for weights, bias in layers[:-1]:
            x = jax.nn.relu(weights @ x + bias[:, None])
        weights, bias = layers[-1]
        return finish(weights @ x + bias[:, None])

    n = features[0].shape[1]

    def blocks_of(size: int) -> jax.Array:
        if n <= size:
            return block(0, n)
        count = -(-n // size)
        # The last block starts early enough to be a whole one; what it computes again is cut off.
        starts = jnp.minimum(jnp.arange(count) * size, n - size)
        out = jax.lax.map(lambda start: block(start, size), starts)
        rest = n - (count - 1) * size
        return jnp.concatenate([out[:-1].reshape(-1), out[-1, -rest:]])

    if n > BLOCK_SIZE and jax.default_backend() == "gpu":
        # The device that the program is compiled for decides.
        sizes = {"cuda": GPU_BLOCK_SIZE, "rocm": GPU_BLOCK_SIZE, "default": BLOCK_SIZE}
        return jax.lax.platform_dependent(
            **{platform: partial(blocks_of, size) for platform, size in sizes.items()}
        )
    return blocks_of(BLOCK_SIZE)
