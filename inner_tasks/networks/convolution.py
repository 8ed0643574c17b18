"""Convolutions for small images."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from inner_tasks.networks.activation import Activation


class Conv(nn.Module):
    """A 3x3 convolution with SAME padding, of ``[batch, h, w, inputs]``.

    It equals ``nn.Conv`` with the same parameters, but multiplies a matrix of patches by the kernel: inside a
    loop on a CPU, XLA's convolution takes 6 to 12 times as long.

    Attributes:
      outputs: channels of the result.
      stride: 1 or 2.
    """

    outputs: int
    stride: int = 2

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[n, height, width, channels]``: height and width divided by `stride`, `outputs` channels."""
        kernel = self.param("kernel", nn.linear.default_kernel_init, (3, 3, x.shape[-1], self.outputs))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.outputs,))
        height, width = (-(-n // self.stride) for n in x.shape[1:3])
        # With stride 2 an odd side is padded by a pixel at both ends, an even one by a pixel at its end.
        before = [n % 2 if self.stride == 2 else 1 for n in x.shape[1:3]]
        x = jnp.pad(x, ((0, 0), *((n, 1) for n in before), (0, 0)))
        rows, columns = (self.stride * (n - 1) + 1 for n in (height, width))
        patches = [
            x[:, i : i + rows : self.stride, j : j + columns : self.stride]
            for i in range(3)
            for j in range(3)
        ]
        return jnp.concatenate(patches, axis=-1) @ kernel.reshape(-1, self.outputs) + bias


class ConvNet(nn.Module):
    """3x3 convolutions of stride 2, a mean over positions, and a linear map.

    Attributes:
      shape: height, width and channels of an image.
      channels: number of channels of each convolution.
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


class GroupNorm(nn.Module):
    """Normalise each group of channels to mean 0 and variance 1 over positions; then a scale and a bias.

    Wu and He, "Group normalization", 2018.

    Attributes:
      groups: number of groups, a divisor of the number of channels.
    """

    groups: int = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[batch, h, w, channels]``."""
        return nn.GroupNorm(self.groups)(x)


class BatchNorm(nn.Module):
    """Normalise channels to mean 0 and variance 1 over minibatch and positions; then a scale and a bias.

    The moments are always those of the minibatch, as in training. Ioffe and Szegedy, "Batch normalization",
    2015.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[batch, h, w, channels]``."""
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],))
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * scale + bias


class ResNet(nn.Module):
    """Stages of a convolution of stride 2 and a residual block, with norms; then a mean and a linear map.

    A residual block is ``x + conv(activation(norm(conv(activation(norm(x))))))``. He et al., "Identity
    mappings in deep residual networks", 2016.

    Attributes:
      shape: height, width and channels of an image.
      channels: number of channels of each stage.
      outputs: number of outputs.
      norm: makes a normalisation layer, ``GroupNorm`` or ``BatchNorm``.
      activation: nonlinearity.
    """

    shape: tuple[int, int, int]
    channels: tuple[int, ...]
    outputs: int
    norm: Callable[[], nn.Module] = GroupNorm
    activation: Activation = nn.relu

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """``[batch, height * width * channels] -> [batch, outputs]``."""
        x = images.reshape(-1, *self.shape)
        for channels in self.channels:
            x = Conv(channels)(x)
            inner = x
            for _ in range(2):
                inner = Conv(channels, stride=1)(self.activation(self.norm()(inner)))
            x = x + inner
        x = self.activation(self.norm()(x))
        return nn.Dense(self.outputs)(x.mean((1, 2)))
