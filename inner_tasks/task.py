"""Inner tasks, which the inner optimizer trains, and their registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax

from learned_opt._src.errors import UserError, choices
from learned_opt._src.modules import import_module_of

Params = Any  # pytree of float arrays
Data = Any  # pytree of arrays, put on the device once
Batch = Any  # pytree of arrays


class Variables(NamedTuple):
    """The parameters of a model with mutable state, and that state."""

    params: Params  # trained by the optimizer
    state: Any  # pytree of arrays that the training steps change, such as batch statistics


def trained(params: Params | Variables) -> Params:
    """The part of what ``Task.init`` returns that the optimizer trains."""
    return params.params if isinstance(params, Variables) else params


class TaskSettings(NamedTuple):
    """The settings of a task that a user may change; a task ignores those it does not use."""

    hidden: tuple[int, ...] = (32,)  # widths of the hidden layers
    batch_size: int = 64  # examples per inner step
    horizon: int = 200  # T, inner steps per episode


@dataclass(frozen=True)
class Task:
    """A training problem: pure functions, and a loader for the data that they read.

    Attributes:
      init: ``key -> params``; the key is consumed.
      sample: ``(data, key) -> batch``, one training minibatch, drawn on the device.
      loss: ``(params, batch) -> scalar``, the training loss of a minibatch.
      metrics: ``(params, data) -> {name: scalar}``, measured on held-out data.
      load: ``data_dir -> data``; `data_dir` is the folder of the data, or None for the default.
      horizon: T, inner steps per episode.
      max_loss: the value at which a step's loss is clipped during meta-training; None does not clip.
      differentiable: False if the loss of a training step must not be differentiated a second time, with
        respect to the earlier updates of the optimizer.
      sample_validation: ``(data, key) -> batch``, a minibatch of held-out examples; None if there are none,
        in which case validation objectives cannot be used.
      accuracy: ``(params, batch) -> scalar``, the share of correct predictions; None if the task has no
        accuracy.
      num_steps: the number of steps passed to optimizers that take it: infinity if they are not to know it;
        None for the true number.
      loss_and_state: ``(variables, batch) -> (scalar, state)``, the training loss of a minibatch, and the
        state of the model afterwards. It is for models with mutable state: then ``init`` returns
        ``Variables``, and the other functions take them as ``params``. None if there is no such state.
    """

    init: Callable[[jax.Array], Params]
    sample: Callable[[Data, jax.Array], Batch]
    loss: Callable[[Params, Batch], jax.Array]
    metrics: Callable[[Params, Data], dict[str, jax.Array]]
    load: Callable[[Path | None], Data]
    horizon: int
    max_loss: float | None = None
    differentiable: bool = True
    sample_validation: Callable[[Data, jax.Array], Batch] | None = None
    accuracy: Callable[[Params, Batch], jax.Array] | None = None
    num_steps: jax.Array | None = None
    loss_and_state: Callable[[Variables, Batch], tuple[jax.Array, Any]] | None = None


@dataclass(frozen=True)
class TaskFamily:
    """Tasks of one shape that differ only in numbers, so that one compiled program serves all of them.

    Every episode of meta-training draws a new member.

    Attributes:
      draw: ``key -> variation``, a pytree of arrays that defines a member.
      member: ``variation -> task``. The functions of the task may use arrays of the variation, and its
        ``horizon`` may be an int32 [] and its ``max_loss`` a float [].
      load: ``data_dir -> data``, the same for all members.
      horizon: the longest T of a member.
      max_loss: meta-training scales the losses of each member so that its ``max_loss`` becomes this value; no
        member counts for more because its losses are large.
    """

    draw: Callable[[jax.Array], Any]
    member: Callable[[Any], Task]
    load: Callable[[Path | None], Data]
    horizon: int
    max_loss: float

    def example(self) -> Task:
        """A fixed member, as a task."""
        task = self.member(jax.jit(self.draw)(jax.random.key(0)))
        max_loss = None if task.max_loss is None else float(task.max_loss)
        return replace(task, horizon=int(task.horizon), max_loss=max_loss)


@dataclass(frozen=True)
class TaskDistribution:
    """Tasks of different shapes for meta-training on all of them together.

    Attributes:
      members: tasks or task families by name; the report of a run compares optimizers on each.
    """

    members: Mapping[str, Task | TaskFamily]


_DEFAULT_SETTINGS = TaskSettings()
Build = TypeVar("Build", bound=Callable[[TaskSettings], Task | TaskDistribution])


class Registration(NamedTuple):
    """A registered task."""

    build: Callable[[TaskSettings], Task | TaskDistribution]
    settings: TaskSettings  # the defaults


_REGISTRY: dict[str, Registration] = {}


def register_task(name: str, settings: TaskSettings = _DEFAULT_SETTINGS) -> Callable[[Build], Build]:
    """Register a task under a name for ``meta-train --task``.

    Args:
      name: the name.
      settings: the default settings.

    Returns:
      A decorator for the function that builds the task from its settings.

    Example::

        @register_task("rosenbrock", TaskSettings(horizon=100))
        def rosenbrock(settings: TaskSettings) -> Task:
            ...
    """

    def register(build: Build) -> Build:
        _REGISTRY[name] = Registration(build, settings)
        return build

    return register


def task_names() -> list[str]:
    """The registered names, in order of registration."""
    return list(_REGISTRY)


def find_task(name: str) -> Registration:
    """Return the task registered under a name.

    Args:
      name: a registered name; or ``module:name``, which imports the module first, for a task in your own
        file.

    Raises:
      UserError: no task has this name, or the module cannot be imported.
    """
    if ":" in name:
        import_module_of(name, "task")
    short = name.rpartition(":")[2]
    if short not in _REGISTRY:
        raise UserError(f"unknown task '{short}'; {choices(short, _REGISTRY)}")
    return _REGISTRY[short]
