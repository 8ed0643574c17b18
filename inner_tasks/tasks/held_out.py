"""Ten tasks to judge an optimizer by that was meta-trained on ``small-tasks``."""

from __future__ import annotations

import jax

from inner_tasks.task import TaskDistribution, TaskSettings, register_task
from inner_tasks.tasks.images import autoencoder_task, conv_task, mlp_task


@register_task("held-out", TaskSettings(horizon=2000))
def held_out(settings: TaskSettings) -> TaskDistribution:
    """Ten tasks on MNIST and CIFAR-10, unlike those of ``small-tasks``.

    Their data sets are not among those of ``small-tasks``. Their dense layers are wider, 100 to 512 beside at
    most 64, and so are most convolutions; three are deeper or shallower than any there, and one has the
    horizon of 200 steps, three that of 2,000. They are in the units in which their networks are initialised.
    The setting ``horizon`` shortens those that are longer; the others are not used.
    """

    def plain(hidden: tuple[int, ...], batch: int, horizon: int) -> TaskSettings:
        return TaskSettings(hidden, batch, min(horizon, settings.horizon))

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
        }
    )
