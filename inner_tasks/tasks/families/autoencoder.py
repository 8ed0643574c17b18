"""Autoencoders of digits and of patches of photographs, some of them variational."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from inner_tasks.networks import VariationalAutoencoder
from inner_tasks.networks.autoencoder import reconstruct
from inner_tasks.task import Params, TaskFamily, TaskSettings
from inner_tasks.tasks.families.family import Variation, drawn_activation, family, repeated, shapes_of
from inner_tasks.tasks.images import ImageData, image_batch, load_images
from inner_tasks.tasks.patches import PIXELS, SIDE, PatchData, load_patches, patches_at

HIDDEN, CODE = (24,), 6
MAX_LOSS = 1.5  # predicting zero for standardised pixels has a mean squared error of 1


class Own(NamedTuple):
    """The part of a variation that only this family has."""

    digits: jax.Array  # bool [], whether the data are digits rather than patches
    divergence: jax.Array  # float32 [], weight of the divergence; 0 for an autoencoder without noise


class AutoencoderData(NamedTuple):
    """Both data sets, of 64 pixels each."""

    digits: ImageData
    patches: PatchData


class AutoencoderBatch(NamedTuple):
    """A minibatch."""

    pixels: jax.Array  # float32 [batch, 64], standardised
    noise: jax.Array  # float32 [batch, CODE], standard normal


def autoencoder(settings: TaskSettings) -> TaskFamily:
    """Autoencoders of 64 pixels with layers of 24, 6 and 24 units; 3,580 parameters.

    The loss is the mean squared error of a pixel plus a weight times the divergence of the code, both per
    pixel. For half of the members the weight is 0, and the mean of the code is used instead of a draw; for
    the others the weight is between 0.03 and 1.
    """

    def own(key: jax.Array) -> Own:
        digits, plain, weight = jax.random.uniform(key, (3,))
        return Own(digits < 0.5, jnp.where(plain < 0.5, 0.0, 0.03**weight))

    def draw(data: AutoencoderData, train: bool, key: jax.Array, variation: Variation) -> AutoencoderBatch:
        size = settings.batch_size
        split = data.digits.train if train else data.digits.validation
        photograph = data.patches.train if train else data.patches.validation
        places_key, noise_key = jax.random.split(key)
        places = jax.random.uniform(places_key, (size, 2))
        indices = (places[:, 0] * split.labels.shape[0]).astype(jnp.int32)
        corners = (places * (jnp.array(photograph.shape) - SIDE + 1)).astype(jnp.int32)
        pixels = jnp.where(
            variation.own.digits,
            image_batch(data.digits, split, indices).images,
            patches_at(photograph, corners),
        )
        noise = jax.random.normal(noise_key, (size, CODE))
        return AutoencoderBatch(repeated(pixels, variation.examples), noise)

    def loss(params: Params, batch: AutoencoderBatch, variation: Variation) -> jax.Array:
        weight = variation.own.divergence
        model = VariationalAutoencoder(HIDDEN, CODE, PIXELS, drawn_activation(variation.activation))
        noise = jnp.where(weight > 0, batch.noise, 0)
        outputs, divergence = reconstruct(model, params, batch.pixels, noise)
        return jnp.mean(jnp.square(outputs - batch.pixels)) + weight * jnp.mean(divergence) / PIXELS

    def load(data_dir: Path | None) -> AutoencoderData:
        return AutoencoderData(load_images("digits", data_dir), load_patches())

    return family(
        shapes=shapes_of(
            VariationalAutoencoder(HIDDEN, CODE, PIXELS), jnp.zeros((1, PIXELS)), jnp.zeros((1, CODE))
        ),
        load=load,
        sample=lambda data, key, variation: draw(data, True, key, variation),
        loss=loss,
        max_loss=MAX_LOSS,
        settings=settings,
        sample_validation=lambda data, key, variation: draw(data, False, key, variation),
        own=own,
    )
