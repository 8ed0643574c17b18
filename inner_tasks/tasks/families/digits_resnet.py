"""Convolutional networks with residual connections and group norm, on digits."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import optax

from inner_tasks.datasets import IMAGE_SHAPES, Split
from inner_tasks.datasets.digits import TRAINING_EXAMPLES
from inner_tasks.networks import ResNet, output
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

SHAPE, CLASSES = IMAGE_SHAPES["digits"], 10
CHANNELS = (8,)
LARGEST_BATCH = 32  # convolutions take longer than other layers
MAX_LOSS = 1.5 * math.log(CLASSES)


def digits_resnet(settings: TaskSettings) -> TaskFamily:
    """A convolution of stride 2 and a residual block of 8 channels on the 8x8 digits; 1,386 parameters.

    Half of the members have few training examples.
    """
    batch_size = min(settings.batch_size, LARGEST_BATCH)

    def draw(
        data: ImageData, split: Split, count: jax.Array | int, key: jax.Array, variation: Variation
    ) -> ImageBatch:
        return image_batch(data, split, random_indices(key, count, batch_size, variation.examples))

    def sample(data: ImageData, key: jax.Array, variation: Variation) -> ImageBatch:
        return draw(data, data.train, variation.own, key, variation)

    def sample_validation(data: ImageData, key: jax.Array, variation: Variation) -> ImageBatch:
        return draw(data, data.validation, data.validation.labels.shape[0], key, variation)

    def loss(params: Params, batch: ImageBatch, variation: Variation) -> jax.Array:
        model = ResNet(SHAPE, CHANNELS, CLASSES, activation=drawn_activation(variation.activation))
        logits = output(model, params, batch.images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()

    return family(
        shapes=shapes_of(ResNet(SHAPE, CHANNELS, CLASSES), jnp.zeros((1, math.prod(SHAPE)))),
        load=lambda data_dir: load_images("digits", data_dir),
        sample=sample,
        loss=loss,
        max_loss=MAX_LOSS,
        settings=settings._replace(batch_size=batch_size),
        sample_validation=sample_validation,
        own=lambda key: drawn_count(jax.random.uniform(key, (2,)), TRAINING_EXAMPLES),
    )
