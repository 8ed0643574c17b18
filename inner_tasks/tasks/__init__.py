"""The tasks of this package, a file each; importing this folder registers them."""

from inner_tasks.tasks import held_out, images, patches, small_tasks, teacher, text

__all__ = ["held_out", "images", "patches", "small_tasks", "teacher", "text"]
