"""A photograph as a function of the coordinates of its pixels."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from inner_tasks.networks import MLP, output
from inner_tasks.task import Params, Task, TaskSettings
from inner_tasks.tasks.patches import PatchData, load_patches

MAX_LOSS = 1.5  # predicting zero for a standardised pixel has a squared error of 1
EVERY = 8  # metrics are measured on every 8th row and column


class Pixels(NamedTuple):
    """A minibatch."""

    places: jax.Array  # float32 [batch, 2], in [-1, 1]
    values: jax.Array  # float32 [batch], standardised


def coordinates_mlp(settings: TaskSettings) -> Task:
    """Predicting the grey levels of a photograph from their coordinates; mean squared error.

    Sitzmann et al., "Implicit neural representations with periodic activation functions", 2020, for the task;
    the network here is an ordinary one, with tanh.
    """
    model = MLP(settings.hidden, 1, jax.nn.tanh)

    def pixels(image: jax.Array, rows: jax.Array, columns: jax.Array) -> Pixels:
        height, width = image.shape
        places = jnp.stack([rows / (height - 1), columns / (width - 1)], -1) * 2 - 1
        return Pixels(places, image[rows, columns])

    def sample(data: PatchData, key: jax.Array) -> Pixels:
        rows, columns = (
            jax.random.randint(key, (settings.batch_size,), 0, size)
            for key, size in zip(jax.random.split(key), data.train.shape, strict=True)
        )
        return pixels(data.train, rows, columns)

    def loss(params: Params, batch: Pixels) -> jax.Array:
        guesses = output(model, params, batch.places)[:, 0]
        return jnp.mean(jnp.square(guesses - batch.values))

    def metrics(params: Params, data: PatchData) -> dict[str, jax.Array]:
        """The loss on a grid of pixels."""
        height, width = data.train.shape
        rows, columns = jnp.meshgrid(jnp.arange(0, height, EVERY), jnp.arange(0, width, EVERY), indexing="ij")
        return {"validation_loss": loss(params, pixels(data.train, rows.reshape(-1), columns.reshape(-1)))}

    return Task(
        init=lambda key: model.init(key, jnp.zeros((1, 2)))["params"],
        sample=sample,
        loss=loss,
        metrics=metrics,
        load=lambda data_dir: load_patches(),
        horizon=settings.horizon,
        max_loss=MAX_LOSS,
        sample_validation=sample,  # a photograph has more pixels than a run draws
    )
