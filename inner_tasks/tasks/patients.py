"""Classifying patients by a table of raw measurements, in different units."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from inner_tasks.networks import MLP, output
from inner_tasks.task import Params, Task, TaskSettings

COLUMNS, CLASSES = 30, 2
TRAIN = 469  # rows; the remaining hundred are for validation
MAX_LOSS = 1.5 * math.log(CLASSES)


class Patients(NamedTuple):
    """Rows of the table."""

    inputs: jax.Array  # float32 [rows, COLUMNS], not standardised: their means are between 0.004 and 900
    labels: jax.Array  # int32 [rows]


class PatientsData(NamedTuple):
    """The table, split."""

    train: Patients
    validation: Patients


def patients_mlp(settings: TaskSettings) -> Task:
    """An MLP on scikit-learn's table of breast cancer patients, 30 columns; softmax cross-entropy."""
    model = MLP(settings.hidden, CLASSES)

    def draw(rows: Patients, key: jax.Array) -> Patients:
        indices = jax.random.randint(key, (settings.batch_size,), 0, rows.labels.shape[0])
        return Patients(rows.inputs[indices], rows.labels[indices])

    def loss(params: Params, batch: Patients) -> jax.Array:
        logits = output(model, params, batch.inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()

    return Task(
        init=lambda key: model.init(key, jnp.zeros((1, COLUMNS)))["params"],
        sample=lambda data, key: draw(data.train, key),
        loss=loss,
        metrics=lambda params, data: {"validation_loss": loss(params, data.validation)},
        load=lambda data_dir: _load(),
        horizon=settings.horizon,
        max_loss=MAX_LOSS,
        sample_validation=lambda data, key: draw(data.validation, key),
    )


def _load() -> PatientsData:
    from sklearn.datasets import load_breast_cancer

    inputs, labels = load_breast_cancer(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(labels))
    rows = inputs[order].astype(np.float32), labels[order].astype(np.int32)
    parts = (slice(TRAIN), slice(TRAIN, None))
    return PatientsData(*(Patients(*jax.device_put(tuple(x[part] for x in rows))) for part in parts))
