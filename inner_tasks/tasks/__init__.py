"""The tasks of this package, one per file; importing this folder registers them."""

# Names are listed in the order of registration, with the default first.
from inner_tasks.tasks import images

# isort: split
from inner_tasks.tasks import development, general_tasks, held_out, patches, small_tasks, teacher, text

__all__ = ["development", "general_tasks", "held_out", "images", "patches", "small_tasks", "teacher", "text"]
