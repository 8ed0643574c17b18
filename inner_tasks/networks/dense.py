"""Dense layers."""

from __future__ import annotations

import flax.linen as nn
import jax

from inner_tasks.networks.activation import Activation


class MLP(nn.Module):
    """Dense layers with a nonlinearity between them, ``[batch, inputs] -> [batch, outputs]``."""

    hidden: tuple[int, ...]
    outputs: int
    activation: Activation = nn.relu

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The outputs for the inputs along the last axis."""
        for width in self.hidden:
            x = self.activation(nn.Dense(width)(x))
        return nn.Dense(self.outputs)(x)
