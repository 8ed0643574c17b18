"""An unlimited number of tasks that resemble other people's networks, small enough for one core."""

from __future__ import annotations

from inner_tasks.task import TaskDistribution, TaskSettings, register_task
from inner_tasks.tasks.families.autoencoder import autoencoder
from inner_tasks.tasks.families.digits_mlp import digits_mlp
from inner_tasks.tasks.families.digits_resnet import digits_resnet
from inner_tasks.tasks.families.ratings import ratings
from inner_tasks.tasks.families.table import table
from inner_tasks.tasks.families.teacher import teacher
from inner_tasks.tasks.families.text import text_gru, text_transformer

FAMILIES = {
    "digits-mlp": digits_mlp,
    "digits-resnet": digits_resnet,
    "text-transformer": text_transformer,
    "text-gru": text_gru,
    "autoencoder": autoencoder,
    "table": table,
    "teacher": teacher,
    "ratings": ratings,
}


@register_task("general-tasks", TaskSettings(hidden=(), batch_size=64, horizon=2_000))
def general_tasks(settings: TaskSettings) -> TaskDistribution:
    """Eight families of networks on digits, text, photographs, a table and synthetic data; no download.

    Every episode draws a new member. The settings are the largest batch size and the longest horizon; the
    families fix the widths of the hidden layers.
    """
    return TaskDistribution({name: family(settings) for name, family in FAMILIES.items()})
