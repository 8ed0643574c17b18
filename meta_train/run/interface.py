"""Meta-training as a function, for notebooks and scripts."""

from __future__ import annotations

import dataclasses
import io
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import optax
from rich.console import Console

import learned_opt
from inner_tasks import Task, TaskDistribution, TaskSettings, register_task, task_names
from learned_opt import UserError
from learned_opt._src.errors import choices
from meta_train.estimators.base import Theta
from meta_train.outer.loop import RunState, result
from meta_train.outer.optimizers import outer_optimizer
from meta_train.report.comparison import Comparison
from meta_train.report.suite import geometric_mean, print_suite
from meta_train.report.tables import card
from meta_train.run.config import Config, EvaluationConfig, default_config, validate
from meta_train.run.interrupt import StopRequest
from meta_train.run.learning import Record, compared, summary, updates
from meta_train.run.setup import Setup, origin, prepare, start

if TYPE_CHECKING:
    from meta_train.report.figures import Picture

# Settings of the command that `learn` does not have: it takes a task, logs nothing and writes nothing.
_WITHOUT = ("task", "wandb", "checkpoint_every")
_FREE = ("devices", "chunk")  # a number or "auto"
_GIVEN: set[str] = set()  # names of tasks that were given as objects


def _places() -> dict[str, tuple[str, str]]:
    """The settings that `learn` takes: the part of the configuration, and the name there, of each."""
    places: dict[str, tuple[str, str]] = {}
    for part in ("", "task", "estimator", "outer"):
        for field in dataclasses.fields(getattr(Config(), part) if part else Config):
            name = part if field.name == "name" else field.name
            if field.default is not dataclasses.MISSING and name not in _WITHOUT:
                places[f"{part}_{name}" if name in places else name] = (part, field.name)
    return places


def learn(
    task: str | Task | TaskDistribution,
    *,
    name: str = "my-task",
    start_from: str | Path | None = None,
    show: bool = True,
    **settings: Any,
) -> Learned:
    """Meta-train an optimizer, like the command ``meta-train``, and return it.

    Nothing is written to disk. An interruption (Ctrl-C, or the stop button of a notebook) stops it after the
    current update; ``learn_more`` continues it.

    Args:
      task: what the optimizer learns on: the name of a task, a task, or a distribution of tasks.
      name: what the report calls a task that is not given by its name.
      start_from: weights to start from: an optimizer file, a run folder, or the name of a pretrained
        optimizer. Without ``optimizer``, the architecture is theirs.
      show: whether to show progress.
      **settings: the settings of ``meta-train`` (docs/meta-training.md): ``optimizer``, ``estimator``,
        ``updates``, ``seed``, ``learn``; ``hidden``, ``batch_size``, ``horizon``, ``objective`` of the task;
        ``sigma``, ``truncation``, ``particles``, ``perturbation_period``, ``analytic`` of the estimator;
        ``outer_optimizer``, ``learning_rate``, ``final_fraction``, ``average`` of the outer loop;
        ``devices``, ``chunk``, ``data_dir``. The defaults are those of the command.

    Returns:
      The meta-training and its optimizer.

    Raises:
      UserError: a setting does not exist or is invalid.
      LearnedOptError: the meta-gradient stayed non-finite.

    Example::

        learned = meta_train.learn("digits-mlp", updates=200)
        tx = learned.optax(num_steps=1000)
    """
    if not isinstance(task, str):
        own = task
        task = name
        if name in task_names() and name not in _GIVEN:
            raise UserError(f"a task of this package is called '{name}'; give another name")
        _GIVEN.add(name)

        def build(settings: TaskSettings) -> Task | TaskDistribution:
            return dataclasses.replace(own, horizon=settings.horizon) if isinstance(own, Task) else own

        members = own.members.values() if isinstance(own, TaskDistribution) else [own]
        register_task(name, TaskSettings((), 1, max(each.horizon for each in members)))(build)
        fixed = {"hidden", "batch_size"} | ({"horizon"} if isinstance(own, TaskDistribution) else set())
        if given := settings.keys() & fixed:
            raise UserError(f"a task that is given as an object fixes {' and '.join(sorted(given))} itself")
    if start_from is not None:
        settings["start_from"] = str(start_from)
    defaults = default_config(task, settings.get("start_from"), settings.get("optimizer"))
    config = _configured(defaults, settings)
    validate(config)
    path = origin(config)
    weights = learned_opt.read(path) if path else None
    setup = prepare(config, weights.theta if weights else None)
    # A notebook pretends to be a terminal, but its cells show a live line as a heap of control characters.
    console = Console(quiet=not show, force_jupyter=False, force_terminal=sys.stdout.isatty())
    state = start(config, setup, weights.theta if weights else None)
    digest = weights.metadata["digest"] if weights else None
    return Learned(config, setup, state, digest, console).learn_more()


