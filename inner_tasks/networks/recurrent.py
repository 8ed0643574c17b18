"""A gated recurrent unit on text."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp


class LanguageGRU(nn.Module):
    """A GRU on characters, int32 ``[batch, length] -> [batch, length, alphabet]`` logits.

    The candidate is ``tanh(W x + r * (U h))``, so all products with h are a single one. Cho et al., "Learning
    phrase representations using RNN encoder-decoder", 2014, in the form used by cuDNN.

    Attributes:
      alphabet: number of characters.
      embedding: width of an embedding.
      width: width of the hidden state.
    """

    alphabet: int
    embedding: int
    width: int

    @nn.compact
    def __call__(self, text: jax.Array) -> jax.Array:
        """The logits of the next character at each position."""
        x = nn.Embed(self.alphabet, self.embedding)(text)
        inputs = nn.Dense(3 * self.width, name="inputs")(x)
        recurrent = self.param(
            "recurrent", nn.linear.default_kernel_init, (self.width, 3 * self.width), x.dtype
        )

        def step(hidden: jax.Array, given: jax.Array) -> tuple[jax.Array, jax.Array]:
            update, reset, candidate = jnp.split(given, 3, -1)
            from_hidden = jnp.split(hidden @ recurrent, 3, -1)
            update, reset = nn.sigmoid(update + from_hidden[0]), nn.sigmoid(reset + from_hidden[1])
            candidate = jnp.tanh(candidate + reset * from_hidden[2])
            hidden = hidden + update * (candidate - hidden)
            return hidden, hidden

        start = jnp.zeros((text.shape[0], self.width), x.dtype)
        _, hidden = jax.lax.scan(step, start, jnp.swapaxes(inputs, 0, 1))
        return nn.Dense(self.alphabet)(jnp.swapaxes(hidden, 0, 1))
