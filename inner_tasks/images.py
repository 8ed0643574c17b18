"""Image classification with small networks: digits, MNIST, Fashion-MNIST, CIFAR-10."""

from __future__ import annotations

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from inner_tasks.datasets import IMAGE_SHAPES, IMAGE_SIZES, Dataset, Split, load_dataset
from inner_tasks.networks import MLP, Activation, ConvNet
from inner_tasks.task import Params, Task, TaskSettings, register_task

NUM_CLASSES = 10
# Half as much again as the loss of a uniform guess: worse than that is all the same to an outer step.
MAX_LOSS = 1.5 * math.log(NUM_CLASSES)
METRICS_CHUNK = 1000


class ImageData(NamedTuple):
    """A data set on the device."""

    train: Split
    validation: Split
    mean: jax.Array  # float32 [], of the training pixels
    # float32 [], 1 / standard deviation of the training pixels. It is computed once, on the host: XLA turns
    # a division by it into a product in some programs and not in others, which differs in the last bit.
    inverse_std: jax.Array


class ImageBatch(NamedTuple):
    """A minibatch."""

    images: jax.Array  # float32 [batch, pixels], standardised
    labels: jax.Array  # int32 [batch]


def image_task(dataset: str, model: nn.Module, settings: TaskSettings) -> Task:
    """Training a network on a data set of images with softmax cross-entropy.

    Images are standardised by the scalar mean and standard deviation of the training pixels. A
    minibatch is drawn with replacement.

    Args:
      dataset: name of the data set.
      model: a Flax module, ``[batch, pixels] -> [batch, NUM_CLASSES]`` logits.
      settings: batch size and horizon.
    """

    def init(key: jax.Array) -> Params:
        return model.init(key, jnp.zeros((1, IMAGE_SIZES[dataset])))["params"]

    def sample(data: ImageData, key: jax.Array) -> ImageBatch:
        indices = jax.random.randint(key, (settings.batch_size,), 0, data.train.labels.shape[0])
        return _batch(data, data.train, indices)

    def loss(params: Params, batch: ImageBatch) -> jax.Array:
        logits = model.apply({"params": params}, batch.images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()

    def metrics(params: Params, data: ImageData) -> dict[str, jax.Array]:
        """Loss and accuracy on the whole validation split."""
        count = data.validation.labels.shape[0]

        def measure(index: jax.Array) -> tuple[jax.Array, jax.Array]:
            batch = _batch(data, data.validation, index[None])
            logits = model.apply({"params": params}, batch.images)
            correct = (jnp.argmax(logits, -1) == batch.labels).astype(jnp.float32)
            return loss(params, batch), correct.mean()

        losses, correct = jax.lax.map(measure, jnp.arange(count), batch_size=METRICS_CHUNK)
        return {"validation_loss": losses.mean(), "validation_accuracy": correct.mean()}

    return Task(
        init=init,
        sample=sample,
        loss=loss,
        metrics=metrics,
        load=lambda data_dir: _to_device(load_dataset(dataset, data_dir)),
        horizon=settings.horizon,
        max_loss=MAX_LOSS,
    )


def _to_device(data: Dataset) -> ImageData:
    return jax.device_put(ImageData(data.train, data.validation, data.mean, np.float32(1) / data.std))


def _batch(data: ImageData, split: Split, indices: jax.Array) -> ImageBatch:
    """Examples of a split, gathered and standardised on the device."""
    images = split.images[indices].astype(jnp.float32)
    return ImageBatch((images - data.mean) * data.inverse_std, split.labels[indices])


def mlp_task(dataset: str, settings: TaskSettings, activation: Activation = nn.relu) -> Task:
    """Dense layers of widths ``settings.hidden``."""
    return image_task(dataset, MLP(settings.hidden, NUM_CLASSES, activation), settings)


def conv_task(dataset: str, settings: TaskSettings, activation: Activation = nn.relu) -> Task:
    """Convolutions with ``settings.hidden`` channels."""
    model = ConvNet(IMAGE_SHAPES[dataset], settings.hidden, NUM_CLASSES, activation)
    return image_task(dataset, model, settings)


@register_task("digits-mlp", TaskSettings(hidden=(32,), batch_size=64, horizon=200))
def digits_mlp(settings: TaskSettings) -> Task:
    """MLP 64-32-10 on scikit-learn's 8x8 digits."""
    return mlp_task("digits", settings)


@register_task("mnist-mlp", TaskSettings(hidden=(32,), batch_size=64, horizon=200))
def mnist_mlp(settings: TaskSettings) -> Task:
    """MLP 784-32-10 on MNIST."""
    return mlp_task("mnist", settings)


@register_task("fashion-mnist-mlp", TaskSettings(hidden=(32,), batch_size=64, horizon=200))
def fashion_mnist_mlp(settings: TaskSettings) -> Task:
    """MLP 784-32-10 on Fashion-MNIST."""
    return mlp_task("fashion_mnist", settings)


@register_task("cifar10-mlp", TaskSettings(hidden=(128, 128), batch_size=128, horizon=200))
def cifar10_mlp(settings: TaskSettings) -> Task:
    """MLP 3072-128-128-10 on CIFAR-10, the network of the PES paper's learned optimizer."""
    return mlp_task("cifar10", settings)


@register_task("mnist-conv", TaskSettings(hidden=(16, 32), batch_size=64, horizon=200))
def mnist_conv(settings: TaskSettings) -> Task:
    """Two convolutions on MNIST, 5,130 parameters."""
    return conv_task("mnist", settings)


@register_task("fashion-mnist-conv", TaskSettings(hidden=(16, 32), batch_size=64, horizon=200))
def fashion_mnist_conv(settings: TaskSettings) -> Task:
    """Two convolutions on Fashion-MNIST, 5,130 parameters."""
    return conv_task("fashion_mnist", settings)


@register_task("cifar10-conv", TaskSettings(hidden=(16, 32, 32), batch_size=64, horizon=200))
def cifar10_conv(settings: TaskSettings) -> Task:
    """Three convolutions on CIFAR-10, 14,666 parameters."""
    return conv_task("cifar10", settings)
