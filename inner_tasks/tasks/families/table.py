"""Regression on a table with badly scaled columns."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from inner_tasks.datasets.table import Table, diabetes_table
from inner_tasks.networks import MLP, output
from inner_tasks.task import Params, TaskFamily, TaskSettings
from inner_tasks.tasks.families.family import Variation, drawn_activation, family, random_indices, shapes_of

COLUMNS = 10
HIDDEN = (16, 16, 16)
MAX_LOSS = 1.5  # predicting the mean of a standardised target has a squared error of 1


class Own(NamedTuple):
    """The part of a variation that only this family has."""

    depth: jax.Array  # int32 [], hidden layers, 1 to 3
    scales: jax.Array  # float32 [COLUMNS], standard deviations of the columns
    shifts: jax.Array  # float32 [COLUMNS], means of the columns in units of their standard deviations
    target_scale: jax.Array  # float32 [], standard deviation of the target
    target_shift: jax.Array  # float32 [], mean of the target in units of its standard deviation


class TableBatch(NamedTuple):
    """A minibatch."""

    inputs: jax.Array  # float32 [batch, COLUMNS]
    targets: jax.Array  # float32 [batch], standardised


def table(settings: TaskSettings) -> TaskFamily:
    """One to three hidden layers of 16 on scikit-learn's diabetes table, 10 columns; 737 parameters.

    Columns have standard deviations between 1/10 and 10 and means of up to two standard deviations. The
    network has to predict a target with a standard deviation between 1/30 and 30. The loss is the mean
    squared error in units of the target's variance.
    """

    def own(key: jax.Array) -> Own:
        depth, *between = jnp.split(jax.random.uniform(key, (2 * COLUMNS + 3,)), [1, COLUMNS + 2])
        exponents, shifts = (2 * uniform - 1 for uniform in between)
        return Own(
            depth=1 + (depth[0] * len(HIDDEN)).astype(jnp.int32),
            scales=10.0 ** exponents[1:],
            shifts=2 * shifts[1:],
            target_scale=30.0 ** exponents[0],
            target_shift=2 * shifts[0],
        )

    def draw(rows: Table, key: jax.Array, variation: Variation) -> TableBatch:
        count = rows.targets.shape[0]
        indices = random_indices(key, count, settings.batch_size, variation.examples)
        inputs = (rows.inputs[indices] + variation.own.shifts) * variation.own.scales
        return TableBatch(inputs, rows.targets[indices])

    def loss(params: Params, batch: TableBatch, variation: Variation) -> jax.Array:
        model = MLP(HIDDEN, 1, drawn_activation(variation.activation), variation.own.depth)
        guesses = output(model, params, batch.inputs)[:, 0]
        own = variation.own
        return jnp.mean(jnp.square(guesses / own.target_scale - own.target_shift - batch.targets))

    return family(
        shapes=shapes_of(MLP(HIDDEN, 1), jnp.zeros((1, COLUMNS))),
        load=lambda data_dir: jax.device_put(diabetes_table()),
        sample=lambda data, key, variation: draw(data.train, key, variation),
        loss=loss,
        max_loss=MAX_LOSS,
        settings=settings,
        sample_validation=lambda data, key, variation: draw(data.validation, key, variation),
        own=own,
    )
