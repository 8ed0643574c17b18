"""Tasks, data sets, and the unrolled problems built on them.

To add a task, write it in one file in ``inner_tasks/tasks`` with ``register_task`` and import it in the
``__init__`` of that folder; or name it as ``--task your_module:name``.
"""

from __future__ import annotations

from inner_tasks import tasks as _tasks  # noqa: F401  (it registers the tasks)
from inner_tasks.objectives import OBJECTIVES, Objective, find_objective
from inner_tasks.own_task import make_task
from inner_tasks.problem import UnrolledProblem
from inner_tasks.problems.linear import LinearRecurrence
from inner_tasks.task import (
    Registration,
    Task,
    TaskDistribution,
    TaskFamily,
    TaskSettings,
    Variables,
    find_task,
    register_task,
    task_names,
)
from inner_tasks.training import FamilyTraining, InnerState, Training, training_of

__all__ = [
    "FamilyTraining",
    "InnerState",
    "OBJECTIVES",
    "LinearRecurrence",
    "Objective",
    "Registration",
    "Task",
    "TaskDistribution",
    "TaskFamily",
    "TaskSettings",
    "Training",
    "UnrolledProblem",
    "Variables",
    "find_objective",
    "find_task",
    "make_task",
    "register_task",
    "task_names",
    "training_of",
]
