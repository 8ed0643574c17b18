"""Eight tasks for choosing architectures, settings and checkpoints of learned optimizers."""

from __future__ import annotations

import jax

from inner_tasks.datasets import IMAGE_SHAPES
from inner_tasks.networks import (
    LanguageGRU,
    LanguageTransformer,
    ResidualMLP,
    ResNet,
    VariationalAutoencoder,
)
from inner_tasks.task import TaskDistribution, TaskSettings, register_task
from inner_tasks.tasks.coordinates import coordinates_mlp
from inner_tasks.tasks.images import image_task
from inner_tasks.tasks.patches import PIXELS, patches_autoencoder
from inner_tasks.tasks.patients import patients_mlp
from inner_tasks.tasks.text import language_task
from inner_tasks.tasks.variational import variational
from inner_tasks.tasks.words import words_task

ALPHABET = 64


@register_task("development", TaskSettings(hidden=(), horizon=2000))
def development(settings: TaskSettings) -> TaskDistribution:
    """Eight tasks without a download that differ in size or kind from the meta-training tasks.

    They have 13,000 to 55,000 parameters; those of ``general-tasks`` have less than 4,000. Choices made on
    them are evaluated on ``held-out``, which shares no data with them. The setting ``horizon`` shortens
    longer tasks; the other settings are not used.
    """

    def plain(batch_size: int, horizon: int, hidden: tuple[int, ...] = ()) -> TaskSettings:
        return TaskSettings(hidden, batch_size, min(horizon, settings.horizon))

    transformer = LanguageTransformer(ALPHABET, width=48, heads=4, blocks=2)
    gru = LanguageGRU(ALPHABET, embedding=32, width=64)
    resnet = ResNet(IMAGE_SHAPES["digits"], (16, 32), outputs=10)
    residual = ResidualMLP(width=64, hidden=128, blocks=3, outputs=10)
    vae = VariationalAutoencoder((128,), 16, PIXELS, jax.nn.relu)
    return TaskDistribution(
        {
            "text-transformer 2 blocks of 48, batch 16": language_task(
                transformer, ALPHABET, 32, plain(16, 1000)
            ),
            "text-gru 64, batch 16": language_task(gru, ALPHABET, 32, plain(16, 1000)),
            "digits-resnet 16-32 group norm, batch 64": image_task("digits", resnet, plain(64, 500)),
            "digits-residual 3 blocks of 64-128, batch 32": image_task("digits", residual, plain(32, 1000)),
            "patches-vae 128-16-128 relu, batch 64": variational(
                patches_autoencoder(plain(64, 1000)), vae, weight=0.1
            ),
            "coordinates-mlp 96-96-96 tanh, batch 128": coordinates_mlp(plain(128, 2000, (96, 96, 96))),
            "patients-mlp 100-100 relu, batch 32": patients_mlp(plain(32, 500, (100, 100))),
            "words-bigram 800 words of 24, batch 128": words_task(800, 24, plain(128, 1000)),
        }
    )
