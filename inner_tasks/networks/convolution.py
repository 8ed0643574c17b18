"""Convolutions of stride 2, for small images."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from inner_tasks.networks.activation import Activation


class Conv(nn.Module):
    """A 3x3 convolution of stride 2 and SAME padding: of ``[batch, h, w, inputs]``, half as high and wide.

    It is that of ``nn.Conv``, with the same parameters, as a product of a matrix of patches with the kernel:
    XLA's own convolution takes 6 to 12 times as long inside a loop on a CPU.
    """

    outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Images ``[n, height, width, channels]`` of half the height and width, with `outputs` channels."""
        kernel = self.param("kernel", nn.linear.default_kernel_init, (3, 3, x.shape[-1], self.outputs))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.outputs,))
        height, width = (-(-n // 2) for n in x.shape[1:3])
        # An odd side has a pixel more on either end, an even one a pixel after its end.
        x = jnp.pad(x, ((0, 0), *((n % 2, 1) for n in x.shape[1:3]), (0, 0)))
        patches = [
            x[:, i : i + 2 * height - 1 : 2, j : j + 2 * width - 1 : 2] for i in range(3) for j in range(3)
        ]
        return jnp.concatenate(patches, axis=-1) @ kernel.reshape(-1, self.outputs) + bias


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
            x = self.activation(Conv(channels)(x))
        return nn.Dense(self.outputs)(x.mean((1, 2)))
