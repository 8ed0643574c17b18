"""Predicting the next character of a text from those before it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from inner_tasks.datasets.text import encode, python_help
from inner_tasks.networks import MLP, output
from inner_tasks.task import Params, Task, TaskSettings, register_task

ALPHABET = 64
CONTEXT = 8  # characters that the network sees
EMBEDDING = 8
MAX_LOSS = 1.5 * math.log(ALPHABET)
VALIDATION = 20_000  # last characters of the text, held out
VALIDATION_EXAMPLES = 2_000
VALIDATION_PIECES = 256


class TextData(NamedTuple):
    """A text on the device."""

    train: jax.Array  # int32 [n]
    validation: jax.Array  # int32 [VALIDATION]


class TextBatch(NamedTuple):
    """A minibatch."""

    context: jax.Array  # int32 [batch, CONTEXT]
    following: jax.Array  # int32 [batch]


class Guess(nn.Module):
    """An MLP on the concatenated embeddings of the context."""

    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, context: jax.Array) -> jax.Array:
        """``[batch, CONTEXT] -> [batch, ALPHABET]``."""
        embedded = nn.Embed(ALPHABET, EMBEDDING)(context)
        return MLP(self.hidden, ALPHABET)(embedded.reshape(context.shape[0], -1))


@register_task("text-mlp", TaskSettings(hidden=(64,), batch_size=128, horizon=1000))
def text_mlp(settings: TaskSettings) -> Task:
    """Predicting a character of Python's help texts from the eight before it; cross-entropy in nats."""
    model = Guess(settings.hidden)

    def init(key: jax.Array) -> Params:
        return model.init(key, jnp.zeros((1, CONTEXT), jnp.int32))["params"]

    def sample(text: jax.Array, key: jax.Array) -> TextBatch:
        return _batch(text, jax.random.randint(key, (settings.batch_size,), 0, text.shape[0] - CONTEXT))

    def loss(params: Params, batch: TextBatch) -> jax.Array:
        logits = output(model, params, batch.context)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.following).mean()

    def metrics(params: Params, data: TextData) -> dict[str, jax.Array]:
        starts = jnp.linspace(0, VALIDATION - CONTEXT - 1, VALIDATION_EXAMPLES).astype(jnp.int32)
        return {"validation_loss": loss(params, _batch(data.validation, starts))}

    return Task(
        init=init,
        sample=lambda data, key: sample(data.train, key),
        loss=loss,
        metrics=metrics,
        load=lambda data_dir: load_text(ALPHABET),
        horizon=settings.horizon,
        max_loss=MAX_LOSS,
        sample_validation=lambda data, key: sample(data.validation, key),
    )


def language_task(
    model: nn.Module,
    alphabet: int,
    length: int,
    settings: TaskSettings,
    text: Callable[[], str] = python_help,
) -> Task:
    """Predicting every character of a piece of text from those before it; cross-entropy in nats.

    Args:
      model: a Flax module, int32 ``[batch, length] -> [batch, length, alphabet]`` logits.
      alphabet: number of characters.
      length: characters per piece.
      settings: batch size and horizon.
      text: returns the text.
    """

    def draw(text: jax.Array, key: jax.Array, count: int) -> jax.Array:
        return windows(text, jax.random.randint(key, (count,), 0, text.shape[0] - length), length + 1)

    def loss(params: Params, batch: jax.Array) -> jax.Array:
        logits = output(model, params, batch[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()

    def metrics(params: Params, data: TextData) -> dict[str, jax.Array]:
        return {"validation_loss": loss(params, draw(data.validation, jax.random.key(0), VALIDATION_PIECES))}

    return Task(
        init=lambda key: model.init(key, jnp.zeros((1, length), jnp.int32))["params"],
        sample=lambda data, key: draw(data.train, key, settings.batch_size),
        loss=loss,
        metrics=metrics,
        load=lambda data_dir: load_text(alphabet, text),
        horizon=settings.horizon,
        max_loss=1.5 * math.log(alphabet),
        sample_validation=lambda data, key: draw(data.validation, key, settings.batch_size),
    )


def load_text(alphabet: int, text: Callable[[], str] = python_help) -> TextData:
    """Load a text onto the device, with characters as numbers below `alphabet`."""
    codes = encode(text(), alphabet)
    return TextData(*jax.device_put((codes[:-VALIDATION], codes[-VALIDATION:])))


def windows(text: jax.Array, starts: jax.Array, length: int) -> jax.Array:
    """Pieces of a text, int32 ``[count, length]``."""
    return text[starts[:, None] + jnp.arange(length)]


def _batch(text: jax.Array, starts: jax.Array) -> TextBatch:
    pieces = windows(text, starts, CONTEXT + 1)
    return TextBatch(pieces[:, :-1], pieces[:, -1])
