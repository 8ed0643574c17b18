"""The tasks of this package, a file each; importing this folder registers them."""

from inner_tasks.tasks import (
    development,
    general_tasks,
    held_out,
    images,
    patches,
    small_tasks,
    teacher,
    text,
)

__all__ = ["development", "general_tasks", "held_out", "images", "patches", "small_tasks", "teacher", "text"]
