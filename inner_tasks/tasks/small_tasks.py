"""Sixteen small tasks: an optimizer that is meta-trained on them has to do well on all of them."""

from __future__ import annotations

import numpy as np

from inner_tasks.networks import ACTIVATIONS
from inner_tasks.task import TaskDistribution, TaskSettings, register_task
from inner_tasks.tasks.augmentation import reparametrised
from inner_tasks.tasks.images import conv_task, mlp_task
from inner_tasks.tasks.patches import patches_autoencoder
from inner_tasks.tasks.teacher import teacher_task
from inner_tasks.tasks.text import text_mlp
from learned_opt._src.errors import UserError

KINDS = ("digits-mlp", "teacher-mlp", "text-mlp", "patches-autoencoder", "digits-conv")
MEMBERS = 16


@register_task("small-tasks", TaskSettings(hidden=(64,), batch_size=128, horizon=2000))
def small_tasks(settings: TaskSettings) -> TaskDistribution:
    """Sixteen tasks on digits, text, photographs and random teachers; no download.

    The first is digits-mlp; the others are of five kinds, and drawn at random with a fixed seed: depth (1 to
    3) and widths (8 to ``settings.hidden[0]``), nonlinearity, batch size (8 to ``settings.batch_size``), the
    units of the parameters (up to 3 times larger or smaller), and the horizon (100 to ``settings.horizon``).
    Widths, batch sizes, units and horizons are log-uniform.
    """
    if not settings.hidden:
        raise UserError("small-tasks needs the largest width of a hidden layer, such as --task.hidden 64")
    rng = np.random.RandomState(0)  # its stream is the same in every version of NumPy
    plain = TaskSettings(hidden=(32,), batch_size=64, horizon=min(200, settings.horizon))
    members = {f"digits-mlp 32, batch 64, T {plain.horizon}": mlp_task("digits", plain)}

    def between(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(max(low, high)))))

    for number in range(1, MEMBERS):
        kind = KINDS[number % len(KINDS)]
        hidden = tuple(round(between(8, settings.hidden[0])) for _ in range(rng.randint(1, 4)))
        batch = round(between(8, settings.batch_size))
        horizon = round(between(min(100, settings.horizon), settings.horizon))
        scale, activation = between(1 / 3, 3), list(ACTIVATIONS)[rng.randint(len(ACTIVATIONS))]
        inputs, decay = round(between(8, 256)), rng.uniform(0, 1)
        own = TaskSettings(hidden, batch, horizon)
        act = ACTIVATIONS[activation]
        if kind == "digits-mlp":
            task = mlp_task("digits", own, act)
        elif kind == "digits-conv":
            own = own._replace(hidden=tuple(-(-width // 4) for width in hidden[:2]))
            task = conv_task("digits", own, act)
        elif kind == "teacher-mlp":
            task = teacher_task(inputs, decay, act, own)
            kind = f"teacher-mlp {inputs}"
        elif kind == "text-mlp":
            task, activation = text_mlp(own), "relu"
        else:
            task, activation = patches_autoencoder(own), "tanh"
        widths = "-".join(map(str, own.hidden))
        name = f"{kind} {widths} {activation}, batch {batch}, T {horizon}, units {scale:.2f}"
        members[name] = reparametrised(task, scale)
    return TaskDistribution(members)