def _configured(config: Config, settings: Mapping[str, Any]) -> Config:
    """The configuration with some settings replaced."""
    places = _places()
    for name, value in settings.items():
        if name not in places:
            raise UserError(f"learn has no setting '{name}'; {choices(name, places)}")
        part, field = places[name]
        inside: Any = getattr(config, part) if part else config
        kind = type(getattr(inside, field))
        if kind is float and isinstance(value, int):
            value = float(value)
        elif kind is tuple and isinstance(value, list):
            value = tuple(value)
        elif name in _FREE:
            if value != "auto" and not isinstance(value, int):
                raise UserError(f"{name} is {value!r}; it must be a number or 'auto'")
        elif name == "perturbation_period" and not isinstance(value, int | None):
            raise UserError(f"{name} is {value!r}; it must be a number of steps")
        elif kind in (int, float, bool, str, tuple) and not isinstance(value, kind):
            raise UserError(f"{name} is {value!r}; it must be of the type {kind.__name__}")
        replaced: Any = dataclasses.replace(inside, **{field: value})
        config = dataclasses.replace(config, **{part: replaced}) if part else replaced
    return config


class Learned:
    """A meta-training and the optimizer that it learned, as ``learn`` returns it.

    In a notebook it shows itself as the curve of its meta-training.

    Attributes:
      config: the settings.
    """

    def __init__(
        self, config: Config, setup: Setup, state: RunState, start_from: str | None, console: Console
    ) -> None:
        self.config = config
        self._setup = setup
        self._state = state
        self._start_from = start_from
        self._console = console
        self._records: list[Record] = []
        self._comparisons: list[dict[str, Any]] = []

    @property
    def theta(self) -> Theta:
        """The weights, a nested dict of float32 arrays."""
        return jax.tree.map(np.asarray, self._setup.complete(result(self._state)))

    @property
    def metrics(self) -> dict[str, np.ndarray]:
        """The metrics of all updates by name, ``[updates]`` each; NaN where they were not finite."""
        names = self._records[-1] if self._records else {}
        return {name: np.array([record[name] for record in self._records], float) for name in names}

    def learn_more(self, more: int = 0) -> Learned:
        """Continue the meta-training: after an interruption, or beyond the planned number of updates.

        Args:
          more: number of updates to add to the planned ones; this also lengthens the schedule of the outer
            learning rate.

        Returns:
          This object.

        Raises:
          UserError: `more` is negative.
          LearnedOptError: the meta-gradient stayed non-finite.
        """
        if more < 0:
            raise UserError(f"more is {more}; it must be at least 0")
        if more:
            self.config = dataclasses.replace(self.config, updates=self.config.updates + more)
            longer = outer_optimizer(self.config.outer, self.config.updates)
            self._setup = self._setup._replace(outer_optimizer=longer)
        done, last = len(self._records), self.config.updates
        with (
            StopRequest(kills=False) as stop,  # in a notebook, the process is the user's session
            closing(updates(self._setup, self._state, done, last, self._console)) as made,
        ):
            for update, record in made:
                self._state = update.state
                self._records.append(record)
                if stop.requested() and update.number < last:
                    self._console.print(
                        f"stopped at update {update.number} of {last}; continue with learn_more()",
                        highlight=False,
                    )
                    break
        return self

    def optax(self, **options: Any) -> optax.GradientTransformationExtraArgs:
        """The optimizer as an optax transformation.

        Args:
          **options: those of ``learned_opt.as_optax``, such as ``num_steps`` and ``weight_decay``.
        """
        optimizer = learned_opt.get_architecture(self.config.optimizer)
        return learned_opt.as_optax(optimizer, self.theta, **options)

    def compare(
        self, *, steps: int | None = None, seeds: int | None = None, learning_rates: int | None = None
    ) -> Compared:
        """Compare the optimizer with tuned hand-designed ones, on unseen seeds, as a run does at its end.

        Args:
          steps: inner steps of each training run.
          seeds: number of training runs of each optimizer; learning rates are tuned on as many others.
          learning_rates: number of learning rates to try for each of the others.

        Returns:
          The comparison, on each member if the task is a distribution; in a notebook it shows itself as a
          table.
        """
        given = {"steps": steps, "seeds": seeds, "learning_rates": learning_rates}
        evaluation: EvaluationConfig = dataclasses.replace(
            self.config.evaluation, **{name: value for name, value in given.items() if value is not None}
        )
        validate(dataclasses.replace(self.config, evaluation=evaluation))
        suite = compared(
            self._setup,
            result(self._state),
            self.config.task.objective,
            evaluation,
            self._console,
            lambda: None,
        )
        self._comparisons += [card(comparison, "learned") for comparison in suite]
        return Compared(suite)

    def save(self, path: str | Path) -> None:
        """Write the optimizer file, which ``learned_opt.load`` reads, with the comparisons made so far."""
        said = summary(self.config, self._records, self._start_from)
        learned_opt.save(path, self.config.optimizer, self.theta, said, self._comparisons)

    def plot(self) -> Picture:
        """The meta-loss and the norm of the meta-gradient over the updates, a Matplotlib figure."""
        from meta_train.report.figures import draw_meta_training

        return draw_meta_training(self._records, None)

    def __repr__(self) -> str:
        done, last, config = len(self._records), self.config.updates, self.config
        return f"Learned({config.optimizer} on {config.task.name}, {done} of {last} updates)"

    def _repr_png_(self) -> bytes | None:
        return self.plot()._repr_png_() if self._records else None


