"""What is unrolled: tasks, data sets, and the problems built on them.

To add a task: write it in one file with ``register_task``, and import that file here (or name it as
``--task your_module:name``).
"""

from __future__ import annotations

from inner_tasks import held_out, images, patches, teacher, text  # noqa: F401  (they register their tasks)
from inner_tasks.distribution import TaskDistribution
from inner_tasks.linear import LinearRecurrence
from inner_tasks.objectives import OBJECTIVES, Objective, find_objective
from inner_tasks.problem import UnrolledProblem
from inner_tasks.task import Registration, Task, TaskSettings, find_task, register_task, task_names
from inner_tasks.training import InnerState, Training

__all__ = [
    "InnerState",
    "OBJECTIVES",
    "LinearRecurrence",
    "Objective",
    "Registration",
    "Task",
    "TaskDistribution",
    "TaskSettings",
    "Training",
    "UnrolledProblem",
    "find_objective",
    "find_task",
    "register_task",
    "task_names",
]
