"""Pre-norm transformers: on text, and on the patches of an image."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from inner_tasks.networks.image_patches import image_patches


class Block(nn.Module):
    """Self-attention and two dense layers, each after a layer norm and with a residual connection.

    Xiong et al., "On layer normalization in the transformer architecture", 2020.

    Attributes:
      heads: number of attention heads, a divisor of the width.
      hidden: width between the two dense layers.
      causal: whether a position attends only to itself and earlier positions.
    """

    heads: int
    hidden: int
    causal: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[batch, length, width]``, like the input."""
        batch, length, width = x.shape
        qkv = nn.Dense(3 * width, use_bias=False)(nn.LayerNorm()(x))
        queries, keys, values = jnp.moveaxis(qkv.reshape(batch, length, 3, self.heads, -1), 2, 0)
        scores = jnp.einsum("bqhd,bkhd->bhqk", queries, keys) / jnp.sqrt(queries.shape[-1])
        if self.causal:
            scores = jnp.where(jnp.tri(length, dtype=bool), scores, -jnp.inf)
        # nn.softmax is a quotient. In some programs XLA makes a product of its derivative, and in others it
        # does not, so a run would have other bits on one device than on two.
        weights = jnp.exp(nn.log_softmax(scores))
        attended = jnp.einsum("bhqk,bkhd->bqhd", weights, values).reshape(x.shape)
        x = x + nn.Dense(width, use_bias=False)(attended)
        return x + nn.Dense(width)(nn.gelu(nn.Dense(self.hidden)(nn.LayerNorm()(x))))


class LanguageTransformer(nn.Module):
    """A causal transformer on characters, int32 ``[batch, length] -> [batch, length, alphabet]`` logits.

    Attributes:
      alphabet: number of characters.
      width: width of an embedding.
      heads: number of attention heads in a block.
      blocks: number of blocks.
    """

    alphabet: int
    width: int
    heads: int
    blocks: int

    @nn.compact
    def __call__(self, text: jax.Array) -> jax.Array:
        """The logits of the next character at each position."""
        places = nn.Embed(text.shape[1], self.width, name="places")(jnp.arange(text.shape[1]))
        x = nn.Embed(self.alphabet, self.width, name="characters")(text) + places
        for _ in range(self.blocks):
            x = Block(self.heads, 2 * self.width, causal=True)(x)
        return nn.Dense(self.alphabet)(nn.LayerNorm()(x))


class VisionTransformer(nn.Module):
    """A transformer on the patches of an image.

    Dosovitskiy et al., "An image is worth 16x16 words", 2020; with a mean over patches instead of the class
    token.

    Attributes:
      shape: height, width and channels of an image.
      side: side of a patch, in pixels.
      width: width of an embedding.
      heads: number of attention heads in a block.
      blocks: number of blocks.
      outputs: number of outputs.
    """

    shape: tuple[int, int, int]
    side: int
    width: int
    heads: int
    blocks: int
    outputs: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """``[batch, height * width * channels] -> [batch, outputs]``."""
        patches = image_patches(images, self.shape, self.side)
        places = nn.Embed(patches.shape[1], self.width, name="places")(jnp.arange(patches.shape[1]))
        x = nn.Dense(self.width)(patches) + places
        for _ in range(self.blocks):
            x = Block(self.heads, 2 * self.width, causal=False)(x)
        return nn.Dense(self.outputs)(nn.LayerNorm()(x).mean(1))
