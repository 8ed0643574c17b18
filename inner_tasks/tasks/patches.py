"""Autoencoding patches of photographs."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from inner_tasks.networks import MLP, output
from inner_tasks.task import Params, Task, TaskSettings, register_task

SIDE = 8
PIXELS = SIDE * SIDE
# Predicting zero for standardised pixels has a mean squared error of 1.
MAX_LOSS = 1.5
VALIDATION_EXAMPLES = 1_000


class PatchData(NamedTuple):
    """Two greyscale photographs, standardised by the moments of the first."""

    train: jax.Array  # float32 [height, width]
    validation: jax.Array  # float32 [height, width]


@register_task("patches-autoencoder", TaskSettings(hidden=(64, 16, 64), batch_size=64, horizon=500))
def patches_autoencoder(settings: TaskSettings) -> Task:
    """An MLP autoencoder of patches of 8x8 pixels of a photograph; mean squared error.

    Training patches are from one of scikit-learn's two sample photographs, validation patches from the other.
    """
    model = MLP(settings.hidden, PIXELS, jax.nn.tanh)

    def init(key: jax.Array) -> Params:
        return model.init(key, jnp.zeros((1, PIXELS)))["params"]

    def loss(params: Params, batch: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(output(model, params, batch) - batch))

    def metrics(params: Params, data: PatchData) -> dict[str, jax.Array]:
        patches = random_patches(data.validation, jax.random.key(0), VALIDATION_EXAMPLES)
        return {"validation_loss": loss(params, patches)}

    return Task(
        init=init,
        sample=lambda data, key: random_patches(data.train, key, settings.batch_size),
        loss=loss,
        metrics=metrics,
        load=lambda data_dir: load_patches(),
        horizon=settings.horizon,
        max_loss=MAX_LOSS,
        sample_validation=lambda data, key: random_patches(data.validation, key, settings.batch_size),
    )


def load_patches() -> PatchData:
    """Load both photographs onto the device."""
    from sklearn.datasets import load_sample_image

    train, validation = (load_sample_image(name).mean(axis=2) for name in ("china.jpg", "flower.jpg"))
    mean, std = train.mean(), train.std()
    return PatchData(*jax.device_put([np.float32((image - mean) / std) for image in (train, validation)]))


def random_patches(image: jax.Array, key: jax.Array, count: int) -> jax.Array:
    """Patches from random places, float32 [count, PIXELS]."""
    corners = jax.random.randint(key, (count, 2), 0, jnp.array(image.shape) - SIDE + 1)
    return patches_at(image, corners)


def patches_at(image: jax.Array, corners: jax.Array) -> jax.Array:
    """Patches with the given upper left corners, int32 ``[count, 2]``; float32 [count, PIXELS]."""
    return jax.vmap(lambda corner: jax.lax.dynamic_slice(image, corner, (SIDE, SIDE)).reshape(-1))(corners)
