"""Predicting the next word of a text from the word before it: most embeddings are seen rarely."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from inner_tasks.datasets.text import encode_words, python_help
from inner_tasks.networks import output
from inner_tasks.task import Params, Task, TaskSettings
from inner_tasks.tasks.text import TextData

VALIDATION = 5_000  # last words of the text, held out


class Bigram(nn.Module):
    """An embedding of a word, and a linear map to the logits of the next."""

    vocabulary: int
    width: int

    @nn.compact
    def __call__(self, words: jax.Array) -> jax.Array:
        """int32 ``[batch] -> [batch, vocabulary]``."""
        return nn.Dense(self.vocabulary)(nn.Embed(self.vocabulary, self.width)(words))


def words_task(vocabulary: int, width: int, settings: TaskSettings) -> Task:
    """Predicting the next word of Python's help texts; cross-entropy in nats.

    Args:
      vocabulary: number of different words; all but the most frequent share one number.
      width: width of an embedding.
      settings: batch size and horizon.
    """
    model = Bigram(vocabulary, width)

    def draw(text: jax.Array, key: jax.Array) -> jax.Array:
        starts = jax.random.randint(key, (settings.batch_size,), 0, text.shape[0] - 1)
        return text[starts[:, None] + jnp.arange(2)]

    def loss(params: Params, pairs: jax.Array) -> jax.Array:
        logits = output(model, params, pairs[:, 0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, pairs[:, 1]).mean()

    def metrics(params: Params, data: TextData) -> dict[str, jax.Array]:
        pairs = jnp.stack([data.validation[:-1], data.validation[1:]], 1)
        return {"validation_loss": loss(params, pairs)}

    def load(data_dir: object) -> TextData:
        words = encode_words(python_help(), vocabulary)
        return TextData(*jax.device_put((words[:-VALIDATION], words[-VALIDATION:])))

    return Task(
        init=lambda key: model.init(key, jnp.zeros(1, jnp.int32))["params"],
        sample=lambda data, key: draw(data.train, key),
        loss=loss,
        metrics=metrics,
        load=load,
        horizon=settings.horizon,
        max_loss=1.5 * math.log(vocabulary),
        sample_validation=lambda data, key: draw(data.validation, key),
    )
