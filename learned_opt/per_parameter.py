"""A small network applied to every parameter of a tensor: the Flax module, and the fast way to run it.

The plain formula builds one row of inputs per parameter and multiplies ``[n, inputs]`` matrices.
``apply_blocked`` computes the same thing, several times faster on a CPU:

* features that are constant over the tensor never meet the per-parameter product: their part of the
  first layer is computed once and added to its bias;
* the normalisation of the other features is folded into the first layer's weights, so no normalised
  copy of them is written;
* features come first, ``[inputs, n]``, and n is cut into blocks, so that the hidden layers of a block
  stay in cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from learned_opt.base import Theta

# Both hidden layers of a block (2 x 32 x 1024 floats) fit the L2 cache of one core.
BLOCK_SIZE = 1024


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


def apply_blocked(
    theta: Theta,
    features: Sequence[jax.Array],
    scale: jax.Array,
    constants: jax.Array,
    finish: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """Run a ``PerParameterMLP`` over the parameters of one tensor, block by block.

    Equal to ``finish(PerParameterMLP(...)(inputs).T)`` with ``inputs[i] = [scale * features[:, i],
    constants]``, up to rounding.

    Args:
      theta: weights of the module, as its ``init`` made them (without the ``"params"`` level).
      features: arrays ``[k_1, n], [k_2, n], ...`` that together make k features of n parameters.
      scale: ``[k]``, factor for each feature.
      constants: ``[c]``, inputs that are the same for all parameters; they come after the features.
      finish: ``[outputs, b] -> [b]``, turns the network's outputs into the step of each parameter.

    Returns:
      ``[n]``, what ``finish`` made of each parameter.
    """
    layers = [(theta[f"Dense_{i}"]["kernel"].T, theta[f"Dense_{i}"]["bias"]) for i in range(len(theta))]
    (kernel, bias), *deeper = layers
    k = scale.shape[0]
    first = (kernel[:, :k] * scale, bias + kernel[:, k:] @ constants)

    def block(start: jax.Array | int, size: int) -> jax.Array:
        x = jnp.concatenate([jax.lax.dynamic_slice_in_dim(f, start, size, axis=1) for f in features])
        for weights, bias in (first, *deeper[:-1]):
            x = jax.nn.relu(weights @ x + bias[:, None])
        weights, bias = deeper[-1]
        return finish(weights @ x + bias[:, None])

    return _map_blocks(block, features[0].shape[1])


def _map_blocks(block: Callable[[jax.Array | int, int], jax.Array], n: int) -> jax.Array:
    """Concatenate ``block(start, size)`` over blocks that cover ``range(n)``."""
    if n <= BLOCK_SIZE:
        return block(0, n)
    count = -(-n // BLOCK_SIZE)
    # The last block starts early enough to be a whole one; what it computes again is cut off.
    starts = jnp.minimum(jnp.arange(count) * BLOCK_SIZE, n - BLOCK_SIZE)
    out = jax.lax.map(lambda start: block(start, BLOCK_SIZE), starts)
    rest = n - (count - 1) * BLOCK_SIZE
    return jnp.concatenate([out[:-1].reshape(-1), out[-1, -rest:]])
