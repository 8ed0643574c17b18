"""Multilayer perceptrons on digits, with some wrong labels."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from inner_tasks.datasets.digits import TRAINING_EXAMPLES
from inner_tasks.networks import MLP, output
from inner_tasks.task import Params, TaskFamily, TaskSettings
from inner_tasks.tasks.families.family import (
    Variation,
    drawn_activation,
    drawn_count,
    family,
    random_indices,
    shapes_of,
)
from inner_tasks.tasks.images import ImageBatch, ImageData, image_batch, load_images

PIXELS, CLASSES = 64, 10
HIDDEN = (24, 24, 24)
MOST_WRONG = 0.4  # share of labels
SHARE_WRONG = 0.5  # share of the members with wrong labels
MAX_LOSS = 1.5 * math.log(CLASSES)


class Own(NamedTuple):
    """The part of a variation that only this family has."""

    depth: jax.Array  # int32 [], hidden layers, 1 to 3
    wrong: jax.Array  # int8 [TRAINING_EXAMPLES], the label that replaces the right one, or -1
    available: jax.Array  # int32 [], number of training examples


def digits_mlp(settings: TaskSettings) -> TaskFamily:
    """One to three hidden layers of 24 on scikit-learn's 8x8 digits; 3,010 parameters.

    For half of the members up to 40% of the training labels are drawn at random, once per episode, so that
    the validation loss shows whether a network memorises them. Half of the members have few training
    examples.
    """

    def own(key: jax.Array) -> Own:
        uniform = jax.random.uniform(key, (4 + TRAINING_EXAMPLES,))
        share = MOST_WRONG * jnp.maximum(0, 1 - uniform[0] / SHARE_WRONG)
        labels = jnp.where(uniform[4:] < share, uniform[4:] / share * CLASSES, -1)
        return Own(
            depth=1 + (uniform[1] * len(HIDDEN)).astype(jnp.int32),
            wrong=labels.astype(jnp.int8),
            available=drawn_count(uniform[2:4], TRAINING_EXAMPLES),
        )

    def sample(data: ImageData, key: jax.Array, variation: Variation) -> ImageBatch:
        indices = random_indices(key, variation.own.available, settings.batch_size, variation.examples)
        batch = image_batch(data, data.train, indices)
        wrong = variation.own.wrong[indices]
        return batch._replace(labels=jnp.where(wrong < 0, batch.labels, wrong))

    def sample_validation(data: ImageData, key: jax.Array, variation: Variation) -> ImageBatch:
        count = data.validation.labels.shape[0]
        indices = random_indices(key, count, settings.batch_size, variation.examples)
        return image_batch(data, data.validation, indices)

    def loss(params: Params, batch: ImageBatch, variation: Variation) -> jax.Array:
        model = MLP(HIDDEN, CLASSES, drawn_activation(variation.activation), variation.own.depth)
        logits = output(model, params, batch.images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()

    return family(
        shapes=shapes_of(MLP(HIDDEN, CLASSES), jnp.zeros((1, PIXELS))),
        load=lambda data_dir: load_images("digits", data_dir),
        sample=sample,
        loss=loss,
        max_loss=MAX_LOSS,
        settings=settings,
        sample_validation=sample_validation,
        own=own,
    )
