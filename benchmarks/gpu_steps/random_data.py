"""``mnist-mlp`` and ``cifar10-mlp`` on random images: the same shapes and speed, without a download."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from inner_tasks import Task, TaskSettings, find_task, register_task
from inner_tasks.datasets import IMAGE_SIZES, Split
from inner_tasks.tasks.images import NUM_CLASSES, ImageData

EXAMPLES = 50_000


def _random(dataset: str) -> ImageData:
    """Random examples in the number and size of the data set."""
    generator = np.random.default_rng(0)

    def split(count: int) -> Split:
        images = generator.integers(0, 256, (count, IMAGE_SIZES[dataset]), np.uint8)
        return Split(images, generator.integers(0, NUM_CLASSES, count, np.int32))

    data = ImageData(split(EXAMPLES), split(1000), split(1000), jnp.float32(127.5), jnp.float32(1 / 73.9))
    return jax.device_put(data)


def _register(dataset: str, name: str) -> None:
    registered = find_task(name)

    @register_task(f"random-{name}", registered.settings)
    def build(settings: TaskSettings) -> Task:
        def load(data_dir: Path | None) -> ImageData:
            return _random(dataset)

        return dataclasses.replace(registered.build(settings), load=load)


_register("mnist", "mnist-mlp")
_register("cifar10", "cifar10-mlp")
