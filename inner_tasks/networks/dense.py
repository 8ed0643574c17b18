"""Dense layers."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from inner_tasks.networks.activation import Activation


class MLP(nn.Module):
    """Dense layers with a nonlinearity between them, ``[batch, inputs] -> [batch, outputs]``.

    Attributes:
      hidden: widths of the hidden layers.
      outputs: number of outputs.
      activation: nonlinearity after each hidden layer.
      depth: int32 [], number of hidden layers that are used; the others pass on their input, so layers that
        may be unused must have equal widths. None uses all.
    """

    hidden: tuple[int, ...]
    outputs: int
    activation: Activation = nn.relu
    depth: jax.Array | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The outputs for the inputs along the last axis."""
        for number, width in enumerate(self.hidden):
            y = self.activation(nn.Dense(width)(x))
            x = y if self.depth is None or number == 0 else jnp.where(number < self.depth, y, x)
        return nn.Dense(self.outputs)(x)


class ResidualMLP(nn.Module):
    """Residual blocks of layer norm and two dense layers.

    Attributes:
      width: width of the residual stream.
      hidden: width inside a block.
      blocks: number of blocks.
      outputs: number of outputs.
      activation: nonlinearity inside a block.
    """

    width: int
    hidden: int
    blocks: int
    outputs: int
    activation: Activation = nn.gelu

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[batch, inputs] -> [batch, outputs]``."""
        x = nn.Dense(self.width)(x)
        for _ in range(self.blocks):
            inner = self.activation(nn.Dense(self.hidden)(nn.LayerNorm()(x)))
            x = x + nn.Dense(self.width)(inner)
        return nn.Dense(self.outputs)(nn.LayerNorm()(x))
