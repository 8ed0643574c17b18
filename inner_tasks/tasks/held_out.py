"""Sixteen tasks for evaluating optimizers that were meta-trained on other tasks."""

from __future__ import annotations

from dataclasses import replace

import jax

from inner_tasks.datasets import IMAGE_SHAPES, IMAGE_SIZES
from inner_tasks.datasets.text import python_source
from inner_tasks.networks import (
    BatchNorm,
    LanguageGRU,
    LanguageTransformer,
    ResNet,
    VariationalAutoencoder,
    VisionTransformer,
)
from inner_tasks.task import TaskDistribution, TaskSettings, register_task
from inner_tasks.tasks.images import autoencoder_task, conv_task, image_task, mlp_task
from inner_tasks.tasks.metrics import minibatch_metrics
from inner_tasks.tasks.text import language_task
from inner_tasks.tasks.variational import variational


@register_task("held-out", TaskSettings(horizon=10_000))
def held_out(settings: TaskSettings) -> TaskDistribution:
    """Sixteen tasks on MNIST, CIFAR-10 and source code that differ from the meta-training tasks.

    They share no data sets with ``small-tasks``, ``general-tasks`` and ``development``, and their networks
    are larger: 8,000 to 800,000 parameters. Their parameters are in the units in which the networks are
    initialised. The first ten are MLPs and convolutional networks; the others are a transformer, a GRU, a
    residual network with batch norm, a variational autoencoder, a vision transformer, and a small MLP trained
    for 10,000 steps. The setting ``horizon`` shortens longer tasks; the other settings are not used.
    """

    def plain(hidden: tuple[int, ...], batch: int, horizon: int) -> TaskSettings:
        return TaskSettings(hidden, batch, min(horizon, settings.horizon))

    alphabet = 64
    transformer = LanguageTransformer(alphabet, width=64, heads=4, blocks=2)
    gru = LanguageGRU(alphabet, embedding=32, width=96)
    resnet = image_task("cifar10", ResNet((16, 16, 3), (16, 32), 10, BatchNorm), plain((), 64, 500), pool=2)
    vae = VariationalAutoencoder((128,), 16, IMAGE_SIZES["mnist"], jax.nn.relu)
    vit = VisionTransformer(IMAGE_SHAPES["cifar10"], side=8, width=64, heads=4, blocks=2, outputs=10)
    relu, tanh, gelu = jax.nn.relu, jax.nn.tanh, jax.nn.gelu
    return TaskDistribution(
        {
            "mnist-mlp 128-128 relu, batch 128": mlp_task("mnist", plain((128, 128), 128, 500), relu),
            "mnist-mlp 100-100-100-100 tanh, batch 64": mlp_task("mnist", plain((100,) * 4, 64, 2000), tanh),
            "mnist-mlp without hidden layer, batch 256": mlp_task("mnist", plain((), 256, 1000)),
            "mnist-conv 16-32 relu, batch 64": conv_task("mnist", plain((16, 32), 64, 1000), relu),
            "mnist-autoencoder 128-32-128 tanh, batch 128": autoencoder_task(
                "mnist", plain((128, 32, 128), 128, 1000), tanh
            ),
            "cifar10-mlp 128-128 relu, batch 128": mlp_task("cifar10", plain((128, 128), 128, 200), relu),
            "cifar10-mlp 256-256-256 gelu, batch 64": mlp_task("cifar10", plain((256,) * 3, 64, 500), gelu),
            "cifar10-mlp 512 relu, batch 32": mlp_task("cifar10", plain((512,), 32, 2000), relu),
            "cifar10-conv 16-32-32 relu, batch 64": conv_task("cifar10", plain((16, 32, 32), 64, 500), relu),
            "cifar10-conv 24-24-24-24 gelu, batch 32": conv_task("cifar10", plain((24,) * 4, 32, 2000), gelu),
            "source-transformer 2 blocks of 64, batch 16": language_task(
                transformer, alphabet, 32, plain((), 16, 1000), python_source
            ),
            "source-gru 96, batch 16": language_task(gru, alphabet, 32, plain((), 16, 1000), python_source),
            "cifar10-resnet 16-32 batch norm, 16x16 pixels, batch 64": replace(
                resnet, metrics=minibatch_metrics(resnet.loss, resnet.sample_validation or resnet.sample)
            ),
            "mnist-vae 128-16-128 relu, batch 128": variational(
                autoencoder_task("mnist", plain((), 128, 1000)), vae, weight=0.1
            ),
            "cifar10-vit 2 blocks of 64, batch 64": image_task("cifar10", vit, plain((), 64, 1000)),
            "mnist-mlp 64-64 relu, batch 32, 10,000 steps": mlp_task("mnist", plain((64, 64), 32, 10_000)),
        }
    )