class Compared:
    """A comparison that shows itself as a table, as ``Learned.compare`` returns it.

    Attributes:
      suite: the comparison on each task, with the losses of all runs.
    """

    def __init__(self, suite: Sequence[Comparison]) -> None:
        self.suite = suite

    @property
    def ratio_to_best(self) -> float:
        """Score of the learned optimizer divided by that of the best tuned one; below 1, it is better.

        On several tasks, the geometric mean.
        """
        return geometric_mean(each.ratio_to_best("learned") for each in self.suite)

    @property
    def ratio_to_adam(self) -> float:
        """Score of the learned optimizer divided by that of tuned Adam; likewise."""
        return geometric_mean(each.ratio_to_adam("learned") for each in self.suite)

    def plot(self) -> Picture:
        """The training curves of all optimizers, a Matplotlib figure."""
        from meta_train.report.figures import draw_training_curves

        return draw_training_curves(self.suite, None)

    def _table(self) -> Console:
        console = Console(
            record=True, file=io.StringIO(), width=90, force_jupyter=False, force_terminal=False
        )
        print_suite(self.suite, console)
        return console

    def __repr__(self) -> str:
        return self._table().export_text()

    def _repr_html_(self) -> str:
        style = "font-size: 13px; line-height: 1.3; white-space: pre; overflow-x: auto"
        return self._table().export_html(
            inline_styles=True, code_format=f'<pre style="{style}">{{code}}</pre>'
        )
