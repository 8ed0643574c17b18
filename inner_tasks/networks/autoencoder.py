"""Variational autoencoders of dense layers."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from inner_tasks.networks.activation import Activation


class VariationalAutoencoder(nn.Module):
    """An encoder to the moments of a normal code, and a decoder of a code drawn from that distribution.

    Kingma and Welling, "Auto-encoding variational Bayes", 2013.

    Attributes:
      hidden: widths of the encoder's hidden layers; the decoder has them in reverse order.
      code: dimension of the code.
      outputs: number of outputs.
      activation: nonlinearity after each hidden layer.
    """

    hidden: tuple[int, ...]
    code: int
    outputs: int
    activation: Activation = nn.tanh

    @nn.compact
    def __call__(self, x: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The reconstruction, and the divergence of the code from a standard normal distribution.

        Args:
          x: ``[batch, inputs]``.
          noise: standard normal, ``[batch, code]``; zeros give the mean of the code.

        Returns:
          The outputs, ``[batch, outputs]``, and the Kullback-Leibler divergences, in nats, ``[batch]``.
        """
        for width in self.hidden:
            x = self.activation(nn.Dense(width)(x))
        mean, log_std = jnp.split(nn.Dense(2 * self.code)(x), 2, -1)
        log_std = jnp.clip(log_std, -5, 5)  # exp of a large value would overflow
        divergence = jnp.sum(0.5 * (jnp.exp(2 * log_std) + mean**2 - 1) - log_std, -1)
        x = mean + jnp.exp(log_std) * noise
        for width in reversed(self.hidden):
            x = self.activation(nn.Dense(width)(x))
        return nn.Dense(self.outputs)(x), divergence


def reconstruct(
    model: VariationalAutoencoder, params: Any, x: jax.Array, noise: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The outputs of the network with these parameters, and the divergences."""
    outputs, divergence = model.apply({"params": params}, x, noise)
    assert isinstance(outputs, jax.Array) and isinstance(divergence, jax.Array)  # Flax's types are wider
    return outputs, divergence
