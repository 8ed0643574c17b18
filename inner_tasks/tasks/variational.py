"""Variational autoencoders."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from inner_tasks.networks import VariationalAutoencoder
from inner_tasks.networks.autoencoder import reconstruct
from inner_tasks.task import Params, Task
from inner_tasks.tasks.metrics import minibatch_metrics


class NoisyBatch(NamedTuple):
    """A minibatch."""

    pixels: jax.Array  # float32 [batch, pixels], standardised
    noise: jax.Array  # float32 [batch, code], standard normal


def variational(task: Task, model: VariationalAutoencoder, weight: float) -> Task:
    """A variational autoencoder instead of another autoencoder, on the same data.

    The loss is the mean squared error of a pixel, plus a weight times the divergence of the code per pixel.

    Args:
      task: an autoencoder whose minibatches are pixels, or images with labels.
      model: the network.
      weight: weight of the divergence; 1 corresponds to pixel noise of variance 1/2.
    """

    def noisy(batch: Any, key: jax.Array) -> NoisyBatch:
        pixels = getattr(batch, "images", batch)
        return NoisyBatch(pixels, jax.random.normal(key, (pixels.shape[0], model.code)))

    def sample(data: Any, key: jax.Array) -> NoisyBatch:
        key, noise_key = jax.random.split(key)
        return noisy(task.sample(data, key), noise_key)

    def sample_validation(data: Any, key: jax.Array) -> NoisyBatch:
        key, noise_key = jax.random.split(key)
        assert task.sample_validation is not None
        return noisy(task.sample_validation(data, key), noise_key)

    def init(key: jax.Array) -> Params:
        return model.init(key, jnp.zeros((1, model.outputs)), jnp.zeros((1, model.code)))["params"]

    def loss(params: Params, batch: NoisyBatch) -> jax.Array:
        outputs, divergence = reconstruct(model, params, batch.pixels, batch.noise)
        error = jnp.mean(jnp.square(outputs - batch.pixels))
        return error + weight * jnp.mean(divergence) / model.outputs

    metrics = minibatch_metrics(loss, sample_validation)
    return dataclasses.replace(
        task, init=init, sample=sample, loss=loss, metrics=metrics, sample_validation=sample_validation
    )
