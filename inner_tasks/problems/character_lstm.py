"""A character-level LSTM that reads a text once, character by character; theta are its weights."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

HIDDEN = 5
EMBEDDING = 5

Memory = tuple[jax.Array, jax.Array]  # c and h of the LSTM, float [5] each


class Network(nn.Module):
    """Embedding, LSTM, and a linear map to the logits of the next character."""

    alphabet: int

    @nn.compact
    def __call__(self, memory: Memory, character: jax.Array) -> tuple[Memory, jax.Array]:
        """The memory after a character, and the logits of the next one."""
        embedded = nn.Embed(self.alphabet, EMBEDDING, embedding_init=_small)(character)
        cell = nn.OptimizedLSTMCell(HIDDEN, recurrent_kernel_init=nn.initializers.lecun_normal())
        memory, hidden = cell(memory, embedded)
        return memory, nn.Dense(self.alphabet)(hidden)


class CharacterState(NamedTuple):
    """Inner state."""

    memory: Memory
    position: jax.Array  # int32 [], characters read


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CharacterLSTM:
    """A recurrent network that reads a text; the loss of a step is that of predicting the next character.

    ``(c, h)_t = LSTM((c, h)_{t-1}, embedding[x_t])``, ``L_t = -log softmax(W h_t + b)[x_{t+1}]``. The LSTM
    has 5 hidden units and embeddings of width 5; its memory starts at zero. Theta are all weights of the
    network in one vector, so that a perturbation is one draw instead of one for each of 15 small arrays. All
    episodes read the same text; nothing is random. The loss is taken after the step.

    Attributes:
      text: the characters as numbers below `alphabet`, int32 [T + 1].
      alphabet: number of different characters.

    Source: Vicol, Metz, Sohl-Dickstein, ICML 2021; the sizes are those of its published code.
    """

    text: jax.Array
    alphabet: int = dataclasses.field(metadata={"static": True})
    max_loss: ClassVar[None] = None
    differentiable: ClassVar[bool] = True

    @property
    def horizon(self) -> int:
        """T, the number of characters that are followed by another."""
        return self.text.shape[0] - 1

    def init_theta(self, key: jax.Array) -> jax.Array:
        """Weights of an untrained network, float [P]. The key is consumed.

        As in the published code: the embedding is uniform in [-0.1, 0.1], biases are zero, and the others
        are normal with a variance of 1 / inputs (LeCun's).
        """
        return ravel_pytree(self._init_weights(key))[0]

    def init(self, key: jax.Array) -> CharacterState:
        """Zeros, before the first character."""
        del key
        return CharacterState((jnp.zeros(HIDDEN), jnp.zeros(HIDDEN)), jnp.zeros((), jnp.int32))

    def step(
        self, theta: jax.Array, state: CharacterState, key: jax.Array
    ) -> tuple[CharacterState, jax.Array]:
        """Read a character, and predict the next."""
        del key
        position = state.position + 1
        memory, logits = Network(self.alphabet).apply(
            self._weights(theta), state.memory, self.text[state.position]
        )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, self.text[position])
        return CharacterState(memory, position), loss

    def _init_weights(self, key: jax.Array) -> Any:
        return Network(self.alphabet).init(key, self.init(key).memory, self.text[0])

    def _weights(self, theta: jax.Array) -> Any:
        """Theta as the network's arrays."""
        like = optax.tree.zeros_like(jax.eval_shape(self._init_weights, jax.random.key(0)))
        return ravel_pytree(like)[1](theta)


def _small(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    return jax.random.uniform(key, shape, dtype, -0.1, 0.1)
