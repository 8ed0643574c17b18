"""Dense layers on the patches of an image."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from inner_tasks.networks.image_patches import image_patches


class Mixer(nn.Module):
    """Blocks that mix the patches of each channel, then the channels of each patch, each after a layer norm.

    Tolstikhin et al., "MLP-Mixer: an all-MLP architecture for vision", 2021.

    Attributes:
      shape: height, width and channels of an image.
      side: side of a patch, in pixels.
      width: number of channels of a patch.
      hidden: hidden width of both kinds of mixing.
      blocks: number of blocks.
      outputs: number of outputs.
    """

    shape: tuple[int, int, int]
    side: int
    width: int
    hidden: int
    blocks: int
    outputs: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """``[batch, height * width * channels] -> [batch, outputs]``."""
        x = nn.Dense(self.width)(image_patches(images, self.shape, self.side))
        for _ in range(self.blocks):
            patches = jnp.swapaxes(nn.LayerNorm()(x), 1, 2)
            patches = nn.Dense(x.shape[1])(nn.gelu(nn.Dense(self.hidden)(patches)))
            x = x + jnp.swapaxes(patches, 1, 2)
            x = x + nn.Dense(self.width)(nn.gelu(nn.Dense(self.hidden)(nn.LayerNorm()(x))))
        return nn.Dense(self.outputs)(nn.LayerNorm()(x).mean(1))
