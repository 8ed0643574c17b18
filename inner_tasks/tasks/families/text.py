"""Character language models: a transformer and a GRU."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from inner_tasks.networks import LanguageGRU, LanguageTransformer, output
from inner_tasks.task import Params, TaskFamily, TaskSettings
from inner_tasks.tasks.families.family import Variation, family, random_indices, shapes_of
from inner_tasks.tasks.text import load_text, windows

ALPHABET = 32
LENGTH = 16  # input characters of an example; one more is the last target
MAX_LOSS = 1.5 * math.log(ALPHABET)
SHARED = 4  # factor by which minibatches are smaller than in the other families


def text_transformer(settings: TaskSettings) -> TaskFamily:
    """One causal pre-norm block of width 16 with two heads, on 16 characters; 3,504 parameters."""
    return _language(LanguageTransformer(ALPHABET, width=16, heads=2, blocks=1), settings)


def text_gru(settings: TaskSettings) -> TaskFamily:
    """A GRU of width 16 on embeddings of width 8, over 16 characters; 2,000 parameters."""
    return _language(LanguageGRU(ALPHABET, embedding=8, width=16), settings)


def _language(model: nn.Module, settings: TaskSettings) -> TaskFamily:
    """Predict every character of an example from those before it; cross-entropy in nats.

    A minibatch has a quarter of ``settings.batch_size`` examples, because each has 16 predictions.
    """
    batch_size = -(-settings.batch_size // SHARED)

    def draw(text: jax.Array, key: jax.Array, variation: Variation) -> jax.Array:
        starts = random_indices(key, text.shape[0] - LENGTH, batch_size, -(-variation.examples // SHARED))
        return windows(text, starts, LENGTH + 1)

    def loss(params: Params, batch: jax.Array, variation: Variation) -> jax.Array:
        logits = output(model, params, batch[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()

    return family(
        shapes=shapes_of(model, jnp.zeros((1, LENGTH), jnp.int32)),
        load=lambda data_dir: load_text(ALPHABET),
        sample=lambda data, key, variation: draw(data.train, key, variation),
        loss=loss,
        max_loss=MAX_LOSS,
        settings=settings,
        sample_validation=lambda data, key, variation: draw(data.validation, key, variation),
    )
