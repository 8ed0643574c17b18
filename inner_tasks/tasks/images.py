"""Small networks on images: digits, MNIST, Fashion-MNIST, CIFAR-10; classification and autoencoding."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from inner_tasks.datasets import IMAGE_SHAPES, IMAGE_SIZES, Split, load_dataset, pooled
from inner_tasks.networks import MLP, Activation, ConvNet, output
from inner_tasks.task import Params, Task, TaskSettings, register_task

NUM_CLASSES = 10
# 1.5 times the loss of a uniform guess: an outer step does not distinguish losses above this.
MAX_LOSS = 1.5 * math.log(NUM_CLASSES)
# Predicting zero for standardised pixels has a mean squared error of 1.
MAX_SQUARED_ERROR = 1.5
METRICS_CHUNK = 1000


class ImageData(NamedTuple):
    """A data set on the device."""

    train: Split
    validation: Split  # for choices: objectives, and the tuning of a learning rate
    test: Split  # for reports only
    mean: jax.Array  # float32 [], of the training pixels
    # float32 [], 1 / standard deviation of the training pixels. It is computed once, on the host, because XLA
    # replaces a division by a product in some programs but not in others, which differ in the last bit.
    inverse_std: jax.Array


class ImageBatch(NamedTuple):
    """A minibatch."""

    images: jax.Array  # float32 [batch, pixels], standardised
    labels: jax.Array  # int32 [batch]


Measure = Callable[[jax.Array, ImageBatch], dict[str, jax.Array]]


def classification(logits: jax.Array, batch: ImageBatch) -> dict[str, jax.Array]:
    """Softmax cross-entropy in nats, and the share of correct predictions."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    correct = (jnp.argmax(logits, -1) == batch.labels).astype(jnp.float32)
    return {"loss": losses.mean(), "accuracy": correct.mean()}


def reconstruction(images: jax.Array, batch: ImageBatch) -> dict[str, jax.Array]:
    """Mean squared error of standardised pixels."""
    return {"loss": jnp.mean(jnp.square(images - batch.images))}


def image_task(
    dataset: str,
    model: nn.Module,
    settings: TaskSettings,
    measure: Measure = classification,
    max_loss: float = MAX_LOSS,
    pool: int = 1,
) -> Task:
    """Training a network on a data set of images.

    Images are standardised by the scalar mean and standard deviation of the training pixels. A
    minibatch is drawn with replacement.

    Args:
      dataset: name of the data set.
      model: a Flax module with input ``[batch, pixels]``.
      settings: batch size and horizon.
      measure: ``(outputs, batch) -> {name: scalar}``, means over the batch: the ``"loss"``, and any other
        metrics for the validation and test data.
      max_loss: the value at which a step's loss is clipped during meta-training.
      pool: factor by which height and width of the images are reduced.
    """

    def init(key: jax.Array) -> Params:
        return model.init(key, jnp.zeros((1, IMAGE_SIZES[dataset] // pool**2)))["params"]

    def sample(data: ImageData, split: Split, key: jax.Array) -> ImageBatch:
        return image_batch(
            data, split, jax.random.randint(key, (settings.batch_size,), 0, split.labels.shape[0])
        )

    def measured(params: Params, batch: ImageBatch) -> dict[str, jax.Array]:
        return measure(output(model, params, batch.images), batch)

    def metrics(params: Params, data: ImageData) -> dict[str, jax.Array]:
        """Means over the whole validation split, and over the whole test split."""

        def means(split: Split) -> dict[str, jax.Array]:
            def of_one(index: jax.Array) -> dict[str, jax.Array]:
                return measured(params, image_batch(data, split, index[None]))

            count = split.labels.shape[0]
            each = jax.lax.map(of_one, jnp.arange(count), batch_size=METRICS_CHUNK)
            return {name: values.mean() for name, values in each.items()}

        both = {"validation": data.validation, "test": data.test}
        return {f"{split}_{name}": mean for split, own in both.items() for name, mean in means(own).items()}

    return Task(
        init=init,
        sample=lambda data, key: sample(data, data.train, key),
        loss=lambda params, batch: measured(params, batch)["loss"],
        metrics=metrics,
        load=lambda data_dir: load_images(dataset, data_dir, pool),
        horizon=settings.horizon,
        max_loss=max_loss,
        sample_validation=lambda data, key: sample(data, data.validation, key),
        accuracy=(lambda params, batch: measured(params, batch)["accuracy"])
        if measure is classification
        else None,
    )


def load_images(dataset: str, data_dir: Path | None, pool: int = 1) -> ImageData:
    """Load a data set of images onto the device, with height and width divided by `pool`."""
    data = pooled(load_dataset(dataset, data_dir), IMAGE_SHAPES[dataset], pool)
    splits = data.train, data.validation, data.test
    return ImageData(*jax.device_put((*splits, data.mean, np.float32(1) / data.std)))


def image_batch(data: ImageData, split: Split, indices: jax.Array) -> ImageBatch:
    """Examples of a split, gathered and standardised on the device."""
    images = split.images[indices].astype(jnp.float32)
    return ImageBatch((images - data.mean) * data.inverse_std, split.labels[indices])


def mlp_task(dataset: str, settings: TaskSettings, activation: Activation = nn.relu, pool: int = 1) -> Task:
    """Classification by dense layers of widths ``settings.hidden``."""
    return image_task(dataset, MLP(settings.hidden, NUM_CLASSES, activation), settings, pool=pool)


def conv_task(dataset: str, settings: TaskSettings, activation: Activation = nn.relu) -> Task:
    """Classification by convolutions with ``settings.hidden`` channels."""
    model = ConvNet(IMAGE_SHAPES[dataset], settings.hidden, NUM_CLASSES, activation)
    return image_task(dataset, model, settings)


def autoencoder_task(dataset: str, settings: TaskSettings, activation: Activation = nn.tanh) -> Task:
    """An autoencoder with dense layers of widths ``settings.hidden``."""
    model = MLP(settings.hidden, IMAGE_SIZES[dataset], activation)
    return image_task(dataset, model, settings, reconstruction, MAX_SQUARED_ERROR)


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


@register_task("mnist-autoencoder", TaskSettings(hidden=(128, 32, 128), batch_size=128, horizon=500))
def mnist_autoencoder(settings: TaskSettings) -> Task:
    """An autoencoder of MNIST with a code of 32 numbers; mean squared error."""
    return autoencoder_task("mnist", settings)
