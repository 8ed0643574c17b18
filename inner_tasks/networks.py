"""The small networks that inner tasks train."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax

Activation = Callable[[jax.Array], jax.Array]


class MLP(nn.Module):
    """Dense layers with a nonlinearity between them, ``[batch, inputs] -> [batch, outputs]``."""

    hidden: tuple[int, ...]
    outputs: int
    activation: Activation = nn.relu

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in self.hidden:
            x = self.activation(nn.Dense(width)(x))
        return nn.Dense(self.outputs)(x)


class ConvNet(nn.Module):
    """3x3 convolutions of stride 2, a mean over positions, and a linear map.

    Attributes:
      shape: height, width and channels of an image.
      channels: of each convolution.
      outputs: number of outputs.
      activation: nonlinearity after each convolution.
    """

    shape: tuple[int, int, int]
    channels: tuple[int, ...]
    outputs: int
    activation: Activation = nn.relu

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """``[batch, height * width * channels] -> [batch, outputs]``."""
        x = images.reshape(-1, *self.shape)
        for channels in self.channels:
            x = self.activation(nn.Conv(channels, (3, 3), strides=2)(x))
        return nn.Dense(self.outputs)(x.mean((1, 2)))
